"""GLIGEN: boxes with texts and pictures of what is in them, beside the caption.

Li et al., "GLIGEN: Open-Set Grounded Text-to-Image Generation" (2023), on Stable Diffusion 1.5. Each box becomes two
tokens, of its text's and of its crop's CLIP embedding, each with the Fourier features of its corners; gated layers
between the self- and the cross-attention of the U-Net attend to them. Only these new layers and the tokens' networks
learn; the loss is the noise loss. The networks are diffusers' (`attention_type="gated-text-image"`).

As in the published loader the picture's shorter side is scaled and its middle cut out, boxes of less than a hundredth
of the square are left out, and the largest 30 are kept, largest first. Of half of the boxes either the text or the
picture is dropped, half of the captions are empty, and a tenth of the batches has no boxes. The caption of a sample of
classes is the names of its boxes. Unlike there, a picture whose caption names a side is not mirrored.

A batch holds

    keys              list of B str
    pixel_values      [B, 3, R, R] float32 in [-1, 1]
    input_ids         [B, L] int64; the empty caption if the caption is dropped
    sizes             [B, 6] int64, as `training.geometry.sizes_of` computes them
    boxes             [B, 30, 4] float32 in [0, 1], left, top, right, bottom as shares of the square; 0 where none is
    masks             [B, 30] float32 in [0, 1], 1 for a box
    text_masks        [B, 30] float32 in [0, 1], 1 for a box that has its text
    image_masks       [B, 30] float32 in [0, 1], 1 for a box that has its picture
    text_embeddings   [B, 30, D] float32, CLIP's states of the texts before the projection
    image_embeddings  [B, 30, D] float32, CLIP's embeddings of the crops, reprojected
    skipped           list of str, a line for each sample that could not be read
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from schemas.errors import ConfigError, ModelError
from schemas.samples.gligen import BoxField, Record, read_array
from training.configs.gligen import PLACES, PRESETS, Config
from training.diffusion import STABLE_DIFFUSION, Batch, Draws, LatentDiffusion, Parts, load_stable_diffusion
from training.drops import Drop, Drops, DropTable, draw, drop_all
from training.geometry import Crop, crop_window, decode, draw_mirrored, open_jpeg, sizes_of
from training.guidance import Conditions
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import seeded, small_parts
from training.tokenizer import tokenize

GATED = "gated-text-image"
"""diffusers' name for gated attention to boxes with texts and pictures."""
MASKS = ("masks", "text_masks", "image_masks")


def drop_table(config: Config) -> DropTable:
    """Text or picture are dropped per box, the caption per sample, all boxes per batch."""
    half = config.feature_dropped / 2
    return {
        "object": Drops(exclusive=(Drop(half, frozenset({"text"})), Drop(half, frozenset({"image"})))),
        "sample": Drops(independent=(Drop(config.caption_dropped, frozenset({"caption"})),)),
        "batch": Drops(exclusive=(drop_all(config.grounding_dropped, ("grounding",)),)),
    }


def texts(raw: Raw) -> list[str]:
    """The caption and the boxes' texts."""
    record = _record(raw)
    return [record.caption, *(box.text for box in record.boxes)]


def view(
    raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config
) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    opened = open_jpeg(raw.get("jpg", b""), record.width, record.height)
    mirrored = config.mirror and draw_mirrored(record.caption, rng)
    length = min(record.width, record.height)
    window = (record.width - length) // 2, (record.height - length) // 2, length
    crop = crop_window(record.height, window, config.resolution, mirrored=mirrored)
    placed = place_boxes(record.boxes, crop, config.min_box)
    table = drop_table(config)
    caption = ", ".join(record.boxes[i].text for i, _ in placed) if record.is_detection else record.caption
    if "caption" in draw(table, "sample", rng):
        caption = ""

    count, rows = len(record.boxes), [i for i, _ in placed]
    features = {name: read_array(raw.get(f"{name}.npy", b""), count) for name in ("text_before", "image_reprojected")}
    boxes = np.zeros((PLACES, 4), np.float32)
    masks = {name: np.zeros(PLACES, np.float32) for name in MASKS}
    for place, (i, corners) in enumerate(placed):
        dropped = draw(table, "object", rng)
        boxes[place] = corners
        masks["masks"][place] = 1
        masks["text_masks"][place] = "text" not in dropped
        # A box that was drawn by hand has no picture; its embedding is zero.
        masks["image_masks"][place] = "image" not in dropped and features["image_reprojected"][i].any()
    picture = crop.crop_picture(decode(opened, crop, [], config.reference))
    return {
        "pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))), -1, 1),
        "input_ids": tokenize([caption], tokenizers)[0],
        "sizes": torch.tensor(sizes_of(record.width, crop)),
        "boxes": torch.from_numpy(boxes),
        **{name: torch.from_numpy(mask) for name, mask in masks.items()},
        "text_embeddings": _padded(features["text_before"][rows]),
        "image_embeddings": _padded(features["image_reprojected"][rows]),
    }


def place_boxes(
    boxes: Sequence[BoxField], crop: Crop, min_box: float
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """The boxes that a crop shows, largest first, at most `PLACES`: index, and corners as shares of the square.

    A box whose visible part is less than `min_box` of the square is left out.
    """
    placed = []
    for i, box in enumerate(boxes):
        x, y, w, h = (value / crop.side for value in crop.crop_box(box.bbox))
        if w * h >= min_box and w * h > 0:
            placed.append((i, (x, y, x + w, y + h), w * h))
    placed.sort(key=lambda item: -item[2])
    return [(i, corners) for i, corners, _ in placed[:PLACES]]


def _padded(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    padded = np.zeros((PLACES, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return torch.from_numpy(padded)


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))


def load(folder: str | Path = STABLE_DIFFUSION) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5, gated or not.

    Layers that a plain Stable Diffusion lacks start as in the paper: gates closed, so that it draws as before.

    Raises:
        ModelError: something is missing or of another kind.
    """
    parts = load_stable_diffusion(folder)
    return Parts(**{**parts, "unet": add_gates(parts["unet"], 0)})


def small(autoencoder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Add untrained gates to the sample text-to-image model beside the autoencoder, or to small untrained parts."""
    trained = autoencoder.parent / "text_to_image"
    parts = load_stable_diffusion(trained) if trained.is_dir() else vars(small_parts(autoencoder, texts, seed))
    return Parts(**{**parts, "unet": add_gates(parts["unet"], seed)})


def add_gates(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """Return a U-Net with gated attention: itself if it has that, else one with the same weights and new gates.

    Raises:
        ModelError: its gated attention takes texts only.
    """
    kind = unet.config.attention_type
    if kind == GATED:
        return unet
    if kind != "default":
        raise ModelError(f"the U-Net has attention of the type {kind}, this recipe trains {GATED}")
    with seeded(seed):
        gated = UNet2DConditionModel.from_config(unet.config, attention_type=GATED)
    missing, unexpected = gated.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected
    assert all(is_new(name) for name in missing)
    return gated


def is_new(name: str) -> bool:
    """Whether a parameter of a U-Net is one that GLIGEN adds, by its name."""
    return name.startswith("position_net.") or ".fuser." in name


class Model(LatentDiffusion):
    """A GLIGEN model.

    Args:
        parts: the networks; of the U-Net the gates and the boxes' networks are trained, nothing else.
        config: says what is dropped, and how long boxes are used in sampling.

    Attributes:
        grounded_share: share of the sampling steps, the first ones, that use the boxes; later ones use the caption
            alone (scheduled sampling).
    """

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts, drop_table(config))
        self.grounded_share = config.grounded_share
        self.train_text_encoders(False)
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(is_new(name))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch, without its boxes if the draws say so."""
        return super().forward(without_boxes(batch) if "grounding" in draws.dropped else batch, draws)

    def conditions(self, batch: Batch) -> Conditions:
        """The captions, and the boxes.

        Raises:
            ConfigError: the dataset's embeddings are of another CLIP than the model was made for.
        """
        width = self.unet.position_net.positive_len
        if batch["text_embeddings"].shape[-1] != width:
            raise ConfigError(
                f"the dataset's embeddings are {batch['text_embeddings'].shape[-1]} wide, the model takes {width}: "
                "build the dataset and start the training with the same --preset"
            )
        boxes = {
            "boxes": batch["boxes"],
            "masks": batch["masks"],
            "phrases_masks": batch["text_masks"],
            "image_masks": batch["image_masks"],
            "phrases_embeddings": batch["text_embeddings"],
            "image_embeddings": batch["image_embeddings"],
        }
        return {**super().conditions(batch), "cross_attention_kwargs": {"gligen": boxes}}

    def unconditional(self, batch: Batch) -> Batch:
        """Neither caption nor boxes."""
        return without_boxes(super().unconditional(batch))

    def sampling_conditions(self, batch: Batch, steps: int) -> Sequence[Conditions]:
        """Conditions with boxes in the first steps, and without them in the others."""
        (grounded,) = super().sampling_conditions(batch, 1)
        later = {name: value for name, value in grounded.items() if name != "cross_attention_kwargs"}
        first = round(self.grounded_share * steps)
        return [grounded] * first + [later] * (steps - first)


def without_boxes(batch: Batch) -> Batch:
    """The same batch with no box in any place."""
    return {**batch, **{name: torch.zeros_like(batch[name]) for name in MASKS}}


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
