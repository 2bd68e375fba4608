"""Paint by Example's recipe: which boxes are kept, from which sources, and the tree for the published loader."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.exports.paint_by_example import export_paint_by_example
from pipelines.paint_by_example import PaintByExampleConfig
from schemas.errors import ConfigError, RecordError
from schemas.example import Box, Grounded
from schemas.rejects import Reason
from schemas.samples.paint_by_example import FORMAT, BoxField, Record
from tests.datasets import example, write_dataset
from tests.recipes import plan
from transforms.listing import Listing
from transforms.models.presets import resolve
from transforms.regions.boxes import take_boxes

SAMPLE = resolve("sample", {})


def test_boxes_of_the_published_sizes_are_kept() -> None:
    """Of 64 x 48 pixels, 2 % are 61.4 and 80 % are 2457.6."""
    sizes = {"small": (0, 0, 10, 6), "least": (0, 0, 8, 8), "most": (0, 0, 64, 38), "large": (0, 0, 64, 39)}
    boxes = tuple(Box(name, box) for name, box in sizes.items())
    bare = replace(example("k"), segments=(), boxes=boxes)
    assert [thing.text for thing in take_boxes(bare, 0.02, 0.8).grounded] == ["least", "most"]
    with pytest.raises(RecordError) as refused:
        take_boxes(replace(bare, boxes=boxes[:1]), 0.02, 0.8)
    assert refused.value.reason is Reason.NO_SUBJECT
    with pytest.raises(RecordError) as refused:
        take_boxes(replace(bare, boxes=()), 0.02, 0.8)
    assert refused.value.reason is Reason.NO_SEGMENT


def test_annotated_sources_need_no_model_and_no_captions() -> None:
    def kinds(kind: str) -> set[str]:
        return plan("paint-by-example", PaintByExampleConfig(), SAMPLE, Listing(kind, ()))[1]

    assert kinds("folder") == {"segmenter"}
    assert kinds("open-images") == kinds("coco-instances") == kinds("sa-1b") == set()
    with pytest.raises(ConfigError, match="do not use captions"):
        plan("paint-by-example", PaintByExampleConfig(captions="all"), SAMPLE, Listing("folder", ()))
    with pytest.raises(ValidationError, match="must not be above"):
        PaintByExampleConfig(min_area=0.5, max_area=0.4)


def test_boxes_outside_the_picture_are_problems() -> None:
    sound = replace(example("k"), grounded=(Grounded("dog", (), (4, 6, 20, 16), 1.0),))
    sample, row = FORMAT.pack(sound)
    assert FORMAT.problems_of(sample, row) == []
    record = Record.from_sample(sample)
    for bbox in ((60, 0, 5, 5), (0, 0, 0, 4), (-1, 0, 4, 4)):
        wrong = record.model_copy(update={"boxes": [BoxField(text="", bbox=bbox, score=1.0)]})
        assert any("64 x 48" in problem for problem in wrong.problems({}))


def test_the_published_loader_finds_each_picture_beside_its_boxes(tmp_path: Path) -> None:
    """It lists bbox/, and opens the picture of the same name in the folder of the same name."""
    boxes = (Grounded("dog", (), (4, 6, 20, 16), 1.0), Grounded("cat", (), (30, 1, 30, 40), 1.0))
    examples = [replace(example(f"picture{i}"), grounded=boxes[: 1 + i % 2]) for i in range(40)]
    write_dataset(tmp_path / "dataset", [examples], sample_format=FORMAT)
    lines = export_paint_by_example(str(tmp_path / "dataset"), tmp_path / "tree").lines(tmp_path / "tree")
    trained = [f"train_{digit}" for digit in "0123456789abcdef"]
    found = {}
    for state in (trained, ["validation"]):
        paths = sorted(path for part in state for path in (tmp_path / "tree" / "bbox" / part).iterdir())
        for path in paths:
            picture = Path(str(path).replace("/bbox/", "/images/")).with_suffix(".jpg")
            with Image.open(picture) as opened:
                assert opened.size == (64, 48)
            rows = [[int(float(edge)) for edge in line.split(" ")] for line in path.read_text().splitlines()]
            found[path.stem] = (state[0], rows)
    assert set(found) == {f"picture{i}" for i in range(40)}
    assert found["picture1"][1] == [[4, 6, 24, 22], [30, 1, 60, 41]]
    held_out = sum(state == "validation" for state, _ in found.values())
    assert 0 < held_out < 15
    assert lines == [f"{40 - held_out} pictures and {held_out} held out, with 60 boxes, in {tmp_path / 'tree'}"]
