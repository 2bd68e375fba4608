"""Photographs with COCO's annotations: the phrases for what is annotated are linked."""

import json

import pytest

from schemas.errors import RecordError
from schemas.example import Example, Phrase
from tests.paths import SHARED
from transforms.listing import list_source
from transforms.models.parser import load_parser, parse_captions
from transforms.models.presets import PRESETS
from transforms.read import read_batches
from transforms.regions.match import match_phrases
from transforms.regions.segment import keep_segments
from transforms.regions.similarity import add_label_similarity
from transforms.text.labels import SYNONYM, word_similarity
from transforms.text.phrases import add_phrases
from transforms.text.several_captions import by_caption

TINY_COCO = SHARED / "real" / "tiny_coco"


@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="needs shared/real/tiny_coco")
def test_phrases_for_classes_of_coco_are_linked() -> None:
    """All five captions of 33 pictures. Some phrases name what is not annotated, as the bicycles of "No bicycles"."""
    categories = json.loads((TINY_COCO / "annotations" / "instances_tiny.json").read_text())["categories"]
    classes = [category["name"] for category in categories]
    examples = [example for picture in pictures() for example in by_caption(picture)]
    assert len(examples) == 165
    parses = parse_captions(load_parser(PRESETS["sample"].parser), [example.caption for example in examples])
    named = linked = annotated = 0
    for example, parse in zip(examples, parses, strict=True):
        phrases, matched = link(add_phrases(example, parse, plurals=True))
        labels = {segment.label for segment in example.segments}
        for number, phrase in enumerate(phrases):
            names = {name for name in classes if word_similarity(phrase, name) >= SYNONYM}
            named += bool(names)
            annotated += bool(names & labels)
            linked += bool(names) and number in matched
    assert linked >= 0.95 * named, (linked, named)
    assert linked >= 0.97 * annotated, (linked, annotated)


def pictures() -> list[Example]:
    batches = [b for c in list_source(str(TINY_COCO)).chunks for item in c.items for b in read_batches(c.shard, item)]
    return [record for batch in batches for record in batch.records if isinstance(record, Example)]


def link(example: Example) -> tuple[tuple[Phrase, ...], set[int]]:
    """Return the phrases and which of them are matched, with the recipe's defaults."""
    try:
        kept = keep_segments(example, example.segments, 0.002, join_plurals=True)
        matches = match_phrases(add_label_similarity(kept), 0.5, "union", 0.002).matches
    except RecordError:
        return example.phrases, set()
    return example.phrases, {match.phrase for match in matches}
