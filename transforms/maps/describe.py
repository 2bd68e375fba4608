"""The steps that describe a whole picture: its colours and its CLIP embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam

from schemas.example import Example
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.step import Step, map_batches, run_model

if TYPE_CHECKING:
    from transforms.models.clip import Clip


def add_palette(example: Example, sigma: float) -> Example:
    """Fill `palette`, see `transforms.maps.palette`."""
    from transforms.maps.palette import color_histogram

    return replace(example, palette=color_histogram(example.pixels(), sigma))


def add_embeddings(clip: "Clip", examples: Sequence[Example]) -> list[Example]:
    """Fill `embedding` of all examples in one batch."""
    from transforms.models.clip import embed_images

    rows = embed_images(clip, [example.pixels() for example in examples])
    return [replace(example, embedding=row.copy()) for example, row in zip(examples, rows, strict=True)]


def _load(checkpoint: str, precision: Precision) -> "Clip":
    from transforms.models.clip import load_clip

    return load_clip(checkpoint, precision)


@dataclass(eq=False)
class CountColors(Step):
    """Fill `palette`; `sigma` is that of the smoothing, in units of CIELab."""

    sigma: float

    def libraries(self) -> Sequence[str]:
        """What converts colours."""
        return ("scikit-image",)

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Count each example's."""
        sigma = self.sigma
        return map_batches(batches, "palette", each(lambda example: add_palette(example, sigma)))


@dataclass(eq=False)
class EmbedPictures(Step):
    """Fill `embedding`; `checkpoint` names the CLIP."""

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP."""
        return {"clip": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches."""
        return run_model(
            batches, "embedding", partial(_load, self.checkpoint, self.hosting.precision), add_embeddings, self.hosting
        )
