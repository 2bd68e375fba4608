"""ControlNet: a copy of the U-Net's encoder that is shown a map, beside a frozen U-Net.

Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models" (2023). The copy reads noisy
latents, caption and map; convolutions that start at zero add what it finds to the U-Net's skip connections and its
middle, so that an untrained ControlNet changes nothing. It alone is trained, by the noise loss. Half of the captions
are empty, so that it learns to read the map.

A batch holds

    keys                       list of B str
    pixel_values               [B, 3, R, R] float32 in [-1, 1]
    conditioning_pixel_values  [B, 3, R, R] float32 in [0, 1], the map; one of a single channel three times
    input_ids                  [B, L] int64; the empty caption if the caption is dropped
    skipped                    list of str, a line for each sample that could not be read

These are the names of diffusers' trainer; `as_published` gives those of ControlNet's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from training import diffusion
from training.configs.controlnet import PRESETS, Config
from training.diffusion import LAYOUT, STABLE_DIFFUSION, Batch, LatentDiffusion, load_stable_diffusion, loading
from training.drops import Drop, Drops, DropTable, draw
from training.guidance import Conditions
from training.latent_space import downsampling
from training.map_view import crop_sample, read_record, shown_map, three_channels
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import seeded
from training.tokenizer import tokenize

PART = "controlnet"
"""Folder of the ControlNet within that of a model."""
EMBEDDING = (16, 32, 96, 256)
"""Channels of the layers that scale a map down to the latents, by 2 each but the first."""


def drop_table(config: Config) -> DropTable:
    """The caption is dropped per sample."""
    return {"sample": Drops(independent=(Drop(config.empty_prompts, frozenset({"caption"})),))}


def texts(raw: Raw) -> list[str]:
    """The caption."""
    return [read_record(raw).caption]


def view(
    raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config
) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = read_record(raw)
    picture, crop = crop_sample(raw, record, rng, config)
    shown = shown_map(raw, record, config.map, picture, crop, rng, config)
    caption = "" if "caption" in draw(drop_table(config), "sample", rng) else record.caption
    return {
        "pixel_values": Pixels(picture, -1, 1),
        "conditioning_pixel_values": Pixels(three_channels(shown), 0, 1),
        "input_ids": tokenize([caption], tokenizers)[0],
    }


def as_published(batch: Batch, captions: Sequence[str]) -> dict[str, Any]:
    """A batch as ControlNet's own data set yields it: pictures and maps have their channels last.

    Returns:
        `jpg` [B, R, R, 3] float32 in [-1, 1], `hint` [B, R, R, 3] float32 in [0, 1], and `txt`, the captions.
    """
    return {
        "jpg": batch["pixel_values"].permute(0, 2, 3, 1),
        "hint": batch["conditioning_pixel_values"].permute(0, 2, 3, 1),
        "txt": list(captions),
    }


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts and the ControlNet."""

    controlnet: ControlNetModel


def new_controlnet(unet: UNet2DConditionModel, factor: int) -> ControlNetModel:
    """Make an untrained ControlNet, a copy of a U-Net's encoder; `factor` pixels of a map per latent and side."""
    layers = factor.bit_length()
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=EMBEDDING[:layers])


def load(folder: str | Path = STABLE_DIFFUSION) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5.

    One without `controlnet/` gets an untrained ControlNet.

    Raises:
        ModelError: something is missing or of another kind.
    """
    base = load_stable_diffusion(folder)
    if not (Path(folder) / PART).is_dir():
        return Parts(**base, controlnet=new_controlnet(base["unet"], downsampling(base["vae"])))
    with loading(folder, f"{LAYOUT} and a ControlNet in {PART}/"):
        return Parts(**base, controlnet=ControlNetModel.from_pretrained(folder, subfolder=PART))


def small(base: Path, texts: Sequence[str], seed: int) -> Parts:  # noqa: ARG001 - the base has a vocabulary
    """Make the sample text-to-image model in the folder `base` and an untrained ControlNet."""
    with seeded(seed):
        return load(base)


class Model(LatentDiffusion):
    """A frozen Stable Diffusion with a ControlNet.

    Args:
        parts: the networks; the ControlNet is trained in place.
        config: names the map.

    Attributes:
        map_weights: in sampling, by the map's name, what the ControlNet's output is multiplied by.
    """

    parts: Parts
    controlnet: ControlNetModel
    map_weights: Mapping[str, float] = {}

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        self.map = (config or Config()).map
        super().__init__(parts)
        self.train_text_encoders(False)
        self.unet.requires_grad_(False)

    def conditions(self, batch: Batch) -> Conditions:
        """The captions, and for `predict` the map."""
        return {**super().conditions(batch), "map": batch["conditioning_pixel_values"]}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict as the U-Net does, with what the ControlNet finds added to its skip connections and its middle."""
        own = {name: value for name, value in conditions.items() if name != "map"}
        down, middle = self.controlnet(
            noisy,
            timesteps,
            own["encoder_hidden_states"],
            controlnet_cond=conditions["map"],
            conditioning_scale=self.map_weights.get(self.map, 1.0),
            return_dict=False,
        )
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return super().predict(noisy, timesteps, {**own, **added})

    def entry_of(self, name: str) -> str:  # noqa: ARG002
        """The entry of a batch that holds the map."""
        return "conditioning_pixel_values"

    def batch_of_maps(self, maps: Mapping[str, Tensor], side: int) -> Batch:  # noqa: ARG002
        """A batch of one sample with this map, [1 or 3, side, side] float32 in [0, 1], and without a caption."""
        shown = three_channels(maps[self.map])[None]
        return {"keys": ["maps"], "conditioning_pixel_values": shown, "input_ids": self.tokenize([""]), "skipped": []}

    def references(self, batch: Batch) -> Tensor:
        """The map of each sample, [B, 1, 3, R, R] float32 in [0, 1]."""
        pictures: Tensor = batch["conditioning_pixel_values"][:, None]
        return pictures


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
