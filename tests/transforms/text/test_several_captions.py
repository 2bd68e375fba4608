from collections.abc import Sequence
from dataclasses import replace

import pytest

from schemas.example import Example, Match
from schemas.keys import caption_key
from schemas.rejects import Reason, Reject
from tests.examples import make_example
from tests.objects import example_of_objects
from transforms.batch import Batch, Outcome
from transforms.text.several_captions import (
    by_caption,
    each_as_candidate,
    each_as_sample,
    keep_most_linked,
    take_longest,
)

BAD = Reject("bad", "mem://bad", "read", Reason.EMPTY_IMAGE, "no bytes")


def captioned(*captions: str, key: str = "k") -> Example:
    return replace(make_example(key, captions[0]), other_captions=captions[1:])


def batch(*records: Outcome) -> Batch:
    return Batch(3, records, (("read", 1.5),))


def linked(*links: int) -> list[Example]:
    """An example of one picture per number, with that many phrases that are matched with a segment."""
    examples = by_caption(captioned(*(f"caption {i}" for i in range(len(links)))))
    return [replace(e, matches=tuple(Match(i, i, 0.5) for i in range(n))) for e, n in zip(examples, links, strict=True)]


def texts(records: Sequence[Outcome]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(r.key, r.caption, r.other_captions) if isinstance(r, Example) else (r.key, "", ()) for r in records]


def test_each_caption_comes_with_the_others_in_their_order() -> None:
    variants = by_caption(captioned("a", "b", "c"))
    assert texts(variants) == [("k", "a", ("b", "c")), ("k", "b", ("a", "c")), ("k", "c", ("a", "b"))]
    assert [variant.source_caption for variant in variants] == ["a", "b", "c"]
    assert by_caption(captioned("a")) == [captioned("a")]


@pytest.mark.parametrize(
    ("captions", "longest", "others"),
    [
        (("a", "ccc", "bb"), "ccc", ("a", "bb")),
        (("aa", "bb"), "aa", ("bb",)),
        (("a dog on it", "uninterrupted"), "uninterrupted", ("a dog on it",)),  # characters, not words
        (("a",), "a", ()),
    ],
)
def test_the_longest_caption_has_the_most_characters(
    captions: tuple[str, ...], longest: str, others: tuple[str, ...]
) -> None:
    assert texts([take_longest(captioned(*captions))]) == [("k", longest, others)]


def test_each_caption_makes_a_sample_in_batches_that_are_no_larger() -> None:
    before = batch(captioned("a", "b", "c", key="one"), BAD, captioned("a", key="two"))
    after = list(each_as_sample(before))
    assert [texts(b.records) for b in after] == [
        [("one", "a", ("b", "c")), (caption_key("one", 2), "b", ("a", "c")), (caption_key("one", 3), "c", ("a", "b"))],
        [("bad", "", ()), ("two", "a", ())],
    ]
    assert [(b.shard, b.seconds) for b in after] == [(3, before.seconds), (3, ())]


def test_where_each_picture_has_one_caption_the_batch_stays_as_it_is() -> None:
    before = batch(captioned("a", key="one"), BAD, captioned("b", key="two"))
    assert list(each_as_sample(before)) == [before]


def test_the_candidates_of_each_picture_are_a_batch() -> None:
    after = list(each_as_candidate(batch(captioned("a", "b"), BAD, captioned("c", key="two"))))
    assert [texts(b.records) for b in after] == [
        [("k", "a", ("b",)), ("k", "b", ("a",))],
        [("bad", "", ())],
        [("two", "c", ())],
    ]
    assert [b.seconds for b in after] == [(("read", 1.5),), (), ()]


@pytest.mark.parametrize(("links", "best"), [((1, 3, 2), 1), ((2, 2), 0), ((0, 1, 1), 1), ((4,), 0)])
def test_of_the_candidates_the_first_with_the_most_links_is_kept(links: tuple[int, ...], best: int) -> None:
    candidates = linked(*links)
    assert keep_most_linked(batch(*candidates)) == batch(candidates[best])


def test_a_caption_that_was_rejected_costs_its_picture_nothing() -> None:
    first, second, third = linked(5, 1, 2)
    rejects = [Reject("k", "mem://k", "matches", Reason.NO_MATCH, text) for text in ("one", "two")]
    assert keep_most_linked(batch(rejects[0], second, third)) == batch(third)
    assert keep_most_linked(batch(*rejects)) == batch(rejects[0])
    assert keep_most_linked(batch(first, rejects[1])) == batch(first)


def test_objects_that_are_left_count_where_a_recipe_has_them() -> None:
    more_matches, more_objects = linked(3, 2)
    objects = example_of_objects("k").objects
    candidates = replace(more_matches, objects=objects[:1]), replace(more_objects, objects=objects)
    assert keep_most_linked(batch(*candidates)) == batch(candidates[1])
