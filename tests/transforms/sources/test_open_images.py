from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InputError
from schemas.example import Box, Example, Source
from schemas.rejects import Reason, Reject
from tests.pictures import encode, scene, with_orientation
from transforms.batch import Outcome
from transforms.listing import Listing, list_source
from transforms.read import Reading, read_batches

JPEG = encode(scene(), "JPEG", quality=95)  # 32 x 24 pixels
BOXES = "train-annotations-bbox.csv"
HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"


def write(folder: Path, boxes: str, names: str = "/m/01,Teddy bear\n/m/02,Human face\n") -> Path:
    (folder / BOXES).write_text(HEAD + boxes)
    (folder / "class-descriptions-boxable.csv").write_text(names)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "aa01.jpg").write_bytes(JPEG)
    return folder


def row(image: str, label: str, left: float, right: float, top: float, bottom: float, group: int = 0) -> str:
    return f"{image},xclick,{label},1,{left},{right},{top},{bottom},0,0,{group},0,0\n"


def read_bare(listing: Listing) -> list[Outcome]:
    """Read all records, those without a caption too."""
    items = [(chunk.shard, item) for chunk in listing.chunks for item in chunk.items]
    return [
        r for shard, item in items for b in read_batches(shard, item, Reading(needs_captions=False)) for r in b.records
    ]


def test_boxes_are_read_in_pixels_with_the_names_of_their_classes(tmp_path: Path) -> None:
    write(tmp_path, row("aa01", "/m/01", 0.25, 0.75, 0.5, 1) + row("aa01", "/m/02", 0, 1, 0, 0.01, group=1))
    listing = list_source(str(tmp_path))
    assert listing.kind == "open-images"
    assert listing.has_boxes
    (example,) = read_bare(listing)
    assert isinstance(example, Example)
    assert example.boxes == (
        Box("Teddy bear", (8, 12, 16, 12), is_single=True),
        Box("Human face", (0, 0, 32, 1), is_single=False),
    )
    assert (example.key, example.image) == ("aa01", JPEG)
    assert example.caption == ""


def test_caption_address_and_licence_are_taken_where_they_are(tmp_path: Path) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1))
    (tmp_path / "pictures" / "aa01.txt").write_text("a teddy bear")
    (tmp_path / "train-images-boxable-with-rotation.csv").write_text(
        "ImageID,Subset,OriginalURL,License\nzz,train,u,l\naa01,train,https://f.org/1.jpg,https://cc.org/by/2.0/\n"
    )
    (example,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(example, Example)
    assert example.caption == "a teddy bear"
    assert example.source == Source("https://f.org/1.jpg", "https://cc.org/by/2.0/")


def test_pictures_without_boxes_and_boxes_without_pictures_are_counted(tmp_path: Path) -> None:
    rows = row("far", "/m/01", 0, 1, 0, 1) * 2 + row("farther", "/m/01", 0, 1, 0, 1) + row("", "/m/01", 0, 1, 0, 1)
    write(tmp_path, rows + "aa02,x,/m/01,1,0,1,0,1,0,0,0,0,0\nfar,x\n")
    (tmp_path / "pictures" / "aa02.1").write_bytes(JPEG)
    listing = list_source(str(tmp_path))
    assert listing.gaps == {
        "pictures without boxes": 1,
        "pictures with boxes that are not there": 2,
        "rows without a picture": 2,
    }
    bare, boxed = read_bare(listing)
    assert isinstance(bare, Example)
    assert isinstance(boxed, Example)
    assert (bare.boxes, boxed.boxes) == ((), (Box("Teddy bear", (0, 0, 32, 24)),))
    (tmp_path / BOXES).write_text(HEAD + row("aa01", "/m/01", 0, 1, 0, 1) + row("aa02", "/m/01", 0, 1, 0, 1))
    assert list_source(str(tmp_path)).gaps == {}


@pytest.mark.parametrize(
    "bad",
    [
        "aa01,x,,1,0,1,0,1,0,0,0,0,0",
        "aa01,x,/m/02,1,left,1,0,1,0,0,0,0,0",
        "aa01,x,/m/02,1,0,1,,1,0,0,0,0,0",
        "aa01,x,/m/02,1,nan,1,0,1,0,0,0,0,0",
        "aa01,x,/m/02",
        "aa01,x,/m/02,1,0,1,0,1,0,0,0,0,0,0,0",
    ],
)
def test_a_row_with_a_gap_costs_its_box(tmp_path: Path, bad: str) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1) + bad + "\n")
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Example), record
    assert ([box.label for box in record.boxes], record.left_out) == (["Teddy bear"], 1)
    (tmp_path / BOXES).write_text(HEAD + row("zz", "/m/01", 0, 1, 0, 1) + bad + "\n")
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Reject)
    assert record.detail.startswith("a row of its boxes has a gap or no numbers (")


def test_bytes_that_are_no_utf8_cost_nothing(tmp_path: Path) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1) + row("bb\xe9", "/m/01", 0, 1, 0, 1))
    for name, content in ((BOXES, None), ("class-descriptions-boxable.csv", "/m/01,B\xe9b\xe9\n")):
        text = content or (tmp_path / name).read_text()
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Example)
    assert [box.label for box in record.boxes] == ["B\ufffdb\ufffd"]


def test_a_newer_list_of_classes_has_a_head_line_and_an_unknown_class_keeps_its_label(tmp_path: Path) -> None:
    boxes = row("aa01", "/m/01", 0, 1, 0, 1) + row("aa01", "/m/99", 0, 1, 0, 1)
    write(tmp_path, boxes, names="LabelName,DisplayName\n/m/01,Bear\n")
    (example,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(example, Example)
    assert [box.label for box in example.boxes] == ["Bear", "/m/99"]


@pytest.mark.parametrize("exif", [with_orientation(0), with_orientation(9), {"exif": b"Exif\x00\x00garbage"}])
def test_an_orientation_that_turns_nothing_is_no_obstacle(tmp_path: Path, exif: dict[str, Any]) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1))
    (tmp_path / "pictures" / "aa01.jpg").write_bytes(encode(scene(), "JPEG", **exif))
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Example)
    assert record.boxes == (Box("Teddy bear", (0, 0, 32, 24)),)


@pytest.mark.parametrize("bad", ["inf", "-inf", "1e300", "32"])
def test_a_box_far_outside_costs_itself_and_its_picture_only_if_it_is_alone(tmp_path: Path, bad: str) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1) + row("aa01", "/m/02", 0, float(bad), 0, 1))
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Example)
    assert [box.label for box in record.boxes] == ["Teddy bear"]
    assert record.left_out == 1
    (tmp_path / BOXES).write_text(HEAD + row("aa01", "/m/02", 0, float(bad), 0, 1))
    (record,) = read_bare(list_source(str(tmp_path)))
    assert isinstance(record, Reject)
    assert (record.reason, record.detail) == (
        Reason.MISMATCHED_ANNOTATION,
        "the box of Human face does not lie in it",
    )


def test_what_exif_would_turn_and_what_has_the_name_of_another_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "pictures" / "aa02.jpg").write_bytes(encode(scene(), "JPEG", **with_orientation(6)))
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "aa01.jpg").write_bytes(JPEG)
    records = read_bare(list_source(str(tmp_path)))
    assert [record.key for record in records if isinstance(record, Example)] == ["aa01"]
    refused = {record.reason for record in records if isinstance(record, Reject)}
    assert refused == {Reason.MISMATCHED_ANNOTATION, Reason.DUPLICATE_KEY}


def test_a_change_of_a_box_changes_the_shards_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 0.5, 0, 1))
    before = list_source(str(tmp_path)).chunks[0].fingerprint
    (tmp_path / BOXES).write_text(HEAD + row("aa01", "/m/01", 0, 0.6, 0, 1))
    assert list_source(str(tmp_path)).chunks[0].fingerprint != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            BOXES,
            "a,b\n1,2\n",
            "it has nothing in column ImageID, LabelName, XMin, XMax, YMin, YMax",
        ),
        (BOXES, HEAD + "aa01,x,/m/01\n", "it has nothing in column ImageID, LabelName, XMin, XMax, YMin, YMax"),
        (BOXES, HEAD.replace("XMin", "Left") + row("aa01", "/m/01", 0, 1, 0, 1), "it has nothing in column XMin"),
        (BOXES, "", "cannot be read as CSV"),
        ("class-descriptions-boxable.csv", None, r"no class-descriptions\*\.csv among the files"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    write(tmp_path, row("aa01", "/m/01", 0, 1, 0, 1))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        list_source(str(tmp_path))
