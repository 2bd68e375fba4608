"""The figures of the report as numbers and texts for its templates: funnel, histograms, bars, rejects."""

import hashlib
import heapq
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.dataset import DatasetInfo

LABELS = 20
"""Most labels that are drawn, the most frequent first."""

LAST_COUNT = 24
"""Counts from here on share the last bar of a histogram."""

EXAMPLES = 5
"""Most rejects that are shown of each reason."""

Figure = dict[str, Any]
"""What a template draws; lengths are in per cent."""


def rank(seed: int, name: str) -> int:
    """Return a pseudo-random number in [0, 2**64), a function of `seed` and `name`."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(errors="replace"), digest_size=8).digest(), "big")


def choose(
    keys: Sequence[str], scores: NDArray[np.float64], counts: NDArray[np.int64], number: int, seed: int
) -> list[tuple[int, str]]:
    """Choose samples to show: a sixth each of low score, of high score and of high count, the rest at random.

    Each sixth is drawn at random from the most extreme tenth of all samples, and left out if all samples are equal.
    The choice depends on keys, scores, counts and seed, not on the order of the samples.

    Args:
        keys: Keys of all samples, all different.
        scores: [N] float64, one per sample.
        counts: [N] int64, one per sample.
        number: How many samples to choose; all if there are fewer.
        seed: Seed of the choice.

    Returns:
        (position, group) of each chosen sample, in random order, those of low score last; group is "low", "high",
        "many" or "random".
    """
    number = min(number, len(keys))
    if number <= 0:
        return []
    ranks = np.array([rank(seed, key) for key in keys], dtype=np.uint64)
    shuffled = np.argsort(ranks)
    share = math.ceil(number / 6)
    pool = max(share, math.ceil(len(keys) / 10))
    chosen: dict[int, str] = {}
    for group, order in (("low", scores), ("high", -scores), ("many", -counts)):
        if order.min() < order.max():
            extreme = set(np.lexsort((ranks, order))[:pool].tolist())
            fresh = (i for i in shuffled.tolist() if i in extreme and i not in chosen)
            chosen.update(dict.fromkeys(list(islice(fresh, min(share, number - len(chosen)))), group))
    rest = (i for i in shuffled.tolist() if i not in chosen)
    chosen.update(dict.fromkeys(list(islice(rest, number - len(chosen))), "random"))
    return sorted(chosen.items(), key=lambda item: (item[1] == "low", int(ranks[item[0]])))


def headline(info: DatasetInfo, counts: NDArray[np.int64], what: str) -> list[Figure]:
    """Return the numbers at the head of the page: name, value, unit.

    Args:
        info: The dataset.
        counts: [N] int64, what each sample has several of; their mean is left out if all are zero.
        what: What is counted, plural.
    """
    totals, seconds = info.counts, sum(info.seconds.values())
    numbers = [
        ("Read", f"{totals.read:,}", ""),
        ("Written", f"{totals.written:,}", ""),
        ("Rejected", f"{totals.rejected:,}", ""),
    ]
    if counts.any():
        numbers.append((f"{what.capitalize()} per sample", f"{counts.mean():.2f}", ""))
    if seconds:
        numbers.append(("Images per second", significant(totals.read / seconds), "per worker"))
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in numbers]


def balance(info: DatasetInfo, indexed: int, listed: int) -> Figure:
    """Check that read = written + rejected.

    Args:
        info: The dataset.
        indexed: Number of rows of `index.parquet`, which must be that of the written samples.
        listed: Number of rows of `rejects.parquet`, which must be that of the rejects.

    Returns:
        `holds` (bool), and a `sentence` with the numbers.
    """
    read, written, rejected = info.counts.read, info.counts.written, info.counts.rejected
    if (indexed, listed) != (written, rejected):
        return {
            "holds": False,
            "sentence": f"dataset.json counts {written:,} written and {rejected:,} rejected, "
            f"index.parquet has {indexed:,} rows and rejects.parquet {listed:,}.",
        }
    holds = read == written + rejected
    return {
        "holds": holds,
        "sentence": f"{read:,} read {'=' if holds else '≠'} {written:,} written + {rejected:,} rejected.",
    }


def funnel(info: DatasetInfo) -> list[Figure]:
    """Return how many records remain after each stage that ran or rejected any, in the order of the stages."""
    rows = [(stage, came - lost, lost) for stage, (came, lost) in _stages(info).items() if stage != "write" or lost]
    total = max(info.counts.read, 1)
    return [
        {"stage": s, "kept": k, "lost": x, "kept_share": percent(k, total), "lost_share": percent(x, total)}
        for s, k, x in (*rows, ("written", info.counts.written, 0))
    ]


def _stages(info: DatasetInfo) -> dict[str, tuple[int, int]]:
    """Return how many records came to each stage, and how many it rejected, in the order of the stages."""
    lost = {stage: sum(reasons.values()) for stage, reasons in info.counts.rejects.items()}
    stages = list(dict.fromkeys(["read", *(s for s in info.seconds if s != "write"), *lost]))
    if "write" in info.seconds or "write" in lost:
        stages = [*(stage for stage in stages if stage != "write"), "write"]
    before = accumulate((lost.get(stage, 0) for stage in stages), initial=0)
    return {stage: (info.counts.read - gone, lost.get(stage, 0)) for stage, gone in zip(stages, before, strict=False)}


def score_histogram(
    scores: NDArray[np.float64], what: str, threshold: float | None = None, mark: str = "threshold"
) -> Figure | None:
    """Return a histogram of at most 40 bins of a round width (1, 2 or 5 times a power of ten, at least 0.005).

    Args:
        scores: [N] float64. NaN and infinities are left out.
        what: What they measure.
        threshold: Where a line is drawn, or None.
        mark: The word at that line.

    Returns:
        The histogram, or None if there are no scores.
    """
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return None
    marked = scores if threshold is None else np.append(scores, threshold)
    width = _bin_width(float(np.ptp(marked)))
    low = math.floor(marked.min() / width + 1e-9)
    bins = max(8, math.floor(marked.max() / width + 1e-9) - low + 1)
    edges = (low + np.arange(bins + 1)) * width
    counts = np.bincount(np.clip(np.floor(scores / width + 1e-9).astype(int) - low, 0, bins - 1), minlength=bins)
    low_text, high_text, middle = (signed(value, ",.2f") for value in (scores.min(), scores.max(), np.median(scores)))
    span = f"{low_text} to {high_text}"
    texts = [signed(edge, ",.0f" if width >= 10 else ".3g") for edge in edges]
    figure = _histogram(counts.tolist(), [f"{a} to {b}" for a, b in pairwise(texts)])
    step = math.ceil(bins / 8)
    figure["ticks"] = [{"at": percent(i, bins), "text": texts[i]} for i in range(0, bins + 1, step)]
    if threshold is not None:
        at = percent(threshold / width - low, bins)
        figure["marks"] = [{"at": at, "text": f"{mark} {signed(threshold, 'g')}", "left": at > 60}]
    figure["x"] = what
    values = f"{len(scores):,} values from {span}, median {middle}" if len(scores) > 1 else f"one value, {middle}"
    figure["label"] = f"Histogram of {what}: {values}"
    figure["summary"] = f"{values}."
    return figure


def _bin_width(span: float) -> float:
    """Return the smallest round width by which 36 bins cover `span`."""
    widths = (digit * 10.0**power for power in range(-3, 300) for digit in (1, 2, 5))
    return next(width for width in widths if width >= 0.005 and span <= 36 * width)


def count_histogram(counts: NDArray[np.int64], what: str) -> Figure | None:
    """Return a histogram with a bar per whole number, from 1 (or 0 if it occurs) to `LAST_COUNT` and above.

    Args:
        counts: [N] int64, none negative.
        what: What is counted.

    Returns:
        The histogram, or None if there are no counts.
    """
    if not len(counts):
        return None
    first = min(1, int(counts.min()))
    bars = np.bincount(np.minimum(counts, LAST_COUNT))[first:].tolist()
    names = [f"{i}+" if i == LAST_COUNT else str(i) for i in range(first, first + len(bars))]
    figure = _histogram(bars, names)
    step = math.ceil(len(bars) / 12)
    figure["ticks"] = [{"at": percent(i + 0.5, len(bars)), "text": names[i]} for i in range(0, len(bars), step)]
    figure["x"] = what
    figure["label"] = f"Histogram of {what}: {len(counts):,} samples, from {counts.min()} to {counts.max()}"
    return figure


def number_histogram(values: NDArray[np.int64], what: str) -> Figure | None:
    """Return a histogram of whole numbers, [N] int64: a bar per number if most are small counts, else bins of them."""
    if len(values) and values.min() >= 0 and np.median(values) < LAST_COUNT:
        return count_histogram(values, what)
    return score_histogram(values.astype(np.float64), what)


def _histogram(counts: list[int], names: list[str]) -> Figure:
    top = max(*counts, 1)
    bars = [
        {"height": percent(count, top), "title": f"{name}: {count:,}"}
        for name, count in zip(names, counts, strict=True)
    ]
    return {"bars": bars, "top": top, "marks": []}


def label_bars(labels: Mapping[str, int], what: str, things: str) -> Figure | None:
    """Return bars of the most frequent labels, equally frequent ones in the order of their names.

    Args:
        labels: How often each label occurs.
        what: What a label is, such as "class".
        things: What is counted, plural.

    Returns:
        The bars, or None if there are no labels.
    """
    most = sorted(labels.items(), key=lambda item: (-item[1], item[0]))[:LABELS]
    if not most:
        return None
    rows = [{"name": name, "value": f"{count:,}", "share": percent(count, most[0][1])} for name, count in most]
    heads = {"name": what.capitalize(), "value": things.capitalize()}
    return {"rows": rows, "shown": len(rows), "total": len(labels), "heads": heads}


def reject_groups(
    rows: Iterable[Mapping[str, str]], seed: int, counts: Mapping[str, Mapping[str, int]] | None = None
) -> list[Figure]:
    """Group rejects by stage and reason, the most frequent first, each with up to `EXAMPLES` examples.

    Args:
        rows: The rows of `rejects.parquet`, or some of them.
        seed: Seed of the choice of examples.
        counts: How many rejects there are, by stage and reason; None if `rows` are all.
    """
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["stage"], row["reason"]].append(row)
    sizes = {group: len(found) for group, found in groups.items()}
    if counts is not None:
        sizes |= {(stage, reason): count for stage, reasons in counts.items() for reason, count in reasons.items()}
    most = max(sizes.values(), default=1)
    return [
        {
            "stage": stage,
            "reason": reason,
            "count": count,
            "share": percent(count, most),
            "examples": heapq.nsmallest(
                EXAMPLES, groups[stage, reason], key=lambda row: (rank(seed, row["key"]), row["source"])
            ),
        }
        for (stage, reason), count in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    ]


def stage_bars(info: DatasetInfo) -> list[Figure]:
    """Return bars of the seconds of each stage, summed over workers, in the order of the stages.

    The seconds per record are those of the records that came to the stage.
    """
    longest, stages = max(info.seconds.values(), default=0), _stages(info)
    return [
        {
            "name": stage,
            "value": f"{significant(seconds)} s",
            "extra": f"{significant(1000 * seconds / max(stages[stage][0], 1))} ms",
            "share": percent(seconds, longest),
        }
        for stage, seconds in info.seconds.items()
    ]


def provenance(info: DatasetInfo) -> list[Figure]:
    """Return the dataset's config, models, library versions, licences and gaps of its source as rows of text.

    Hashes are shortened: `dataset.json` has them in full.
    """
    models = [(kind, model.name, shortened(model.revision)) for kind, model in info.models.items()]
    licences = [(name or "none stated", f"{n:,}") for name, n in info.licenses.items()]
    rows: list[Figure] = [
        {"name": "Configuration", "rows": [*flat(info.config)], "long_names": False},
        {"name": "Models", "rows": models, "long_names": False},
        {"name": "Library versions", "rows": list(info.libraries.items()), "long_names": False},
        {"name": "Licences of the sources", "rows": licences, "long_names": True},
    ]
    if derived := info.derived:
        options = [(name, str(value)) for name, value in derived.options.items()]
        origins = [("from", f"{o.folder}, {o.info.counts.written:,} samples") for o in derived.origins]
        rows.insert(0, {"name": f"subjectloom {derived.command}", "rows": [*options, *origins], "long_names": False})
    if info.gaps:
        gaps = [(name, f"{n:,}") for name, n in info.gaps.items()]
        rows.append({"name": "Gaps of the source", "rows": gaps, "long_names": True})
    return rows


def origin_of_masks(info: DatasetInfo) -> str:
    """Return a sentence that says, by the models that ran, where the masks of phrases came from."""
    names = {kind: model.name for kind, model in info.models.items()}
    if "segmenter" in names:
        return f"The segmenter {names['segmenter']} drew the masks."
    masks = f"SAM ({names['sam']}) drew the masks" if "sam" in names else "The masks are the source's annotations"
    return f"{masks}, in the boxes of the detector {names['detector']}." if "detector" in names else f"{masks}."


def origin_of_mattes(info: DatasetInfo) -> str:
    """Return a sentence that says, by the models that ran, what the subjects were cut out by."""
    if clipseg := info.models.get("clipseg"):
        return f"CLIPSeg ({clipseg.name}) found the subjects."
    return "The subjects are masks of the source's annotations."


def shortened(revision: str) -> str:
    """Return a revision with the first twelve digits of a hash; a version or a branch stays as it is."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{28,}", r"\1…", revision)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield the fields of a nested config as (dotted name, value), in their order."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", "none" if text in ("", "null", "[]", "{}") else text


def percent(part: float, whole: float) -> float:
    """Return 100 part / whole, rounded to two decimals; 0 if `whole` is 0."""
    return round(100 * part / whole, 2) if whole else 0.0


def signed(value: float, form: str) -> str:
    """Format a number by `form`, with the character "−" as its sign and no sign before a zero."""
    return f"{value:z{form}}".replace("-", "−")


def significant(value: float) -> str:
    """Format a positive number with three significant digits, or more before its point: 0.0123, 4.56, 12,345."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
