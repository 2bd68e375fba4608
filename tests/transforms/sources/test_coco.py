import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import InputError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.masks import Mask
from schemas.rejects import Reason
from tests.coco import CATEGORIES, DOG, IDS, JPEG, THREE, example, instances, only, panoptic, png_of, shown, why, write
from tests.paths import SHARED
from tests.pictures import encode, outcomes, read_all, scene, with_orientation
from transforms.listing import list_source
from transforms.sources.coco_masks import decode_ids, decode_segmentation

REAL = SHARED / "real" / "coco"


def test_a_panoptic_picture_comes_with_its_true_segments(tmp_path: Path) -> None:
    record = example(write(tmp_path, panoptic()))
    assert shown(record) == THREE
    np.testing.assert_array_equal(record.segments[0].mask.to_array(), IDS == DOG)
    assert (record.key, record.caption, record.image) == ("lawn", "a dog on a lawn", JPEG)
    assert record.source == Source("lawn.jpg", "Attribution License (http://creativecommons.org/licenses/by/2.0/)")
    listing = list_source(str(tmp_path))
    assert (listing.kind, listing.has_segments, listing.expected) == ("coco-panoptic", True, 1)


def test_the_json_alone_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, panoptic(), name="truth.json")
    assert isinstance(only(tmp_path / "truth.json", "coco-panoptic"), Example)
    monkeypatch.chdir(tmp_path)
    assert isinstance(only(Path("truth.json"), "coco-panoptic"), Example)
    with pytest.raises(InputError, match="a file by another name needs --source"):
        list_source("truth.json")


def coco_layout(root: Path) -> Path:
    """The layout of the published files: annotations/, and a folder of pictures per split."""
    (root / "annotations" / "panoptic_val2017").mkdir(parents=True)
    (root / "val2017").mkdir()
    captions = [
        {"id": 9, "image_id": 7, "caption": "the second caption"},
        {"id": 7, "image_id": 7, "caption": " "},
        {"id": 8, "image_id": 7, "caption": "A dog on a lawn."},
    ]
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(panoptic()))
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(instances()))
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps({"annotations": captions}))
    (root / "annotations" / "panoptic_val2017" / "lawn.png").write_bytes(png_of(IDS))
    (root / "val2017" / "lawn.jpg").write_bytes(JPEG)
    return root


def test_the_layout_of_the_published_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_layout(tmp_path)
    with pytest.raises(InputError, match=r"coco-panoptic \(.*\), coco-instances \(.*\): choose one with --source"):
        list_source(str(tmp_path))
    records = [only(tmp_path, "coco-panoptic"), only(tmp_path, "coco-instances")]
    records.append(only(tmp_path / "annotations" / "panoptic_val2017.json"))
    monkeypatch.chdir(tmp_path)
    records.append(only(Path("annotations/instances_val2017.json")))
    for record in records:
        assert isinstance(record, Example)
        assert (record.key, record.caption, record.source.uri) == ("lawn", "A dog on a lawn.", "val2017/lawn.jpg")
        assert record.segments[0].bbox == (1, 2, 6, 4)


def test_all_captions_are_read_in_the_order_of_their_ids_without_empty_and_repeated_ones(tmp_path: Path) -> None:
    coco_layout(tmp_path)
    texts = {5: "a &amp; b", 3: "a dog", 4: "", 9: "a\n dog", 8: None, 7: "x" * 2_001, 6: 5, 10: "a pet"}
    captions = [{"id": number, "image_id": 7, "caption": text} for number, text in texts.items()]
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps({"annotations": captions}))
    record = only(tmp_path, "coco-instances")
    assert isinstance(record, Example)
    assert (record.caption, record.other_captions) == ("a dog", ("a & b", "a pet"))
    assert record.source_caption == record.caption


def test_a_picture_whose_captions_are_empty_has_the_one_beside_it(tmp_path: Path) -> None:
    coco_layout(tmp_path)
    captions = {"annotations": [{"id": 1, "image_id": 7, "caption": ""}]}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    (tmp_path / "val2017" / "lawn.caption").write_text("a dog")
    record = only(tmp_path, "coco-instances")
    assert isinstance(record, Example)
    assert record.caption == "a dog"


def test_categories_may_stand_in_a_file_beside(tmp_path: Path) -> None:
    content = panoptic()
    del content["categories"]
    write(tmp_path, content)
    with pytest.raises(InputError, match=r"panoptic\.json names no categories, and there is no panoptic_categories"):
        list_source(str(tmp_path))
    (tmp_path / "panoptic_categories.json").write_text(json.dumps(CATEGORIES))
    assert shown(example(tmp_path)) == THREE


def change_segment(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0]["segments_info"][0].update(fields)


MISMATCHES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "area": (change_segment(area=25), f"segment {DOG} has 24 pixels in the PNG, 25 in its JSON"),
    "id": (change_segment(id=5), f"segments that its JSON does not list: {DOG}"),
    "extra": (
        lambda c: c["annotations"][0]["segments_info"].append({"id": 5, "category_id": 1}),
        "lists segments that the PNG does not hold: 5",
    ),
    "twice": (
        lambda c: c["annotations"][0]["segments_info"].append({"id": DOG, "category_id": 1}),
        "lists one segment id twice",
    ),
    "no id": (lambda c: c["annotations"][0]["segments_info"][0].pop("id"), "malformed: KeyError 'id'"),
    "no annotation": (lambda c: c["annotations"].clear(), "panoptic.json holds 0 annotations of this picture"),
    "two annotations": (lambda c: c["annotations"].append(c["annotations"][0]), "holds 2 annotations"),
    "size": (
        lambda c: c["images"][0].update(width=33),
        "picture is 32 x 24 pixels (upright), its annotation is for 33",
    ),
    "no size": (lambda c: c["images"][0].pop("width"), "malformed: KeyError 'width'"),
    "no png": (lambda c: c["annotations"][0].update(file_name="gone.png"), "its panoptic PNG is missing"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_json_that_does_not_match_its_png_is_a_reject(tmp_path: Path, name: str) -> None:
    content = panoptic()
    break_, detail = MISMATCHES[name]
    break_(content)
    assert detail in why(write(tmp_path, content))


@pytest.mark.parametrize(
    ("png", "detail"),
    [
        (png_of(np.where(IDS == DOG, 9, IDS)), "segments that its JSON does not list: 9"),
        (png_of(np.arange(24 * 32, dtype=np.uint32).reshape(24, 32)), "1, 2, 3, 4, 5 and 760 more"),
        (png_of(IDS[:23]), "its PNG is 32 x 23 pixels, the picture 32 x 24"),
        (png_of(IDS)[:80], "its panoptic PNG cannot be decoded"),
        (b"", "its panoptic PNG cannot be decoded"),
        (JPEG, "its panoptic PNG cannot be decoded"),
        (encode(IDS.astype(np.uint8)), "its PNG has the mode L"),
    ],
)
def test_a_png_that_does_not_match_its_json_is_a_reject(tmp_path: Path, png: bytes, detail: str) -> None:
    assert detail in why(write(tmp_path, panoptic(), png=png))


def test_a_picture_that_only_exif_turns_is_refused_where_its_masks_were_drawn_before(tmp_path: Path) -> None:
    """Stored 24 wide and 32 high, upright 32 x 24."""
    turned = encode(np.ascontiguousarray(np.rot90(scene())), "JPEG", **with_orientation(6))
    assert shown(example(write(tmp_path, panoptic(), image=turned))) == THREE
    content = panoptic()
    content["images"][0].update(width=24, height=32)
    detail = why(write(tmp_path, content, image=turned, png=png_of(np.ascontiguousarray(np.rot90(IDS)))))
    assert "the picture is 32 x 24 pixels (upright), its annotation is for 24 x 32" in detail


def test_a_bad_picture_or_caption_keeps_its_own_reason(tmp_path: Path) -> None:
    write(tmp_path, panoptic(), image=JPEG[:300])
    assert outcomes([only(tmp_path)]) == [("lawn", Reason.UNDECODABLE_IMAGE)]
    (tmp_path / "lawn.jpg").unlink()
    assert outcomes([only(tmp_path)]) == [("lawn", Reason.MISSING_IMAGE)]
    write(tmp_path, panoptic())
    (tmp_path / "lawn.txt").unlink()
    assert outcomes([only(tmp_path)]) == [("lawn", Reason.MISSING_CAPTION)]


def test_two_pictures_of_one_key_and_annotations_of_none_are_rejects(tmp_path: Path) -> None:
    content = panoptic()
    content["images"].append(content["images"][0] | {"id": 8, "file_name": "lawn.jpeg"})
    content["annotations"].append(content["annotations"][0] | {"image_id": 9})
    records = read_all(list_source(str(write(tmp_path, content))))
    assert outcomes(records) == [
        ("lawn", "a dog on a lawn"),
        ("lawn", Reason.DUPLICATE_KEY),
        ("image-9", Reason.MISSING_IMAGE),
    ]


def test_a_file_name_cannot_reach_out_of_the_source(tmp_path: Path) -> None:
    content = panoptic()
    content["images"][0]["file_name"] = "../secret.jpg"
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    record = only(write(tmp_path / "in", content))
    assert (record.key, outcomes([record])[0][1]) == (clean_key("../secret"), Reason.MISSING_IMAGE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "panoptic.json cannot be read as JSON"),
        ("[]", "panoptic.json is no COCO panoptic file: TypeError"),
        ('{"images": []}', "panoptic.json is no COCO panoptic file: KeyError 'annotations'"),
        ('{"images": [], "annotations": [{}]}', "is no COCO panoptic file: KeyError 'image_id'"),
    ],
)
def test_what_is_no_annotation_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        list_source(str(tmp_path))


def test_instances_are_segments_in_the_order_of_their_ids(tmp_path: Path) -> None:
    record = example(write(tmp_path, instances(), name="instances.json"))
    assert shown(record) == THREE[:2]


def test_a_picture_without_instances_has_no_segments(tmp_path: Path) -> None:
    record = example(write(tmp_path, instances() | {"annotations": []}, name="instances.json"))
    assert record.segments == ()


def test_an_instance_thinner_than_a_pixel_is_left_out(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][1]["segmentation"] = [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]]
    assert shown(example(write(tmp_path, content, name="instances.json"))) == THREE[1:2]


@pytest.mark.parametrize(
    ("segmentation", "detail"),
    [
        ([], "a polygon needs three corners"),
        ([[1, 2, 3, 4]], "a polygon needs three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon needs three corners"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon needs three corners"),
        ([[1, 2, 3, 4, 5, float("-inf")]], "a polygon needs three corners"),
        ([[1, 2, 1e10, 4, 5, 6]], "polygons of coordinates or outlines of more than"),
        ([[1, 2, 3, -5e7, 5, 6]], "polygons of coordinates or outlines of more than"),
        ([1, 2, 7, 2, 7, 6, 1, 6], "malformed"),
        (None, "a NoneType is neither polygons nor run lengths"),
        ([["a", "b", "c", "d", "e", "f"]], "malformed"),
        ("1234", "a str is neither polygons nor run lengths"),
        ({"size": [32, 24], "counts": "0h0"}, "it is of [32, 24] (height, width), the picture of [24, 32]"),
        ({"size": [24, 32]}, "malformed: 'counts'"),
        ({"size": [24, 32], "counts": [5, 10]}, "malformed"),
        ({"size": [24, 32], "counts": [0, 24 * 32 + 5]}, "malformed"),
        ({"size": [24, 32], "counts": [-5, 24 * 32 + 5]}, "malformed"),
        ({"size": [24, 32], "counts": [2**31, 2**31]}, "malformed"),
        ({"size": [24, 32], "counts": ""}, "its runs cover 0 pixels"),
        ({"size": [24, 32], "counts": "é"}, "malformed"),
        ({"size": [24, 32], "counts": "0h0"}, "malformed"),
        ({"size": [24, 32], "counts": 5}, "malformed"),
    ],
)
def test_a_malformed_mask_costs_itself_and_its_picture_only_if_it_is_alone(
    tmp_path: Path, segmentation: object, detail: str
) -> None:
    content = instances()
    content["annotations"][0]["segmentation"] = segmentation
    record = example(write(tmp_path, content, name="instances.json"))
    assert shown(record) == THREE[:1]
    assert record.left_out == 1
    del content["annotations"][1]
    assert detail in why(write(tmp_path, content, name="instances.json"))


UNUSABLE = {
    "no segmentation": ({"id": 3, "image_id": 7, "category_id": 1}, "annotation 3 (dog) has no segmentation"),
    "no category": ({"id": 3, "image_id": 7, "segmentation": []}, "annotation 3 has the category None, which no list"),
    "another category": ({"id": 3, "image_id": 7, "category_id": 99}, "annotation 3 has the category 99, which no"),
    "a list as category": ({"id": "x", "image_id": 7, "category_id": [1]}, "annotation x has the category [1], which"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_annotation_is_left_out_and_counted_if_nothing_is_left(tmp_path: Path, name: str) -> None:
    content = instances()
    bad, detail = UNUSABLE[name]
    content["annotations"].append(bad)
    record = example(write(tmp_path, content, name="instances.json"))
    assert shown(record) == THREE[:2]
    assert record.left_out == 1
    content["annotations"] = [bad, bad]
    found = why(write(tmp_path, content, name="instances.json"))
    assert found.startswith(f"all of its annotations are left out (2): {detail}")


def test_a_panoptic_segment_of_an_unknown_category_is_left_out(tmp_path: Path) -> None:
    content = panoptic()
    change_segment(category_id=99)(content)
    record = example(write(tmp_path, content))
    assert shown(record) == THREE[1:]
    assert record.left_out == 1
    content["categories"] = [{"id": 50, "name": "cat"}]
    assert why(write(tmp_path, content)) == "no list names the categories of its 3 segments"


@pytest.mark.parametrize("flag", ["0", 0, None, False, "false"])
def test_flags_may_be_written_as_texts(tmp_path: Path, flag: object) -> None:
    content = instances()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = flag
    record = example(write(tmp_path, content, name="instances.json"))
    assert [segment.is_thing for segment in record.segments] == [True] * 2
    content["categories"][0]["isthing"] = flag
    content["annotations"][0]["iscrowd"] = "1"
    record = example(write(tmp_path, content, name="instances.json"))
    assert [segment.is_thing for segment in record.segments] == [False] * 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": ["lawn.jpg"]}, [("image-0", Reason.MISMATCHED_ANNOTATION), ("image-7", Reason.MISSING_IMAGE)]),
        (
            {"images": [{"file_name": "lawn.jpg", "id": [7], "width": 32, "height": 24}]},
            [("lawn", "a dog on a lawn"), ("image-7", Reason.MISSING_IMAGE)],
        ),
        (
            {"images": [{"file_name": "lawn.jpg", "id": 7, "width": float("inf"), "height": 24}]},
            [("lawn", Reason.MISMATCHED_ANNOTATION)],
        ),
    ],
)
def test_an_entry_that_makes_no_sense_is_a_reject(
    tmp_path: Path, content: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    write(tmp_path, instances() | content, name="instances.json")
    found = outcomes(read_all(list_source(str(tmp_path))))
    assert found == expected


@pytest.mark.parametrize("bad", [{}, "annotation", None, {"image_id": None}])
def test_an_annotation_of_no_picture_costs_no_other(tmp_path: Path, bad: object) -> None:
    content = instances()
    content["annotations"].append(bad)
    write(tmp_path, content, name="instances.json")
    assert outcomes(read_all(list_source(str(tmp_path)))) == [
        ("lawn", "a dog on a lawn"),
        ("image-None", Reason.MISSING_IMAGE),
    ]


@pytest.mark.parametrize(
    ("entry", "place", "key"),
    [
        ({"file_name": "images\\a.jpg"}, "images/a.jpg", clean_key("images/a")),
        ({"file_name": "images\\sub\\a.jpg"}, "images/sub/a.jpg", clean_key("images/sub/a")),
        ({"file_name": ".\\a.jpg"}, "val/a.jpg", clean_key("./a")),
        ({"file_name": "C:\\data\\sub\\a.jpg"}, "sub/a.jpg", clean_key("C:/data/sub/a")),
        ({"file_name": "/home/me/data/a.jpg"}, "images/a.jpg", clean_key("/home/me/data/a")),
        ({"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}, "train2017/000000391895.jpg", None),
        ({"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}, "images/000000391895.jpg", None),
        ({"file_name": None, "coco_url": "http://x.org/000000391895.jpg?size=9"}, "000000391895.jpg", None),
    ],
)
def test_a_picture_is_found_by_windows_names_and_by_its_address(
    tmp_path: Path, entry: dict[str, Any], place: str, key: str | None
) -> None:
    content = instances()
    content["images"] = [{"id": 7, "width": 32, "height": 24, **entry}]
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(JPEG)
    (tmp_path / place).with_suffix(".txt").write_text("a dog")
    assert outcomes([only(tmp_path)]) == [(key or "000000391895", "a dog")]


def test_a_relative_name_is_not_looked_for_in_other_folders(tmp_path: Path) -> None:
    content = panoptic()
    content["images"][0]["file_name"] = "other\\lawn.jpg"
    assert outcomes([only(write(tmp_path, content))]) == [(clean_key("other/lawn"), Reason.MISSING_IMAGE)]


def test_cityscapes_names_are_those_that_its_scripts_write(tmp_path: Path) -> None:
    """createPanopticImgs.py puts `_gtFine` into the names of the pictures, which lie in a folder per city."""
    content = panoptic()
    content["images"][0] |= {"id": "ulm_000000_000019", "file_name": "ulm_000000_000019_gtFine_leftImg8bit.png"}
    content["annotations"][0] |= {"image_id": "ulm_000000_000019", "file_name": "ulm_000000_000019_gtFine_panoptic.png"}
    pictures, truth = tmp_path / "leftImg8bit" / "val" / "ulm", tmp_path / "gtFine"
    (truth / "cityscapes_panoptic_val").mkdir(parents=True)
    pictures.mkdir(parents=True)
    (truth / "cityscapes_panoptic_val.json").write_text(json.dumps(content))
    (truth / "cityscapes_panoptic_val" / "ulm_000000_000019_gtFine_panoptic.png").write_bytes(png_of(IDS))
    (pictures / "ulm_000000_000019_leftImg8bit.png").write_bytes(encode(scene()))
    (pictures / "ulm_000000_000019_leftImg8bit.txt").write_text("a street")
    record = example(tmp_path)
    assert (record.key, record.caption) == ("ulm_000000_000019_gtFine_leftImg8bit", "a street")
    assert shown(record) == THREE
    assert list_source(str(tmp_path)).kind == "coco-panoptic"


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_mask() -> None:
    mask = np.zeros((24, 32), bool)
    mask[2:6, 1:7] = mask[10:12, 4:9] = True
    encoded = Mask.from_array(mask)
    polygons = [[1, 2, 7, 2, 7, 6, 1, 6], [4.0, 10.0, 9.0, 10.0, 9.0, 12.0, 4.0, 12.0]]
    # Column by column: one column of the first box alone, three of it, three of both, two of the second.
    counts = [26, 4, 20, 4, 20, 4, 20, 4, 4, 2, 14, 4, 4, 2, 14, 4, 4, 2, 22, 2, 22, 2]
    counts.append(24 * 32 - sum(counts))
    for segmentation in (polygons, encoded.to_json(), {"size": [24, 32], "counts": counts}):
        np.testing.assert_array_equal(decode_segmentation(segmentation, (24, 32)).to_array(), mask)


def test_ids_are_read_from_all_three_channels() -> None:
    ids = np.random.default_rng(0).integers(0, 2**24, (5, 7)).astype(np.uint32)
    np.testing.assert_array_equal(decode_ids(png_of(ids), (5, 7)), ids)


def test_a_panoptic_png_that_is_a_bomb_is_not_decoded() -> None:
    data = encode(np.zeros((1, 1, 3), np.uint8))
    bomb = data[:16] + (60_000).to_bytes(4, "big") * 2 + data[24:]
    with pytest.raises(Exception, match="mismatched-annotation: its panoptic PNG cannot be decoded"):
        decode_ids(bomb, (60_000, 60_000))


@pytest.mark.skipif(not REAL.exists(), reason="the real photographs are not at hand")
def test_real_coco_pictures_have_their_subjects() -> None:
    records = read_all(list_source(str(REAL)))
    found = {record.key: record for record in records if isinstance(record, Example)}
    assert sorted(found) == ["000000142238", "000000439180"]
    labels = [segment.label for segment in found["000000439180"].segments]
    assert labels.count("horse") > 5
    assert labels.count("truck") == 2
    content = json.loads((REAL / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        record = found[annotation["file_name"].removesuffix(".png")]
        for info, segment in zip(annotation["segments_info"], record.segments, strict=True):
            assert (segment.area, list(segment.bbox)) == (info["area"], info["bbox"])
