from dataclasses import replace

import numpy as np
import pytest

from schemas.errors import RecordError
from schemas.example import Example, Subject
from schemas.images import decode_grey, encode_jpeg
from schemas.masks import Mask
from schemas.rejects import Reason
from tests.beam import apply
from tests.examples import make_example
from transforms.batch import Batch
from transforms.matting.closed_form import closed_form_alpha
from transforms.matting.cutout import DrawTrimaps, SolveMattes, TrimapBounds, add_alpha, add_trimap, enlarge

SURE = TrimapBounds(0.1, 0.9)
Y, X = np.mgrid[:32, :32]
INSIDE = np.hypot(Y - 16, X - 16) < 9


def with_subject(subject: Subject) -> Example:
    picture = np.where(INSIDE[..., None], np.array([200, 40, 40]), np.array([30, 90, 160])).astype(np.uint8)
    return replace(make_example(size=(32, 32)), image=encode_jpeg(picture), subject=subject, _pixels=None)


def test_a_mask_becomes_a_trimap_and_the_trimap_an_alpha() -> None:
    example = add_alpha(add_trimap(with_subject(Subject("ball", mask=Mask.from_array(INSIDE))), SURE, 2))
    trimap, alpha = decode_grey(example.trimap), decode_grey(example.alpha)
    assert set(np.unique(trimap)) == {0, 128, 255}
    assert (alpha[trimap == 255] == 255).all()
    assert (alpha[trimap == 0] == 0).all()
    assert ((alpha >= 128) == INSIDE).mean() > 0.98
    solved = closed_form_alpha(example.pixels() / 255, trimap)
    np.testing.assert_array_equal(alpha, np.rint(solved * 255).astype(np.uint8))


def test_confidences_become_a_trimap_of_the_pictures_size_and_are_let_go() -> None:
    grid = np.zeros((8, 8), np.float32)
    grid[2:6, 2:6] = 1
    example = add_trimap(with_subject(Subject("ball", "a ball", heatmap=grid)), SURE, 1)
    trimap = decode_grey(example.trimap)
    assert trimap.shape == (32, 32)
    assert (trimap[12:20, 12:20] == 255).all()
    assert (trimap[:5] == 0).all()
    assert (trimap[8, 12:20] == 128).all()
    assert example.subject == Subject("ball", "a ball")
    assert example.subject.heatmap is None  # it takes no part in the comparison


def test_a_grid_is_enlarged_between_its_points() -> None:
    grid = np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(enlarge(grid, (1, 4)), [[0, 0.25, 0.75, 1]])


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject("wire", mask=Mask.from_array(X == 5)), "no pixel is surely subject"),
        (Subject("all", mask=Mask.from_array(X >= 0)), "no pixel is surely background"),
        (Subject("?", "it", heatmap=np.full((4, 4), 0.5, np.float32)), "no pixel is surely subject"),
    ],
)
def test_where_no_pixel_is_sure_the_picture_is_refused(subject: Subject, message: str) -> None:
    with pytest.raises(RecordError, match=f"^unsure-subject: {message}$") as caught:
        add_trimap(with_subject(subject), SURE, 2)
    assert caught.value.reason is Reason.UNSURE_SUBJECT


def test_the_transforms_advance_batches() -> None:
    batch = Batch(0, (with_subject(Subject("ball", mask=Mask.from_array(INSIDE))),))
    (drawn,) = apply(DrawTrimaps(SURE, 2), [batch])
    (solved,) = apply(SolveMattes(), [drawn])
    assert solved.records[0] == add_alpha(add_trimap(batch.records[0], SURE, 2))  # type: ignore[arg-type]
    assert [stage for stage, _ in solved.seconds] == ["trimap", "matte"]
