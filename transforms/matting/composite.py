"""Lay the subject on another background: the input of a BLIP-Diffusion sample.

Colours are blended as sRGB values by default, because alpha is solved on sRGB values (closed-form matting models each
value as a mixture of two colours): only so does blending over the old background give the picture back. Blended in
linear light, edges would be lighter than in the picture. The paper says no more than "alpha-blend"; `linear` is for
alphas that were measured in light.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.boxes import BBox, box_of, window
from schemas.example import Example, Placement
from schemas.images import decode_grey, encode_jpeg
from schemas.keys import rng_of
from transforms.batch import Batch, advance, each
from transforms.matting.backgrounds import Background, Backgrounds, draw_background
from transforms.matting.closed_form import compile_matting, estimate_foreground
from transforms.step import Step

STAGE = "composite"

Blending = Literal["srgb", "linear"]
Floats = NDArray[np.float64]

FAINT = 1 / 255
"""Alphas below the smallest step of an 8-bit PNG are invisible."""


@dataclass(frozen=True)
class Composition:
    """How subjects are laid on backgrounds.

    `scale` bounds the factor by which their size changes, `move` allows another place, `flip` is the probability of
    mirroring. A subject that is cut off by the picture's border is never scaled or moved: the cut would be visible.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    move: bool = False
    flip: float = 0.0
    blending: Blending = "srgb"


def add_composite(
    example: Example, names: tuple[Background, ...], composition: Composition, rng: np.random.Generator
) -> Example:
    """Lay the example's subject on a background drawn from `names`; it is painted if there are none.

    Raises:
        RecordError: NO_BACKGROUND, as `draw_background`.
    """
    size = example.height, example.width
    alpha = decode_grey(example.alpha).astype(np.float64) / 255
    image = example.pixels().astype(np.float64) / 255
    placement = draw_placement(alpha, composition, rng)
    background, behind = draw_background(names, size, rng)
    # Where alpha is 1 the colours are exactly the picture's; the estimate is only close to them.
    foreground = np.where((alpha == 1)[..., None], image, estimate_foreground(image, alpha))
    foreground, alpha = place(foreground, alpha, placement)
    blended = blend(foreground, behind / 255, alpha, composition.blending)
    pixels = np.rint(blended * 255).astype(np.uint8)
    return replace(example, composite=encode_jpeg(pixels), placement=replace(placement, background=background))


def draw_placement(alpha: Floats, composition: Composition, rng: np.random.Generator) -> Placement:
    """Draw size, place and mirroring of the subject of `alpha` [H, W]; all of it stays inside the picture.

    All four numbers are drawn in every case, so that switching one option does not change the others.
    """
    scale, across, down, flip = rng.uniform(*composition.scale), rng.random(), rng.random(), rng.random()
    x, y, w, h = box_of(alpha >= FAINT)
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
    """Mirror, scale and move the colours [H, W, 3] and the alpha [H, W] of a subject, in a picture of the same size.

    Colours are weighted with alpha when they are resized, so that no colour from outside the subject is mixed in.
    """
    if placement.flip:
        foreground, alpha = foreground[:, ::-1], alpha[:, ::-1]
    if placement.scale == 1 and placement.shift == (0, 0):
        return foreground, alpha
    box = box_of(alpha >= FAINT)
    inside = window(box)
    width, height = _scaled(box[2], placement.scale), _scaled(box[3], placement.scale)
    shown = _resize(alpha[inside], width, height)
    colours = np.stack([_resize(foreground[inside][..., c] * alpha[inside], width, height) for c in range(3)], axis=-1)
    left, top = _corner(box, placement.scale)
    # By rounding, the scaled subject may reach a pixel over the border.
    left = min(max(left + placement.shift[0], 0), alpha.shape[1] - width)
    top = min(max(top + placement.shift[1], 0), alpha.shape[0] - height)
    target = window((left, top, width, height))
    placed, covered = np.zeros_like(foreground), np.zeros_like(alpha)
    placed[target] = np.clip(colours / np.maximum(shown, FAINT)[..., None], 0, 1)
    covered[target] = np.clip(shown, 0, 1)
    return placed, covered


def _corner(box: BBox, scale: float) -> tuple[int, int]:
    """The top left corner (x, y) of a box that is scaled about its middle."""
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


@dataclass(eq=False)
class LayOnBackgrounds(Step):
    """Fill `composite` and `placement`.

    The names of the backgrounds go to the workers once, as a side input; a worker reads the pictures that it draws.
    What is random depends on `seed` and the example's key alone.
    """

    backgrounds: Backgrounds
    composition: Composition
    seed: int

    def stamp(self) -> str:
        """The fingerprint of the backgrounds."""
        return self.backgrounds.fingerprint

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Compose each example's input."""
        names = batches.pipeline | "names" >> beam.Create([self.backgrounds.names], reshuffle=False)
        # Not a method: every copy of one would carry all names along.
        compose = partial(_compose, composition=self.composition, seed=self.seed)
        return batches | "compose" >> beam.Map(compose, beam.pvalue.AsSingleton(names))


def _compose(batch: Batch, names: tuple[Background, ...], composition: Composition, seed: int) -> Batch:
    def step(example: Example) -> Example:
        return add_composite(example, names, composition, rng_of(seed, STAGE, example.key))

    compile_matting()
    return advance(batch, STAGE, each(step))
