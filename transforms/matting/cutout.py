"""Cut the subject out of its picture: a trimap from what is known of its place, then its alpha."""

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
from transforms.matting.closed_form import closed_form_alpha
from transforms.matting.trimap import trimap_of_confidence, trimap_of_mask


@dataclass(frozen=True)
class Confidences:
    """From which confidence, in [0, 1], on a pixel is surely background (below `lower`) or subject (above `upper`)."""

    lower: float
    upper: float


def add_trimap(example: Example, sure: Confidences, band: int) -> Example:
    """Draw the trimap of the example's subject; `band` is the least width of its unknown part, in pixels.

    Raises:
        RecordError: UNSURE_SUBJECT, no pixel is surely the subject's, or none surely the background's.
    """
    subject = example.subject
    assert subject is not None
    if subject.mask is not None:
        trimap = trimap_of_mask(subject.mask.to_array(), band)
    else:
        assert subject.confidence is not None
        confidence = enlarge(subject.confidence, (example.height, example.width))
        trimap = trimap_of_confidence(confidence, sure.lower, sure.upper, band)
    for value, what in ((255, "subject"), (0, "background")):
        if not (trimap == value).any():
            raise RecordError(Reason.UNSURE_SUBJECT, f"no pixel is surely {what}")
    return replace(example, trimap=encode_grey(trimap), subject=replace(subject, confidence=None))


def enlarge(grid: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize [h, w] float32 to `size` (height, width), bilinearly."""
    return np.asarray(Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def add_alpha(example: Example) -> Example:
    """Solve for the alpha of the example's subject and keep it in 8 bits."""
    image = example.pixels().astype(np.float64) / 255
    alpha = closed_form_alpha(image, decode_grey(example.trimap))
    return replace(example, alpha=encode_grey(np.rint(alpha * 255).astype(np.uint8)))


@dataclass(eq=False)
class DrawTrimaps(beam.PTransform):
    """Fill `trimap`: PCollection[Batch] -> PCollection[Batch]."""

    sure: Confidences
    band: int

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Draw each example's."""
        return batches | "draw trimaps" >> beam.Map(self._draw)

    def _draw(self, batch: Batch) -> Batch:
        return advance(batch, "trimap", each(lambda example: add_trimap(example, self.sure, self.band)))


@dataclass(eq=False)
class SolveMattes(beam.PTransform):
    """Fill `alpha`: PCollection[Batch] -> PCollection[Batch]."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Solve each example's."""
        return batches | "solve mattes" >> beam.Map(_solve)


def _solve(batch: Batch) -> Batch:
    return advance(batch, "matte", each(add_alpha))
