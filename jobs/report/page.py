"""The report of a dataset: one page for people, that needs no network and no other file."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from jobs.report import figures
from jobs.report.card import fastcomposer_card
from jobs.report.cards.blip_diffusion import blip_diffusion_card
from jobs.report.cards.mip_adapter import mip_adapter_card
from schemas.dataset import DatasetInfo
from schemas.errors import InputError
from schemas.shards import Sample, read_sample
from transforms.dataset import read_info, read_table
from transforms.files import join, open_file, replace_file

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class View:
    """How a recipe's dataset is shown.

    `title` is its name for people, `lead` a sentence above the samples, `groups` what the chosen ones are called.
    `card` is the template of one sample, `fill` makes what fills it; `layers` are what can be switched off in its
    picture. `things` and `names` say what a sample has several of, and what it calls them by. `ranks` gives two
    numbers per sample to choose by, [N] float64 and [N] int64 (see `choose`), `sections` what the sections on scores
    and subjects draw.
    """

    title: str
    lead: str
    groups: Mapping[str, str]
    card: str
    fill: Callable[[Sample], dict[str, Any]]
    layers: tuple[str, ...]
    things: str
    names: str
    ranks: Callable[[pa.Table], tuple[NDArray[np.float64], NDArray[np.int64]]]
    sections: Callable[[pa.Table, DatasetInfo], dict[str, Any]]


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
    if info.recipe not in VIEWS:
        raise InputError(f"{output} holds a {info.recipe} dataset: reports are written for {', '.join(VIEWS)}")
    view = VIEWS[info.recipe]
    index, rejects = read_table(output, "index.parquet"), read_table(output, "rejects.parquet")
    chosen = figures.choose(index["key"].to_pylist(), *view.ranks(index), samples, seed)
    cards = read_cards(output, index, chosen, view)
    path = join(output, "report.html")
    replace_file(path, render(info, index, rejects, cards, seed).encode())
    return path


def read_cards(output: str, index: pa.Table, chosen: Sequence[tuple[int, str]], view: View) -> list[dict[str, Any]]:
    """Read the chosen samples, (row of the index, group), out of their shards and fill a card with each."""
    rows = index.select(["shard", "offset", "size"]).take(pa.array([i for i, _ in chosen], pa.int64())).to_pylist()
    cards: dict[int, dict[str, Any]] = {}
    # A shard is opened once: on a remote store that is the dear part.
    for shard in sorted({row["shard"] for row in rows}):
        with open_file(join(output, shard)) as stream:
            for at, row in enumerate(rows):
                if row["shard"] == shard:
                    stream.seek(row["offset"])
                    filled = view.fill(read_sample(stream.read(row["size"])))
                    cards[at] = filled | {"id": f"s{at}", "shard": shard, "group": chosen[at][1]}
    return [cards[at] for at in range(len(rows))]


def render(info: DatasetInfo, index: pa.Table, rejects: pa.Table, cards: list[dict[str, Any]], seed: int) -> str:
    """Return the page, with everything that it needs inside."""
    script = _environment().get_template("report.js").render()
    view = VIEWS[info.recipe]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            view=view,
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            figures=figures.headline(info, view.ranks(index)[1], view.things),
            balance=figures.balance(info, len(index), len(rejects)),
            written=info.counts.written,
            rejected=info.counts.rejected,
            funnel=figures.funnel(info),
            cards=cards,
            groups=_groups(cards, view.groups),
            frame=_frame(cards),
            **view.sections(index, info),
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


def _counted(labels: pa.ChunkedArray) -> dict[str, int]:
    """Count how often each label stands there."""
    return {row["values"]: row["counts"] for row in pc.value_counts(labels).to_pylist()}


def _fastcomposer_ranks(index: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return _numbers(index, "score_min"), _numbers(index, "subjects").astype(np.int64)


def _fastcomposer_sections(index: pa.Table, info: DatasetInfo) -> dict[str, Any]:
    scores = pc.list_flatten(index["scores"]).to_numpy().astype(np.float64)
    what = "similarity of a phrase and its segment"
    subjects = _numbers(index, "subjects").astype(np.int64)
    return {
        "measured": "Scores",
        "measures": [figures.score_histogram(scores, what, info.config.get("threshold"))],
        "subjects": figures.count_histogram(subjects, "subjects in a sample"),
        "labels": figures.label_bars(_counted(pc.list_flatten(index["labels"]))),
    }


def _blip_diffusion_ranks(index: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return _numbers(index, "unknown_fraction"), np.zeros(len(index), np.int64)


def _blip_diffusion_sections(index: pa.Table, info: DatasetInfo) -> dict[str, Any]:  # noqa: ARG001 - as the others
    measures = {
        "foreground_fraction": "share of the picture that the subject covers",
        "unknown_fraction": "unknown share",
    }
    return {
        "measured": "Mattes",
        "measures": [figures.score_histogram(_numbers(index, name), what) for name, what in measures.items()],
        "subjects": None,
        "labels": figures.label_bars(_counted(index["subject"])),
    }


def _mip_adapter_ranks(index: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return _numbers(index, "quality"), _numbers(index, "objects").astype(np.int64)


def _mip_adapter_sections(index: pa.Table, info: DatasetInfo) -> dict[str, Any]:
    quality = _numbers(index, "quality")
    # What was cut off is not in the index: the line stands where the rest begins.
    best, least = info.config.get("best"), info.config.get("min_quality")
    is_cut = least is not None or (best is not None and len(index) >= best)
    lowest = float(quality.min()) if is_cut and len(quality) else None
    parts = {
        "single": "single part, how well the objects fit their phrases",
        "pair": "pair part, how little they are alike",
    }
    return {
        "measured": "Quality",
        "measures": [
            figures.score_histogram(quality, "S, the quality of a sample", lowest, "cut at"),
            *(figures.score_histogram(_numbers(index, name), what) for name, what in parts.items()),
        ],
        "subjects": figures.count_histogram(_numbers(index, "objects").astype(np.int64), "objects in a sample"),
        "labels": figures.label_bars(_counted(pc.list_flatten(index["names"]))),
    }


VIEWS = {
    "fastcomposer": View(
        title="FastComposer",
        lead="Colour and number tie each phrase to its mask.",
        groups={"low": "Lowest scores", "high": "Highest scores", "many": "Most subjects"},
        card="fastcomposer.html.j2",
        fill=fastcomposer_card,
        layers=("masks", "outlines", "numbers"),
        things="subjects",
        names="class",
        ranks=_fastcomposer_ranks,
        sections=_fastcomposer_sections,
    ),
    "blip-diffusion": View(
        title="BLIP-Diffusion",
        lead="From left to right: the picture, its trimap, the alpha, the input; below each, the part of its edge that "
        "was hardest, pixel by pixel.",
        groups={"low": "Least unknown", "high": "Most unknown"},
        card="blip_diffusion.html.j2",
        fill=blip_diffusion_card,
        layers=(),
        things="subjects",
        names="class",
        ranks=_blip_diffusion_ranks,
        sections=_blip_diffusion_sections,
    ),
    "mip-adapter": View(
        title="MIP-Adapter",
        lead="Colour and number tie each phrase to its object, the box that was detected and the mask inside.",
        groups={"low": "Lowest quality", "high": "Highest quality", "many": "Most objects"},
        card="mip_adapter.html.j2",
        fill=mip_adapter_card,
        layers=("masks", "outlines", "boxes", "numbers"),
        things="objects",
        names="name",
        ranks=_mip_adapter_ranks,
        sections=_mip_adapter_sections,
    ),
}
"""By recipe."""


def _groups(cards: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the groups that the gallery can be narrowed to."""
    labels = {"all": "All", "random": "At random", **names}
    sizes = Counter(card["group"] for card in cards)
    sizes["all"] = len(cards)
    present = [name for name in labels if sizes[name]]
    return [{"name": name, "label": labels[name], "count": sizes[name]} for name in present] if len(present) > 2 else []


def _frame(cards: Sequence[dict[str, Any]]) -> float:
    """Return the width : height of the gallery's frames: the middle one of the pictures', within bounds."""
    shapes = [card["width"] / card["height"] for card in cards] or [1.0]
    return round(float(np.clip(np.median(shapes), 0.8, 1.6)), 3)
