"""Composer: a picture is decomposed into eight conditions, and a U-Net learns to draw it again from any of them.

Huang et al., "Composer: Creative and Controllable Image Synthesis with Composable Conditions" (2023). Global
conditions, the caption, an embedding of the picture and its palette, are added to the time embedding; the latter two
also become eight tokens after the caption's. Local ones, sketch, instances, depth, intensity and a masked picture, are
scaled down by convolutions, summed, and stand beside the noisy latents. Of each sample conditions are dropped at
random, so that a picture can be drawn from any set of them; guidance leads from one set of conditions to another
(field `shared`). The whole U-Net is trained.

The paper's code was not published. What it leaves open is chosen here: weights of the intensity, that its drop
probability does not apply where all conditions are kept, instances in the colours of their classes, four tokens for
each of the two. A condition that a dataset does not hold is always dropped.

A batch holds

    keys          list of B str
    pixel_values  [B, 3, R, R] float32 in [-1, 1], the picture
    input_ids     [B, L] int64, the caption's tokens; the empty caption if it is dropped
    image_emb     [B, E] float32, the picture's CLIP embedding, of length 1
    palette       [B, 180] float32, the share of each colour
    sketch        [B, 1, R, R] float32 in [0, 1]
    instances     [B, 3, R, R] float32 in [0, 1], each thing in the colour of its class
    depth         [B, 1, R, R] float32, nearness in [0, 1]
    intensity     [B, 1, R, R] float32 in [0, 1], the picture in grey
    masked        [B, 4, R, R] float32 in [0, 1], the picture, black where it is masked, and the mask, 1 there
    keep          [B, 8] bool, which conditions are kept, in the order of `training.configs.composer.CONDITIONS`
    skipped       list of str, a line for each sample that could not be read
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from schemas.samples.composer import Record, decode_embedding
from training import diffusion
from training.conditioner import COLORS, LOCAL, Conditioner, widened
from training.configs.composer import CONDITIONS, PRESETS, Config
from training.diffusion import LAYOUT, STABLE_DIFFUSION, Batch, LatentDiffusion, load_stable_diffusion, loading
from training.drops import Drop, Drops, DropTable, draw, drop_all, keep_all
from training.guidance import Conditions
from training.latent_space import downsampling
from training.map_view import crop_sample, shown_map, three_channels
from training.maps import INTENSITY_WEIGHTS, draw_region, intensity
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import seeded
from training.tokenizer import tokenize

PART = "conditioner"
"""Folder of the conditioner within that of a model."""
IMAGE_WIDTH = 64
"""Width of the sample CLIP's embedding, for which a sample model is made."""
HUB_IMAGE_WIDTH = 768
"""Width of the embedding of CLIP ViT-L/14."""
STORED = {"sketch": "sketch", "instances": "segmentation", "depth": "depth"}
"""The map of a sample that each condition is made of."""


def drop_table(config: Config) -> DropTable:
    """Conditions are dropped per sample: all, none, or each on its own, intensity more often."""
    each = {name: config.intensity_dropped if name == "intensity" else config.dropped for name in CONDITIONS}
    drops = Drops(
        exclusive=(drop_all(config.all_dropped, CONDITIONS), keep_all(config.all_kept)),
        independent=tuple(Drop(p, frozenset({name})) for name, p in each.items()),
    )
    return {"sample": drops}


def texts(raw: Raw) -> list[str]:
    """The caption."""
    return [_record(raw).caption]


def view(raw: Raw, rng: np.random.Generator, tokenizers: Sequence[CLIPTokenizer], config: Config) -> dict[str, Any]:
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    picture, crop = crop_sample(raw, record, rng, config)
    pixels = picture.permute(1, 2, 0).numpy()
    masked = draw_region(rng, config.resolution, config.resolution)
    weights = INTENSITY_WEIGHTS[rng.integers(len(INTENSITY_WEIGHTS))]
    dropped = draw(drop_table(config), "sample", rng)
    values: dict[str, Any] = {}
    for name, stored in STORED.items():
        if stored not in record.maps:
            dropped |= {name}
            values[name] = Pixels(torch.zeros(LOCAL[name], *picture.shape[1:], dtype=torch.uint8), 0, 1)
            continue
        things = _things(record) if name == "instances" else record
        values[name] = Pixels(shown_map(raw, things, stored, picture, crop, rng, config), 0, 1)
    hidden = torch.tensor(masked)[None]
    caption = "" if "caption" in dropped else record.caption
    return {
        "pixel_values": Pixels(picture, -1, 1),
        "input_ids": tokenize([caption], tokenizers)[0],
        "image_emb": torch.from_numpy(decode_embedding(raw.get("embedding.npy", b""))),
        "palette": torch.tensor(record.palette, dtype=torch.float32),
        **values,
        "intensity": Pixels(torch.from_numpy(intensity(pixels, weights))[None], 0, 1),
        "masked": Pixels(torch.cat([torch.where(hidden, 0, picture), 255 * hidden.to(torch.uint8)]), 0, 1),
        "keep": torch.tensor([name not in dropped for name in CONDITIONS]),
    }


def _things(record: Record) -> Record:
    """The record without the segments that are no things."""
    return record.model_copy(update={"segments": [segment for segment in record.segments or () if segment.is_thing]})


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts, with a widened U-Net, and the conditioner."""

    conditioner: Conditioner


def load(folder: str | Path = STABLE_DIFFUSION, image_width: int = HUB_IMAGE_WIDTH) -> Parts:
    """Load a model from a folder (or the hub's name of one) in the layout of Stable Diffusion 1.5.

    One without `conditioner/` gets an untrained one, for embeddings of `image_width`, and its U-Net is widened.

    Raises:
        ModelError: something is missing or of another kind.
    """
    base = load_stable_diffusion(folder)
    if (Path(folder) / PART).is_dir():
        with loading(folder, f"{LAYOUT} and Composer's {PART}/"):
            return Parts(**base, conditioner=Conditioner.from_pretrained(folder, subfolder=PART))
    unet = base["unet"]
    conditioner = Conditioner(
        text_width=unet.config.cross_attention_dim,
        image_width=image_width,
        time_width=unet.time_embedding.linear_2.out_features,
        factor=downsampling(base["vae"]),
    )
    return Parts(**{**base, "unet": widened(unet)}, conditioner=conditioner)


def small(base: Path, texts: Sequence[str], seed: int) -> Parts:  # noqa: ARG001 - the base has a vocabulary
    """Make a model of the sample text-to-image model in the folder `base`."""
    with seeded(seed):
        return load(base, IMAGE_WIDTH)


class Model(LatentDiffusion):
    """A Composer.

    Args:
        parts: the networks; U-Net and conditioner are trained in place.
        config: which conditions guidance does not lead away from.

    Attributes:
        map_weights: in sampling, weights of conditions by their names; of others 1.
    """

    parts: Parts
    conditioner: Conditioner
    map_weights: Mapping[str, float] = {}

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts)
        self.shared = config.shared
        self.train_text_encoders(config.train_encoders)

    def conditions(self, batch: Batch) -> Conditions:
        """The caption's and the further tokens, what is added to the time embedding, and for `predict` the latents'."""
        encoded = self.text_encoder(batch["input_ids"])
        conditions = {"image": batch["image_emb"], **{name: batch[name] for name in ("palette", *LOCAL)}}
        weights = torch.tensor([self.map_weights.get(name, 1.0) for name in CONDITIONS], device=batch["keep"].device)
        time, tokens, local = self.conditioner(encoded.pooler_output, conditions, batch["keep"] * weights)
        text = torch.cat([encoded.last_hidden_state, tokens], dim=1)
        return {"encoder_hidden_states": text, "class_labels": time, "local": local}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict as the U-Net does, of the latents and what stands beside them."""
        own = {name: value for name, value in conditions.items() if name != "local"}
        return super().predict(torch.cat([noisy, conditions["local"]], dim=1), timesteps, own)

    def unconditional(self, batch: Batch) -> Batch:
        """The batch with the conditions of `shared` alone, and the negative prompt in place of a caption."""
        shared = torch.tensor([name in self.shared for name in CONDITIONS], device=batch["keep"].device)
        without = batch if "caption" in self.shared else super().unconditional(batch)
        return {**without, "keep": batch["keep"] & shared}

    def entry_of(self, name: str) -> str:
        """The entry of a batch that holds a condition."""
        return "image_emb" if name == "image" else name

    def batch_of_maps(self, maps: Mapping[str, Tensor], side: int) -> Batch:
        """A batch of one sample with these conditions, without the others, and without a caption.

        Args:
            maps: `image` [E], `palette` [180], and local conditions, [C, side, side] float32 in [0, 1].
            side: of the pictures.
        """
        empty = {name: torch.zeros(channels, side, side) for name, channels in LOCAL.items()}
        empty |= {"image": torch.zeros(self.conditioner.config.image_width), "palette": torch.zeros(COLORS)}
        shown = {self.entry_of(name): maps.get(name, value)[None] for name, value in empty.items()}
        keep = torch.tensor([[name == "caption" or name in maps for name in CONDITIONS]])
        return {"keys": ["maps"], "input_ids": self.tokenize([""]), **shown, "keep": keep, "skipped": []}

    def references(self, batch: Batch) -> Tensor:
        """The local conditions of each sample, [B, 5, 3, R, R] float32 in [0, 1]."""
        kept = {name: batch["keep"][:, CONDITIONS.index(name), None, None, None] for name in LOCAL}
        return torch.stack([kept[name] * three_channels(batch[name][:, :3]) for name in LOCAL], dim=1)


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
