"""A photograph of one subject whose caption names it, as people give them for drawing: the caption is one phrase.

Mostly that is what the rules for phrases find too, but "a dog with a red hat" names one subject here, and no caption is
without a phrase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam

from schemas.example import Example, Match, Phrase
from transforms.batch import Batch
from transforms.models.parser import Parser, load_parser, parse_captions
from transforms.step import Step, run_model
from transforms.text.phrases import STAGE, find_phrases


def name_subjects(parser: Parser, examples: Sequence[Example]) -> list[Example]:
    """Make the whole caption of each example its one phrase; a segment, its subject's mask, is matched with it.

    The root is that of the first phrase that the rules find, else the last word.
    """
    parses = parse_captions(parser, [example.source_caption for example in examples])
    named = []
    for example, parse in zip(examples, parses, strict=True):
        caption = parse.caption
        whole = 0, len(caption)
        last = Phrase(caption, *whole, caption.split()[-1].lower(), whole)
        first = next(iter(find_phrases(parse)), last)
        phrase = replace(first, text=caption, start=0, end=len(caption), origin=whole)
        segments = tuple(replace(segment, label=phrase.root) for segment in example.segments)
        matches = (Match(0, 0, 1.0),) if segments else ()
        named.append(replace(example, caption=caption, phrases=(phrase,), segments=segments, matches=matches))
    return named


@dataclass(eq=False)
class NameSubject(Step):
    """Fill `phrases` with the caption; `checkpoint` names the parser."""

    checkpoint: str

    def checkpoints(self) -> Mapping[str, str]:
        """The parser."""
        return {"parser": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run the parser over the batches."""
        return run_model(batches, STAGE, partial(load_parser, self.checkpoint), name_subjects)
