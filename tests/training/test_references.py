from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import ElasticTransform
from torchvision.transforms.v2.functional import gaussian_blur

from training import references
from training.references import augment, cut_out, draw_noise, draw_shifts


def rows_and_columns(height: int, width: int) -> NDArray[np.uint8]:
    """A crop whose red value encodes the row and whose green value the column; blue is 255, so no pixel is black."""
    rows, columns = np.mgrid[0:height, 0:width]
    tones = rows * 255 / (height - 1), columns * 255 / (width - 1), np.full((height, width), 255)
    return np.stack(tones, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "shares"),
    [((90, 90), {1.0}), ((50, 90), {1.0}), ((90, 89), {1.0}), ((120, 60), {0.5, 1.0}), ((160, 40), {0.25, 1.0})],
)
def test_only_what_is_below_a_square_is_ever_cut_off(
    size: tuple[int, int], shares: set[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Share of a crop's rows that its reference shows, from the top on, over 30 draws; all columns are always shown."""
    monkeypatch.setattr(references, "_move", lambda picture, _: picture)
    monkeypatch.setattr(references, "_recolour", lambda picture, _: picture)
    monkeypatch.setattr(references, "_blur", lambda picture, _: picture)
    found: dict[float, int] = {}
    for seed in range(30):
        reference = augment(rows_and_columns(*size), 64, np.random.default_rng(seed))
        if (reference[..., 0] == reference[..., 2]).all():  # grey
            continue
        shown = reference[reference[..., 2] == 255].astype(int)
        assert shown[:, 0].min() <= 3
        assert shown[:, 1].min() <= 8
        assert shown[:, 1].max() >= 247
        share = min(shares, key=lambda share: abs(share - shown[:, 0].max() / 255))
        assert shown[:, 0].max() == pytest.approx(share * 255, abs=5)
        found[share] = found.get(share, 0) + 1
    assert set(found) == shares
    assert min(found.values()) >= 8


@pytest.mark.parametrize("scale", [1, 4])
def test_references_share_one_field_of_noise_where_they_overlap(scale: int) -> None:
    size, decoded = (80, 120), (80 // scale, 120 // scale)
    pixels = np.zeros((*decoded, 3), np.uint8)
    nothing = np.zeros(size, bool)
    noise = draw_noise(size, decoded, [(8, 8, 40, 40), (24, 16, 64, 48)], np.random.default_rng(0))
    first, second = (cut_out(pixels, nothing, box, noise) for box in ((8, 8, 40, 40), (24, 16, 64, 48)))
    rows, columns = 32 // scale, 24 // scale  # they share the columns from 24 to 47 and the rows from 16 to 47
    shared = first[8 // scale :, 16 // scale :]
    assert shared.shape == (rows, columns, 3)
    assert (shared == second[:rows, :columns]).all()
    assert first.std() > 0


def test_the_noise_is_uniform_from_0_to_254_at_full_size_and_averaged_where_decoded_smaller() -> None:
    full = draw_noise((400, 400), (400, 400), [(0, 0, 400, 400)], np.random.default_rng(1))
    counts = np.bincount(full.ravel(), minlength=256)
    assert counts[255] == 0
    assert abs(counts[:255] / full.size * 255 - 1).max() < 0.25
    for scale in (2, 8):
        small = draw_noise((400, 400), (400 // scale,) * 2, [(0, 0, 400, 400)], np.random.default_rng(1))
        assert small.mean() == pytest.approx(127, abs=1)
        assert small.std() == pytest.approx(full.std() / scale, rel=0.05)


def test_a_picture_without_references_gets_no_noise() -> None:
    assert not draw_noise((20, 30), (10, 15), [], np.random.default_rng(0)).any()


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_references_are_blurred_as_by_torchvision(sigma: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    theirs = gaussian_blur(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), [5, 5], [sigma, sigma])
    ours = np.asarray(references._blur(Image.fromarray(pixels), sigma))
    assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy()).max() <= 1


def test_references_are_recoloured_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = set()
    for seed in range(60):
        order: list[str] = []

        def note(name: str, order: list[str] = order) -> Any:  # noqa: ANN401 - an enhancer's class, or a function
            class Enhancer:
                def __init__(self, picture: Image.Image) -> None:
                    self.picture = picture

                def enhance(self, factor: float) -> Image.Image:
                    assert 0.5 <= factor <= 1.5
                    order.append(name)
                    return self.picture

            return Enhancer

        monkeypatch.setattr(references, "ENHANCERS", tuple(map(note, ("brightness", "contrast", "saturation"))))
        monkeypatch.setattr(references, "_turn_hue", lambda picture, _, order=order: order.append("hue") or picture)
        references._recolour(Image.new("RGB", (2, 2)), np.random.default_rng(seed))
        assert len(set(order)) == 4
        orders.add(tuple(order))
    assert len(orders) > 15  # of the 24


def test_references_are_warped_as_strongly_and_smoothly_as_by_torchvision() -> None:
    def statistics(shifts: torch.Tensor) -> tuple[float, ...]:
        """The standard deviation in pixels, and the correlations at distances of 5 and 10 pixels."""
        spread = float(shifts.std())
        correlations = [float((shifts[..., lag:] * shifts[..., :-lag]).mean()) / spread**2 for lag in (5, 10)]
        return spread * 112, *correlations

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    peer = ElasticTransform()
    theirs = torch.cat([peer.make_params([torch.zeros(3, 224, 224)])["displacement"] for _ in range(9)])
    ours = torch.cat([draw_shifts(224, rng) for _ in range(9)])
    assert statistics(ours) == pytest.approx(statistics(theirs.permute(0, 3, 1, 2)), abs=0.07)
