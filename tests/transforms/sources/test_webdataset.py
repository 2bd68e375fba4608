import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander

from schemas.errors import InputError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from tests.pictures import Member, encode, outcomes, read_all, scene, tar
from transforms.batch import Outcome
from transforms.listing import list_source

JPEG = encode(scene(), "JPEG")
PNG = encode(scene())


def samples(*keys: str) -> list[Member]:
    return [member for key in keys for member in ((f"{key}.jpg", JPEG), (f"{key}.txt", f"caption of {key}"))]


def read(folder: Path, tars: dict[str, bytes], limit: int | None = None) -> list[Outcome]:
    for name, content in tars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return read_all(list_source(str(folder), limit=limit))


def test_tars_that_webdataset_wrote_are_read(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as sink:
        for number in range(3):
            sink.write({"__key__": f"{number:09d}", "jpg": JPEG, "txt": f"picture {number}", "npy": b"\x00" * 2000})
    records = read_all(list_source(str(tmp_path)))
    assert outcomes(records) == [(f"{n:09d}", f"picture {n}") for n in range(3)]
    assert isinstance(records[0], Example)
    assert records[0].image == JPEG
    assert records[0].source == Source("a.tar/000000000")


def test_the_caption_may_stand_in_the_json_which_gives_licence_and_address(tmp_path: Path) -> None:
    fields = {"caption": "a dog", "url": "https://example.org/1", "license": "CC BY", "width": 32, "key": "1"}
    (record,) = read(tmp_path, {"a.tar": tar([("1.png", PNG), ("1.json", json.dumps(fields))])})
    assert isinstance(record, Example)
    assert (record.caption, record.source) == ("a dog", Source("https://example.org/1", "CC BY"))


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ({"txt": "", "json": '{"caption": "a dog", "text": "no"}'}, "a dog"),
        ({"txt": "", "json": '{"caption": null, "text": "a dog"}'}, "a dog"),
        ({"caption": "a dog", "json": '{"text": "no"}'}, "a dog"),
        ({"txt": " "}, Reason.MISSING_CAPTION),
    ],
)
def test_an_empty_caption_is_a_missing_one(tmp_path: Path, members: dict[str, str], caption: str | Reason) -> None:
    content: list[Member] = [("1.jpg", JPEG), *((f"1.{kind}", text) for kind, text in members.items())]
    assert outcomes(read(tmp_path, {"a.tar": tar(content)})) == [("1", caption)]


def test_keys_end_at_the_first_dot_as_in_webdataset(tmp_path: Path) -> None:
    members: list[Member] = [
        ("x/1.jpg", JPEG),
        ("x/1.seg.png", b"other"),
        ("x/1.txt", "one"),
        ("y.z/2.JPG", JPEG),
        ("y.z/2.txt", "two"),
    ]
    records = read(tmp_path, {"a.tar": tar(members)})
    assert outcomes(records) == [(clean_key("x/1"), "one"), (clean_key("y.z/2"), "two")]
    with (tmp_path / "a.tar").open("rb") as stream:
        theirs = [sample["__key__"] for sample in group_by_keys(tar_file_expander([{"url": "a", "stream": stream}]))]
    assert theirs == ["x/1", "y.z/2"]


def test_pictures_whose_keys_have_a_dot_are_rejects_that_say_so(tmp_path: Path) -> None:
    """By webdataset's rule they are one sample without a picture."""
    records = read(tmp_path, {"a.tar": tar([*samples("photo.1", "photo.2", "x/v1.0.final"), *samples("fine")])})
    assert outcomes(records) == [
        (clean_key("photo.1"), Reason.MISSING_IMAGE),
        (clean_key("photo.2"), Reason.MISSING_IMAGE),
        (clean_key("x/v1.0.final"), Reason.MISSING_IMAGE),
        ("fine", "caption of fine"),
    ]
    assert isinstance(records[0], Reject)
    assert records[0].detail == (
        "the name photo.1.jpg has a dot before its extension, and keys end at the first one: rename it, or read the "
        "tar with --keys last-dot"
    )
    assert records[0].source == "a.tar/photo.1"


def test_keys_may_end_at_the_last_dot(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([*samples("photo.1", "photo.2", "x/v1.0.final"), (".hidden.jpg", JPEG)]))
    listing = list_source(str(tmp_path), keys="last-dot")
    keys = ["photo.1", "photo.2", "x/v1.0.final"]
    assert outcomes(read_all(listing)) == [(clean_key(key), f"caption of {key}") for key in keys]
    assert listing.chunks[0].fingerprint != list_source(str(tmp_path)).chunks[0].fingerprint
    assert list_source(str(tmp_path), limit=2, keys="last-dot").expected == 2


def test_where_keys_end_is_asked_of_tars_alone(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    with pytest.raises(InputError, match=r"--keys last-dot is for the names in WebDataset tars, the source is folder"):
        list_source(str(tmp_path), keys="last-dot")
    with pytest.raises(InputError, match=r"no keys 'lastdot', did you mean 'last-dot'"):
        list_source(str(tmp_path), keys="lastdot")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        # A map of the picture is no picture of its own.
        ([*samples("1"), ("1.seg.png", PNG)], [("1", "caption of 1")]),
        # A picture with a caption of its own is.
        ([*samples("1", "1.b")], [("1", "caption of 1"), (clean_key("1.b"), Reason.MISSING_IMAGE)]),
        ([("1.a.jpg", JPEG), ("1.b.jpg", JPEG)], [(clean_key(f"1.{x}"), Reason.MISSING_IMAGE) for x in "ab"]),
        # Two pictures of one key are one sample, as without a dot.
        ([*samples("1.a"), ("1.a.png", PNG)], [(clean_key("1.a"), Reason.MISSING_IMAGE)]),
        ([("1.a.txt", "a caption")], [("1", Reason.MISSING_IMAGE)]),
        ([("1.a.xyz", JPEG), ("1.b.xyz", JPEG)], [(clean_key(f"1.{x}"), Reason.MISSING_IMAGE) for x in "ab"]),
    ],
)
def test_as_many_records_as_pictures(tmp_path: Path, members: list[Member], expected: list[tuple[str, str]]) -> None:
    assert sorted(outcomes(read(tmp_path, {"a.tar": tar(members)}))) == sorted(expected)


def test_less_common_pictures_are_those_of_their_samples(tmp_path: Path) -> None:
    members: list[Member] = []
    for kind, content in (("jfif", JPEG), ("avif", encode(scene(), "AVIF")), ("heic", b"x"), ("xyz", b"x")):
        members += [(f"{kind}.{kind}", content), (f"{kind}.txt", kind)]
    members += [("both.heic", b"x"), ("both.jpg", JPEG), ("both.txt", "both")]
    assert outcomes(read(tmp_path, {"a.tar": tar(members)})) == [
        ("jfif", "jfif"),
        ("avif", "avif"),
        ("heic", Reason.UNDECODABLE_IMAGE),
        ("xyz", Reason.MISSING_IMAGE),
        ("both", "both"),
    ]


def test_members_of_a_sample_that_are_not_adjacent_are_rejects_that_say_so(tmp_path: Path) -> None:
    members: list[Member] = [("1.jpg", JPEG), ("2.jpg", JPEG), ("1.txt", "one"), ("2.txt", "two"), *samples("3", "3")]
    records = read(tmp_path, {"a.tar": tar(members)})
    assert outcomes(records) == [
        ("1", Reason.MISSING_CAPTION),
        ("2", Reason.MISSING_CAPTION),
        ("1", Reason.DUPLICATE_KEY),
        ("2", Reason.DUPLICATE_KEY),
        ("3", "caption of 3"),
        ("3", Reason.DUPLICATE_KEY),
    ]
    details = [record.detail for record in records if isinstance(record, Reject)]
    assert details[2] == (
        "a.tar has an earlier sample 1 with other members (jpg there, txt here): those of one sample must stand beside "
        "each other in the tar, so make it with sorted names, as by tar --sort=name -cf NEW.tar FOLDER"
    )
    assert details[4] == "a.tar has an earlier sample 3"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_what_follows_the_end_mark_of_a_tar_is_read(tmp_path: Path, mode: str) -> None:
    """Concatenated archives, as `cat a.tar b.tar` makes them."""
    parts = [tar(samples(key), mode) for key in ("1", "2", "3")]
    assert outcomes(read(tmp_path, {"a.tar": b"".join(parts)})) == [(k, f"caption of {k}") for k in ("1", "2", "3")]


@pytest.mark.parametrize("zeros", [0, 1, 511, 512, 513, 30_000])
def test_zeros_behind_the_end_mark_are_nothing(tmp_path: Path, zeros: int) -> None:
    assert outcomes(read(tmp_path, {"a.tar": tar(samples("1")) + bytes(zeros)})) == [("1", "caption of 1")]


@pytest.mark.parametrize("rest", [b"x" * 600, b"x", tar(samples("2"))[:700]])
def test_what_follows_the_end_mark_and_is_no_whole_tar_is_a_reject(tmp_path: Path, rest: bytes) -> None:
    records = read(tmp_path, {"a.tar": tar(samples("1")) + rest})
    assert outcomes(records) == [("1", "caption of 1"), (clean_key("a.tar"), Reason.TRUNCATED_ARCHIVE)]
    assert isinstance(records[1], Reject)
    assert ("behind its end mark" in records[1].detail) == (len(rest) != 700)


def test_a_tar_of_a_folder_from_within_has_the_keys_of_its_files(tmp_path: Path) -> None:
    records = read(tmp_path, {"a.tar": tar([("./", b""), *samples("./1", "./x/2")])})
    assert outcomes(records) == [("1", "caption of ./1"), (clean_key("x/2"), "caption of ./x/2")]


@pytest.mark.parametrize("key", ["../../up", "/etc/passwd", "é😀", "a b", "x" * 90])
def test_no_key_leaves_the_folder(tmp_path: Path, key: str) -> None:
    assert [k for k, _ in outcomes(read(tmp_path, {"a.tar": tar(samples(key))}))] == [clean_key(key)]


def test_incomplete_and_repeated_samples_are_rejects(tmp_path: Path) -> None:
    members: list[Member] = [
        ("1.jpg", JPEG),
        ("2.txt", "no picture"),
        ("3.jpg", b""),
        ("3.txt", "nothing in it"),
        *samples("4", "4", "5", "4"),
        ("6.jpg", JPEG),
        ("6.json", "{"),
    ]
    assert outcomes(read(tmp_path, {"a.tar": tar(members)})) == [
        ("1", Reason.MISSING_CAPTION),
        ("2", Reason.MISSING_IMAGE),
        ("3", Reason.EMPTY_IMAGE),
        ("4", "caption of 4"),
        ("4", Reason.DUPLICATE_KEY),
        ("5", "caption of 5"),
        ("4", Reason.DUPLICATE_KEY),
        ("6", Reason.UNDECODABLE_CAPTION),
    ]


def test_folders_and_names_without_a_kind_are_no_samples_and_links_have_no_content(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        links = (("l.jpg", tarfile.SYMTYPE), ("m.jpg", tarfile.LNKTYPE), ("n.txt", tarfile.LNKTYPE))
        for name, kind in (("d.jpg", tarfile.DIRTYPE), *links):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        for name in ("README", ".hidden.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    assert outcomes(read(tmp_path, {"a.tar": stream.getvalue()})) == [(k, Reason.EMPTY_IMAGE) for k in ("l", "m")]


@pytest.mark.parametrize("keys", ["first-dot", "last-dot"])
def test_a_picture_of_any_kind_or_none_is_that_of_its_sample(tmp_path: Path, keys: str) -> None:
    members: list[Member] = [("1", JPEG), ("1.txt", "one"), ("README", "about"), ("2.image", PNG), ("2.txt", "two")]
    members += [("3.", JPEG), ("3.txt", "three"), ("x/4", b"8BPS"), ("5.txt", "five"), ("LICENSE", "MIT"), ("5", JPEG)]
    members += [("6.thumb", PNG), ("6.jpg", JPEG), ("6.txt", "six"), ("7.cls", "3"), ("7.txt", "seven")]
    (tmp_path / "a.tar").write_bytes(tar(members))
    assert outcomes(read_all(list_source(str(tmp_path), keys=keys))) == [
        ("1", "one"),
        ("2", "two"),
        ("3", "three"),
        (clean_key("x/4"), Reason.UNDECODABLE_IMAGE),
        ("5", "five"),
        ("6", "six"),
        ("7", Reason.MISSING_IMAGE),
    ]


def test_samples_of_one_key_in_two_tars_stay_two(tmp_path: Path) -> None:
    records = read(tmp_path, {"00000.tar": tar(samples("1", "2")), "00001.tar": tar(samples("1"))})
    assert [key for key, _ in outcomes(records)] == ["00000_1", "00000_2", "00001_1"]


@pytest.mark.parametrize(
    "tars",
    [
        {"a.tar": ["b_c"], "a_b.tar": ["c"]},
        {"x/0.tar": ["1"], "y/0.tar": ["1"]},
        {"0.tar": ["1"], "0.tgz": ["1"]},
    ],
)
def test_names_of_tars_that_could_be_mistaken_keep_their_samples_apart(
    tmp_path: Path, tars: dict[str, list[str]]
) -> None:
    records = read(tmp_path, {name: tar(samples(*keys)) for name, keys in tars.items()})
    assert len({key for key, _ in outcomes(records)}) == 2


def test_the_statistics_that_img2dataset_writes_beside_its_tars_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").write_bytes(b"")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert outcomes(read(tmp_path, {"00000.tar": tar(samples("1"))})) == [("1", "caption of 1")]


def test_each_tar_makes_one_shard(tmp_path: Path) -> None:
    read(tmp_path, {"a.tar": tar(samples("1", "2")), "b.tar": tar(samples("3"))})
    listing = list_source(str(tmp_path))
    assert [(chunk.shard, len(chunk.items), chunk.expected) for chunk in listing.chunks] == [(0, 1, None), (1, 1, None)]
    assert (listing.kind, listing.expected) == ("webdataset", None)


@pytest.mark.parametrize(("limit", "expected"), [(1, [1]), (2, [2]), (3, [2, 1]), (9, [2, 2])])
def test_a_limit_takes_the_first_samples_over_all_tars(tmp_path: Path, limit: int, expected: list[int]) -> None:
    tars = {"a.tar": tar(samples("1", "2")), "b.tar": tar([*samples("3"), ("4.jpg", b"")])}
    records = read(tmp_path, tars, limit)
    listing = list_source(str(tmp_path), limit=limit)
    assert [chunk.expected for chunk in listing.chunks] == expected
    assert len(records) == listing.expected == sum(expected)


def test_compressed_tars_are_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, {"a.tar.gz": tar(samples("1"), "w:gz"), "b.tgz": tar(samples("1"), "w:gz")})) == 2


def test_a_tar_cut_off_anywhere_yields_its_whole_samples_and_one_reject(tmp_path: Path) -> None:
    """Every block of the tar is tried as the place of the cut, and one byte to its either side."""
    whole = tar(samples("1", "2", "3"))
    ends = [end for end in range(0, len(whole), 512) if whole[end : end + 512] == bytes(512)]
    sample = ends[0] // 3
    for cut in sorted({c + d for c in range(512, ends[0], 512) for d in (-1, 0, 1)}):
        records = read(tmp_path, {"a.tar": whole[:cut]})
        *good, bad = outcomes(records)
        assert good == [(str(n), f"caption of {n}") for n in range(1, len(good) + 1)]
        assert bad == (clean_key("a.tar"), Reason.TRUNCATED_ARCHIVE if good else Reason.UNREADABLE_FILE)
        # A caption ends before the padding of its block does.
        assert len(good) == sum(cut >= n * sample - 512 + len(f"caption of {n}") for n in (1, 2, 3))
    assert isinstance(records[-1], Reject)
    assert "a.tar breaks off after 2 samples" in records[-1].detail


def test_a_sample_whose_json_is_cut_off_is_not_read_without_its_licence(tmp_path: Path) -> None:
    data = tar([*samples("1", "2"), ("2.json", '{"license": "CC BY"}')])
    cut = data[: data.index(b'"CC BY"')]
    assert outcomes(read(tmp_path, {"a.tar": cut})) == [
        ("1", "caption of 1"),
        (clean_key("a.tar"), Reason.TRUNCATED_ARCHIVE),
    ]


def test_an_archive_without_its_end_mark_may_be_cut_off(tmp_path: Path) -> None:
    whole = tar(samples("1"))
    end = whole.rindex(b"caption of 1") // 512 * 512 + 512
    assert outcomes(read(tmp_path, {"a.tar": whole[:end]}))[0] == ("1", "caption of 1")
    assert outcomes(read(tmp_path, {"a.tar": whole[:end]}))[1][1] == Reason.TRUNCATED_ARCHIVE
    assert outcomes(read(tmp_path, {"a.tar": whole[: end + 512]})) == [("1", "caption of 1")]


def test_a_corrupt_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(tar(samples("1", "2")))
    second = data.index(b"2.jpg")
    data[second : second + 5] = b"\xff\x00\xff\x00\xff"
    records = read(tmp_path, {"a.tar": bytes(data)})
    assert [reason for _, reason in outcomes(records)] == ["caption of 1", Reason.TRUNCATED_ARCHIVE]


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404</html>" * 200, tar(samples("1"), "w:gz")[:30]],
    ids=["empty", "page", "cut"],  # the bytes of a gzip file, which hold the time, are no name of a test
)
def test_what_is_no_tar_is_an_unreadable_file(tmp_path: Path, data: bytes) -> None:
    records = read(tmp_path, {"a.tar": data, "b.tar": tar(samples("1"))})
    assert outcomes(records) == [(clean_key("a.tar"), Reason.UNREADABLE_FILE), ("b_1", "caption of 1")]


def test_a_compressed_tar_cut_off_yields_what_came_before(tmp_path: Path) -> None:
    data = tar(samples(*map(str, range(40))), "w:gz")
    *good, bad = outcomes(read(tmp_path, {"a.tar.gz": data[: len(data) // 2]}))
    assert good == [(str(n), f"caption of {n}") for n in range(len(good))]
    assert bad[1] in (Reason.TRUNCATED_ARCHIVE, Reason.UNREADABLE_FILE)


@pytest.mark.parametrize("length", [1536, 4000, 10_000])
def test_a_large_tar_is_cut_into_parts_that_hold_each_record_once(tmp_path: Path, length: int) -> None:
    """Whatever the cuts fall into: a header, a member, a sample, a long name, a repeated key or the end."""
    members = [*samples("a", "b", "x" * 150), ("c.jpg", JPEG), ("c.jpg", JPEG), *samples("d", "a", "e")]
    (tmp_path / "a.tar").write_bytes(tar(members))
    whole = list_source(str(tmp_path))
    parts = list_source(str(tmp_path), shard_bytes=length)
    assert len(whole.chunks) == 1
    assert len(parts.chunks) == -(-(tmp_path / "a.tar").stat().st_size // length) > 1
    assert sorted(outcomes(read_all(parts))) == sorted(outcomes(read_all(whole)))
    assert outcomes(read_all(parts)) == outcomes(read_all(whole))
    limited = list_source(str(tmp_path), shard_bytes=length, limit=3)
    assert outcomes(read_all(limited)) == outcomes(read_all(whole))[:3]


def test_a_tar_that_breaks_off_in_one_part_says_so_once(tmp_path: Path) -> None:
    content = bytearray(tar(samples("a", "b", "c", "d")))
    third = content.index(b"c.jpg\0")
    content[third : third + 512] = b"\1" * 512
    (tmp_path / "a.tar").write_bytes(content)
    whole, parts = list_source(str(tmp_path)), list_source(str(tmp_path), shard_bytes=3000)
    assert outcomes(read_all(parts)) == outcomes(read_all(whole))
    assert [reason for _, reason in outcomes(read_all(parts))][-1] == Reason.TRUNCATED_ARCHIVE


def test_a_compressed_tar_stays_whole(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in samples("a", "b"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data if isinstance(data, bytes) else data.encode()))
    (tmp_path / "a.tar.gz").write_bytes(buffer.getvalue())
    assert len(list_source(str(tmp_path), shard_bytes=100).chunks) == 1


def test_maps_among_the_members_are_the_picture_s(tmp_path: Path) -> None:
    grey = encode(scene()[..., 0])
    members = [("k.jpg", JPEG), ("k.txt", b"a dog"), ("k.depth.png", grey), ("k.pose.png", encode(scene()))]
    (record,) = read(tmp_path, {"t.tar": tar(members)})
    assert isinstance(record, Example)
    assert record.given == {"depth": grey}
