"""The report of a dataset: one page for people, that needs no network and no other file."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from jobs import report_figures as figures
from jobs.report_cards import fastcomposer_card
from schemas.dataset import DatasetInfo
from schemas.errors import InputError
from schemas.shards import Sample, read_sample
from transforms.output import join, open_file, read_info, read_table, replace_file

_TEMPLATES = Path(__file__).parent / "templates"

_GROUPS = {
    "all": "All",
    "random": "At random",
    "low": "Lowest scores",
    "high": "Highest scores",
    "many": "Most subjects",
}


@dataclass(frozen=True)
class Card:
    """How a recipe's samples are shown: its name for people, the template of one sample and what fills it."""

    title: str
    template: str
    fill: Callable[[Sample], dict[str, Any]]


CARDS = {"fastcomposer": Card("FastComposer", "fastcomposer.html.j2", fastcomposer_card)}
"""By recipe."""


def write_report(output: str, *, samples: int = 60, seed: int = 0) -> str:
    """Write `OUTPUT/report.html` from the dataset in `output` and return its path.

    The index and the rejects are read whole, of the shards only the chosen samples. The page is a function of
    the dataset, `samples` and `seed`.

    Args:
        output: folder of a finished dataset, on any filesystem that Beam opens.
        samples: how many samples are shown; all where there are fewer.
        seed: of the choice of samples and of examples of rejects.

    Raises:
        InputError: `output` holds no finished dataset, or one of a recipe that has no report.
    """
    info = read_info(output)
    if info.recipe not in CARDS:
        raise InputError(f"{output} holds a {info.recipe} dataset: reports are written for {', '.join(CARDS)}")
    index, rejects = read_table(output, "index.parquet"), read_table(output, "rejects.parquet")
    chosen = figures.choose(
        index["key"].to_pylist(),
        _numbers(index, "score_min"),
        _numbers(index, "subjects").astype(np.int64),
        samples,
        seed,
    )
    cards = read_cards(output, index, chosen, CARDS[info.recipe])
    path = join(output, "report.html")
    replace_file(path, render(info, index, rejects, cards, seed).encode())
    return path


def read_cards(output: str, index: pa.Table, chosen: Sequence[tuple[int, str]], card: Card) -> list[dict[str, Any]]:
    """Read the chosen samples, (row of the index, group), out of their shards and fill a card with each."""
    rows = index.select(["shard", "offset", "size"]).take(pa.array([i for i, _ in chosen], pa.int64())).to_pylist()
    cards: dict[int, dict[str, Any]] = {}
    # A shard is opened once: on a remote store that is the dear part.
    for shard in sorted({row["shard"] for row in rows}):
        with open_file(join(output, shard)) as stream:
            for at, row in enumerate(rows):
                if row["shard"] == shard:
                    stream.seek(row["offset"])
                    filled = card.fill(read_sample(stream.read(row["size"])))
                    cards[at] = filled | {"id": f"s{at}", "shard": shard, "group": chosen[at][1]}
    return [cards[at] for at in range(len(rows))]


def render(info: DatasetInfo, index: pa.Table, rejects: pa.Table, cards: list[dict[str, Any]], seed: int) -> str:
    """Return the page, with everything that it needs inside."""
    script = _environment().get_template("report.js").render()
    subjects = _numbers(index, "subjects").astype(np.int64)
    scores, meaning = _scores(index)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=CARDS[info.recipe].title,
            card_template=CARDS[info.recipe].template,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            figures=figures.headline(info, subjects),
            balance=figures.balance(info, len(index), len(rejects)),
            written=info.counts.written,
            rejected=info.counts.rejected,
            funnel=figures.funnel(info),
            cards=cards,
            groups=_groups(cards),
            frame=_frame(cards),
            scores=figures.score_histogram(scores, meaning, info.config.get("threshold")),
            subjects=figures.count_histogram(subjects, "subjects in a sample"),
            labels=figures.label_bars(_labels(index)),
            rejects=figures.reject_groups(rejects.to_pylist(), seed),
            stages=figures.stage_bars(info),
            provenance=figures.provenance(info),
            seed=seed,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    return environment


def _numbers(index: pa.Table, column: str) -> NDArray[np.float64]:
    return index[column].to_numpy().astype(np.float64)


def _scores(index: pa.Table) -> tuple[NDArray[np.float64], str]:
    """Return the score of every subject, and what it is called."""
    return pc.list_flatten(index["scores"]).to_numpy().astype(np.float64), "similarity of a phrase and its segment"


def _labels(index: pa.Table) -> dict[str, int]:
    """Count the subjects of each class."""
    counts = pc.value_counts(pc.list_flatten(index["labels"])).to_pylist()
    return {row["values"]: row["counts"] for row in counts}


def _groups(cards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups that the gallery can be narrowed to."""
    sizes = Counter(card["group"] for card in cards)
    sizes["all"] = len(cards)
    present = [name for name in _GROUPS if sizes[name]]
    return (
        [{"name": name, "label": _GROUPS[name], "count": sizes[name]} for name in present] if len(present) > 2 else []
    )


def _frame(cards: Sequence[dict[str, Any]]) -> float:
    """Return the width : height of the gallery's frames: the middle one of the pictures', within bounds."""
    shapes = [card["width"] / card["height"] for card in cards] or [1.0]
    return round(float(np.clip(np.median(shapes), 0.8, 1.6)), 3)
