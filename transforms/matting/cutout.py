"""Cut the subject out of its picture: a trimap from its mask or heatmap, then its alpha."""

from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import RecordError
from schemas.example import Example
from schemas.images import decode_grey, encode_grey
from schemas.rejects import Reason
from transforms.batch import Batch, advance, each
from transforms.matting.closed_form import closed_form_alpha, compile_matting
from transforms.matting.trimap import trimap_of_heatmap, trimap_of_mask
from transforms.step import Compiler, Step, map_batches


@dataclass(frozen=True)
class TrimapBounds:
    """Confidences in [0, 1]: a pixel below `lower` is background, one above `upper` is the subject."""

    lower: float
    upper: float


def add_trimap(example: Example, bounds: TrimapBounds, band: int) -> Example:
    """Draw the trimap of the example's subject; at least `band` pixels on both sides of its edges are unknown.

    Raises:
        RecordError: UNSURE_SUBJECT, no pixel is known to be the subject, or none to be background.
    """
    subject = example.subject
    assert subject is not None
    if subject.mask is not None:
        trimap = trimap_of_mask(subject.mask.to_array(), band)
    else:
        assert subject.heatmap is not None
        heatmap = enlarge(subject.heatmap, (example.height, example.width))
        trimap = trimap_of_heatmap(heatmap, bounds.lower, bounds.upper, band)
    for value, what in ((255, "subject"), (0, "background")):
        if not (trimap == value).any():
            raise RecordError(Reason.UNSURE_SUBJECT, f"no pixel is surely {what}")
    return replace(example, trimap=encode_grey(trimap), subject=replace(subject, heatmap=None))


def enlarge(grid: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize `grid` [h, w] float32 to `size` (height, width), bilinearly."""
    return np.asarray(Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def add_alpha(example: Example) -> Example:
    """Fill `alpha`: the subject's, solved from picture and trimap, as an 8-bit PNG."""
    image = example.pixels().astype(np.float64) / 255
    alpha = closed_form_alpha(image, decode_grey(example.trimap))
    return replace(example, alpha=encode_grey(np.rint(alpha * 255).astype(np.uint8)))


@dataclass(eq=False)
class DrawTrimaps(Step):
    """Fill `trimap`; `bounds` and `band` are those of `add_trimap`."""

    bounds: TrimapBounds
    band: int

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Draw each example's."""
        bounds, band = self.bounds, self.band
        return map_batches(batches, "trimap", each(lambda example: add_trimap(example, bounds, band)))


@dataclass(eq=False)
class SolveMattes(Step):
    """Fill `alpha`."""

    def compiler(self) -> Compiler:
        """PyMatting and the solver of `transforms.matting.laplacian`, by numba."""
        return Compiler("matting", compile_matting)

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Solve each example's."""
        return batches | "matte" >> beam.Map(_solve)


def _solve(batch: Batch) -> Batch:
    compile_matting()
    return advance(batch, "matte", each(add_alpha))
