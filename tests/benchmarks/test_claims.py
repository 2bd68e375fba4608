"""The scenes and the measures of `benchmarks.claims`, by hand."""

from functools import partial
from itertools import islice

import numpy as np
import pytest

from benchmarks.claims import ARMS, CLAIMS, TITLES, rows_of
from benchmarks.claims_data import LOOKS, kept, single_subject, two_subjects
from benchmarks.claims_drawing import colour, contrast, slope
from schemas.images import decode_grey, decode_image
from schemas.masks import Mask


def test_captions_of_two_subjects_name_nouns_alone() -> None:
    examples = list(islice(kept(two_subjects, 0), 6))
    for example in examples:
        assert not LOOKS.search(example.caption)
        assert len(example.phrases) == len(example.matches) == len(example.objects) == 2
        for phrase, segment in zip(example.phrases, example.segments, strict=True):
            assert example.caption[phrase.start : phrase.end] == phrase.text
            assert phrase.text.split() == [phrase.text.split()[0], segment.label]
    assert len({example.key for example in examples}) == 6


def test_a_single_subject_stays_the_same_on_any_background() -> None:
    first, second, own = (next(kept(partial(single_subject, background=b), 4)) for b in (1, 2, None))
    assert first.key == second.key == own.key
    assert first.image == second.image == own.image
    shown, other, target = (decode_image(data).astype(int) for data in (first.composite, second.composite, first.image))
    alpha = decode_grey(first.alpha)
    inside, outside = alpha == 255, alpha == 0
    assert np.abs(shown - other)[inside].mean() < 3  # JPEG
    assert np.abs(shown - other)[outside].mean() > 8
    assert np.abs(shown - target)[inside].mean() < 3
    assert np.abs(decode_image(own.composite).astype(int) - target).mean() < 3


def test_every_second_caption_of_one_subject_says_what_it_looks_like() -> None:
    captions = [
        (int(example.key), example.caption) for example in islice(kept(partial(single_subject, background=0), 0), 12)
    ]
    assert any(LOOKS.search(caption) for number, caption in captions if number % 2 == 0)
    assert not any(LOOKS.search(caption) for number, caption in captions if number % 2)


def test_the_slope_is_the_share_of_a_difference_that_is_drawn() -> None:
    shown = np.random.default_rng(0).normal(size=(20, 3))
    assert slope(0.3 * shown, shown) == pytest.approx(0.3)
    assert slope(-shown, shown) == pytest.approx(-1)
    assert abs(slope(np.random.default_rng(1).normal(size=(2000, 3)), np.tile(shown, (100, 1)))) < 0.05


def test_contrast_is_of_hue_and_leaves_brightness_out() -> None:
    """Red left, grey right: what is left of the difference (0.6, 0, 0) is that from its mean."""
    picture = np.full((4, 4, 3), 51, np.uint8)
    picture[:, :2, 0] = 204
    left = np.zeros((4, 4), bool)
    left[:, :2] = True
    masks = [Mask.from_array(left), Mask.from_array(~left)]
    np.testing.assert_allclose(contrast([picture], [masks]), [[0.4, -0.2, -0.2]], atol=1e-9)
    np.testing.assert_allclose(contrast([picture], [masks[::-1]]), [[-0.4, 0.2, 0.2]], atol=1e-9)
    brighter = np.where(left[..., None], 204, 51).repeat(3, axis=2).astype(np.uint8)
    np.testing.assert_allclose(contrast([brighter], [masks]), 0, atol=1e-9)
    assert len(contrast([picture], [masks[:1]])) == 0


def test_the_colour_of_a_background_is_that_of_the_border() -> None:
    pictures = np.ones((1, 16, 16, 3))
    pictures[:, 2:-2, 2:-2] = 0
    np.testing.assert_allclose(colour(pictures), 1)


def test_a_claim_s_rows_are_means_over_the_seeds_of_its_trainings() -> None:
    measured = {
        (arm, seed): {"drops:text alone": 0.5 + seed / 4, "backgrounds:change": 1.0}
        for arm in ("random", "no-drops")
        for seed in range(2)
    }
    rows = rows_of("drops", measured, 2)
    assert [(row.value, row.note) for row in rows] == [("0.625", "seeds 0.500, 0.750")] * 2
    assert {arm for arms in CLAIMS.values() for arm in arms} == set(ARMS) == set(TITLES)
