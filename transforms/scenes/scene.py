"""A sample scene: objects on a background, with a caption and the exact truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.scenes.grammar import Group, Span, write_caption
from transforms.scenes.paint import COLORS, TEXTURES, paint_background, paint_texture
from transforms.scenes.shapes import NOUNS, draw_silhouette

OBJECTS = (1, 5)
"""Fewest and most objects of a scene."""
MAX_OBJECTS = OBJECTS[1]
MAX_HIDDEN = 0.3
"""Largest share of an object's area that other objects cover."""
SCALES = {5: (0.2, 0.5), 3: (0.3, 0.6)}
"""Smallest and largest size of an object, as a share of the picture's side, in scenes of at most so many objects."""
OMITTED = 0.2
"""Probability that the caption leaves out a group."""


@dataclass(frozen=True)
class Silhouette:
    """All of an object, hidden or not: its alpha, [h, w] float32 in [0, 1], and its upper left corner (x, y)."""

    alpha: NDArray[np.float32]
    x: int
    y: int

    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the picture that it covers."""
        height, width = self.alpha.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


NOTHING = Silhouette(np.zeros((0, 0), np.float32), 0, 0)


@dataclass(frozen=True)
class SceneObject:
    """An object and its truth.

    `alpha` is that of its visible part, [H, W] uint8, 255 for opaque. `phrase` is the span [start, end) of its phrase
    in the caption, None if the caption leaves it out.
    """

    noun: str
    color: str
    texture: str
    alpha: NDArray[np.uint8]
    phrase: tuple[int, int] | None
    silhouette: Silhouette = NOTHING

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of which the object covers half or more, [H, W] bool."""
        visible: NDArray[np.bool_] = self.alpha >= 128
        return visible


@dataclass(frozen=True)
class Scene:
    """A picture, [H, W, 3] uint8 sRGB, its caption, its objects from back to front, its noun phrases."""

    image: NDArray[np.uint8]
    caption: str
    objects: tuple[SceneObject, ...]
    phrases: tuple[Span, ...]


@dataclass(frozen=True)
class _Placed(Silhouette):
    """An object before the caption is written: the number of its group, and its size as a share of the picture's."""

    group: int
    scale: float


def make_scene(
    rng: np.random.Generator,
    size: int = 256,
    objects: tuple[int, int] = OBJECTS,
    omitted: float = OMITTED,
    kinds: Sequence[tuple[str, str, str]] = (),
) -> Scene:
    """Render a square scene of `size` x `size` pixels, with objects that are partly hidden.

    Args:
        rng: draws everything random.
        size: side of the picture.
        objects: fewest and most objects, from 1 to 5. Where there are at most three, they are larger.
        omitted: probability that the caption leaves out a group of objects.
        kinds: what is shown, as (noun, colour, texture), such as the objects of another scene; by default it is drawn.
    """
    placed: list[_Placed] = []
    while len(placed) < objects[0]:  # an object that fits nowhere is left out
        chosen = list(kinds) or _choose_kinds(rng, objects)
        placed = _place(rng, chosen, size, objects[1])
    canvas = paint_background(rng, size, size)
    visible: list[NDArray[np.float32]] = []
    for item in placed:
        window = item.window()
        _, color, texture = chosen[item.group]
        height, width = item.alpha.shape
        patch = paint_texture(rng, height, width, color, texture)
        canvas[window] += item.alpha[..., None] * (patch - canvas[window])
        for behind in visible:
            behind[window] *= 1 - item.alpha
        visible.append(np.zeros((size, size), np.float32))
        visible[-1][window] = item.alpha
    caption, spans, phrase_of = _caption(rng, chosen, placed, size, omitted)
    things = tuple(
        SceneObject(*chosen[item.group], np.rint(alpha * 255).astype(np.uint8), phrase_of.get(item.group), item)
        for item, alpha in zip(placed, visible, strict=True)
    )
    return Scene(np.rint(canvas).astype(np.uint8), caption, things, spans)


def _choose_kinds(rng: np.random.Generator, objects: tuple[int, int]) -> list[tuple[str, str, str]]:
    """Choose groups as (noun, colour, texture); a noun comes twice only in two colours."""
    kinds: list[tuple[str, str, str]] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        repeat = bool(kinds) and rng.random() < 0.12
        noun = kinds[-1][0] if repeat else str(rng.choice(NOUNS))
        used = {color for other, color, _ in kinds if other == noun}
        if used and not repeat:
            continue
        color = str(rng.choice([c for c in COLORS if c not in used]))
        texture = str(rng.choice(TEXTURES, p=(0.55, 0.15, 0.15, 0.15)))
        kinds.append((noun, color, texture))
    return kinds


def _place(rng: np.random.Generator, kinds: list[tuple[str, str, str]], size: int, most: int) -> list[_Placed]:
    """Place one to three objects of each kind, at most `most`, where they hide little of each other.

    An object that fits nowhere after 20 attempts is left out; the first object always fits.
    """
    placed: list[_Placed] = []
    order = [g for g in range(len(kinds)) for _ in range(int(rng.choice((1, 2, 3), p=(0.8, 0.14, 0.06))))]
    smallest, large = SCALES[3 if most <= 3 else 5]
    for group in order[:most]:
        for attempt in range(20):
            largest = large if len(order) < 3 or attempt < 4 else 0.68 * large
            scale = float(rng.uniform(smallest, largest))
            softness = float(rng.choice((0.0, 0.6, 1.2))) * size / 256
            mirrored = bool(rng.random() < 0.5)
            alpha = draw_silhouette(kinds[group][0], scale * size, float(rng.uniform(-20, 20)), mirrored, softness)
            height, width = alpha.shape
            x, y = (int(rng.integers(0, max(size - extent, 0) + 1)) for extent in (width, height))
            opacity = (alpha[: size - y, : size - x] / np.float32(255)).astype(np.float32)
            item = _Placed(opacity, x, y, group, scale)
            colors = [kinds[other.group][1] == kinds[group][1] for other in placed]
            if _stands_out(item, placed, colors, size) and _hides_little([*placed, item], size):
                placed.append(item)
                break
    return placed


def _stands_out(item: _Placed, placed: list[_Placed], same_color: list[bool], size: int) -> bool:
    """Whether `item` touches no object of its own colour: the edge between them would be invisible."""
    taken = np.zeros((size, size), bool)
    for other, same in zip(placed, same_color, strict=True):
        if same:
            taken[other.window()] |= other.alpha > 0
    return not bool((taken[item.window()] & (item.alpha > 0)).any())


def _hides_little(placed: list[_Placed], size: int) -> bool:
    """Whether at least 70 % of each object is visible when they are painted in this order."""
    cover = np.zeros((size, size), np.float32)
    for item in reversed(placed):
        window = item.window()
        shown = item.alpha * (1 - cover[window])
        if shown.sum() < (1 - MAX_HIDDEN) * item.alpha.sum():
            return False
        cover[window] += shown
    return True


def _caption(
    rng: np.random.Generator, kinds: list[tuple[str, str, str]], placed: list[_Placed], size: int, omitted: float
) -> tuple[str, tuple[Span, ...], dict[int, tuple[int, int]]]:
    """Write the caption; return it, its noun phrases and the span of each captioned group."""
    present = sorted({item.group for item in placed})
    nouns = [kinds[g][0] for g in present]
    # Of two groups with the same noun none is left out: the phrase of the other could be taken for its own.
    named = [g for g in present if nouns.count(kinds[g][0]) > 1 or rng.random() >= omitted] or present[:1]
    named = [int(g) for g in rng.permutation(named)]
    groups = []
    for g in named:
        items = [item for item in placed if item.group == g]
        center = ((items[0].x + items[0].alpha.shape[1] / 2) / size, (items[0].y + items[0].alpha.shape[0] / 2) / size)
        groups.append(Group(*kinds[g], len(items), center, items[0].scale))
    caption, spans = write_caption(rng, groups)
    phrase_of = {named[span.group]: (span.start, span.end) for span in spans if span.group is not None}
    return caption, spans, phrase_of
