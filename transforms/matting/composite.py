"""Lay the subject on another background: the input of a BLIP-Diffusion sample.

Colours are blended as sRGB values by default. The alpha is solved on these (closed-form matting takes a picture's
values for a mixture of two colours), so only there does it give the picture back over its own background; blended in
linear light, edges would come out lighter than the camera, or the scene's painter, left them. The paper says no more
than "alpha-blend"; `linear` is there for alphas that come from light.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.example import Example, Placement
from schemas.images import decode_grey, encode_jpeg
from schemas.keys import rng_of
from transforms.batch import Batch, advance, each
from transforms.matting.backgrounds import Background, draw_background
from transforms.matting.closed_form import estimate_foreground

STAGE = "composite"

Blending = Literal["srgb", "linear"]
Floats = NDArray[np.float64]

FAINT = 1 / 255
"""Alphas below the smallest step of a PNG show nothing."""


@dataclass(frozen=True)
class Composition:
    """How subjects are laid on backgrounds.

    `scale` bounds the factor of their size, `move` lets them change their place, `flip` is the probability of
    mirroring. A subject that the picture's edge cuts off is never scaled or moved: the cut would show.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    move: bool = False
    flip: float = 0.0
    blending: Blending = "srgb"


def add_composite(
    example: Example, names: tuple[Background, ...], composition: Composition, rng: np.random.Generator
) -> Example:
    """Lay the example's subject on a background drawn from `names`; painted where there are none.

    Raises:
        RecordError: NO_BACKGROUND, as `draw_background`.
    """
    size = example.height, example.width
    alpha = decode_grey(example.alpha).astype(np.float64) / 255
    image = example.pixels().astype(np.float64) / 255
    placement = draw_placement(alpha, composition, rng)
    background, behind = draw_background(names, size, rng)
    # Where the subject is all there is, its colours are the picture's; the estimate is near them, not equal.
    foreground = np.where((alpha == 1)[..., None], image, estimate_foreground(image, alpha))
    foreground, alpha = place(foreground, alpha, placement)
    blended = blend(foreground, behind / 255, alpha, composition.blending)
    pixels = np.rint(blended * 255).astype(np.uint8)
    return replace(example, composite=encode_jpeg(pixels), placement=replace(placement, background=background))


def draw_placement(alpha: Floats, composition: Composition, rng: np.random.Generator) -> Placement:
    """Draw where the subject of `alpha` [H, W] goes; the whole of it stays inside the picture.

    All four numbers are drawn whatever is asked for, so that one choice does not change another.
    """
    scale, across, down, flip = rng.uniform(*composition.scale), rng.random(), rng.random(), rng.random()
    x, y, w, h = box_of(alpha)
    height, width = alpha.shape
    flipped = bool(flip < composition.flip)
    if x == 0 or y == 0 or x + w == width or y + h == height:
        return Placement("", flip=flipped)
    scale = min(float(scale), width / w, height / h)
    room_x, room_y = width - _scaled(w, scale), height - _scaled(h, scale)
    left, top = _corner((width - x - w if flipped else x, y, w, h), scale)
    if composition.move:
        new_left, new_top = round(across * room_x), round(down * room_y)
    else:
        new_left, new_top = min(max(left, 0), room_x), min(max(top, 0), room_y)
    return Placement("", round(scale, 4), (new_left - left, new_top - top), flipped)


def place(foreground: Floats, alpha: Floats, placement: Placement) -> tuple[Floats, Floats]:
    """Mirror, scale and move colours [H, W, 3] and alpha [H, W] of a subject; the picture's size stays.

    Colours are weighted with alpha while they are resized, so that none from outside the subject come in.
    """
    if placement.flip:
        foreground, alpha = foreground[:, ::-1], alpha[:, ::-1]
    if placement.scale == 1 and placement.shift == (0, 0):
        return foreground, alpha
    x, y, w, h = box_of(alpha)
    inside = slice(y, y + h), slice(x, x + w)
    width, height = _scaled(w, placement.scale), _scaled(h, placement.scale)
    shown = _resize(alpha[inside], width, height)
    colours = np.stack([_resize(foreground[inside][..., c] * alpha[inside], width, height) for c in range(3)], axis=-1)
    left, top = _corner((x, y, w, h), placement.scale)
    # Scaled colours may reach over the edge by the pixel that rounding adds.
    left = min(max(left + placement.shift[0], 0), alpha.shape[1] - width)
    top = min(max(top + placement.shift[1], 0), alpha.shape[0] - height)
    window = slice(top, top + height), slice(left, left + width)
    placed, covered = np.zeros_like(foreground), np.zeros_like(alpha)
    placed[window] = np.clip(colours / np.maximum(shown, FAINT)[..., None], 0, 1)
    covered[window] = np.clip(shown, 0, 1)
    return placed, covered


def _corner(box: tuple[int, int, int, int], scale: float) -> tuple[int, int]:
    """The corner (x, y) of a box [x, y, w, h] that is scaled about its middle."""
    x, y, w, h = box
    return x + (w - _scaled(w, scale)) // 2, y + (h - _scaled(h, scale)) // 2


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _resize(values: Floats, width: int, height: int) -> Floats:
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)


def blend(foreground: Floats, background: Floats, alpha: Floats, blending: Blending = "srgb") -> Floats:
    """Blend two pictures, [H, W, 3] sRGB in [0, 1], by alpha [H, W] in [0, 1], as sRGB values or in linear light."""
    weight = alpha[..., None]
    if blending == "srgb":
        return weight * foreground + (1 - weight) * background
    return to_srgb(weight * to_linear(foreground) + (1 - weight) * to_linear(background))


def to_linear(values: Floats) -> Floats:
    """Turn sRGB values in [0, 1] into linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Floats) -> Floats:
    """Turn linear light in [0, 1] into sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def box_of(alpha: Floats) -> tuple[int, int, int, int]:
    """The smallest box [x, y, w, h] around what shows of alpha [H, W]; all zeros where nothing does."""
    shows = alpha >= FAINT
    rows, columns = np.flatnonzero(shows.any(axis=1)), np.flatnonzero(shows.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


@dataclass(eq=False)
class LayOnBackgrounds(beam.PTransform):
    """Fill `composite` and `placement`: PCollection[Batch] -> PCollection[Batch].

    `names` go to the workers once, as a side input; each reads the pictures that it draws. What is random depends on
    `seed` and the record's key alone.
    """

    names: tuple[Background, ...]
    composition: Composition
    seed: int

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Compose each example's input."""
        names = batches.pipeline | "names" >> beam.Create([self.names], reshuffle=False)
        # Not a method: it would take the names along with every copy of itself.
        compose = partial(_compose, composition=self.composition, seed=self.seed)
        return batches | "compose" >> beam.Map(compose, beam.pvalue.AsSingleton(names))


def _compose(batch: Batch, names: tuple[Background, ...], composition: Composition, seed: int) -> Batch:
    def step(example: Example) -> Example:
        return add_composite(example, names, composition, rng_of(seed, STAGE, example.key))

    return advance(batch, STAGE, each(step))
