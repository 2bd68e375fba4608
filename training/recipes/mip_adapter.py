"""MIP-Adapter: several references, each with its object's name, beside the caption.

Huang et al., "Resolving Multi-Condition Confusion for Finetuning-Free Personalized Image Generation" (2024), on
IP-Adapter (Ye et al., 2023) for Stable Diffusion XL, as published, or 1.5. A CLIP image encoder embeds each reference,
a projection turns the embedding into four tokens, and each cross-attention layer of the U-Net attends to them beside
the text; `training.merge` weights the references at each position. The U-Net learns to draw the picture that the
references were cut out of; the loss is the noise loss alone.

Starting from the published IP-Adapter, only the layers beside the cross-attention are trained: keys and values of
references, and the predictor. A model that starts from random weights also trains its projection, its U-Net and its
encoders.

As in the published trainer (hqhQAQ/MIP-Adapter) the picture is cut to a square that holds all boxes and is not
mirrored, references have a white background, holes of their masks are filled, and the text of each is the single word
that names its object. In sampling, captions and names are empty in the unconditional half of the batch. Unlike the
published trainer, the loop clips gradients (field `clip`).

A batch holds

    keys                 list of B str
    pixel_values         [B, 3, R, R] float32 in [-1, 1]
    input_ids            [B, L] int64, for SDXL [B, 2 L]; the empty caption if the text is dropped
    sizes                [B, 6] int64, as `training.geometry.sizes_of` computes them
    image_kept           [B] bool, False if the references are dropped
    object_mask          [B, M] bool, which of the M are objects
    object_pixel_values  [B, M, 3, r, r] float32 in [0, 1], references
    object_input_ids     [B, M, S] int64, for SDXL [B, M, 2 S], each object's name, tokenized separately
    object_token_mask    [B, M, S] bool, which of these are words; start, end and padding are not
    object_segmentation  [B, M, R, R] float32, 0 or 1
    object_bbox          [B, M, 4] float32, visible part of the detector's box, xywh in pixels of the square
    skipped              list of str, a line for each sample that could not be read
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from transformers import CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from schemas.boxes import union
from schemas.samples.mip_adapter import ObjectField, Record
from training import diffusion
from training.adapter import (
    IMAGE_ENCODER,
    IP_ADAPTER,
    XL_WEIGHTS,
    Adapter,
    ImageProjection,
    Resampler,
    load_adapter,
    weights_file,
)
from training.configs.mip_adapter import PRESETS, Config
from training.diffusion import (
    STABLE_DIFFUSION_XL,
    XL_LAYOUT,
    Batch,
    LatentDiffusion,
    first_sample,
    is_trained,
    load_stable_diffusion,
    loading,
    normalize_for_clip,
)
from training.drops import Drop, Drops, DropTable, draw
from training.geometry import crop_window, decode, open_jpeg, sizes_of, window_of
from training.guidance import Conditions
from training.merge import MERGES, References, adapt
from training.recipe import Training
from training.references import WHITE, Region, check_annotation, cut_out, find_region, to_square
from training.shards import Pixels, Raw
from training.small import WIDTH, seeded, small_image_config, small_parts
from training.tokenizer import tokenize
from training.weights.files import write_weights
from training.weights.ip_adapter import to_released

NAME_LENGTH = 16
"""Tokens of an object's name, start and end included; a longer name is cut."""


def drop_table(config: Config) -> DropTable:
    """References and caption are dropped per sample, alone or together."""
    return {
        "sample": Drops(
            exclusive=(
                Drop(config.image_dropped, frozenset({"references"})),
                Drop(config.text_dropped, frozenset({"caption"})),
                Drop(config.both_dropped, frozenset({"references", "caption"})),
            )
        )
    }


def texts(raw: Raw) -> list[str]:
    """The caption and the objects' names."""
    record = _record(raw)
    return [record.caption, *(thing.name for thing in record.objects)]


def view(
    raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config
) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    objects = highest_scores(record.objects, config.max_objects)
    augmenting = rng if config.augment else None
    window = window_of(record.width, record.height, reduce(union, [thing.bbox for thing in objects]), augmenting)
    crop = crop_window(record.height, window, config.resolution, mirrored=False)
    dropped = draw(drop_table(config), "sample", rng)
    kept: list[tuple[ObjectField, Region]] = []
    for thing in objects:
        check_annotation(thing, record.caption, record.width, record.height)
        if (region := find_region(thing, crop)) is not None:
            kept.append((thing, region))
    picture = decode(opened, crop, [region.bbox for _, region in kept], config.reference)

    most, side, small = config.max_objects, config.resolution, config.reference
    references = np.zeros((most, small, small, 3), np.uint8)
    segmentation = np.zeros((most, side, side), bool)
    boxes = np.zeros((most, 4), np.float32)
    pixels = np.asarray(picture)
    for j, (thing, region) in enumerate(kept):
        references[j] = reference_of(pixels, region, small, augmenting)
        segmentation[j], boxes[j] = region.cropped, crop.crop_box(thing.bbox)
    # An empty name, which is tokenized as start and end alone, fills the places without an object.
    name_ids, words = name_tokens([thing.name for thing, _ in kept] + [""] * (most - len(kept)), tokenizers)
    caption = "" if "caption" in dropped else record.caption
    cropped = np.ascontiguousarray(crop.crop_picture(picture).transpose(2, 0, 1))
    return {
        "pixel_values": Pixels(torch.from_numpy(cropped), -1, 1),
        "input_ids": tokenize([caption], tokenizers)[0],
        "sizes": torch.tensor(sizes_of(record.width, crop)),
        "image_kept": torch.tensor("references" not in dropped),
        "object_mask": torch.arange(most) < len(kept),
        "object_pixel_values": Pixels(torch.from_numpy(references).permute(0, 3, 1, 2), 0, 1),
        "object_input_ids": name_ids,
        "object_token_mask": words,
        "object_segmentation": Pixels(torch.from_numpy(segmentation), 0, 1),
        "object_bbox": torch.from_numpy(boxes),
    }


def highest_scores(objects: Sequence[ObjectField], most: int) -> list[ObjectField]:
    """The `most` objects of highest detection score, of equal ones the first; they keep their order."""
    ranked = sorted(range(len(objects)), key=lambda index: -objects[index].score)
    return [objects[index] for index in sorted(ranked[:most])]


def reference_of(
    pixels: NDArray[np.uint8], region: Region, side: int, rng: np.random.Generator | None
) -> NDArray[np.uint8]:
    """Put an object on a white square, mirrored with probability 0.5 if `rng` is given: [side, side, 3] uint8.

    Holes of its mask show the picture.
    """
    x, y, width, height = region.bbox
    mask, box = region.mask.copy(), np.s_[y : y + height, x : x + width]
    mask[box] = ndimage.binary_fill_holes(mask[box])
    square: Image.Image = to_square(cut_out(pixels, mask, region.bbox, None), side, WHITE)
    if rng is not None and rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square)


def name_tokens(names: Sequence[str], tokenizers: Sequence[CLIPTokenizer]) -> tuple[Tensor, Tensor]:
    """Tokenize N names for each of E text encoders, and tell words from start, end and padding.

    Returns:
        Ids [N, E S] int64, and which of the S positions hold a word, [N, S] bool, according to the first tokenizer. S
        is `NAME_LENGTH`, not the caption's length: text encoders are causal, so further padding would change nothing.
    """
    ids = tokenize(names, tokenizers, NAME_LENGTH)
    # CLIP pads with its end token: words are what stands between the start and the first of these.
    ends = ids[:, :NAME_LENGTH] == tokenizers[0].eos_token_id
    return ids, (ends.cumsum(1) == 0) & (torch.arange(NAME_LENGTH) > 0)


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts, an image encoder and the adapter."""

    image_encoder: CLIPVisionModelWithProjection
    adapter: Adapter


def load(folder: str | Path = STABLE_DIFFUSION_XL, ip_adapter: str | Path = IP_ADAPTER) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5 or XL.

    A folder with `ip-adapter_sd15.safetensors` or `ip-adapter_sdxl.safetensors`, such as `Model.save` writes, also has
    the `image_encoder/`. For a plain Stable Diffusion both are loaded from `ip_adapter`, a folder or the hub's name of
    one, there or in its `models/` (1.5) or `sdxl_models/`.

    Raises:
        ModelError: something is missing or of another kind.
    """
    base = load_stable_diffusion(folder, allow_xl=True)
    weights = weights_file(base["unet"])
    source = folder if (Path(folder) / weights).is_file() else ip_adapter
    inner = "" if (Path(source) / weights).is_file() else "sdxl_models" if weights == XL_WEIGHTS else "models"
    parts = f"IP-Adapter's {weights} and {IMAGE_ENCODER}/"
    layout = (
        f"{XL_LAYOUT}, with {parts}" if source == folder else f"the layout of {parts}, which {folder} does not hold"
    )
    with loading(source, layout):
        return Parts(
            **base,
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(
                source, subfolder=str(Path(inner, IMAGE_ENCODER)), dtype=torch.float32
            ),
            adapter=load_adapter(cached_file(source, weights, subfolder=inner), base["unet"]),
        )


def small(folder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Make small parts: those of `training.small.small_parts`, with image encoder and adapter of random weights."""
    base = small_parts(folder, texts, seed)
    with seeded(seed):
        vision = CLIPVisionModelWithProjection(small_image_config())
        return Parts(**vars(base), image_encoder=vision, adapter=Adapter(base.unet, ImageProjection(WIDTH, WIDTH)))


class Model(LatentDiffusion):
    """A MIP-Adapter model.

    Args:
        parts: the networks, trained in place.
        config: says which of them are trained, and the merge; the same weights serve all three merges.

    Attributes:
        scale: weight of the references in sampling; in training it is 1.
    """

    sampling_steps = 30
    parts: Parts
    image_encoder: CLIPVisionModelWithProjection
    adapter: Adapter

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts)
        self.scale = config.scale
        adapt(self.unet, self.adapter.layers, MERGES[config.merge])
        self.train_text_encoders(config.train_encoders)
        for part in (self.image_encoder, self.unet, self.adapter.image_proj):
            part.requires_grad_(config.train_encoders)
        if isinstance(self.adapter.image_proj, Resampler):  # which reads the outputs of the last layer but one
            vision = self.image_encoder.vision_model
            for unused in (vision.encoder.layers[-1], vision.post_layernorm, self.image_encoder.visual_projection):
                unused.requires_grad_(False)
        for layer in self.adapter.layers:
            layer.requires_grad_(True)
            layer.text_to_weight.requires_grad_(config.merge != "uniform")  # which does not use it

    def conditions(self, batch: Batch) -> Conditions:
        """The captions, and the references that the U-Net merges into them."""
        return {**super().conditions(batch), "cross_attention_kwargs": {"references": self.embed_references(batch)}}

    def unconditional(self, batch: Batch) -> Batch:
        """Neither caption nor references nor names.

        As in the published code, the positions where the names' words were still count as words in relevance.
        """
        names = tokenize([""], self.parts.tokenizers, NAME_LENGTH).to(batch["object_input_ids"].device)
        return {
            **super().unconditional(batch),
            "image_kept": torch.zeros_like(batch["image_kept"]),
            "object_input_ids": names.expand_as(batch["object_input_ids"]),
        }

    def sampling_conditions(self, batch: Batch, steps: int) -> list[Conditions]:
        """Conditions as in the base class, with references weighted by `scale`."""
        return [self._scaled(conditions) for conditions in super().sampling_conditions(batch, steps)]

    def _scaled(self, conditions: Conditions) -> Conditions:
        references = replace(conditions["cross_attention_kwargs"]["references"], scale=self.scale)
        return {**conditions, "cross_attention_kwargs": {"references": references}}

    def embed_references(self, batch: Batch) -> References:
        """Embed a batch's references and their names.

        If the references are dropped, their image embeddings are zero, as in IP-Adapter's training; for a plus model,
        their normalized pixels are.
        """
        names = batch["object_input_ids"]
        with torch.no_grad():  # the relevances computed from them carry no gradient
            texts = self.encode_text(names.flatten(0, 1))
        kept = batch["image_kept"].repeat_interleave(names.shape[1])
        tokens = self.adapter.image_proj(self.embed(batch["object_pixel_values"].flatten(0, 1), kept))
        tokens = tokens.unflatten(0, names.shape[:2])
        if "object_tokens" in batch:
            tokens = torch.where(batch["image_kept"][:, None, None, None], batch["object_tokens"].to(tokens), tokens)
        return References(
            tokens=tokens,
            texts=texts.unflatten(0, names.shape[:2]),
            words=batch["object_token_mask"],
            valid=batch["object_mask"],
        )

    def embed(self, references: Tensor, kept: Tensor) -> Tensor:
        """Embed references for the projection.

        Args:
            references: [N, 3, h, w] float32 in [0, 1].
            kept: which of them are not dropped, [N] bool.

        Returns:
            [N, E]; for a plus model the image encoder's outputs before its last layer, [N, P, E].
        """
        pixels = normalize_for_clip(references, self.image_encoder.config.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.image_encoder)):
            if isinstance(self.adapter.image_proj, Resampler):
                shown = pixels * kept[:, None, None, None]
                return self.image_encoder(shown, output_hidden_states=True).hidden_states[-2]
            return self.image_encoder(pixels).image_embeds * kept[:, None]

    @torch.no_grad()
    def average_references(self, batch: Batch) -> Batch:
        """The first sample alone, with the mean image tokens of each of its objects over all samples of the batch."""
        return {**first_sample(batch), "object_tokens": self.embed_references(batch).tokens.mean(0, keepdim=True)}

    def references(self, batch: Batch) -> Tensor:
        """The objects' references, [B, M, 3, h, w] float32 in [0, 1]."""
        return batch["object_pixel_values"]

    def save(self, folder: Path) -> None:
        """Write the model as the base class does, with the adapter in IP-Adapter's file beside.

        diffusers' own `load_ip_adapter` loads that too: without the predictor, as a plain IP-Adapter.
        """
        super().save(folder)
        write_weights(folder / weights_file(self.unet), to_released(self.adapter.state_dict()))


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
