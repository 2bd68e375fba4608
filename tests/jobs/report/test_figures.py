"""The figures of the report, by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.report.figures import (
    EXAMPLES,
    LABELS,
    balance,
    choose,
    count_histogram,
    flat,
    funnel,
    headline,
    label_bars,
    origin_of_masks,
    origin_of_mattes,
    percent,
    provenance,
    rank,
    reject_groups,
    score_histogram,
    shortened,
    significant,
    stage_bars,
)
from schemas.dataset import Counts, DatasetInfo, ModelName


def info(
    read: int = 10,
    written: int = 6,
    rejects: dict[str, dict[str, int]] | None = None,
    seconds: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
) -> DatasetInfo:
    """A dataset whose rejects are those of `rejects`, by default four by "read"."""
    rejects = {"read": {"empty-image": 4}} if rejects is None else rejects
    rejected = sum(sum(reasons.values()) for reasons in rejects.values())
    return DatasetInfo(
        recipe="fastcomposer",
        config=config or {},
        models={"segmenter": ModelName(name="sample", revision="0123abc")},
        seed=7,
        counts=Counts(read=read, written=written, rejected=rejected, shards=1, rejects=rejects),
        seconds=seconds or {},
        libraries={"numpy": "2.0"},
        licenses={"": 2, "CC0": 4000},
    )


# The choice of samples.


def test_a_rank_is_a_64_bit_number_of_seed_and_name() -> None:
    assert rank(0, "a") == rank(0, "a")
    assert len({rank(seed, name) for seed in (0, 1) for name in ("a", "b", "\udcff", "")}) == 8
    ranks = np.array([rank(0, f"k{i}") for i in range(1000)], dtype=np.float64) / 2**64
    assert ranks.min() < 0.01
    assert ranks.max() > 0.99
    assert abs(ranks.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 1000)


def test_a_sixth_each_is_low_high_and_many_of_the_most_extreme_tenth() -> None:
    keys, scores = [f"k{i}" for i in range(120)], np.linspace(0, 1, 120)
    counts = np.where(np.arange(120) % 10 == 5, 3, 1)
    chosen = choose(keys, scores, counts, 12, seed=0)
    groups = {group: [i for i, of in chosen if of == group] for group in ("low", "high", "many", "random")}
    assert [len(group) for group in groups.values()] == [2, 2, 2, 6]
    assert max(groups["low"]) < 12
    assert min(groups["high"]) >= 108
    assert all(i % 10 == 5 for i in groups["many"])
    assert len({i for i, _ in chosen}) == 12


def test_groups_of_equal_values_are_left_out() -> None:
    same, ones = np.full(20, 0.5), np.ones(20, np.int64)
    assert {group for _, group in choose([f"k{i}" for i in range(20)], same, ones, 12, seed=0)} == {"random"}


def test_all_samples_are_chosen_where_there_are_few() -> None:
    scores, counts = np.array([0.2, 0.9]), np.array([1, 1])
    chosen = choose(["a", "b"], scores, counts, 60, seed=0)
    assert sorted(chosen) == [(0, "low"), (1, "high")]
    assert choose(["a", "b"], scores, counts, 0, seed=0) == []
    assert choose([], np.zeros(0), np.zeros(0, np.int64), 5, seed=0) == []


# The numbers at the head of the page.


def test_the_headline_has_means_and_speed_where_they_are_known() -> None:
    numbers = headline(info(read=5000, seconds={"read": 1.5, "write": 2.5}), np.array([1, 2, 3, 3]), "subjects")
    assert [(n["name"], n["value"], n["unit"]) for n in numbers] == [
        ("Read", "5,000", ""), ("Written", "6", ""), ("Rejected", "4", ""),
        ("Subjects per sample", "2.25", ""), ("Images per second", "1,250", "per worker"),
    ]  # fmt: skip
    plain = headline(info(), np.zeros(3, np.int64), "subjects")
    assert [n["name"] for n in plain] == ["Read", "Written", "Rejected"]


@pytest.mark.parametrize(
    ("read", "indexed", "listed", "holds", "sentence"),
    [
        (10, 6, 4, True, "10 read = 6 written + 4 rejected."),
        (11, 6, 4, False, "11 read ≠ 6 written + 4 rejected."),
        (
            10, 5, 4, False,
            "dataset.json counts 6 written and 4 rejected, index.parquet has 5 rows and rejects.parquet 4.",
        ),
        (
            10, 6, 3, False,
            "dataset.json counts 6 written and 4 rejected, index.parquet has 6 rows and rejects.parquet 3.",
        ),
    ],
)  # fmt: skip
def test_the_balance_compares_counts_and_files(
    read: int, indexed: int, listed: int, holds: bool, sentence: str
) -> None:
    assert balance(info(read=read), indexed, listed) == {"holds": holds, "sentence": sentence}


def test_the_funnel_narrows_by_the_rejects_of_each_stage() -> None:
    rejects = {"match": {"a": 1, "b": 2}, "late": {"c": 1}}
    rows = funnel(info(rejects=rejects, seconds={"read": 1, "write": 1, "match": 1, "segment": 1}))
    assert [(row["stage"], row["kept"], row["lost"]) for row in rows] == [
        ("read", 10, 0), ("match", 7, 3), ("segment", 7, 0), ("late", 6, 1), ("written", 6, 0),
    ]  # fmt: skip
    assert [(row["kept_share"], row["lost_share"]) for row in rows][1] == (70, 30)


def test_rejects_of_writing_come_last_in_the_funnel() -> None:
    rows = funnel(info(written=8, rejects={"write": {"a": 1}, "match": {"b": 1}}, seconds={"write": 1, "match": 1}))
    assert [(row["stage"], row["kept"]) for row in rows] == [("read", 10), ("match", 9), ("write", 8), ("written", 8)]


# Histograms.


def test_a_histogram_of_scores_by_hand() -> None:
    drawn = score_histogram(np.array([0.0, 0.1, 0.19, 0.2, 0.6]), "scores", threshold=0.4)
    assert drawn is not None
    # 36 bins must span 0.6: the width is 0.02, the smallest round one that is no less than 0.6 / 36.
    assert len(drawn["bars"]) == 31
    assert [bar["title"] for bar in drawn["bars"] if bar["height"]] == [
        "0 to 0.02: 1", "0.1 to 0.12: 1", "0.18 to 0.2: 1", "0.2 to 0.22: 1", "0.6 to 0.62: 1",
    ]  # fmt: skip
    assert drawn["marks"] == [{"at": percent(20, 31), "text": "threshold 0.4", "left": True}]
    assert [tick["text"] for tick in drawn["ticks"]] == ["0", "0.08", "0.16", "0.24", "0.32", "0.4", "0.48", "0.56"]
    assert drawn["ticks"][1]["at"] == percent(4, 31)
    assert drawn["summary"] == "5 values from 0.00 to 0.60, median 0.19."


def test_equal_scores_have_eight_bins_and_a_threshold_beside_them_is_drawn() -> None:
    drawn = score_histogram(np.full(3, 0.5), "scores")
    assert drawn is not None
    assert (len(drawn["bars"]), drawn["bars"][0]["title"], drawn["marks"]) == (8, "0.5 to 0.505: 3", [])
    drawn = score_histogram(np.full(3, 0.5), "scores", threshold=0.1, mark="limit")
    assert drawn is not None
    assert drawn["marks"] == [{"at": 0.0, "text": "limit 0.1", "left": False}]


def test_a_histogram_of_counts_by_hand() -> None:
    drawn = count_histogram(np.array([1, 1, 2, 4, 24, 30]), "subjects")
    assert drawn is not None
    assert len(drawn["bars"]) == 24
    assert [bar["title"] for bar in drawn["bars"] if bar["height"]] == ["1: 2", "2: 1", "4: 1", "24+: 2"]
    assert [bar["height"] for bar in drawn["bars"]][:4] == [100, 50, 0, 50]
    assert [tick["text"] for tick in drawn["ticks"]][:3] == ["1", "3", "5"]
    assert drawn["ticks"][0]["at"] == percent(0.5, 24)
    assert drawn["label"] == "Histogram of subjects: 6 samples, from 1 to 30"
    assert count_histogram(np.zeros(0, np.int64), "subjects") is None


# Bars, rejects, provenance.


def test_the_most_frequent_labels_are_drawn_and_ties_are_in_the_order_of_their_names() -> None:
    drawn = label_bars({"cat": 500, "ant": 500, "dog": 2000}, "class", "subjects")
    assert drawn is not None
    assert [(row["name"], row["value"], row["share"]) for row in drawn["rows"]] == [
        ("dog", "2,000", 100), ("ant", "500", 25), ("cat", "500", 25),
    ]  # fmt: skip
    assert drawn["heads"] == {"name": "Class", "value": "Subjects"}
    many = label_bars({f"l{i:02d}": i + 1 for i in range(30)}, "class", "subjects")
    assert many is not None
    assert (many["shown"], many["total"]) == (LABELS, 30)
    assert [row["name"] for row in many["rows"]] == [f"l{i:02d}" for i in range(29, 9, -1)]
    assert label_bars({}, "class", "subjects") is None


def test_rejects_are_grouped_by_stage_and_reason() -> None:
    def rows(stage: str, reason: str, count: int) -> list[dict[str, str]]:
        return [{"key": f"{stage}{i}", "source": "s", "stage": stage, "reason": reason} for i in range(count)]

    listed = [*rows("b", "small", 2), *rows("a", "small", 2), *rows("a", "broken", 8)]
    groups = reject_groups(listed, seed=0)
    assert [(group["stage"], group["reason"], group["count"], group["share"]) for group in groups] == [
        ("a", "broken", 8, 100), ("a", "small", 2, 25), ("b", "small", 2, 25),
    ]  # fmt: skip
    assert [len(group["examples"]) for group in groups] == [EXAMPLES, 2, 2]
    assert reject_groups(listed[::-1], seed=0) == groups
    chosen = [{row["key"] for row in reject_groups(listed, seed)[0]["examples"]} for seed in range(5)]
    assert any(keys != chosen[0] for keys in chosen)
    assert reject_groups([], seed=0) == []


def test_bars_of_stages_have_seconds_and_milliseconds_per_record_that_came_to_them() -> None:
    rejects = {"read": {"empty-image": 500}, "match": {"no-match": 400}}
    bars = stage_bars(info(read=1000, written=100, rejects=rejects, seconds={"read": 2.5, "match": 1250.0, "write": 1}))
    assert bars == [
        {"name": "read", "value": "2.5 s", "extra": "2.5 ms", "share": 0.2},
        {"name": "match", "value": "1,250 s", "extra": "2,500 ms", "share": 100},
        {"name": "write", "value": "1 s", "extra": "10 ms", "share": 0.08},
    ]
    assert stage_bars(info()) == []


def test_provenance_is_rows_of_text() -> None:
    sections = {part["name"]: part["rows"] for part in provenance(info(config={"cut": {"best": 5}, "name": "ü"}))}
    assert sections == {
        "Configuration": [("cut.best", "5"), ("name", "ü")],
        "Models": [("segmenter", "sample", "0123abc")],
        "Library versions": [("numpy", "2.0")],
        "Licences of the sources": [("none stated", "2"), ("CC0", "4,000")],
    }
    gaps = provenance(info().model_copy(update={"gaps": {"pictures without boxes": 1200}}))[-1]
    assert (gaps["name"], gaps["rows"]) == ("Gaps of the source", [("pictures without boxes", "1,200")])


def test_a_nested_config_is_flattened() -> None:
    config = {"a": {"b": {"c": None}, "d": [1, "é"]}, "empty": {}, "text": "1"}
    assert list(flat(config)) == [("a.b.c", "none"), ("a.d", '[1, "é"]'), ("empty", "none"), ("text", "1")]


def test_only_the_digits_of_a_hash_are_shortened() -> None:
    assert shortened(f"sha256:{'0123456789abcdef' * 4}") == "sha256:0123456789ab…"
    assert shortened("0123456789abcdef0123456789abcdef01234567") == "0123456789ab…"  # a commit
    assert [shortened(revision) for revision in ("3.8.0", "", "main")] == ["3.8.0", "", "main"]


@pytest.mark.parametrize(
    ("recipe_origin", "models", "sentence"),
    [
        (origin_of_masks, ["parser", "segmenter", "clip"], "The segmenter my/segmenter drew the masks."),
        (origin_of_masks, ["parser", "clip"], "The masks are the source's annotations."),
        (origin_of_masks, ["sam", "clip"], "SAM (my/sam) drew the masks."),
        (
            origin_of_masks,
            ["detector", "sam"],
            "SAM (my/sam) drew the masks, in the boxes of the detector my/detector.",
        ),
        (
            origin_of_masks,
            ["detector"],
            "The masks are the source's annotations, in the boxes of the detector my/detector.",
        ),
        (origin_of_mattes, ["parser", "clipseg"], "CLIPSeg (my/clipseg) found the subjects."),
        (origin_of_mattes, [], "The subjects are masks of the source's annotations."),
    ],
)
def test_the_report_says_where_masks_came_from(
    recipe_origin: Callable[[DatasetInfo], str], models: list[str], sentence: str
) -> None:
    names = {kind: ModelName(name=f"my/{kind}", revision="1") for kind in models}
    assert recipe_origin(info().model_copy(update={"models": names})) == sentence


@pytest.mark.parametrize(("part", "whole", "share"), [(1, 3, 33.33), (2, 3, 66.67), (5, 0, 0), (0, 7, 0), (7, 7, 100)])
def test_per_cent_has_two_decimals(part: float, whole: float, share: float) -> None:
    assert percent(part, whole) == share


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (4.561, "4.56"), (45.67, "45.7"), (99.96, "100"), (123.4, "123"), (12345.0, "12,345")],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
