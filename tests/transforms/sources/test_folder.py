import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from schemas.example import Example, Source
from schemas.keys import clean_key
from schemas.rejects import Reason, Reject
from tests.pictures import encode, outcomes, read_all, scene, with_orientation
from transforms.listing import list_source

JPEG = encode(scene(), "JPEG", quality=95)


def fill(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def only(folder: Path) -> Example | Reject:
    (record,) = read_all(list_source(str(folder)))
    return record


def test_a_picture_and_its_caption_are_an_example(tmp_path: Path) -> None:
    record = only(fill(tmp_path, {"dog.jpg": JPEG, "dog.txt": "\ufeff a  brown\r\ndog \n"}))
    assert isinstance(record, Example)
    assert (record.key, record.caption, record.source_caption) == ("dog", "a brown dog", "a brown dog")
    assert (record.width, record.height, record.image) == (32, 24, JPEG)
    assert record.source == Source("dog.jpg", "")
    assert record.pixels().shape == (24, 32, 3)


def test_a_json_caption_brings_licence_and_address(tmp_path: Path) -> None:
    fields = {"caption": "a cat", "license": "CC0", "url": "https://example.org/cat.png"}
    record = only(fill(tmp_path, {"cat.png": encode(scene()), "cat.json": json.dumps(fields)}))
    assert isinstance(record, Example)
    assert (record.caption, record.source) == ("a cat", Source("https://example.org/cat.png", "CC0"))


def test_a_txt_goes_before_a_json_that_still_gives_the_licence(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "cat.jpg": JPEG,
        "cat.txt": "a cat",
        "cat.json": '{"text": "no", "license": "CC0"}',
    }
    record = only(fill(tmp_path, files))
    assert isinstance(record, Example)
    assert (record.caption, record.source.license) == ("a cat", "CC0")


@pytest.mark.parametrize(
    "files",
    [
        {"a.jpg": JPEG, "a.txt": "", "a.json": '{"caption": "a dog", "text": "no"}'},
        {"a.jpg": JPEG, "a.txt": "<br>", "a.json": '{"caption": " ", "text": "a dog"}'},
        {"a.jpg": JPEG, "a.txt": "", "a.json": '{"caption": NaN, "text": "a dog"}'},
        {"a.jpg": JPEG, "a.caption": "a dog", "a.json": '{"text": "no"}'},
        {"a.jpg": JPEG, "a.jpg.json": '{"caption": "a dog"}'},
        {"a.jpg": JPEG, "a.jpg.txt": "a dog", "metadata.csv": "file_name,text\na.jpg,no\n"},
        {"a.jpg": JPEG, "metadata.jsonl": '{"file_name": "a.jpg", "text": "a dog"}\n\n'},
        {"a.jpg": JPEG, "metadata.csv": '\ufefffile_name,text\na.jpg,"a dog"\n'},
        {"x/a.jpg": JPEG, "x/metadata.jsonl": '{"file_name": "./a.jpg", "caption": "a dog"}'},
        {"x/a.jpg": JPEG, "metadata.jsonl": '{"file_name": "x/a.jpg", "text": "a dog"}'},
    ],
)
def test_an_empty_caption_is_a_missing_one_and_the_next_is_asked(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    record = only(fill(tmp_path, files))
    assert isinstance(record, Example), record
    assert record.caption == "a dog"


def test_metadata_bring_licence_and_address_and_each_row_is_in_the_books(tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "text": "a dog", "license": "CC0", "url": "https://a"}, {"file_name": "b.jpg"}]
    lines = [*map(json.dumps, rows), "{", '{"text": "a cat"}']
    records = read_all(list_source(str(fill(tmp_path, {"a.jpg": JPEG, "metadata.jsonl": "\n".join(lines)}))))
    assert [isinstance(record, Example) for record in records] == [True, False, False, False]
    assert isinstance(records[0], Example)
    assert records[0].source == Source("https://a", "CC0")
    reasons = [record.reason for record in records if isinstance(record, Reject)]
    assert reasons == [Reason.MISSING_IMAGE, Reason.UNDECODABLE_CAPTION, Reason.UNDECODABLE_CAPTION]


def test_every_extension_in_any_case_is_found_at_any_depth_in_the_order_of_names(tmp_path: Path) -> None:
    forms = {"a.JPG": "JPEG", "b.jpeg": "JPEG", "c.png": "PNG", "d.webp": "WEBP", "e.gif": "GIF", "f.bmp": "BMP"}
    forms |= {"g.tif": "TIFF", "sub/dir/h.TIFF": "TIFF"}
    for name, form in forms.items():
        fill(tmp_path, {name: encode(scene(), form), f"{name.rsplit('.', 1)[0]}.txt": f"picture {name}"})
    fill(tmp_path, {"notes.md": "no picture", ".hidden.jpg": b"", "__MACOSX/._a.jpg": b"", ".git/x.jpg": b""})
    captions = [caption for _, caption in outcomes(read_all(list_source(str(tmp_path))))]
    assert captions == [f"picture {name}" for name in forms]


@pytest.mark.parametrize(
    "files",
    [
        {"a.json": '{"caption": ["a dog", "", null, "a  dog", 5, "a pet"]}'},
        {"a.json": '{"caption": "", "text": ["a dog", "a pet"]}'},
        {"a.json": '{"caption": [], "captions": ["a dog", "a pet"]}'},
        {"metadata.jsonl": '{"file_name": "a.jpg", "text": ["a dog", "a pet"]}'},
        {"a.txt": " ", "a.jpg.json": '{"captions": ["a dog", "a pet"]}'},
    ],
)
def test_a_list_in_json_is_several_captions(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    record = only(fill(tmp_path, {"a.jpg": JPEG, **files}))
    assert isinstance(record, Example)
    assert (record.caption, record.other_captions) == ("a dog", ("a pet",))


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": "a dog\na pet\n"},
        {"a.txt": "a dog a pet", "a.json": '{"caption": "a cat", "text": "a cow", "captions": ["a", "b"]}'},
        {"a.json": '{"caption": "a dog a pet", "text": "a cow", "captions": ["a", "b"]}'},
        {"metadata.csv": "file_name,text,captions\na.jpg,a dog a pet,a cow"},
    ],
)
def test_lines_of_a_text_and_what_stands_elsewhere_are_no_other_captions(
    tmp_path: Path, files: dict[str, bytes | str]
) -> None:
    record = only(fill(tmp_path, {"a.jpg": JPEG, **files}))
    assert isinstance(record, Example)
    assert (record.caption, record.other_captions) == ("a dog a pet", ())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.jpg": JPEG[:400], "a.txt": "a dog"}, Reason.UNDECODABLE_IMAGE),
        ({"a.jpg": b"", "a.txt": "a dog"}, Reason.EMPTY_IMAGE),
        ({"a.jpg": b"\x00" * 1000, "a.txt": "a dog"}, Reason.UNDECODABLE_IMAGE),
        ({"a.jpg": JPEG}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.json": "{}"}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.txt": ""}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.txt": " \n\t\x00\u200b\ufeff"}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.txt": b"caf\xe9"}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": {"en": "a"}}'}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": [5, ["a"], ""]}'}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": [], "captions": 5}'}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": ["", null]}'}, Reason.MISSING_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": "\\ud800"}'}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.json": '{"caption": '}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.json": "[]"}, Reason.UNDECODABLE_CAPTION),
        ({"a.jpg": JPEG, "a.txt": "x" * 10_000}, Reason.LONG_CAPTION),
    ],
)
def test_a_bad_record_is_a_reject_of_its_reason(tmp_path: Path, files: dict[str, bytes | str], reason: Reason) -> None:
    record = only(fill(tmp_path, files))
    assert isinstance(record, Reject)
    assert (record.key, record.source, record.stage, record.reason) == ("a", "a.jpg", "read", reason)
    assert record.detail
    assert "\n" not in record.detail


def test_control_characters_count_as_spaces(tmp_path: Path) -> None:
    record = only(fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a\x00brown\x1b\x85dog\u2028 on\xa0grass"}))
    assert isinstance(record, Example)
    assert record.caption == "a brown dog on grass"


def test_the_longest_caption_is_taken(tmp_path: Path) -> None:
    record = only(fill(tmp_path, {"a.jpg": JPEG, "a.txt": "x" * 2000 + "\n"}))
    assert isinstance(record, Example)
    assert len(record.caption) == 2000


@pytest.mark.parametrize("caption", ["Ein Hündchen läuft", "草地上的一只狗", "كلب على العشب", "👩‍👩‍👧 at the sea"])
def test_a_caption_in_any_script_stays_as_it_was_written(tmp_path: Path, caption: str) -> None:
    record = only(fill(tmp_path, {"a.jpg": JPEG, "a.txt": caption}))
    assert isinstance(record, Example)
    assert record.caption == caption


def test_a_caption_without_a_picture_is_a_reject(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a dog", "b.txt": "a cat", "b.json": "{}", "c.json": "{}"})
    assert outcomes(read_all(list_source(str(tmp_path)))) == [
        ("a", "a dog"),
        ("b", Reason.MISSING_IMAGE),
        ("c", Reason.MISSING_IMAGE),
    ]


def test_two_pictures_of_one_key_are_not_merged(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": JPEG, "a.png": encode(scene()), "a.txt": "a dog"})
    records = read_all(list_source(str(tmp_path)))
    assert outcomes(records) == [("a", "a dog"), ("a", Reason.DUPLICATE_KEY)]
    assert isinstance(records[1], Reject)
    assert records[1].source == "a.png"
    assert "a.jpg" in records[1].detail


def test_keys_with_dots_folders_and_spaces_are_cleaned_and_told_apart(tmp_path: Path) -> None:
    stems = ["x/1", "y/1", "1.a", "1.b", "1 a", "é", "ü"]
    for stem in stems:
        fill(tmp_path, {f"{stem}.jpg": JPEG, f"{stem}.txt": stem})
    assert sorted(outcomes(read_all(list_source(str(tmp_path))))) == sorted((clean_key(s), s) for s in stems)


def test_a_file_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    for suffix, content in ((b".jpg", JPEG), (b".txt", b"a cup")):
        with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9" + suffix), "wb") as stream:  # noqa: PTH118, PTH123
            stream.write(content)
    record = only(tmp_path)
    assert isinstance(record, Example)
    assert record.source.uri == "caf\\udce9.jpg"


def test_a_link_that_leads_nowhere_is_a_reject(tmp_path: Path) -> None:
    fill(tmp_path, {"a.txt": "a dog"})
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    record = only(tmp_path)
    assert isinstance(record, Reject)
    assert record.reason == Reason.UNREADABLE_FILE
    assert "a.jpg" in record.detail


def test_less_common_pictures_are_read_or_stand_in_the_books(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    files = {"a.jfif": JPEG, "b.JPE": JPEG, "c.avif": encode(scene(), "AVIF"), "d.heic": heic, "e.HEIC": JPEG}
    fill(tmp_path, files | {f"{name}.txt": f"caption of {name}" for name in "abcde"})
    records = read_all(list_source(str(tmp_path)))
    assert outcomes(records) == [
        ("a", "caption of a"),
        ("b", "caption of b"),
        ("c", "caption of c"),
        ("d", Reason.UNDECODABLE_IMAGE),
        ("e", "caption of e"),  # a JPEG under another name
    ]
    assert isinstance(records[3], Reject)
    assert records[3].detail == "a picture of the format HEIC, which is not decoded: convert it to JPEG or PNG"


def test_a_less_common_picture_beside_one_of_its_name_is_passed_over(tmp_path: Path) -> None:
    """Phones save IMG.HEIC and IMG.JPG of one photograph; it was read from the JPEG, and still is."""
    avif = encode(scene(), "AVIF")
    fill(tmp_path, {"a.HEIC": b"x", "a.JPG": JPEG, "a.avif": avif, "a.txt": "a dog", "b.avif": avif, "b.heic": b"x"})
    fill(tmp_path, {"b.txt": "a cat", "c.jpg": JPEG, "c.png": encode(scene()), "c.txt": "two pictures"})
    assert outcomes(read_all(list_source(str(tmp_path)))) == [
        ("a", "a dog"),
        ("b", "a cat"),
        ("c", "two pictures"),
        ("c", Reason.DUPLICATE_KEY),
    ]


def test_statistics_and_notes_are_no_captions(tmp_path: Path) -> None:
    notes = ("00000_stats.json", "README.txt", "readme.txt", "x/LICENSE.txt", "x/00012_stats.json", "classes.txt")
    fill(tmp_path, dict.fromkeys(notes, "a note") | {"a.jpg": JPEG, "a.txt": "a dog", "b_stats.json": "{}"})
    fill(tmp_path, {"x/readme.jpg": JPEG, "x/readme.txt": "a picture of a manual"})
    assert outcomes(read_all(list_source(str(tmp_path)))) == [
        ("a", "a dog"),
        ("b_stats", Reason.MISSING_IMAGE),
        (clean_key("x/readme"), "a picture of a manual"),
    ]


PNG, HEIC = encode(scene()), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.mark.parametrize("caption", [True, False])
def test_a_picture_of_any_extension_stands_in_the_books_with_a_caption_and_without(
    tmp_path: Path, *, caption: bool
) -> None:
    """By its extension or, where that is unknown, by what it begins with."""
    good = {
        "d41d8cd9": JPEG,
        "e.image": PNG,
        "f.pjpeg": JPEG,
        "g.1": encode(scene(), "BMP"),
        "h.": JPEG,
        "sub/i.bin": JPEG,
    }
    bad = {
        "b.pcx": b"x",
        "c.SVG": b"<svg/>",
        "j": HEIC,
        "k.tmp": b"8BPS\0\1",
        "l.cr3": b"",
        "m.img": b"P6\n# x\n9 9\n255\n",
    }
    others = {
        "n.bin": b"\0" * 99,
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "o.npy": JPEG,
        "p.exe": b"MZ",
        "q": b"",
        "r.md": PNG,
    }
    stem_of = {name: name.rpartition(".")[0] or name for name in ("a.jpg", *good, *bad)}
    texts = {f"{stem_of[name]}.txt": f"a {name}" for name in good | bad} if caption else {}
    records = read_all(list_source(str(fill(tmp_path, {"a.jpg": JPEG, **good, **bad, **others, **texts}))))
    assert [record.key for record in records] == [clean_key(stem_of[name]) for name in sorted(stem_of)]
    undecodable = {r.key for r in records if isinstance(r, Reject) and r.reason is Reason.UNDECODABLE_IMAGE}
    empty = {r.key for r in records if isinstance(r, Reject) and r.reason is Reason.EMPTY_IMAGE}
    assert (undecodable, empty) == ({"b", "c", "j", "k", "m"}, {"l"})
    examples = {record.key: record.caption for record in records if isinstance(record, Example)}
    assert examples == ({clean_key(stem_of[name]): f"a {name}" for name in good} if caption else {})


def test_a_folder_of_nothing_but_pictures_without_extensions_is_one_of_pictures(tmp_path: Path) -> None:
    fill(tmp_path, {"d41d8cd9": JPEG, "d41d8cd9.txt": "a dog", "README": "about"})
    for kind in (None, "folder"):
        assert outcomes(read_all(list_source(str(tmp_path), kind))) == [("d41d8cd9", "a dog")]
    assert outcomes(read_all(list_source(str(tmp_path / "d41*")))) == [("d41d8cd9", "a dog")]


def test_a_backup_beside_its_picture_is_passed_over(tmp_path: Path) -> None:
    backups = dict.fromkeys(("a.jpg.bak", "a.jpg~", "a.jpg_original", "a.orig"), JPEG)
    fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a dog", **backups, "b.jpg.bak": JPEG})
    assert outcomes(read_all(list_source(str(tmp_path)))) == [
        ("a", "a dog"),
        (clean_key("b.jpg"), Reason.MISSING_CAPTION),
    ]


def test_a_caption_without_a_picture_is_named(tmp_path: Path) -> None:
    (_, reject) = read_all(list_source(str(fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a dog", "c.txt": "nothing"}))))
    assert isinstance(reject, Reject)
    assert (reject.key, reject.reason, reject.detail) == ("c", Reason.MISSING_IMAGE, "no picture stands beside c.txt")


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path, {"else/where/a.jpg": JPEG, "else/where/a.txt": "a dog", "in/b.jpg": JPEG, "in/b.txt": "a cat"})
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "else" / "loop").symlink_to(tmp_path / "else")
    listing = list_source(str(tmp_path / "in"), follow_links=True)
    assert [caption for _, caption in outcomes(read_all(listing))] == ["a cat", "a dog"]


def test_an_exif_rotated_picture_is_stored_upright(tmp_path: Path) -> None:
    turned = np.ascontiguousarray(np.rot90(scene()))
    record = only(fill(tmp_path, {"a.jpg": encode(turned, "JPEG", **with_orientation(6)), "a.txt": "a dog"}))
    assert isinstance(record, Example)
    assert (record.width, record.height) == (32, 24)


def test_running_out_of_memory_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(_: bytes) -> None:
        raise MemoryError("9 GB")

    monkeypatch.setattr("transforms.sources.records.to_stored_jpeg", exhaust)
    record = only(fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a dog"}))
    assert isinstance(record, Reject)
    assert record.reason == Reason.OUT_OF_MEMORY


def test_a_glob_of_pictures_finds_the_captions_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"p/a1.jpg": JPEG, "p/a1.txt": "one", "p/a2.jpg": JPEG, "p/a2.txt": "two", "p/b.jpg": JPEG})
    expected = [("a1", "one"), ("a2", "two")]
    assert outcomes(read_all(list_source(str(tmp_path / "p/a*.jpg")))) == expected
    assert outcomes(read_all(list_source(str(tmp_path / "p/a*")))) == expected
    assert outcomes(read_all(list_source(str(tmp_path / "p/a1.jpg")))) == expected[:1]
    monkeypatch.chdir(tmp_path / "p")
    assert outcomes(read_all(list_source("a*.jpg"))) == expected
    assert outcomes(read_all(list_source("a1.jpg"))) == expected[:1]


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    folder = fill(tmp_path / "my [best] pictures", {"a.jpg": JPEG, "a.txt": "a dog"})
    assert outcomes(read_all(list_source(str(folder)))) == [("a", "a dog")]


def test_an_unreadable_folder_is_an_error_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a.jpg": JPEG, "a.txt": "a dog", "closed/b.jpg": JPEG})
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # the rights themselves do not stop root
    with pytest.raises(InputError, match=r"cannot be read: .*closed: Permission denied$"):
        list_source(str(tmp_path))


def test_a_map_beside_a_picture_is_the_picture_s_and_no_picture(tmp_path: Path) -> None:
    grey = encode(scene()[..., 0])
    files: dict[str, bytes | str] = {
        "a/dog.jpg": JPEG,
        "a/dog.txt": "a dog",
        "a/dog.depth.png": grey,
        "a/dog.normal.PNG": encode(scene()),
    }
    record = only(fill(tmp_path, files))
    assert isinstance(record, Example)
    assert record.given == {"depth": grey, "normal": encode(scene())}
    before = list_source(str(tmp_path)).chunks[0].fingerprint
    (tmp_path / "a" / "dog.depth.png").write_bytes(grey + b"\0")
    assert list_source(str(tmp_path)).chunks[0].fingerprint != before


def test_a_file_named_like_a_map_is_a_picture_without_another_one_or_with_a_caption(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "cat.depth.png": encode(scene()),
        "cat.depth.txt": "a cat in deep water",
        "dog.jpg": JPEG,
        "dog.txt": "a dog",
        "dog.depth.png": encode(scene()),
        "dog.depth.txt": "a deep dog",
        "dog.other.png": encode(scene()),
        "dog.other.txt": "another dog",
    }
    records = read_all(list_source(str(fill(tmp_path, files))))
    captions = {record.caption for record in records if isinstance(record, Example)}
    assert captions == {"a cat in deep water", "a dog", "a deep dog", "another dog"}
    assert all(record.given == {} for record in records if isinstance(record, Example))


def test_maps_of_a_picture_that_exif_turns_are_refused(tmp_path: Path) -> None:
    turned = encode(scene(), "JPEG", **with_orientation(3))
    files: dict[str, bytes | str] = {"dog.jpg": turned, "dog.txt": "a dog", "dog.depth.png": encode(scene()[..., 0])}
    record = only(fill(tmp_path, files))
    assert isinstance(record, Reject)
    assert record.reason is Reason.INVALID_MAP
    (tmp_path / "dog.depth.png").unlink()
    assert isinstance(only(tmp_path), Example)
