"""FastComposer: subjects in the text, and attention restricted to their masks.

Xiao et al., "FastComposer: Tuning-Free Multi-Subject Image Generation with Localized Attention" (2023). A CLIP image
encoder embeds each subject's reference; a small network fuses the embedding with the text token that carries the
subject; the U-Net learns to draw the picture from the fused text:

    L = L_noise + 0.001 L_loc

A batch holds

    keys                   list of B str
    pixel_values           [B, 3, R, R] float32 in [-1, 1]
    input_ids              [B, L] int64
    subject_token_mask     [B, L] bool, the subjects' tokens
    subject_token_index    [B, M] int64, their positions; 0 beyond the sample's subjects
    subject_mask           [B, M] bool, which of the M are subjects
    subject_pixel_values   [B, M, 3, r, r] float32 in [0, 1], references
    subject_segmentation   [B, M, R, R] float32, 0 or 1
    num_subjects           [B] int64
    skipped                list of str, a line for each sample that could not be read
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from transformers import CLIPTokenizer, CLIPVisionModelWithProjection

from schemas.samples.fastcomposer import Record, Subject
from training import diffusion
from training.configs.fastcomposer import PRESETS, Config
from training.diffusion import (
    LAYOUT,
    STABLE_DIFFUSION,
    Batch,
    Draws,
    LatentDiffusion,
    first_sample,
    load_stable_diffusion,
    loading,
    normalize_for_clip,
)
from training.drops import Drop, Drops, DropTable, draw
from training.geometry import crop_height, decode, draw_mirrored, open_jpeg
from training.guidance import Conditions
from training.localization import Subjects, localize
from training.recipe import Training
from training.references import Region, augment, check_annotation, cut_out, draw_noise, find_region, to_square
from training.shards import Pixels, Raw
from training.small import WIDTH, seeded, small_image_config, small_parts
from training.tokenizer import locate

IMAGE_ENCODER = "openai/clip-vit-large-patch14"


def drop_table(config: Config) -> DropTable:
    """Caption and subjects are dropped per sample, single subjects on their own, the background from the loss."""
    return {
        "sample": Drops(
            exclusive=(
                Drop(config.unconditional, frozenset({"caption", "subjects"})),
                Drop(config.text_only, frozenset({"subjects"})),
            )
        ),
        "object": Drops(independent=(Drop(1 - config.subject_kept, frozenset({"subject"})),)),
        "batch": Drops(independent=(Drop(config.mask_probability, frozenset({"background"})),)),
    }


def texts(raw: Raw) -> list[str]:
    """The caption."""
    return [_record(raw).caption]


def view(raw: Raw, rng: np.random.Generator, tokenizer: CLIPTokenizer, config: Config) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    mirrored = config.mirror and draw_mirrored(record.caption, rng)
    crop = crop_height(record.width, record.height, config.resolution, mirrored=mirrored)
    caption, subjects = choose(record, config, rng)
    ids, positions = locate(caption, subjects, tokenizer)
    kept: list[tuple[int, Region]] = []
    for subject, position in zip(subjects, positions, strict=True):
        check_annotation(subject, record.caption, record.width, record.height)
        region = None if position is None else find_region(subject, crop)
        if position is not None and region is not None:
            kept.append((position, region))
    boxes = [region.bbox for _, region in kept]
    picture = decode(opened, crop, boxes, config.reference)

    most, side, small = config.max_subjects, config.resolution, config.reference
    index = np.zeros(most, np.int64)
    segmentation = np.zeros((most, side, side), bool)
    references = np.zeros((most, small, small, 3), np.uint8)
    pixels = np.asarray(picture)
    noise = draw_noise((record.height, record.width), pixels.shape[:2], boxes, rng)
    for j, (position, region) in enumerate(kept):
        cut = cut_out(pixels, region.mask, region.bbox, noise)
        references[j] = augment(cut, small, rng) if config.augment else np.asarray(to_square(cut, small))
        index[j], segmentation[j] = position, region.cropped
    token_mask = np.zeros(len(ids), bool)
    token_mask[index[: len(kept)]] = True
    cropped = np.ascontiguousarray(crop.crop_picture(picture).transpose(2, 0, 1))
    return {
        "pixel_values": Pixels(torch.from_numpy(cropped), -1, 1),
        "input_ids": torch.tensor(ids),
        "subject_token_mask": torch.from_numpy(token_mask),
        "subject_token_index": torch.from_numpy(index),
        "subject_mask": torch.arange(most) < len(kept),
        "subject_pixel_values": Pixels(torch.from_numpy(references).permute(0, 3, 1, 2), 0, 1),
        "subject_segmentation": Pixels(torch.from_numpy(segmentation), 0, 1),
        "num_subjects": torch.tensor(len(kept)),
    }


def choose(record: Record, config: Config, rng: np.random.Generator) -> tuple[str, list[Subject]]:
    """Draw which caption, "" if dropped, and which subjects a sample shows, these in the order of their phrases' ends.

    Of more subjects than `max_subjects`, as many are chosen at random.
    """
    table = drop_table(config)
    dropped = draw(table, "sample", rng)
    caption = "" if "caption" in dropped else record.caption
    if "subjects" in dropped:
        return caption, []
    subjects = [subject for subject in record.subjects if not config.labels or subject.label in config.labels]
    subjects = [subject for subject in subjects if not draw(table, "object", rng)]
    if len(subjects) > config.max_subjects:
        chosen = rng.choice(len(subjects), config.max_subjects, replace=False)
        subjects = [subjects[i] for i in sorted(chosen)]
    return caption, sorted(subjects, key=lambda subject: subject.end)


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))


class Fuser(ModelMixin, ConfigMixin):
    """Fuses a reference's embedding into the token that names its subject (FastComposer, section 4.1).

    `x = text + MLP([text, image])`, `LayerNorm(x + MLP(x))`; each MLP starts with its own LayerNorm.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, text_width: int, image_width: int) -> None:
        super().__init__()
        self.join = _mlp(text_width + image_width, text_width)
        self.refine = _mlp(text_width, text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Fuse tokens [N, D] float with embeddings [N, E] float: [N, D]."""
        fused = text + self.join(torch.cat([text, image], dim=-1))
        return self.norm(fused + self.refine(fused))


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts, an image encoder and the fuser."""

    image_encoder: CLIPVisionModelWithProjection
    fuser: Fuser


def load(folder: str | Path = STABLE_DIFFUSION, image_encoder: str | Path = IMAGE_ENCODER) -> Parts:
    """Load a model from a folder (or the hub's name of one) in Stable Diffusion 1.5's layout.

    A folder that `Model.save` wrote also holds the image encoder and the fuser. For a plain Stable Diffusion the image
    encoder is loaded from `image_encoder`, and the fuser starts with random weights.

    Raises:
        ModelError: something is missing or of another kind.
    """
    saved = (Path(folder) / "fuser").is_dir()
    base = load_stable_diffusion(folder)
    with loading(folder, LAYOUT):
        vision = CLIPVisionModelWithProjection.from_pretrained(
            folder if saved else image_encoder,
            dtype=torch.float32,
            **({"subfolder": "image_encoder"} if saved else {}),
        )
        widths = base["text_encoder"].config.hidden_size, vision.config.projection_dim
        fuser = Fuser.from_pretrained(folder, subfolder="fuser") if saved else Fuser(*widths)
        return Parts(**base, image_encoder=vision, fuser=fuser)


def small(folder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Make small parts: those of `training.small.small_parts`, with image encoder and fuser of random weights."""
    base = small_parts(folder, texts, seed)
    with seeded(seed):
        vision = CLIPVisionModelWithProjection(small_image_config())
        return Parts(**vars(base), image_encoder=vision, fuser=Fuser(WIDTH, WIDTH))


class Model(LatentDiffusion):
    """A FastComposer model.

    Args:
        parts: the networks, trained in place.
        config: says which of them are trained, and the weights of the losses.

    Attributes:
        subject_share: share of the sampling steps, the last ones, that use the subjects. The first ones use the text
            alone and settle the layout: delayed subject conditioning, section 4.3 of the paper.
    """

    guidance = 5.0
    parts: Parts
    image_encoder: CLIPVisionModelWithProjection
    fuser: Fuser

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts, drop_table(config))
        self.localization_weight, self.count_empty = config.localization_weight, config.count_empty
        self.subject_share = config.subject_share
        self.masks_noise = config.mask_probability > 0
        localize(self.unet)
        self.text_encoder.requires_grad_(config.train_encoders)
        self.image_encoder.requires_grad_(config.train_encoders)
        blocks = self.image_encoder.vision_model.encoder.layers
        for block in blocks[max(0, len(blocks) - config.trained_blocks) :]:
            block.requires_grad_(True)

    @property
    def tools(self) -> CLIPTokenizer:
        """The tokenizer."""
        return self.tokenizer

    def conditions(self, batch: Batch) -> Conditions:
        """The fused text, and `subjects` whose attention the U-Net records."""
        subjects = Subjects(batch["subject_token_index"], batch["subject_mask"])
        return {"encoder_hidden_states": self.fused_text(batch), "cross_attention_kwargs": {"subjects": subjects}}

    def weight(self, batch: Batch, draws: Draws, size: tuple[int, int]) -> Tensor | None:
        """The subjects' masks if the background is dropped."""
        if "background" not in draws.dropped:
            return None
        weight = subject_weight(batch["subject_segmentation"], batch["subject_mask"], size)
        empty = ~batch["subject_mask"].any(dim=1)[:, None, None, None]
        return weight.masked_fill(empty, 1) if self.count_empty else weight

    def penalty(self, batch: Batch, conditions: Conditions) -> Mapping[str, tuple[float, Tensor]]:
        """The localization loss."""
        subjects: Subjects = conditions["cross_attention_kwargs"]["subjects"]
        return {"localization": (self.localization_weight, subjects.loss(batch["subject_segmentation"]))}

    def fused_text(self, batch: Batch) -> Tensor:
        """Encode captions and fuse the subjects' references into their tokens: [B, L, D]."""
        text = self.encode_text(batch["input_ids"])
        rows, columns = torch.nonzero(batch["subject_mask"], as_tuple=True)
        none = len(rows) == 0
        if none:  # encode one reference all the same: each parameter has a gradient at every step, in every process
            rows = columns = torch.zeros(1, dtype=torch.long, device=text.device)
        positions = batch["subject_token_index"][rows, columns]
        tokens = text[rows, positions]
        if "subject_embeddings" in batch:
            embedded = batch["subject_embeddings"][rows, columns]
        else:
            embedded = self.embed(batch["subject_pixel_values"][rows, columns])
        fused = self.fuser(tokens, embedded)
        return text.index_put((rows, positions), (tokens + 0 * fused if none else fused).to(text.dtype))

    def embed(self, references: Tensor) -> Tensor:
        """Embed references [N, 3, h, w] float32 in [0, 1]: [N, E]."""
        return self.image_encoder(normalize_for_clip(references, self.image_encoder.config.image_size)).image_embeds

    @torch.no_grad()
    def average_references(self, batch: Batch) -> Batch:
        """The first sample alone, with the mean embedding of each of its subjects over all samples of the batch."""
        embedded = self.embed(batch["subject_pixel_values"].flatten(0, 1)).unflatten(0, batch["subject_mask"].shape)
        return {**first_sample(batch), "subject_embeddings": embedded.mean(0, keepdim=True)}

    def references(self, batch: Batch) -> Tensor:
        """The subjects' references, [B, M, 3, h, w] float32 in [0, 1]."""
        return batch["subject_pixel_values"]

    def sampling_conditions(self, batch: Batch, steps: int) -> list[Conditions]:
        """The text alone in the first steps, the fused text in the last `subject_share` of them."""
        empty = self.encode_text(self.unconditional(batch)["input_ids"])
        plain, fused = (
            {"encoder_hidden_states": torch.cat([empty, text])}
            for text in (self.encode_text(batch["input_ids"]), self.fused_text(batch))
        )
        delay = round((1 - self.subject_share) * steps)
        return [fused if number >= delay else plain for number in range(steps)]


def subject_weight(segmentation: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Weight of the masked noise loss: [B, 1, h, w] float32 in [0, 1], the union of the subjects' masks.

    As in the published trainer a sample without subjects has weight 0, and masks are reduced without antialiasing.

    Args:
        segmentation: masks [B, M, H, W] float in [0, 1].
        valid: which of the M are subjects, [B, M] bool.
        size: of the latents, (h, w).
    """
    kept = segmentation.float() * valid[:, :, None, None]
    return F.interpolate(kept.amax(dim=1, keepdim=True), size, mode="bilinear")


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
