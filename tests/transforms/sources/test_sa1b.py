import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.blip_diffusion import BlipDiffusionConfig
from pipelines.fastcomposer import FastComposerConfig
from schemas.errors import ConfigError, InputError, RecordError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.masks import Mask
from schemas.rejects import Reason, Reject
from tests.pictures import Member, encode, outcomes, read_all, scene, tar, with_orientation
from tests.recipes import plan
from tests.schemas.test_masks import compress
from tests.strategies import masks
from transforms.batch import Outcome
from transforms.listing import Listing, list_source
from transforms.models.presets import resolve
from transforms.read import Reading, read_batches
from transforms.sources.sa1b import read_annotation, segments_of

JPEG = encode(scene(), "JPEG")  # 32 x 24 pixels
DOG = np.zeros((24, 32), bool)
DOG[2:9, 3:12] = True
RING = ~DOG
RING[10:14] = False


def annotation(*regions: NDArray[np.bool_], size: tuple[int, int] = (24, 32)) -> dict[str, Any]:
    """The JSON of a picture as SA-1B has it."""
    return {
        "image": {"image_id": 1, "height": size[0], "width": size[1], "file_name": "sa_1.jpg"},
        "annotations": [
            {
                "id": 500 + index,
                "segmentation": Mask.from_array(region).to_json(),
                "bbox": [float(v) for v in Mask.from_array(region).bbox],
                "area": int(region.sum()),
                "predicted_iou": 0.5 + 0.25 * index,
                "stability_score": 0.97,
                "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
                "point_coords": [[1.0, 2.0]],
            }
            for index, region in enumerate(regions)
        ],
    }


def members(*names: str, captions: bool = True) -> list[Member]:
    """Picture, annotation and, with `captions`, the caption of each."""
    listed: list[Member] = []
    for name in names:
        listed += [(f"{name}.jpg", JPEG), (f"{name}.json", json.dumps(annotation(DOG, RING)))]
        listed += [(f"{name}.txt", f"caption of {name}")] if captions else []
    return listed


def write(folder: Path, tars: dict[str, bytes]) -> Path:
    for name, content in tars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path, tars: dict[str, bytes]) -> list[Outcome]:
    return read_all(list_source(str(write(folder, tars))))


def one(tmp_path: Path, *listed: Member) -> Outcome:
    (record,) = read(tmp_path, {"sa_000000.tar": tar([*listed, ("sa_1.txt", "a dog")])})
    return record


def why(record: Outcome) -> str:
    assert isinstance(record, Reject), record
    assert record.reason == Reason.MISMATCHED_ANNOTATION
    return record.detail


def write_table(path: Path, keys: list[Any], captions: list[Any]) -> None:
    pq.write_table(pa.table({"key": keys, "caption": captions}), path)


@pytest.mark.parametrize("below", ["", "./"])
def test_a_picture_comes_with_its_masks_as_they_are(tmp_path: Path, below: str) -> None:
    records = read(tmp_path, {"sa_000020.tar": tar([*members(f"{below}sa_1"), *members(f"{below}sa_22")])})
    assert [record.key for record in records] == ["sa_1", "sa_22"]
    record = records[0]
    assert isinstance(record, Example)
    assert (record.image, record.source) == (JPEG, Source("sa_000020.tar/sa_1"))
    assert [(s.label, s.is_thing, s.score) for s in record.segments] == [("object", True, 0.5), ("object", True, 0.75)]
    for segment, truth in zip(record.segments, (DOG, RING), strict=True):
        np.testing.assert_array_equal(segment.mask.to_array(), truth)


@given(masks(), st.floats(-0.5, 1.5))
def test_any_mask_is_read_and_an_empty_one_left_out(mask: NDArray[np.bool_], score: float) -> None:
    content = annotation(mask, size=mask.shape)
    content["annotations"][0]["predicted_iou"] = score
    segments, _ = segments_of(content["annotations"], mask.shape)
    assert len(segments) == mask.any()
    for segment in segments:
        np.testing.assert_array_equal(segment.mask.to_array(), mask)
        assert segment.score == pytest.approx(np.clip(score, 0, 1))


def compressed(runs: list[int]) -> str:
    """COCO's string of any run lengths, right or wrong ones."""
    return compress([*runs, 24 * 32 - sum(runs)])


@given(
    st.text(max_size=12)
    | st.text(alphabet="0123456789:;<=>?@ABCPQRmno", max_size=12)
    | st.lists(st.integers(0, 200), max_size=6).map(compressed)
)
@example(compressed([3, 5]))
@example(compressed([400, 400]))  # the last run is negative
def test_run_lengths_are_either_right_or_refused(counts: str) -> None:
    """Right ones are those that the slow encoder gives for the picture that they stand for."""
    damaged = annotation(DOG)["annotations"]
    damaged[0]["segmentation"]["counts"] = counts
    try:
        found, _ = segments_of(damaged, (24, 32))
    except RecordError:
        refused = True
    else:
        refused = False
        assert len(found) <= 1
        assert all(segment.mask.to_array().sum() == segment.area > 0 for segment in found)
    assert refused == (lengths_of(counts) is None)


def lengths_of(counts: str) -> list[int] | None:
    """Read COCO's string with a loop of its own; None where it stands for no mask of 24 x 32 pixels."""
    numbers, bits, length = [], 0, 0
    for character in counts:
        if not "0" <= character <= "o":
            return None
        value = ord(character) - ord("0")
        bits += (value % 32) * 32**length
        length += 1
        if value < 32:
            numbers.append(bits - 32**length if value % 32 >= 16 else bits)
            bits = length = 0
    for index in range(3, len(numbers)):
        numbers[index] += numbers[index - 2]
    is_whole = length == 0 and sum(numbers) == 24 * 32 and min(numbers) >= 0
    return numbers if is_whole else None


@given(st.binary(max_size=20) | st.recursive(st.none() | st.integers(), lambda x: st.lists(x, max_size=3)).map(
    lambda value: json.dumps({"image": value, "annotations": value}).encode()
))  # fmt: skip
def test_what_is_no_annotation_is_refused(content: bytes) -> None:
    with pytest.raises(RecordError, match="mismatched-annotation: its JSON"):
        read_annotation(content)


BROKEN: dict[str, tuple[list[Member], str]] = {
    "no annotation": ([("sa_1.jpg", JPEG)], r"there is no annotation (.json) with the picture"),
    "another JSON": (
        [("sa_1.jpg", JPEG), ("sa_1.json", '{"caption": "a dog"}')],
        "its JSON is no annotation of SA-1B (KeyError 'image'): other tars are read with --source webdataset",
    ),
    "no JSON": ([("sa_1.jpg", JPEG), ("sa_1.json", b"\xff{")], "its JSON is no annotation of SA-1B (UnicodeDecode"),
    "no list": (
        [("sa_1.jpg", JPEG), ("sa_1.json", json.dumps(annotation() | {"annotations": {}}))],
        "its JSON has a dict of annotations instead of a list",
    ),
    "another size": (
        [("sa_1.jpg", JPEG), ("sa_1.json", json.dumps(annotation(DOG.T, size=(32, 24))))],
        "the picture is 32 x 24 pixels (upright), its annotation is for 24 x 32",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_annotation_that_does_not_fit_is_a_reject(tmp_path: Path, case: str) -> None:
    listed, detail = BROKEN[case]
    assert detail in why(one(tmp_path, *listed))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"segmentation": {"size": [32, 24], "counts": "0h0"}}, "of [32, 24] (height, width), the picture of [24, 32]"),
        ({"segmentation": {"size": [24, 32], "counts": "0h0"}}, "its runs cover"),
        (
            {"segmentation": {"size": [24, 32], "counts": Mask.from_array(DOG).counts[:-1]}},
            "breaks off within a number",
        ),
        ({"segmentation": {"size": [24, 32], "counts": "é"}}, "is not a character of COCO"),
        ({"segmentation": {"size": [24, 32]}}, "KeyError 'counts'"),
        ({"segmentation": None}, "a NoneType is neither polygons nor run lengths"),
        ({"predicted_iou": None}, "TypeError"),
        ({"predicted_iou": float("nan")}, "its predicted_iou is no number"),
    ],
)
def test_a_malformed_annotation_costs_itself_and_its_picture_only_if_it_is_alone(
    tmp_path: Path, change: dict[str, Any], detail: str
) -> None:
    content = annotation(RING, DOG)
    content["annotations"][1] |= change
    record = one(tmp_path, ("sa_1.jpg", JPEG), ("sa_1.json", json.dumps(content)))
    assert isinstance(record, Example)
    assert [segment.mask for segment in record.segments] == [Mask.from_array(RING)]
    assert record.left_out == 1
    del content["annotations"][0]
    found = why(one(tmp_path, ("sa_1.jpg", JPEG), ("sa_1.json", json.dumps(content))))
    assert found.startswith("annotation 0 is malformed: ")
    assert detail in found


def test_a_bad_picture_or_caption_keeps_its_own_reason(tmp_path: Path) -> None:
    listed = members("sa_1", "sa_2", "sa_3")
    listed[0] = ("sa_1.jpg", JPEG[:300])
    listed[5] = ("sa_2.txt", b"\xff")
    listed += [("sa_4.json", json.dumps(annotation(DOG))), *members("sa_3")]
    assert outcomes(read(tmp_path, {"sa_0.tar": tar(listed)})) == [
        ("sa_1", Reason.UNDECODABLE_IMAGE),
        ("sa_2", Reason.UNDECODABLE_CAPTION),
        ("sa_3", "caption of sa_3"),
        ("sa_4", Reason.MISSING_IMAGE),
        ("sa_3", Reason.DUPLICATE_KEY),
    ]


def test_a_picture_that_only_exif_turns_is_refused_where_its_masks_were_drawn_before(tmp_path: Path) -> None:
    """Stored 24 wide and 32 high, upright 32 x 24."""
    turned = encode(np.ascontiguousarray(np.rot90(scene())), "JPEG", **with_orientation(6))
    upright = one(tmp_path, ("sa_1.jpg", turned), ("sa_1.json", json.dumps(annotation(DOG))))
    assert isinstance(upright, Example)
    np.testing.assert_array_equal(upright.segments[0].mask.to_array(), DOG)
    stored = json.dumps(annotation(np.rot90(DOG), size=(32, 24)))
    assert "(upright), its annotation is for 24 x 32" in why(one(tmp_path, ("sa_1.jpg", turned), ("sa_1.json", stored)))


def test_a_tar_cut_off_anywhere_yields_its_whole_pictures_and_one_reject(tmp_path: Path) -> None:
    whole = tar(members("sa_1", "sa_2", "sa_3", captions=False))
    ends = [end for end in range(0, len(whole), 512) if whole[end : end + 512] == bytes(512)]
    folder = write(tmp_path, {"sa_0.tar": whole, **{f"captions/sa_{n}.txt": b"a dog" for n in (1, 2, 3)}})
    counts = []
    for cut in range(511, ends[0], 307):
        (folder / "sa_0.tar").write_bytes(whole[:cut])
        *good, bad = outcomes(read_all(list_source(str(folder))))
        assert good == [(f"sa_{n}", "a dog") for n in range(1, len(good) + 1)]
        assert bad == (clean_key("sa_0.tar"), Reason.TRUNCATED_ARCHIVE if good else Reason.UNREADABLE_FILE)
        counts.append(len(good))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}  # its last block is padding


@pytest.mark.parametrize("named", ["", "sa_000000.tar", "sa_*.tar"])
@pytest.mark.parametrize("place", ["folder", "table"])
def test_captions_may_stand_beside_the_tars(tmp_path: Path, named: str, place: str) -> None:
    write(tmp_path, {"sa_000000.tar": tar([*members("sa_1"), *members("sa_2", "sa_3", captions=False)])})
    if place == "folder":
        write(tmp_path, {"captions/sa_1.txt": b"another", "captions/sa_2.txt": b"a cat", "other/sa_3.txt": b"no"})
    else:
        write_table(tmp_path / "blip.parquet", ["sa_1", "sa_2", "sa_2", "sa_3"], ["another", "a cat", "twice", None])
    listing = list_source(str(tmp_path / named) if named else str(tmp_path))
    assert outcomes(read_all(listing)) == [
        ("sa_1", "caption of sa_1"),
        ("sa_2", "a cat"),
        ("sa_3", Reason.MISSING_CAPTION),
    ]


def test_rows_of_one_key_beside_the_tars_are_several_captions(tmp_path: Path) -> None:
    write(tmp_path, {"sa_000000.tar": tar(members("sa_1", "sa_2", captions=False))})
    rows = [("sa_1", None), ("sa_2", "a cat"), ("sa_1", "a dog"), ("sa_1", "a pet"), ("sa_1", "a dog")]
    write_table(tmp_path / "blip.parquet", *map(list, zip(*rows, strict=True)))
    records = read_all(list_source(str(tmp_path)))
    assert [(r.caption, r.other_captions) for r in records if isinstance(r, Example)] == [
        ("a dog", ("a pet",)),
        ("a cat", ()),
    ]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_caption_beside_that_is_not_utf8_costs_its_picture_alone(tmp_path: Path, kind: pa.DataType) -> None:
    write(tmp_path, {"sa_0.tar": tar(members("sa_1", "sa_2", captions=False))})
    captions = pa.array([b"a dog", "a café".encode("latin-1"), b"no"]).cast(pa.large_binary())
    keys = pa.array([b"sa_1", b"sa_2", b"sa_\xe9"]).cast(pa.large_binary())
    columns = {name: column.view(pa.large_string()) for name, column in (("key", keys), ("caption", captions))}
    pq.write_table(pa.table({"key": columns["key"], "caption": columns["caption"].cast(kind)}), tmp_path / "c.parquet")
    assert outcomes(read_all(list_source(str(tmp_path)))) == [("sa_1", "a dog"), ("sa_2", Reason.UNDECODABLE_CAPTION)]


def test_captions_beside_may_be_views(tmp_path: Path) -> None:
    write(tmp_path, {"sa_0.tar": tar(members("sa_1", captions=False))})
    table = pa.table({"key": pa.array(["sa_1"], pa.string_view()), "caption": pa.array(["a dog"], pa.string_view())})
    pq.write_table(table, tmp_path / "c.parquet")
    assert outcomes(read_all(list_source(str(tmp_path)))) == [("sa_1", "a dog")]


def test_a_picture_without_a_caption_may_get_one_later(tmp_path: Path) -> None:
    listing = list_source(str(write(tmp_path, {"sa_0.tar": tar(members("sa_1", captions=False))})))
    (item,) = listing.chunks[0].items
    (batch,) = read_batches(0, item, Reading(needs_captions=False))
    assert outcomes(batch.records) == [("sa_1", "")]


def test_an_empty_caption_in_the_tar_is_a_missing_one(tmp_path: Path) -> None:
    write_table(tmp_path / "blip.parquet", ["sa_1"], ["a dog"])
    listed = [*members("sa_1", captions=False), ("sa_1.txt", " ")]
    assert outcomes(read(tmp_path, {"sa_0.tar": tar(listed)})) == [("sa_1", "a dog")]


def test_captions_in_two_places_must_be_one(tmp_path: Path) -> None:
    write(tmp_path, {"sa_0.tar": tar(members("sa_1")), "captions/sa_1.txt": b"a cat"})
    write_table(tmp_path / "blip.parquet", ["sa_1"], ["a dog"])
    with pytest.raises(InputError, match=r"in several places beside the tars, .*blip\.parquet, .*captions: keep one"):
        list_source(str(tmp_path))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            pa.table({"key": ["sa_1"], "text": ["a dog"]}),
            "there is no column caption: captions are read from the columns",
        ),
        (pa.table({"key": [1], "caption": ["a dog"]}), "column key holds int64, not text"),
        (None, "the captions cannot be read"),
    ],
)
def test_a_table_without_captions_is_an_error(tmp_path: Path, table: pa.Table | None, problem: str) -> None:
    write(tmp_path, {"sa_0.tar": tar(members("sa_1")), "blip.parquet": b"PAR1"})
    if table is not None:
        pq.write_table(table, tmp_path / "blip.parquet")
    with pytest.raises(InputError, match=rf"blip\.parquet: {problem}"):
        list_source(str(tmp_path))


def test_a_table_that_broke_since_costs_the_captions_that_were_in_it(tmp_path: Path) -> None:
    write(tmp_path, {"sa_0.tar": tar([*members("sa_1"), *members("sa_2", captions=False)])})
    write_table(tmp_path / "broken.parquet", ["sa_2"], ["a dog"])
    listing = list_source(str(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"")
    assert outcomes(read_all(listing)) == [("sa_1", "caption of sa_1"), ("sa_2", Reason.UNREADABLE_FILE)]


def test_a_members_name_cannot_reach_out_of_the_captions(tmp_path: Path) -> None:
    tars = {"sa_0.tar": tar(members("../secret", captions=False)), "captions/sa_1.txt": b"x", "secret.txt": b"secret"}
    assert outcomes(read(tmp_path, tars)) == [(clean_key("../secret"), Reason.MISSING_CAPTION)]


def test_the_kind_is_told_by_the_published_name_and_any_name_with_the_option(tmp_path: Path) -> None:
    tars = {"sa_000000.tar": tar(members("sa_1")), "sa_000001.tar": tar(members("sa_2"))}
    listing = list_source(str(write(tmp_path, tars)))
    assert (listing.kind, listing.has_segments, listing.has_labels, listing.expected) == ("sa-1b", True, False, None)
    assert [(chunk.shard, len(chunk.items)) for chunk in listing.chunks] == [(0, 1), (1, 1)]
    assert outcomes(read_all(listing)) == [("sa_1", "caption of sa_1"), ("sa_2", "caption of sa_2")]
    (tmp_path / "sa_000001.tar").rename(tmp_path / "mine.tar")
    with pytest.raises(InputError, match=r"webdataset \(mine\.tar\), sa-1b \(sa_000000\.tar\): choose one with"):
        list_source(str(tmp_path))
    keys = [key for key, _ in outcomes(read_all(list_source(str(tmp_path), "sa-1b")))]
    assert keys == ["mine_sa_2", "sa_000000_sa_1"]
    # As webdataset the JSON is metadata, and the masks are passed over.
    records = read_all(list_source(str(tmp_path), "webdataset"))
    assert [isinstance(record, Example) and not record.segments for record in records] == [True, True]


def test_tars_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    content = tar(members("sa_1"))
    records = read(tmp_path, {"a/sa_0.tar": content, "b/sa_0.tar": content})
    assert len({record.key for record in records if isinstance(record, Example)}) == 2


@pytest.mark.parametrize(("limit", "expected"), [(1, [1]), (2, [2]), (3, [2, 1]), (9, [2, 1])])
def test_a_limit_takes_the_first_pictures_over_all_tars(tmp_path: Path, limit: int, expected: list[int]) -> None:
    write(tmp_path, {"sa_0.tar": tar(members("sa_1", "sa_2")), "sa_1.tar": tar(members("sa_3"))})
    listing = list_source(str(tmp_path), limit=limit)
    assert [chunk.expected for chunk in listing.chunks] == expected
    assert len(read_all(listing)) == sum(expected)


def test_a_fingerprint_changes_with_tar_and_captions_and_only_then(tmp_path: Path) -> None:
    def prints() -> list[str]:
        return [chunk.fingerprint for chunk in list_source(str(tmp_path)).chunks]

    write(tmp_path, {"sa_0.tar": tar(members("sa_1")), "sa_1.tar": tar(members("sa_2")), "notes.md": b""})
    plain = prints()
    write(tmp_path, {"captions/sa_2.txt": b"a dog", "notes.md": b"changed"})
    captioned = prints()
    assert not set(plain) & set(captioned)
    write(tmp_path, {"captions/sa_2.txt": b"a small dog"})
    assert not set(captioned) & set(prints())
    assert prints() == prints()


def listed(kind: str) -> Listing:
    return Listing(kind, ())


@pytest.mark.parametrize("similarity", ["label", "clip-label"])
def test_a_similarity_of_class_names_is_refused_for_segments_without_any(similarity: Any) -> None:  # noqa: ANN401
    models = resolve("sample", {})
    with pytest.raises(ConfigError, match=f"of sa-1b have no class names, which similarity = '{similarity}'"):
        plan("fastcomposer", FastComposerConfig(similarity=similarity), models, listed("sa-1b"))
    _, kinds = plan("fastcomposer", FastComposerConfig(similarity="clip"), models, listed("sa-1b"))
    assert kinds == {"parser", "clip"}
    plan("fastcomposer", FastComposerConfig(similarity=similarity), models, listed("coco-panoptic"))


def test_segments_without_names_leave_the_subject_to_the_caption() -> None:
    models = resolve("sample", {})
    assert plan("blip-diffusion", BlipDiffusionConfig(), models, listed("sa-1b"))[1] == {"parser", "clipseg"}
    assert plan("blip-diffusion", BlipDiffusionConfig(), models, listed("coco-instances"))[1] == set()


def test_a_tar_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture is there before the second half of its tar has been read."""
    whole = tar(members(*(f"sa_{n}" for n in range(60))))
    write(tmp_path, {"sa_0.tar": whole})
    listing = list_source(str(tmp_path))
    stream = io.BytesIO(whole)
    monkeypatch.setattr("transforms.sources.files.open_file", lambda _: stream)
    (item,) = listing.chunks[0].items
    records = iter(item.read())
    assert next(records).key == "sa_0"
    assert stream.tell() < len(whole) / 2
