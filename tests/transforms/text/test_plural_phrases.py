"""Plurals written out in whole captions, as the sample parser reads them: `plural_phrases.txt` is the list."""

import re
from pathlib import Path

import pytest

from transforms.models.parser import load_parser, parse_captions
from transforms.models.presets import resolve
from transforms.text.phrases import find_phrases
from transforms.text.plurals import expand_plurals

LIST = Path(__file__).with_name("plural_phrases.txt")
MARKED = re.compile(r"{([^|{}]*)\|([^|{}]*)}")

Written = dict[str, tuple[str, str]]
"""By caption: what should be written, what is."""


def read_list() -> dict[str, str]:
    """What should be written, by caption."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("# ")]
    return {MARKED.sub(r"\1", line): MARKED.sub(r"\2", line) for line in lines}


@pytest.fixture(scope="module")
def written() -> Written:
    expected = read_list()
    parses = parse_captions(load_parser(resolve("sample", {}).parser), list(expected))
    return {p.caption: (expected[p.caption], expand_plurals(p, find_phrases(p))[0]) for p in parses}


def test_nearly_all_are_right(written: Written) -> None:
    wrong = {caption: result for caption, (right, result) in written.items() if result != right}
    assert len(written) >= 300
    assert 1 - len(wrong) / len(written) >= 0.98, wrong


def test_no_word_is_made_up(written: Written) -> None:
    words = {word for caption, (right, _) in written.items() for word in f"{caption} {right}".split()}
    assert {word for _, result in written.values() for word in result.split()} <= words
