"""Scenes that the sample models learn from, rendered once and held in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from transforms.scenes import Scene, make_scene
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.scene import MAX_OBJECTS
from transforms.scenes.shapes import NOUNS

TRAINING, HELD_OUT = 1, 2
"""Streams of scenes; no scene is in both. Benchmarks take streams from 1000 on."""

KINDS = (NOUNS, tuple(COLORS), TEXTURES)
"""Nouns, colours and textures; `Pool.kinds` holds indices into them."""
NO_OBJECT = 255
"""Value of `Pool.kinds` in rows without an object."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pool:
    """N rendered scenes of S x S pixels.

    Attributes:
        images: [N, S, S, 3] uint8 sRGB.
        owners: [N, S, S] uint8, index + 1 of the object that a pixel shows, 0 for background.
        kinds: [N, 5, 3] uint8, noun, colour and texture of each object as indices into `KINDS`; rows beyond the
            scene's objects are `NO_OBJECT`.
    """

    images: NDArray[np.uint8]
    owners: NDArray[np.uint8]
    kinds: NDArray[np.uint8]


def render_pool(count: int) -> Pool:
    """Render the first `count` training scenes at 256 x 256 pixels, on all cores."""
    images, owners, kinds = zip(*map_scenes(render, count), strict=True)
    return Pool(np.stack(images), np.stack(owners), np.stack(kinds))


def render(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Render training scene `index`: its row of each array of `Pool`."""
    scene = training_scene(index)
    owners = np.zeros(scene.image.shape[:2], np.uint8)
    for j, thing in enumerate(scene.objects):
        owners[thing.mask] = j + 1
    return scene.image, owners, kinds_of(scene)


def kinds_of(scene: Scene) -> NDArray[np.uint8]:
    """Return noun, colour and texture of a scene's objects, [5, 3] uint8, as in `Pool.kinds`."""
    kinds = np.full((MAX_OBJECTS, len(KINDS)), NO_OBJECT, np.uint8)
    for j, thing in enumerate(scene.objects):
        kinds[j] = [names.index(v) for names, v in zip(KINDS, (thing.noun, thing.color, thing.texture), strict=True)]
    return kinds


def map_scenes(function: Callable[[int], Result], count: int) -> list[Result]:
    """Call `function`, defined at module level, with 0, 1, ... `count` - 1 on all cores; results in that order."""
    with get_context("fork").Pool() as workers:
        return workers.map(function, range(count), chunksize=64)


def training_scene(index: int) -> Scene:
    """Render training scene `index` at 256 x 256 pixels."""
    return make_scene(np.random.default_rng([TRAINING, index]))


def held_out_scene(index: int) -> Scene:
    """Render scene `index` of those that no model is trained on, at 256 x 256 pixels."""
    return make_scene(np.random.default_rng([HELD_OUT, index]))
