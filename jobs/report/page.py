"""The report of a dataset: one page for people, which needs no network and no other file."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from jobs.report import figures
from jobs.report.card import Card, numbers, score_sections, words
from jobs.report.cards import card_of
from schemas.dataset import DatasetInfo
from schemas.samples import format_of
from schemas.shards import read_sample
from transforms.dataset import open_table, read_info
from transforms.files import join, open_file, replace_file
from transforms.tables import every_kth

ROWS = 100_000
"""Most rows of the index that the figures are drawn from."""

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(output: str, *, samples: int = 60, seed: int = 0) -> str:
    """Write `OUTPUT/report.html` from the dataset in `output` and return its path.

    Of the index and the rejects, at most `ROWS` evenly spaced rows are read; of the shards, only the chosen samples.
    The counts are those of the whole dataset. The page is a function of the dataset, `samples` and `seed`.

    Args:
        output: Folder of a finished dataset, on any filesystem that Beam opens.
        samples: How many samples are shown; all if there are fewer.
        seed: Seed of the choice of samples, and of examples of rejects.

    Raises:
        InputError: `output` holds no finished dataset, or one of an unknown recipe.
    """
    info = read_info(output)
    card = card_of(format_of(info.recipe))
    with open_table(output, "index.parquet") as index_file, open_table(output, "rejects.parquet") as rejects_file:
        index, rejects = every_kth(index_file, ROWS), every_kth(rejects_file, ROWS)
        lengths = index_file.metadata.num_rows, rejects_file.metadata.num_rows
    chosen = choose_samples(index, card, samples, seed)
    shown = read_samples(output, index, chosen, card)
    path = join(output, "report.html")
    replace_file(path, render(info, Tables(index, rejects, *lengths), shown, card, seed).encode())
    return path


class Tables(NamedTuple):
    """The rows of the index and of the rejects that a report is made from, and how many there are of each."""

    index: pa.Table
    rejects: pa.Table
    indexed: int
    listed: int


def choose_samples(index: pa.Table, card: Card, count: int, seed: int) -> list[tuple[int, str]]:
    """Return (row of the index, group) of the samples that the report shows; see `figures.choose`."""
    scores = numbers(index[card.score]) if card.score else np.zeros(len(index))
    return figures.choose(index["key"].to_pylist(), scores, _counts(index, card), count, seed)


def _counts(index: pa.Table, card: Card) -> NDArray[np.int64]:
    return numbers(index[card.count], np.int64) if card.count else np.zeros(len(index), np.int64)


def read_samples(output: str, index: pa.Table, chosen: Sequence[tuple[int, str]], card: Card) -> list[dict[str, Any]]:
    """Read the chosen samples from their shards and return what the card's template shows of each, in their order."""
    rows = index.select(["shard", "offset", "size"]).take(pa.array([i for i, _ in chosen], pa.int64())).to_pylist()
    shown: dict[int, dict[str, Any]] = {}
    # Each shard is opened once: on a remote filesystem opening costs most.
    for shard in sorted({row["shard"] for row in rows}):
        with open_file(join(output, shard)) as stream:
            for place, row in enumerate(rows):
                if row["shard"] == shard:
                    stream.seek(row["offset"])
                    fields = card.fill(read_sample(stream.read(row["size"])))
                    shown[place] = fields | {"id": f"s{place}", "shard": shard, "group": chosen[place][1]}
    return [shown[place] for place in range(len(rows))]


def render(info: DatasetInfo, tables: Tables, samples: list[dict[str, Any]], card: Card, seed: int) -> str:
    """Return the page with everything that it needs inside; `samples` are those that `read_samples` returns."""
    index, rejects = tables.index, tables.rejects
    script = environment().get_template("report.js").render()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            card=card,
            info=info,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            figures=figures.headline(info, _counts(index, card), words(card.count)),
            balance=figures.balance(info, tables.indexed, tables.listed),
            small_models=info.small_models(),
            written=info.counts.written,
            rejected=info.counts.rejected,
            funnel=figures.funnel(info),
            sampled=len(index) if len(index) < tables.indexed else 0,
            samples=samples,
            groups=_groups(samples, card.groups),
            frame=_frame(samples),
            sections=[
                section
                for section in (*card.sections(index, info), *score_sections(index, info))
                if not section.is_empty
            ],
            rejects=figures.reject_groups(
                rejects.to_pylist(), seed, info.counts.rejects if len(rejects) < tables.listed else None
            ),
            stages=figures.stage_bars(info),
            provenance=figures.provenance(info),
            seed=seed,
        )
    )


@cache
def environment() -> Environment:
    """Return what the pages' templates are read with."""
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["count"] = "{:,}".format
    templates.filters["breakable"] = breakable
    return templates


def breakable(text: object) -> Markup:
    """Escape a text, such as an address or a checkpoint's name, and let lines break after its slashes and colons."""
    return Markup(re.sub("([/:])(?=[^/])", r"\1<wbr>", str(escape(text))))  # noqa: S704 - escaped before


def _groups(samples: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the groups that the gallery can be filtered by: those with samples; none if all are in one group."""
    labels = {"all": "All", "random": "At random", **names}
    sizes = Counter(sample["group"] for sample in samples)
    sizes["all"] = len(samples)
    present = [name for name in labels if sizes[name]]
    return [{"name": name, "label": labels[name], "count": sizes[name]} for name in present] if len(present) > 2 else []


def _frame(samples: Sequence[dict[str, Any]]) -> float:
    """Return width / height of the gallery's frames: the median of the pictures', between 0.8 and 1.6."""
    shapes = [sample["width"] / sample["height"] for sample in samples] or [1.0]
    return round(float(np.clip(np.median(shapes), 0.8, 1.6)), 3)
