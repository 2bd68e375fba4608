"""Which captions of a picture are used, where its source has several: one of them, or each for a sample of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import apache_beam as beam

from schemas.example import Example
from schemas.keys import caption_key
from transforms.batch import Batch, Outcome, each
from transforms.step import Step, map_batches

STAGE = "choose caption"


def by_caption(example: Example) -> list[Example]:
    """Return the example once for each of its captions, in their order; the first is the example itself."""
    texts = (example.caption, *example.other_captions)
    return [
        replace(example, caption=text, source_caption=text, other_captions=(*texts[:i], *texts[i + 1 :]))
        for i, text in enumerate(texts)
    ]


def take_longest(example: Example) -> Example:
    """Return the example with its longest caption, in characters; of equal ones, the first."""
    return max(by_caption(example), key=lambda variant: len(variant.caption))


def each_as_sample(batch: Batch) -> Iterator[Batch]:
    """Yield the batch with an example for each caption, whose keys `caption_key` makes, in batches of the same size."""
    records: list[Outcome] = []
    for record in batch.records:
        if isinstance(record, Example):
            numbered = enumerate(by_caption(record), start=1)
            records += [replace(variant, key=caption_key(record.key, number)) for number, variant in numbered]
        else:
            records.append(record)
    size = len(batch.records)
    yield from _split(batch, [records[i : i + size] for i in range(0, len(records), size)])


def each_as_candidate(batch: Batch) -> Iterator[Batch]:
    """Yield a batch for each record: of a reject itself, of an example one for each caption, all of the same key."""
    yield from _split(batch, [by_caption(r) if isinstance(r, Example) else [r] for r in batch.records])


def _split(batch: Batch, parts: Sequence[Sequence[Outcome]]) -> Iterator[Batch]:
    """Yield a batch for each part; the seconds spent so far go with the first."""
    for i, records in enumerate(parts):
        piece = f"{batch.piece}-{i:06d}" if i else batch.piece
        yield replace(batch, records=tuple(records), seconds=() if i else batch.seconds, piece=piece)


def keep_most_linked(batch: Batch) -> Batch:
    """Keep of a picture's examples, which make up `batch`, the one with the most links; of equal ones, the first.

    Links are the phrases with an object, for recipes that have these, else those with a segment. If all captions were
    rejected, the first one's reject is kept.
    """
    examples = [record for record in batch.records if isinstance(record, Example)]
    best = max(examples, key=lambda e: len(e.objects or e.matches)) if examples else batch.records[0]
    return replace(batch, records=(best,))


@dataclass(eq=False)
class TakeCaptions(Step):
    """Choose the captions that are used.

    "first" and "longest" leave one example of each picture, "all" makes one of each caption. "most-linked" also does,
    in a batch for each picture, which `KeepMostLinked` reduces to one example again.
    """

    captions: Literal["first", "longest", "most-linked", "all"]

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Choose for each picture by itself."""
        if self.captions == "longest":
            return map_batches(batches, STAGE, each(take_longest))
        if self.captions == "all":
            return batches | STAGE >> beam.FlatMap(each_as_sample)
        if self.captions == "most-linked":
            return batches | STAGE >> beam.FlatMap(each_as_candidate)
        return batches


@dataclass(eq=False)
class KeepMostLinked(Step):
    """Keep the example with the most links in each batch that `TakeCaptions("most-linked")` made."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Reduce each batch to one record."""
        return batches | "keep most linked" >> beam.Map(keep_most_linked)
