"""T2I-Adapter: small networks that turn maps into features for the encoder of a frozen U-Net, one network for each map.

Mou et al., "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models"
(2023). The features of several maps are added up, each with a weight. They are computed once for a picture, not at each
step, and noisy timesteps are drawn more often in training (field `time_sampling`). With several maps (field `maps`)
whole batches do without some of them, by the rule of CoAdapter, the authors' sequel (TencentARC/T2I-Adapter); its
fuser, which lets the adapters know of each other, and its style condition are not built here.

A batch holds

    keys          list of B str
    pixel_values  [B, 3, R, R] float32 in [-1, 1]
    canny         [B, 1, R, R] float32 in [0, 1]; instead of it, or besides, each of the config's maps by its name, with
                  1 channel or 3
    input_ids     [B, L] int64; the empty caption if the caption is dropped
    skipped       list of str, a line for each sample that could not be read

`as_published` gives the names of T2I-Adapter's own readers, `as_coadapter` those of CoAdapter's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from schemas.maps import MAPS
from training import diffusion
from training.configs.maps import FROM_PICTURE
from training.configs.t2i_adapter import PRESETS, Config
from training.diffusion import LAYOUT, STABLE_DIFFUSION, Batch, Draws, LatentDiffusion, load_stable_diffusion, loading
from training.drops import Drop, Drops, DropTable, draw, drop_all, keep_all
from training.guidance import Conditions
from training.latent_space import downsampling
from training.map_view import channels_of, crop_sample, read_record, shown_map, three_channels
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import seeded
from training.tokenizer import tokenize

PART = "adapters"
"""Folder of the adapters within that of a model, each in a folder named after its map."""
FEATURES = "down_intrablock_additional_residuals"
"""The U-Net's argument for features that are added at the end of each block of its encoder."""


def drop_table(config: Config) -> DropTable:
    """The caption is dropped per sample; of several maps, some or all are dropped per batch (CoAdapter)."""
    caption = Drops(independent=(Drop(config.empty_prompts, frozenset({"caption"})),))
    if len(config.maps) < 2:
        return {"sample": caption}
    maps = Drops(
        exclusive=(drop_all(config.all_dropped, config.maps), keep_all(config.all_kept)),
        independent=tuple(Drop(config.map_dropped, frozenset({name})) for name in config.maps),
    )
    return {"sample": caption, "batch": maps}


def texts(raw: Raw) -> list[str]:
    """The caption."""
    return [read_record(raw).caption]


def view(
    raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config
) -> dict[str, Tensor | Pixels]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = read_record(raw)
    picture, crop = crop_sample(raw, record, rng, config)
    shown = {name: shown_map(raw, record, name, picture, crop, rng, config) for name in config.maps}
    maps = {name: Pixels(values, 0, 1) for name, values in shown.items()}
    caption = "" if "caption" in draw(drop_table(config), "sample", rng) else record.caption
    return {"pixel_values": Pixels(picture, -1, 1), **maps, "input_ids": tokenize([caption], tokenizers)[0]}


def as_published(batch: Batch, captions: Sequence[str], name: str) -> dict[str, Any]:
    """A batch as T2I-Adapter's own readers yield it, for an adapter of the map `name`.

    Returns:
        `im` [B, 3, R, R] float32 in [0, 1], `mask` [B, 1 or 3, R, R] float32 in [0, 1], and `sentence`, the captions.
    """
    return {"im": batch["pixel_values"] / 2 + 0.5, "mask": batch[name], "sentence": list(captions)}


def as_coadapter(batch: Batch, captions: Sequence[str]) -> dict[str, Any]:
    """A batch as CoAdapter's reader yields it: `jpg` [B, 3, R, R] float32 in [0, 1], the maps, and `txt`."""
    maps = {name: batch[name] for name in (*MAPS, *FROM_PICTURE) if name in batch}
    return {"jpg": batch["pixel_values"] / 2 + 0.5, **maps, "txt": list(captions)}


class Adapters(nn.ModuleDict):
    """Adapters by the names of their maps."""

    def save_pretrained(self, folder: Path) -> None:
        """Save each adapter, as diffusers does, in a folder of its name."""
        for name, adapter in self.items():
            assert isinstance(adapter, T2IAdapter)
            adapter.save_pretrained(Path(folder, name))

    def add_missing(self, names: Sequence[str], unet: UNet2DConditionModel, factor: int) -> None:
        """Add an untrained adapter for each of `names` that has none; `factor` pixels of a map per latent and side."""
        for name in names:
            if name not in self:
                self[name] = T2IAdapter(
                    in_channels=channels_of(name),
                    channels=list(unet.config.block_out_channels),
                    downscale_factor=factor,
                )

    def forward(self, maps: Mapping[str, Tensor], weights: Mapping[str, float]) -> list[Tensor]:
        """Sum of the features of `maps` [B, C, R, R] at each scale, weighted by name, by default with 1.

        Returns:
            Features [B, D, h, w] of each block of the U-Net; none if there is no map.
        """
        sums: list[Tensor] = []
        for name, shown in maps.items():
            features = [weights.get(name, 1.0) * feature for feature in self[name](shown)]
            sums = [total + feature for total, feature in zip(sums, features, strict=True)] if sums else features
        return sums


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts and the adapters."""

    adapters: Adapters = field(default_factory=Adapters)


def load(folder: str | Path = STABLE_DIFFUSION) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5.

    Adapters are those in `adapters/`; `Model` adds those that its config names besides.

    Raises:
        ModelError: something is missing or of another kind.
    """
    base, adapters = load_stable_diffusion(folder), Adapters()
    if (place := Path(folder) / PART).is_dir():
        with loading(folder, f"{LAYOUT} and T2I-Adapters in {PART}/"):
            for path in sorted(place.iterdir()):
                adapters[path.name] = T2IAdapter.from_pretrained(path)
    return Parts(**base, adapters=adapters)


def small(base: Path, texts: Sequence[str], seed: int) -> Parts:  # noqa: ARG001 - the base has a vocabulary
    """Load the sample text-to-image model in the folder `base`."""
    with seeded(seed):
        return load(base)


class Model(LatentDiffusion):
    """A frozen Stable Diffusion with T2I-Adapters.

    Args:
        parts: the networks; the adapters are trained in place.
        config: names their maps.

    Attributes:
        map_weights: in sampling, weights of the maps' features by their names; of others 1.
    """

    parts: Parts
    adapters: Adapters
    map_weights: Mapping[str, float] = {}

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        with seeded(config.seed):
            parts.adapters.add_missing(config.maps, parts.unet, downsampling(parts.vae))
        super().__init__(parts, drop_table(config))
        self.train_text_encoders(False)
        self.unet.requires_grad_(False)
        for name, adapter in self.adapters.items():
            adapter.requires_grad_(name in config.maps)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses without the maps that are dropped for the whole batch."""
        return super().forward({**batch, "dropped": draws.dropped}, draws)

    def conditions(self, batch: Batch) -> Conditions:
        """The captions, and the features of the maps that the batch holds.

        Dropped maps have weight 0 and are not left out: a loss without gradient could not be minimized.
        """
        maps = {name: batch[name] for name in self.adapters if name in batch}
        features = self.adapters(maps, {**self.map_weights, **dict.fromkeys(batch.get("dropped", ()), 0.0)})
        return {**super().conditions(batch), **({FEATURES: features} if features else {})}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict as the U-Net does, with the features added; it takes them out of the list that it is given."""
        copied = {FEATURES: list(conditions[FEATURES])} if FEATURES in conditions else {}
        return super().predict(noisy, timesteps, {**conditions, **copied})

    def entry_of(self, name: str) -> str:
        """The entry of a batch that holds a map."""
        return name

    def batch_of_maps(self, maps: Mapping[str, Tensor], side: int) -> Batch:  # noqa: ARG002
        """A batch of one sample with these maps, [1 or 3, side, side] float32 in [0, 1], and without a caption."""
        shown = {name: value[None] for name, value in maps.items()}
        return {"keys": ["maps"], **shown, "input_ids": self.tokenize([""]), "skipped": []}

    def references(self, batch: Batch) -> Tensor:
        """The maps of each sample, [B, M, 3, R, R] float32 in [0, 1]."""
        shown = [three_channels(batch[name]) for name in self.adapters if name in batch]
        return torch.stack(shown, dim=1)


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
