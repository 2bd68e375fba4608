"""Captions for the pictures whose source has none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason
from transforms.batch import Batch
from transforms.models.captioner import Captioner, Wording, load_captioner, write_captions
from transforms.models.handler import StepHandler
from transforms.models.presets import name_of
from transforms.sources.records import clean_caption

STAGE = "captions"


def add_captions(
    load: Callable[[], Captioner], examples: Sequence[Example], wording: Wording, origin: str
) -> list[Example]:
    """Describe the pictures without a caption; `origin` is recorded as where theirs comes from.

    Only then is the captioner loaded, by far the largest of the models.

    Raises:
        RecordError: EMPTY_CAPTION, the captioner had nothing to say.
    """
    bare = [example for example in examples if not example.caption]
    if not bare:
        return list(examples)
    texts = iter(write_captions(load(), [example.pixels() for example in bare], wording))
    return [example if example.caption else _captioned(example, next(texts), origin) for example in examples]


def _captioned(example: Example, text: str, origin: str) -> Example:
    if not text:
        raise RecordError(Reason.EMPTY_CAPTION, "the captioner wrote nothing")
    caption = clean_caption(text)
    return replace(example, caption=caption, source_caption=caption, caption_origin=origin)


def _load_once(checkpoint: str) -> Callable[[], Captioner]:
    """Return what loads the captioner when it is first called, and returns the same one ever after."""
    return cache(partial(load_captioner, checkpoint))


@dataclass(eq=False)
class WriteCaptions(beam.PTransform):
    """Fill `caption` where the source gave none: PCollection[Batch] -> PCollection[Batch].

    `checkpoint` names the captioner; None leaves the batches as they are.
    """

    checkpoint: str | None
    wording: Wording

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the captioner over the batches, or pass them on."""
        if self.checkpoint is None:
            return batches
        step = partial(add_captions, wording=self.wording, origin=name_of(self.checkpoint))
        handler = StepHandler(STAGE, partial(_load_once, self.checkpoint), step)
        return batches | "caption" >> RunInference(handler)
