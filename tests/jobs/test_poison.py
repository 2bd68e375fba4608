"""Poison among good pictures: nothing crashes, hangs, is lost, or leaves the folder of the dataset."""

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.build import build
from jobs.inspect import inspect
from jobs.report.page import write_report
from schemas.keys import KEY_PATTERN
from schemas.rejects import Reason
from schemas.shards import read_tar
from tests.datasets import jpeg
from tests.jobs.poison import POISON
from tests.jobs.test_rescue import QUIET, request

GOOD = 1000

REFUSED = {
    Reason.ANIMATED_IMAGE: ["animated GIF", "animated PNG", "animated WebP", "two pages of TIFF"],
    Reason.DUPLICATE_KEY: ["two pictures of one name"],
    Reason.EMPTY_IMAGE: ["empty picture"],
    Reason.HUGE_FILE: ["caption file of a terabyte"],
    Reason.HUGE_IMAGE: ["60,000 x 60,000", "70,000 x 1", "negative size", "sparse file of a terabyte"],
    Reason.LONG_CAPTION: ["caption of a megabyte"],
    Reason.MISSING_CAPTION: ["caption of spaces", "empty caption", "no caption"],
    Reason.MISSING_IMAGE: ["caption without a picture", "metadata with a path out"],
    Reason.OUTSIDE_LINK: ["link out of the folder", "link to a device", "link to a folder outside"],
    Reason.UNDECODABLE_CAPTION: [
        "JSON that is a list",
        "JSON with NaN and a huge number",
        "JSON with a number as caption",
        "JSON with half a character",
        "caption that is not UTF-8",
        "deep JSON",
        "metadata that is no JSON",
    ],
    Reason.UNDECODABLE_IMAGE: [
        "HEIC",
        "HTML as picture",
        "JPEG header only",
        "SVG",
        "SVG by its name",
        "TGA",
        "bomb of compressed text",
        "compressed picture",
        "floating point",
        "garbage behind a JPEG header",
        "huge profile",
        "no pixels",
        "text as picture",
        "truncated JPEG",
    ],
    Reason.UNREADABLE_FILE: ["broken link", "link to itself", "named pipe", "socket"],
}
LEFT_OUT = ["dots in the name", "link to its own folder"]
"""A hidden file, and a folder that is read already."""


@pytest.mark.timeout(120)  # a named pipe would be waited for without end
def test_read_is_written_and_rejected_with_poison_among_the_pictures(tmp_path: Path) -> None:
    source, output = tmp_path / "pictures", tmp_path / "out"
    source.mkdir()
    data = [jpeg(32, 24, seed) for seed in range(8)]
    for number in range(GOOD):
        (source / f"{number:04d}.jpg").write_bytes(data[number % 8])
        (source / f"{number:04d}.txt").write_text(f"picture {number}")
    for number, write in enumerate(POISON.values()):
        folder = source / f"{number:02d}"
        folder.mkdir()
        write(folder)

    info = build(request(source, output, 200), QUIET)
    kinds = list(POISON)
    refused = defaultdict(set)
    for row in pq.read_table(output / "rejects.parquet").to_pylist():
        refused[row["reason"]].add(kinds[int(row["source"].split("/")[0])])
        assert KEY_PATTERN.fullmatch(row["key"])
    assert {reason: sorted(names) for reason, names in refused.items()} == REFUSED
    index = pq.read_table(output / "index.parquet").to_pylist()
    written = {kinds[int(row["source"].split("/")[0])] for row in index if "/" in row["source"]}
    bad = {name for names in REFUSED.values() for name in names}
    assert written == {*kinds} - bad - {*LEFT_OUT} | {"two pictures of one name"}
    assert sum("/" not in row["source"] for row in index) == GOOD
    assert (info.counts.read, info.counts.written) == (info.counts.written + info.counts.rejected, len(index))

    assert inspect(str(output)).problems == ()
    for path in output.glob("*.tar"):
        with path.open("rb") as stream:
            assert all(KEY_PATTERN.fullmatch(sample.key) for _, sample in read_tar(stream))
    page = Path(write_report(str(output))).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]
