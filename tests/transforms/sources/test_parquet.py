from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from schemas.errors import InputError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from tests.pictures import encode, outcomes, read_all, scene
from transforms.batch import Outcome
from transforms.listing import list_source
from transforms.read import read_batches
from transforms.sources.parquet import Rows

JPEG = encode(scene(), "JPEG")


def write(path: Path, columns: Mapping[str, Any], rows_per_group: int = 1000) -> Path:
    pq.write_table(pa.table(dict(columns)), path, row_group_size=rows_per_group)
    return path


def rows(count: int, start: int = 0) -> dict[str, Sequence[object]]:
    numbers = range(start, start + count)
    return {"key": [f"k{n:04d}" for n in numbers], "jpg": [JPEG] * count, "text": [f"row {n}" for n in numbers]}


def read(path: Path) -> list[Outcome]:
    return read_all(list_source(str(path)))


@pytest.mark.parametrize("image", ["image", "jpg", "image_bytes"])
@pytest.mark.parametrize("caption", ["caption", "text"])
@pytest.mark.parametrize("key", ["key", "id", "__key__"])
def test_columns_are_found_by_their_names(tmp_path: Path, image: str, caption: str, key: str) -> None:
    path = write(tmp_path / "a.parquet", {key: ["k1"], image: [JPEG], caption: ["a dog"], "similarity": [0.3]})
    (record,) = read(path)
    assert isinstance(record, Example)
    assert (record.key, record.image, record.caption, record.source) == ("k1", JPEG, "a dog", Source("a.parquet#0"))


def test_licence_and_address_are_read(tmp_path: Path) -> None:
    columns = {**rows(2), "license": ["CC0", None], "url": ["https://example.org/1", None]}
    sources = [record.source for record in read(write(tmp_path / "a.parquet", columns))]
    assert sources == [Source("https://example.org/1", "CC0"), Source("a.parquet#1", "")]


def test_a_file_of_hugging_face_datasets_is_read(tmp_path: Path) -> None:
    features = Features({"image": Image(), "text": Value("string")})
    images = [{"bytes": JPEG, "path": "x.jpg"}, None]
    Dataset.from_dict({"image": images, "text": ["a dog", "a cat"]}, features).to_parquet(tmp_path / "train.parquet")
    assert outcomes(read(tmp_path)) == [("train-00000000", "a dog"), ("train-00000001", Reason.MISSING_IMAGE)]


def test_without_a_key_column_the_file_and_the_row_make_the_key(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", {"image": [JPEG] * 2, "caption": ["a dog"] * 2})
    assert [key for key, _ in outcomes(read(tmp_path))] == ["a-00000000", "a-00000001", "b-00000000", "b-00000001"]


def latin(texts: Sequence[str | None], kind: pa.DataType | None = None) -> pa.Array:
    """A column of text whose bytes are Latin-1, as writers make it that do not check."""
    codes = pa.array([None if text is None else text.encode("latin-1") for text in texts], pa.large_binary())
    return codes.view(pa.large_string()).cast(kind or pa.large_string(), safe=False)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_caption_that_is_not_utf8_costs_its_row_alone(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"image": [JPEG] * 3, "caption": latin(["a dog", "a café", "a cat"], kind)}
    assert [outcome for _, outcome in outcomes(read(write(tmp_path / "a.parquet", columns)))] == [
        "a dog",
        Reason.UNDECODABLE_CAPTION,
        "a cat",
    ]


@pytest.mark.parametrize("name", ["key", "url", "license"])
def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path, name: str) -> None:
    columns = {"image": [JPEG] * 2, "caption": ["a dog"] * 2, name: latin(["caf\xe9", "caf\xea"])}
    first, second = read(write(tmp_path / "a.parquet", columns))
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    if name == "key":
        assert (first.key, second.key) == (clean_key("caf\udce9"), clean_key("caf\udcea"))
    else:
        stated = (
            (first.source.license, second.source.license)
            if name == "license"
            else (first.source.uri, second.source.uri)
        )
        assert stated == ("caf\\udce9", "caf\\udcea")


def test_a_path_that_is_not_utf8_takes_nothing_from_its_picture(tmp_path: Path) -> None:
    images = pa.StructArray.from_arrays([pa.array([JPEG, None]), latin(["caf\xe9", "b"])], ["bytes", "path"])
    path = write(tmp_path / "a.parquet", {"image": images, "caption": ["a dog", "a cat"]})
    assert [outcome for _, outcome in outcomes(read(path))] == ["a dog", Reason.MISSING_IMAGE]


def test_a_key_that_python_has_no_value_for_is_that_of_its_row(tmp_path: Path) -> None:
    keys = pa.array([0, 2**62], pa.timestamp("us"))
    path = write(tmp_path / "a.parquet", {"key": keys, "image": [JPEG] * 2, "caption": ["a dog"] * 2})
    assert [key for key, _ in outcomes(read(path))] == [clean_key("1970-01-01 00:00:00"), "a-00000001"]


BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(JPEG))]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.large_string())]


@pytest.mark.parametrize(("images", "texts"), [*zip(BYTES, TEXTS, strict=False), (pa.binary(), TEXTS[-1])])
def test_all_types_of_text_and_bytes_are_read(tmp_path: Path, images: pa.DataType, texts: pa.DataType) -> None:
    columns = {
        "key": pa.array(["k1"]).cast(texts),
        "image": pa.array([JPEG]).cast(images),
        "caption": pa.array(["a dog"]).cast(texts),
    }
    (record,) = read(write(tmp_path / "a.parquet", columns))
    assert isinstance(record, Example)
    assert (record.key, record.image, record.caption) == ("k1", JPEG, "a dog")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_columns_are_chosen_by_their_type_before_their_name(tmp_path: Path, name: str) -> None:
    """img2dataset names the column of pictures after their format; others keep a path in `image`."""
    columns = {"image": ["a.jpg"], "jpg": [3], name: [JPEG], "caption": [5], "text": ["a dog"]}
    assert outcomes(read(write(tmp_path / "a.parquet", columns))) == [("a-00000000", "a dog")]


def test_a_column_of_a_fitting_type_goes_before_one_without_any_value(tmp_path: Path) -> None:
    columns = {"image": [None], "jpg": [JPEG], "caption": [None], "text": ["a dog"]}
    assert outcomes(read(write(tmp_path / "a.parquet", columns))) == [("a-00000000", "a dog")]


def test_where_a_caption_is_empty_the_other_column_of_captions_is_asked(tmp_path: Path) -> None:
    columns = {"image": [JPEG] * 4, "caption": ["a dog", None, " ", None], "text": ["a pet", "a cat", "a cow", ""]}
    assert [outcome for _, outcome in outcomes(read(write(tmp_path / "a.parquet", columns)))] == [
        "a dog",
        "a cat",
        "a cow",
        Reason.MISSING_CAPTION,
    ]


def test_bad_rows_are_rejects(tmp_path: Path) -> None:
    columns = {
        "id": [1, 2, 3, 4, 1, None],
        "image": [JPEG, b"", None, JPEG[:300], JPEG, JPEG],
        "caption": ["a dog", "a", "b", "c", "another dog", None],
    }
    assert outcomes(read(write(tmp_path / "a.parquet", columns))) == [
        ("1", "a dog"),
        ("2", Reason.EMPTY_IMAGE),
        ("3", Reason.MISSING_IMAGE),
        ("4", Reason.UNDECODABLE_IMAGE),
        ("1", Reason.DUPLICATE_KEY),
        ("a-00000005", Reason.MISSING_CAPTION),
    ]


def test_one_key_in_two_files_is_a_reject(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(3))
    write(tmp_path / "b.parquet", rows(3, start=2))
    reasons = [reason for _, reason in outcomes(read(tmp_path))]
    assert reasons == ["row 0", "row 1", "row 2", Reason.DUPLICATE_KEY, "row 3", "row 4"]


@pytest.mark.parametrize(("per_group", "per_shard"), [(1, 100), (7, 50), (100, 30), (300, 1000), (64, 64), (90, 100)])
def test_every_row_is_read_once_and_in_order(tmp_path: Path, per_group: int, per_shard: int) -> None:
    write(tmp_path / "a.parquet", rows(150), per_group)
    write(tmp_path / "b.parquet", rows(0), per_group)
    write(tmp_path / "c.parquet", rows(75, start=150), per_group)
    listing = list_source(str(tmp_path), samples_per_shard=per_shard)
    assert [key for key, _ in outcomes(read_all(listing))] == [f"k{n:04d}" for n in range(225)]
    assert [chunk.expected for chunk in listing.chunks] == [min(per_shard, 225 - s) for s in range(0, 225, per_shard)]
    for chunk in listing.chunks:
        records = [r for item in chunk.items for batch in read_batches(chunk.shard, item) for r in batch.records]
        assert len(records) == chunk.expected


def test_only_the_row_groups_with_the_wanted_rows_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(1000), rows_per_group=100)
    chunks = list_source(str(tmp_path), samples_per_shard=250).chunks
    items = [item for chunk in chunks for item in chunk.items if isinstance(item, Rows)]
    assert [(i.start, i.stop, i.groups, i.offset) for i in items[:6]] == [
        (0, 100, (0,), 0),
        (100, 200, (1,), 100),
        (200, 250, (2,), 200),
        (250, 400, (2, 3), 200),
        (400, 500, (4,), 400),
        (500, 600, (5,), 500),
    ]


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", rows(30))
    write(tmp_path / "b.parquet", rows(30, start=30))
    for limit in (1, 29, 30, 31, 60, 99):
        listing = list_source(str(tmp_path), samples_per_shard=20, limit=limit)
        expected = [f"k{n:04d}" for n in range(min(limit, 60))]
        assert [key for key, _ in outcomes(read_all(listing))] == expected
        assert listing.expected == len(expected)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary(), 4), pa.list_(pa.string_view())],
)
@pytest.mark.parametrize("name", ["caption", "text", "captions"])
def test_a_list_is_several_captions(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    texts = pa.array([["a dog", None, "a  dog", "a pet"], [""] * 4, [None] * 4], kind)
    records = read(write(tmp_path / "a.parquet", {"image": [JPEG] * 3, "alt": ["x"] * 3, name: texts}))
    assert [getattr(record, "other_captions", ()) for record in records] == [("a pet",), (), ()]
    assert [reason for _, reason in outcomes(records)] == ["a dog", Reason.MISSING_CAPTION, Reason.MISSING_CAPTION]


def test_a_column_of_texts_is_taken_before_one_of_lists(tmp_path: Path) -> None:
    columns = {"image": [JPEG] * 2, "caption": [["a dog", "a pet"]] * 2, "text": ["a cat", None]}
    records = read(write(tmp_path / "a.parquet", columns))
    assert [(r.caption, r.other_captions) for r in records if isinstance(r, Example)] == [
        ("a cat", ()),
        ("a dog", ("a pet",)),
    ]


def test_a_caption_of_a_list_that_is_not_utf8_costs_itself_alone(tmp_path: Path) -> None:
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), latin(["a café", "a dog", "a café"]))
    first, second = read(write(tmp_path / "a.parquet", {"image": [JPEG] * 2, "caption": lists}))
    assert isinstance(first, Example)
    assert (first.caption, first.other_captions) == ("a dog", ())
    assert outcomes([second])[0][1] == Reason.UNDECODABLE_CAPTION


def test_a_file_without_the_columns_is_named_with_those_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image_url": ["https://example.org"], "caption": ["a dog"]})
    with pytest.raises(
        InputError, match=r"a\.parquet has no column of images \(image, jpg, image_bytes, .*\): .*image_url, c"
    ):
        list_source(str(path))
    path = write(tmp_path / "a.parquet", {"image": [JPEG], "alt": ["a dog"]})
    with pytest.raises(
        InputError, match=r"no column of captions \(caption, text, captions\): its columns are image, alt"
    ):
        list_source(str(path))
    path = write(tmp_path / "a.parquet", {"image": ["a.jpg"], "caption": ["a dog"]})
    with pytest.raises(InputError, match=r"column image holds string, not the bytes of encoded images"):
        list_source(str(path))
    path = write(tmp_path / "a.parquet", {"image": [JPEG], "caption": [[1, 2]]})
    with pytest.raises(InputError, match=r"column caption holds list<.*>, not text"):
        list_source(str(path))


def test_what_is_no_parquet_is_an_error_alone_and_a_reject_among_others(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"a\.parquet: no Parquet file: "):
        list_source(str(tmp_path))
    write(tmp_path / "b.parquet", rows(1))
    assert outcomes(read(tmp_path)) == [(clean_key("a.parquet"), Reason.UNREADABLE_FILE), ("k0000", "row 0")]


def test_a_file_cut_off_is_no_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(20))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="no Parquet file"):
        list_source(str(path))


def test_rows_that_cannot_be_read_are_rejects_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(20), rows_per_group=10)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    columns_of_keys_are_read_at_listing = pytest.raises(InputError, match="no Parquet file")
    with columns_of_keys_are_read_at_listing:
        list_source(str(path))


@pytest.mark.parametrize("per_group", [32, 100])
def test_a_column_chunk_that_broke_costs_no_row_before_it(tmp_path: Path, per_group: int) -> None:
    columns = {"image": [JPEG] * 200, "caption": ["a dog"] * 200}
    path = write(tmp_path / "a.parquet", columns, per_group)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    records = read(path)
    item = next(i for c in list_source(str(path)).chunks for i in c.items if isinstance(i, Rows) and 1 in i.groups)
    assert [n for n, record in enumerate(records) if isinstance(record, Reject)] == list(range(per_group, item.stop))
    assert {record.reason for record in records if isinstance(record, Reject)} == {Reason.UNREADABLE_FILE}
    assert len({record.key for record in records}) == 200


def test_a_fingerprint_covers_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", rows(30))

    def fingerprints(per_shard: int) -> list[str]:
        return [chunk.fingerprint for chunk in list_source(str(path), samples_per_shard=per_shard).chunks]

    assert len(set(fingerprints(10))) == 3
    assert fingerprints(10)[0] == fingerprints(10)[0] != fingerprints(11)[0]
