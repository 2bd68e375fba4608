"""Captions for the pictures whose source has none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason
from transforms.batch import Batch
from transforms.models.presets import name_of
from transforms.models.settings import HOSTING, Hosting, Precision, Wording
from transforms.sources.records import clean_caption
from transforms.step import Step, run_model

if TYPE_CHECKING:
    from transforms.models.captioner import Captioner

STAGE = "captions"


def add_captions(
    load: "Callable[[], Captioner]", examples: Sequence[Example], wording: Wording, origin: str
) -> list[Example]:
    """Write captions for the pictures that have none; `origin` is recorded as where these come from.

    `load` returns the captioner; it is called only if a caption is missing, as this is by far the largest model.

    Raises:
        RecordError: EMPTY_CAPTION, the captioner wrote nothing.
    """
    bare = [example for example in examples if not example.caption]
    if not bare:
        return list(examples)
    from transforms.models.captioner import write_captions

    texts = iter(write_captions(load(), [example.pixels() for example in bare], wording))
    return [example if example.caption else _captioned(example, next(texts), origin) for example in examples]


def _captioned(example: Example, text: str, origin: str) -> Example:
    if not text:
        raise RecordError(Reason.EMPTY_CAPTION, "the captioner wrote nothing")
    caption = clean_caption(text)
    return replace(example, caption=caption, source_caption=caption, caption_origin=origin)


def _load(checkpoint: str, precision: Precision) -> "Captioner":
    from transforms.models.captioner import load_captioner

    return load_captioner(checkpoint, precision)


def _load_once(checkpoint: str, precision: Precision) -> "Callable[[], Captioner]":
    from transforms.models.checkpoints import load_once

    return load_once(partial(_load, checkpoint, precision))


@dataclass(eq=False)
class WriteCaptions(Step):
    """Fill `caption` where the source gave none.

    `checkpoint` names the captioner; None leaves the batches as they are.
    """

    checkpoint: str | None
    wording: Wording
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The captioner, if there is one."""
        return {} if self.checkpoint is None else {"captioner": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the captioner over the batches, or pass them on."""
        if self.checkpoint is None:
            return batches
        step = partial(add_captions, wording=self.wording, origin=name_of(self.checkpoint))
        load = partial(_load_once, self.checkpoint, self.hosting.precision)
        return run_model(batches, STAGE, load, step, self.hosting)
