"""The report of datasets with maps: each map over its picture, and the slider between them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.report.page import write_report
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from tests.browser import OpenPage
from tests.datasets import JOB, write_dataset
from tests.mapped import mapped

KINDS = ("canny", "depth", "pose", "segmentation")


@pytest.fixture(scope="module", params=["controlnet", "composer"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "dataset"
    job = JOB.model_copy(update={"config": {"maps": list(KINDS)}})
    reject = Reject("no", "n.jpg", "maps", Reason.MISSING_MAP, "no depth map is beside the picture")
    samples = [mapped(f"k{i}", KINDS) for i in range(4)]
    write_dataset(output, [[*samples, reject]], sample_format=FORMATS[request.param], job=job)
    return Path(write_report(str(output)))


def test_every_map_is_shown_and_how_it_was_made(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page) == []
    for name in ("picture", *KINDS):
        assert page.count(f"<i>{name}</i>") == 4
    assert "opencv Canny" in page
    assert "1 person" in page
    assert "missing-map" in page
    assert "Mean of depth, from 0 for black to 1" in page
    assert "Mean of canny, gradient per pixel" in page
    assert ("swatch" in page.split("</style>")[1]) == ("Composer" in page)


def test_the_slider_lets_the_picture_shine_through(report: Path, open_page: OpenPage, tmp_path: Path) -> None:
    with open_page(report) as page:
        panel = page.locator(".under").first
        panel.scroll_into_view_if_needed()

        def shown() -> float:
            page.mouse.move(0, 0)
            page.wait_for_timeout(300)
            panel.screenshot(path=str(tmp_path / "panel.png"))
            return float(np.asarray(Image.open(tmp_path / "panel.png").convert("RGB")).mean())

        opaque = shown()
        slider = page.locator(".fade input").first
        slider.fill("0")
        assert shown() > opaque + 20
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert slider.input_value() == "1"  # and not the next sample
        page.locator(".open").first.click()
        large = page.locator("dialog .fade input")
        assert large.input_value() == "1"
        large.fill("100")
        assert page.locator("dialog .card").evaluate("c => c.style.getPropertyValue('--maps')") == "1"
