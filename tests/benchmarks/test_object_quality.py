import numpy as np
import pytest

from benchmarks.object_quality import HARDER, KINDS, Scored, good_picture, pictures, score, share_of_good, with_twins
from schemas.example import Quality
from transforms.regions.similarity import masked_crop


def test_each_kind_has_the_phrases_that_its_name_states() -> None:
    for kind, example in (*pictures(8), *pictures(4, HARDER)):
        words = [example.phrases[thing.phrase].text for thing in example.objects]
        right = [segment.label in text for segment, text in zip(example.segments, words, strict=False)]
        assert len(words) >= 2
        assert right[0] == (kind in {"good", "twins"})
        assert all(right[1:]) == (kind in {"good", "one wrong phrase"})
        assert (len(set(words)) == 1) == (kind == "twins")


def test_twins_are_copies_within_the_error_of_jpeg() -> None:
    example = next(picture for picture in map(good_picture, range(50)) if picture is not None)
    twins = with_twins(example)
    first, second = (masked_crop(twins.pixels(), thing.mask.to_array()) for thing in twins.objects)
    assert first.shape == second.shape
    assert np.abs(first.astype(int) - second).mean() < 4
    assert twins.objects[0].bbox != twins.objects[1].bbox


def test_the_better_half_by_hand() -> None:
    totals = {"good": (0.9, 0.2), "twins": (0.5, 0.1)}
    scored = [Scored(kind, Quality(0, 0, total)) for kind, values in totals.items() for total in values]  # type: ignore[arg-type]
    assert share_of_good(scored, "total") == 0.5
    assert [kind for kind, _ in pictures(4)] == list(KINDS)


@pytest.mark.slow
def test_the_better_half_holds_nine_of_ten_good_pictures() -> None:
    scored = score(120)
    assert share_of_good(scored, "total") >= 0.9
    assert share_of_good(scored, "single") < share_of_good(scored, "total")  # both parts are needed
    assert share_of_good(scored, "pair") < share_of_good(scored, "total")
