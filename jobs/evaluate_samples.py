"""Drawing the samples of a dataset, and the real pictures that bound what is measured of them."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.evaluate_measures import Judged, Picture, Real
from jobs.generate import to_bytes
from schemas.errors import InputError
from schemas.images import decode_grey
from schemas.keys import rng_of
from schemas.masks import Mask
from schemas.samples import FORMATS
from training.config import RunConfig
from training.drawing import Drawing
from training.geometry import crop_window, window_of
from training.latent_space import downsampling
from training.recipe import Training
from training.shards import Batch, Raw, Shards, make_batch, read_samples, to_device
from transforms.scenes import Scene, make_scene
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.shapes import NOUNS

MASKED = (("subject_mask", "subject_segmentation"), ("object_mask", "object_segmentation"))
"""Entries of a batch: which references its samples have, [B, M] bool, and their masks, [B, M, R, R]."""
RENDERED = 256
"""Side at which scenes are rendered, in pixels; they are then scaled to that of the drawn pictures."""
MOST = 3
"""Most objects of a calibration scene: more would be too small."""
STREAM = 1019
"""Stream of the calibration scenes."""


def read_batch(
    training: Training,
    recipe: str,
    shards: Shards,
    count: int,
    model: Any,  # noqa: ANN401 - the recipe's
    config: RunConfig,
) -> tuple[Batch, list[str], list[list[Mask]]]:
    """Read the first `count` samples of a dataset that can be read.

    Returns:
        The batch on the model's device, and each sample's caption and its subjects' masks in the square picture.

    Raises:
        InputError: there are fewer than two.
    """
    raws = list(islice(read_samples(shards), count))
    whole = make_batch([(0, raw) for raw in raws], training.view, model.tools, config.plain())
    keys = whole["keys"]
    if len(keys) < 2:
        raise InputError(f"the dataset holds {len(keys)} samples that can be read: two are needed")
    by_key = {raw["__key__"]: raw for raw in raws}
    kept = [by_key[key] for key in keys]
    records = [FORMATS[recipe].record.model_validate_json(raw["json"]) for raw in kept]
    batch = to_device(whole, model.unet.device)
    names = next((names for names in MASKED if names[0] in batch), None)
    if names:
        valid, masks = (batch[name].cpu().numpy() for name in names)
        subjects = [[Mask.from_array(mask > 0) for mask in row[there]] for row, there in zip(masks, valid, strict=True)]
    else:
        subjects = [alpha_masks(raw, record, config.resolution) for raw, record in zip(kept, records, strict=True)]
    return batch, [record.caption for record in records], subjects


def alpha_masks(raw: Raw, record: Any, side: int) -> list[Mask]:  # noqa: ANN401 - of any recipe
    """The mask of a sample's subject in its square picture, from its alpha; none if it has no alpha."""
    if "alpha.png" not in raw:
        return []
    window = window_of(record.width, record.height, record.bbox)
    cropped = crop_window(record.height, window, side, mirrored=False).crop_mask(decode_grey(raw["alpha.png"]) >= 128)
    return [Mask.from_array(cropped)] if cropped.any() else []


def own_pictures(batch: Batch) -> list[Picture]:
    """The samples' own pictures."""
    return [to_bytes(picture.cpu() / 2 + 0.5) for picture in batch["pixel_values"]]


def draw_batch(model: Any, batch: Batch, drawing: Drawing) -> list[Picture]:  # noqa: ANN401 - the recipe's model
    """Draw a picture of each sample; its noise is a function of the seed and of its key."""
    keys, side = batch["keys"], int(drawing.size or 0) // downsampling(model.vae)
    shape = (model.vae.config.latent_channels, side, side)
    drawn: list[Picture] = []
    for first in range(0, len(keys), drawing.batch):
        rows = slice(first, first + drawing.batch)
        part = {name: value[rows] for name, value in batch.items()}
        noise = [rng_of(drawing.seed, "evaluate", key).standard_normal(shape, np.float32) for key in keys[rows]]
        start = torch.from_numpy(np.stack(noise)).to(model.unet.device)
        pictures = model.sample(part, start, steps=drawing.steps, guidance=drawing.guidance)
        drawn += [to_bytes(picture.cpu()) for picture in pictures]
    return drawn


def scene_ends(counts: Sequence[int], side: int, seed: int) -> dict[str, list[Judged]]:
    """Real pictures at both ends of what the small models can measure: "same" and "another".

    For each of `counts` three scenes are rendered: one of so many objects, one that shows the same objects again,
    elsewhere, turned and on another background, and one that shows others.

    Args:
        counts: number of subjects of each scene; more than `MOST` count as that. A scene of none shows one object that
            is no subject.
        side: of the pictures, in pixels.
        seed: of the scenes.
    """
    ends: dict[str, list[Judged]] = {"another": [], "same": []}
    for number, count in enumerate(counts):
        rng = np.random.default_rng([STREAM, seed, number])
        half = max(1, min(count, MOST))
        kinds = draw_kinds(rng, 2 * half)
        (picture, masks, caption), same, another = (
            show(rng, chosen, side) for chosen in (kinds[:half], kinds[:half], kinds[half:])
        )
        real = Real([picture], [masks if count else []])
        for name, (shown, _, _) in (("another", another), ("same", same)):
            ends[name].append(Judged(f"scene{number}", shown, caption, real))
    return ends


def draw_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str, str]]:
    """Draw `count` kinds of objects (noun, colour, texture) that differ in noun and in colour."""
    nouns, colors = rng.choice(NOUNS, count, replace=False), rng.choice(list(COLORS), count, replace=False)
    return [(str(n), str(c), str(rng.choice(TEXTURES))) for n, c in zip(nouns, colors, strict=True)]


def show(rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]], side: int) -> tuple[Picture, list[Mask], str]:
    """Render these kinds: a picture [side, side, 3], the mask of an object of each kind, and the caption."""
    scene = scene_with(rng, kinds)
    shown = [next(thing for thing in scene.objects if thing.noun == noun) for noun, _, _ in kinds]
    masks = [np.asarray(shrink(thing.alpha, side)) >= 128 for thing in shown]
    return shrink(scene.image, side), [Mask.from_array(mask) for mask in masks], scene.caption


def scene_with(rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]]) -> Scene:
    """Render a scene in which each of `kinds`, of different nouns, is shown and captioned."""
    while True:
        scene = make_scene(rng, RENDERED, (len(kinds), len(kinds)), omitted=0, kinds=kinds)
        if {thing.noun for thing in scene.objects if thing.mask.any()} == {noun for noun, _, _ in kinds}:
            return scene


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale a square picture or an alpha to `side` pixels."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
