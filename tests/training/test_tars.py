import io
import shutil
import sys
import tarfile
from pathlib import Path

import fsspec
import pytest
from webdataset import tariterators

from schemas.errors import InputError
from schemas.shards import Sample, read_tar, write_tar
from tests.training.keyed import CONFIG, PREFIX, read_together, write_keyed
from tests.training.servers import S3, Plain, Ranges, serving
from training import tars
from training.shards import Shards, find_shards, read_samples
from training.tars import find_places


@pytest.fixture(autouse=True)
def new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tars, "PAUSES", (0, 0, 0))
    return tmp_path / "cache" / "subjectloom"


def find(data: Path | str) -> Shards:
    return find_shards(str(data), PREFIX)


def equal_samples(first: Shards, second: Shards) -> bool:
    """Whether two datasets hold the same samples in the same order, wherever they lie."""
    pairs = zip(read_samples(first), read_samples(second), strict=True)
    return all({**a, "__url__": ""} == {**b, "__url__": ""} for a, b in pairs)


def test_samples_are_found_where_they_were_written(tmp_path: Path) -> None:
    samples = [
        Sample(key, {"jpg": b"x" * size, "json": b"{}"}) for key, size in (("a", 0), ("b", 512), ("c" * 150, 513))
    ]
    with (tmp_path / "a.tar").open("wb") as file:
        entries = write_tar(file, samples)
    assert find_places(str(tmp_path / "a.tar")).tolist() == [[entry.offset, entry.size] for entry in entries]


def test_tars_of_others_give_the_samples_that_webdataset_reads(tmp_path: Path) -> None:
    """With folders, metadata, names without an ending, one key in two folders, and a key that comes again."""
    names = (
        "__meta__/a.json",
        "./x/a.jpg",
        "./x/a.TXT",
        "./y/a.jpg",
        "./y/README",
        "./y/a.txt",
        "b.jpg",
        "c.seg.png",
        "b.txt",
    )
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for folder in ("./x", "./y"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    path = str(tmp_path / "a.tar")
    with Path(path).open("rb") as stream:
        files = [{"__url__": path, **file} for file in tariterators.tar_file_iterator(stream)]
    found = list(read_samples(find(path)))
    assert found == list(tariterators.group_by_keys(files))
    assert [sample["__key__"] for sample in found] == ["./x/a", "./y/a", "b", "c", "b"]


def test_the_index_gives_the_places_that_the_tars_give(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [4, 0, 5, 2])
    indexed = find(data)
    (data / "index.parquet").unlink()
    scanned = find(data)
    assert [tar.places.tolist() for tar in indexed.tars if len(tar.places)] == [
        tar.places.tolist() for tar in scanned.tars if len(tar.places)
    ]
    assert sum(scanned.groups[0].sizes) == 11


def test_the_index_beside_a_single_tar_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_keyed(tmp_path / "data", [4, 5])
    monkeypatch.setattr(tars, "find_places", None)
    assert find(data / f"{PREFIX}-000001.tar").ends == (5,)


def test_a_tar_that_the_index_does_not_name_is_read_without_it(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [4])
    shutil.copy(data / f"{PREFIX}-000000.tar", data / "other.tar")
    assert find(data / "other.tar").ends == (4,)


def test_tars_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for name, size in (("a", 4), ("b", 2)):
        write_keyed(tmp_path / name, [size])
    assert find(f"{tmp_path}/{{a,b}}/{PREFIX}-000000.tar").ends == (4, 6)


def test_a_folder_that_differs_from_its_index_is_reported(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [4, 3])
    second = data / f"{PREFIX}-000001.tar"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(
        InputError, match=rf"^the shard {second} holds 0 samples, the index says 3: `subjectloom inspect {data}`"
    ):
        find(data)
    second.write_bytes(content[: content.index(b"key00006")])
    with pytest.raises(
        InputError, match=rf"^the shard {second} holds 2 samples, the index says 3: `subjectloom inspect"
    ):
        find(data)
    second.write_bytes(content)
    shutil.copy(second, data / f"{PREFIX}-000002.tar")
    with pytest.raises(InputError, match=r"000002\.tar is not in the index beside it: `subjectloom inspect"):
        find(data)


def test_a_tar_that_changed_after_it_was_found_is_reported(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [4], padding=600)
    shards, path = find(data), data / f"{PREFIX}-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[512:])
    with pytest.raises(InputError, match=rf"^the shard {path} cannot be read: .*inspect"):
        shards.read([1])
    path.write_bytes(content[:3000])
    with pytest.raises(InputError, match=rf"^the shard {path} cannot be read: \d+ bytes of a sample expected, 0 found"):
        shards.read([3])
    path.unlink()
    with pytest.raises(InputError, match=rf"^the shard {path} cannot be read: there is no such file"):
        shards.read([0])


def test_the_places_in_a_tar_at_an_address_are_found_once(tmp_path: Path, new_cache: Path) -> None:
    """The second time, the tar is not read; a tar that has changed is."""
    data = write_keyed(tmp_path / "data", [300], index=False, padding=20_000)
    path = data / f"{PREFIX}-000000.tar"
    with serving(Ranges, data) as server:
        first = find(f"{server.url}/{path.name}")
        assert server.sent >= path.stat().st_size
        server.sent = 0
        again = find(f"{server.url}/{path.name}?signed")
        assert server.sent <= 1
        assert again.tars[0].places.tolist() == first.tars[0].places.tolist() == find(data).tars[0].places.tolist()
        write_keyed(tmp_path / "other", [200], index=False)
        shutil.copy(tmp_path / "other" / path.name, path)
        assert find(f"{server.url}/{path.name}").ends == (200,)
    assert len(list(new_cache.iterdir())) == 2


def test_a_run_is_resumed_from_an_address_without_reading_what_came_before(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [100, 100], padding=20_000)
    expected = read_together(find(data), 20, 1, start=150)
    with serving(Ranges, data) as server:
        shards = find(f"{server.url}/{PREFIX}-{{000000..000001}}.tar")
        assert server.sent < 20_000  # the index
        server.sent = 0
        assert read_together(shards, 20, 1, start=150) == expected
        assert server.sent == 20 * int(shards.tars[0].places[0, 1])


def test_workers_read_from_an_address_too(tmp_path: Path) -> None:
    """They are forked from a process that has connections of its own."""
    data = write_keyed(tmp_path / "data", [9], index=False)
    with serving(Ranges, data) as server:
        shards = find(f"{server.url}/{PREFIX}-000000.tar")
        config = CONFIG.model_copy(update={"workers": 2})
        assert read_together(shards, 9, 1, config) == read_together(find(data), 9, 1)


def test_a_read_that_fails_is_tried_again(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [3])
    with serving(Ranges, data) as server:
        shards = find(f"{server.url}/{PREFIX}-000000.tar")
        server.failures = 3
        assert [sample["__key__"] for sample in shards.read([2])] == ["key00002"]
        server.failures = 4
        with pytest.raises(InputError, match=r"000000\.tar cannot be read: 503.*can it be reached\?"):
            shards.read([2])


def test_tars_that_cannot_be_read_in_parts_are_copied(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [3, 4], index=False)
    with serving(Plain, data) as server:
        shards = find(f"{server.url}/{PREFIX}-{{000000..000001}}.tar")
    assert equal_samples(shards, find(data))  # the server has stopped
    assert equal_samples(find(f"pipe:cat {data}/{PREFIX}-{{000000..000001}}.tar"), find(data))
    assert shards.tars[0].url.startswith("http://")


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_on_another_filesystem(tmp_path: Path, index: bool) -> None:
    data = write_keyed(tmp_path / "data", [3, 4], index=index)
    bucket = tmp_path.name  # all tests of a process share this filesystem
    memory = fsspec.filesystem("memory")
    try:
        memory.put(str(data), f"/{bucket}/data", recursive=True)
        assert equal_samples(find(f"memory://{bucket}/data"), find(data))
        assert equal_samples(find(f"memory://{bucket}/data/"), find(data))
        with pytest.raises(InputError, match=rf"^memory://{bucket} holds no shard: expected captioned-000000\.tar"):
            find(f"memory://{bucket}")
        with pytest.raises(
            InputError, match=r"^the shard memory://elsewhere cannot be read: there is no such file; is that its"
        ):
            find("memory://elsewhere")
    finally:
        memory.rm(f"/{bucket}", recursive=True)


def test_a_folder_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    data = write_keyed(tmp_path / "buckets" / "bucket" / "data", [3, 4])
    with serving(S3, data.parents[1]) as server:
        options = {"endpoint_url": server.url, "key": "key", "secret": "secret", "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        assert equal_samples(find("s3://bucket/data"), find(data))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"^gs://bucket/data: pip install gcsfs to read it$"):
        find("gs://bucket/data")
    with pytest.raises(InputError, match=r"^nothing://bucket/data: Protocol not known: nothing$"):
        find("nothing://bucket/data")


def test_the_reader_of_shards_gives_the_same_samples(tmp_path: Path) -> None:
    data = write_keyed(tmp_path / "data", [70])
    with (data / f"{PREFIX}-000000.tar").open("rb") as stream:
        expected = [(sample.key, dict(sample.members)) for _, sample in read_tar(stream)]
    found = [(s["__key__"], {k: v for k, v in s.items() if k[0] != "_"}) for s in read_samples(find(data))]
    assert found == expected
