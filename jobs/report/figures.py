"""The numbers of the report, ready to draw: funnel, histograms, bars, rejects. Pure functions over columns."""

import hashlib
import heapq
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.dataset import DatasetInfo

LABELS = 20
"""Classes that are drawn, the most frequent first."""

EXAMPLES = 5
"""Rejects that are shown of each reason."""

Drawn = dict[str, Any]


def rank(seed: int, name: str) -> int:
    """Return a pseudo-random number in [0, 2**64) that only `seed` and `name` decide."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(errors="replace"), digest_size=8).digest(), "big")


def choose(
    keys: Sequence[str], scores: NDArray[np.float64], subjects: NDArray[np.int64], count: int, seed: int
) -> list[tuple[int, str]]:
    """Choose samples to look at: a sixth of low score, of high score, of many subjects each, the rest at random.

    A sixth is drawn from the tenth of the samples that has it most, and left out where all are alike. The choice
    depends on the keys, their numbers and the seed, not on the order of the samples.

    Args:
        keys: of all samples, distinct.
        scores: [N] float64, one per sample.
        subjects: [N] int64, subjects per sample.
        count: how many to choose; all where there are fewer.
        seed: of the choice.

    Returns:
        (position, group) of each chosen sample, shuffled; group is "low", "high", "many" or "random".
    """
    count = min(count, len(keys))
    if count <= 0:
        return []
    ranks = np.array([rank(seed, key) for key in keys], dtype=np.uint64)
    shuffled = np.argsort(ranks)
    share = math.ceil(count / 6)
    pool = max(share, math.ceil(len(keys) / 10))
    chosen: dict[int, str] = {}
    for group, order in (("low", scores), ("high", -scores), ("many", -subjects)):
        if order.min() < order.max():
            extreme = set(np.lexsort((ranks, order))[:pool].tolist())
            fresh = (i for i in shuffled.tolist() if i in extreme and i not in chosen)
            chosen.update(dict.fromkeys(list(islice(fresh, min(share, count - len(chosen)))), group))
    rest = (i for i in shuffled.tolist() if i not in chosen)
    chosen.update(dict.fromkeys(list(islice(rest, count - len(chosen))), "random"))
    return sorted(chosen.items(), key=lambda item: int(ranks[item[0]]))


def headline(info: DatasetInfo, subjects: NDArray[np.int64], things: str) -> list[Drawn]:
    """Return the figures at the head of the page: name, value, unit.

    `subjects` counts those of each sample, which the recipe calls `things`; zeros: the recipe does not count them.
    """
    counts, seconds = info.counts, sum(info.seconds.values())
    figures = [
        ("Read", f"{counts.read:,}", ""),
        ("Written", f"{counts.written:,}", ""),
        ("Rejected", f"{counts.rejected:,}", ""),
    ]
    if subjects.any():
        figures.append((f"{things.capitalize()} per sample", f"{subjects.mean():.2f}", ""))
    if seconds:
        figures.append(("Images per second", significant(counts.read / seconds), "a worker"))
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in figures]


def balance(info: DatasetInfo, indexed: int, listed: int) -> Drawn:
    """Check that read = written + rejected, and that the `indexed` and `listed` rows of the files are these."""
    read, written, rejected = info.counts.read, info.counts.written, info.counts.rejected
    if (indexed, listed) != (written, rejected):
        return {
            "holds": False,
            "sentence": f"dataset.json counts {written:,} written and {rejected:,} rejected, "
            f"index.parquet holds {indexed:,} rows and rejects.parquet {listed:,}.",
        }
    holds = read == written + rejected
    return {
        "holds": holds,
        "sentence": f"{read:,} read {'=' if holds else '≠'} {written:,} written + {rejected:,} rejected.",
    }


def funnel(info: DatasetInfo) -> list[Drawn]:
    """Return what remains of the records after each stage that ran or refused any, in the order of the work."""
    lost = {stage: sum(reasons.values()) for stage, reasons in info.counts.rejects.items()}
    stages = list(dict.fromkeys(["read", *(s for s in info.seconds if s != "write"), *lost]))
    stages.sort(key="write".__eq__)  # last, the others as they are
    kept, rows = info.counts.read, []
    for stage in stages:
        kept -= lost.get(stage, 0)
        rows.append((stage, kept, lost.get(stage, 0)))
    rows.append(("written", info.counts.written, 0))
    total = max(info.counts.read, 1)
    return [
        {"stage": s, "kept": k, "lost": x, "kept_share": percent(k, total), "lost_share": percent(x, total)}
        for s, k, x in rows
        if s != "write" or x
    ]


def score_histogram(
    scores: NDArray[np.float64], what: str, threshold: float | None = None, mark: str = "threshold"
) -> Drawn | None:
    """Count scores in at most 40 bins of a round width; None where there are none.

    `mark` is what stands at the line drawn at `threshold`.
    """
    if not len(scores):
        return None
    marked = scores if threshold is None else np.append(scores, threshold)
    width = next(w for w in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1e9) if np.ptp(marked) <= 36 * w)
    low = math.floor(marked.min() / width + 1e-9)
    bins = max(8, math.floor(marked.max() / width + 1e-9) - low + 1)
    edges = (low + np.arange(bins + 1)) * width
    counts = np.bincount(np.clip(np.floor(scores / width + 1e-9).astype(int) - low, 0, bins - 1), minlength=bins)
    low_text, high_text, middle = (signed(value, ".2f") for value in (scores.min(), scores.max(), np.median(scores)))
    span = f"{low_text} to {high_text}"
    texts = [signed(edge, ".3g") for edge in edges]
    drawn = _histogram(counts.tolist(), [f"{a} to {b}" for a, b in pairwise(texts)])
    step = math.ceil(bins / 8)
    drawn["ticks"] = [{"at": percent(i, bins), "text": texts[i]} for i in range(0, bins + 1, step)]
    if threshold is not None:
        at = percent(threshold / width - low, bins)
        drawn["marks"] = [{"at": at, "text": f"{mark} {signed(threshold, 'g')}", "left": at > 60}]
    drawn["x"] = what
    drawn["label"] = f"Histogram of {what}: {len(scores):,} values from {span}, median {middle}"
    drawn["summary"] = f"{len(scores):,} values from {span}; half of them are above {middle}."
    return drawn


def count_histogram(values: NDArray[np.int64], what: str) -> Drawn | None:
    """Count whole numbers, a bar each; 24 and above share the last. None where there are none."""
    if not len(values):
        return None
    last = 24
    counts = np.bincount(np.minimum(values, last))[1:].tolist() or [0]
    names = [f"{i}+" if i == last else str(i) for i in range(1, len(counts) + 1)]
    drawn = _histogram(counts, names)
    step = math.ceil(len(counts) / 12)
    drawn["ticks"] = [{"at": percent(i + 0.5, len(counts)), "text": names[i]} for i in range(0, len(counts), step)]
    drawn["x"] = what
    drawn["label"] = f"Histogram of {what}: {len(values):,} samples, from {values.min()} to {values.max()}"
    return drawn


def _histogram(counts: list[int], names: list[str]) -> Drawn:
    top = max(*counts, 1)
    bars = [
        {"height": percent(count, top), "title": f"{name}: {count:,}"}
        for name, count in zip(names, counts, strict=True)
    ]
    return {"bars": bars, "top": top, "marks": []}


def label_bars(labels: Mapping[str, int]) -> Drawn:
    """Return the most frequent of `labels` (class to number of subjects); equal ones by name."""
    most = sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:LABELS]
    rows = [{"name": name, "value": f"{count:,}", "share": percent(count, most[0][1])} for name, count in most]
    return {"rows": rows, "shown": len(rows), "total": len(labels)}


def reject_groups(rows: Iterable[Mapping[str, str]], seed: int) -> list[Drawn]:
    """Group rejects by stage and reason, the most frequent first, each with a few examples that `seed` picks."""
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["stage"], row["reason"]].append(row)
    most = max(map(len, groups.values()), default=1)
    return [
        {
            "stage": stage,
            "reason": reason,
            "count": len(group),
            "share": percent(len(group), most),
            "examples": heapq.nsmallest(EXAMPLES, group, key=lambda row: (rank(seed, row["key"]), row["source"])),
        }
        for (stage, reason), group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def stage_bars(info: DatasetInfo) -> list[Drawn]:
    """Return the seconds of each stage, in the order of the work."""
    longest, read = max(info.seconds.values(), default=0), max(info.counts.read, 1)
    return [
        {
            "name": stage,
            "value": f"{significant(seconds)} s",
            "extra": f"{significant(1000 * seconds / read)} ms",
            "share": percent(seconds, longest),
        }
        for stage, seconds in info.seconds.items()
    ]


def provenance(info: DatasetInfo) -> list[Drawn]:
    """Return config, models, versions and licences as rows of text."""
    return [
        {"name": "Configuration", "rows": [*flat(info.config)]},
        {"name": "Models", "rows": [(part, model.name, model.revision) for part, model in info.models.items()]},
        {"name": "Library versions", "rows": list(info.libraries.items())},
        {
            "name": "Licences of the sources",
            "rows": [(name or "none stated", f"{n:,}") for name, n in info.licenses.items()],
        },
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield a nested config as (dotted name, value) in its own order."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def percent(part: float, whole: float) -> float:
    """Return 100 part / whole with two decimals, 0 where the whole is 0."""
    return round(100 * part / whole, 2) if whole else 0.0


def signed(value: float, form: str) -> str:
    """Write a number in the format `form`, with a true minus sign, and none before a zero."""
    return f"{value:z{form}}".replace("-", "−")


def significant(value: float) -> str:
    """Write a positive number with three digits that say something: 0.0123, 4.56, 78.9, 12,345."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
