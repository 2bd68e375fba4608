from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.datasets.stats import lines, stats
from schemas.rejects import Reason, Reject
from schemas.samples import FORMATS
from tests.datasets import example, scored, write_dataset
from tests.training.pairs import pair

TWICE = (("a dog", (4, 6, 20, 16)), ("a cat", (30, 6, 20, 16)))


def test_numbers_and_texts_of_lists_are_counted_one_by_one(tmp_path: Path) -> None:
    records: list[Any] = [example("a"), example("b", TWICE), Reject("r", "x", "matches", Reason.NO_MATCH, "-")]
    info = write_dataset(tmp_path, [records])
    found = stats(str(tmp_path))
    assert found["counts"] == info.counts.model_dump()
    assert found["columns"]["labels"] == {"values": 3, "missing": 0, "distinct": 2, "top": {"dog": 2, "cat": 1}}
    scores = found["columns"]["scores"]
    assert (scores["values"], scores["min"], scores["max"]) == (3, 0.5, 0.6)
    assert scores["mean"] == pytest.approx(1.6 / 3)
    assert scores["quantiles"]["0.5"] == pytest.approx(np.quantile([0.5, 0.5, 0.6], 0.5))
    assert found["columns"]["subjects"]["mean"] == 1.5
    assert found["bytes"] % 512 == 0
    assert not {"key", "caption", "crc32"} & found["columns"].keys()
    text = "\n".join(lines(found))
    assert "fastcomposer dataset: 2 samples in 1 shards" in text
    assert "matches: no-match 1" in text
    assert "2 different: dog 2, cat 1" in text


def test_missing_values_and_hashes_are_no_numbers(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "b", [[pair("a", size=(120, 80), box=(10, 8, 40, 50))]], sample_format=FORMATS["blip-diffusion"]
    )
    assert stats(str(tmp_path / "b"))["columns"]["centrality"] == {"values": 0, "missing": 1}
    write_dataset(tmp_path / "m", [[scored(example("a", TWICE), 0.25, 7)]], sample_format=FORMATS["mip-adapter"])
    columns = stats(str(tmp_path / "m"))["columns"]
    assert columns["quality"]["mean"] == 0.25
    assert "phash" not in columns


def test_a_dataset_without_samples_has_no_numbers(tmp_path: Path) -> None:
    write_dataset(tmp_path, [[Reject("r", "x", "matches", Reason.NO_MATCH, "-")]])
    found = stats(str(tmp_path))
    assert found["columns"]["score_min"] == {"values": 0, "missing": 0}
    assert found["columns"]["labels"]["top"] == {}
    assert "score_min" in "\n".join(lines(found))
