"""The report on phones: nothing reaches over the edge, no word is broken in its middle, no number leaves its phrase."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.evaluate_page import write_evaluation
from jobs.report.page import breakable, write_report
from pipelines import RECIPES
from schemas.dataset import Job, ModelName
from schemas.example import Example
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from tests.browser import OpenPage
from tests.datasets import example, write_dataset
from tests.evaluations import fake_evaluation
from tests.gligen import grounded_example
from tests.mapped import mapped
from tests.objects import TWO, example_of_objects
from tests.training.pairs import pair

SOURCE = "http://images.cocodataset.org/train2017/000000144941.jpg"
LICENCE = "Attribution-NonCommercial-ShareAlike License (http://creativecommons.org/licenses/by-nc-sa/2.0/)"
SUBJECTS = (("a checkered wheelbarrow", (4, 6, 20, 16)), ("the photographer's motorcycle", (34, 10, 20, 30)))
SAMPLES: dict[str, Sequence[Example]] = {
    "fastcomposer": [example(f"00000014494{i}", SUBJECTS, license=LICENCE) for i in range(8)],
    "blip-diffusion": [pair(f"00000014494{i}", size=(120, 80), box=(10 + i, 8, 40, 50)) for i in range(8)],
    "captioned": [example(f"00000014494{i}", SUBJECTS, license=LICENCE) for i in range(8)],
    "gligen": [grounded_example(f"00000014494{i}", SUBJECTS) for i in range(8)],
    "paint-by-example": [grounded_example(f"00000014494{i}", SUBJECTS) for i in range(8)],
    "mip-adapter": [example_of_objects(f"00000014494{i}", TWO, license=LICENCE) for i in range(8)],
    "composer": [mapped(f"00000014494{i}", ("canny", "depth", "pose", "segmentation")) for i in range(8)],
}

# Lines may break at spaces and after slashes, colons and hyphens.
FAULTS = """() => {
  const bottoms = (range) => [...range.getClientRects()].filter(r => r.width).map(r => Math.round(r.bottom));
  const lines = (range) => new Set(bottoms(range)).size;
  const faults = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); ) {
    if (node.parentElement.closest("script, style, dialog, .hidden")) continue;
    for (const word of node.data.matchAll(/[^\\s\\/:-]+[\\/:-]*/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (lines(range) > 1) faults.push(`broken: ${word[0]}`);
    }
  }
  for (const part of document.querySelectorAll("header *, main *, footer *")) {
    const { left, right, width } = part.getBoundingClientRect();
    const hidden = part.closest("dialog, .hidden, .skip");
    if (width && !hidden && (left < 0 || right > innerWidth + 0.5)) faults.push(`too wide: ${part.outerHTML}`);
  }
  for (const chip of document.querySelectorAll(".phrase .chip")) {
    const range = document.createRange();
    range.setStart(chip.previousSibling, chip.previousSibling.length - 1);
    range.setEnd(chip.previousSibling, chip.previousSibling.length);
    const [last, number] = [range.getBoundingClientRect(), chip.getBoundingClientRect()];
    if (number.top > last.bottom) faults.push(`a number alone: ${chip.parentElement.textContent}`);
  }
  return faults;
}"""


@pytest.fixture(scope="module", params=SAMPLES)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe, output = request.param, tmp_path_factory.mktemp("phones")
    names = {"segmenter": "facebook/mask2former-swin-large-coco-panoptic", "clip": "ViT-L-14/openai"}
    models = {kind: ModelName(name=name, revision=f"sha256:{'0123456789abcdef' * 4}") for kind, name in names.items()}
    config = RECIPES[recipe].config().model_dump(mode="json")
    reject = Reject("000000144949", SOURCE, "similarity", Reason.NO_MATCH, "the best similarity is 0.000")
    job = Job(recipe=recipe, config=config, models=models, seed=0)
    write_dataset(output, [[*SAMPLES[recipe], reject]], job=job, sample_format=FORMATS[recipe])
    return Path(write_report(str(output)))


@pytest.mark.parametrize("width", [320, 360, 414])
def test_no_word_is_broken_and_nothing_reaches_over_the_edge(report: Path, open_page: OpenPage, width: int) -> None:
    with open_page(report, viewport={"width": width, "height": 800}) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(FAULTS) == []


@pytest.mark.parametrize("width", [320, 414])
def test_the_page_of_an_evaluation_fits_too(open_page: OpenPage, width: int, tmp_path: Path) -> None:
    settings = {"run": "runs/a-training-with-a-long-name", "data": "http://images.cocodataset.org/dataset", "seed": 0}
    page_path = write_evaluation(tmp_path, fake_evaluation(), settings)
    with open_page(page_path, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate(FAULTS) == []
        page.locator(".open").first.click()
        assert page.locator("dialog[open] img").count() == 3


def test_addresses_break_after_slashes_and_are_escaped() -> None:
    assert breakable("https://a.org/b c/") == "https://<wbr>a.org/<wbr>b c/"
    assert breakable("<b>/sha256:12") == "&lt;b&gt;/<wbr>sha256:<wbr>12"
