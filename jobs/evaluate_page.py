"""The folder of an evaluation: a page in the report's style, the figures, and the drawn pictures.

OUT/report.html     the scores between their ends, and drawn pictures beside the real ones; it needs no other file
OUT/figures.json    the scores, and what was measured of each picture
OUT/pictures/       the drawn pictures, 000000.png, 000001.png ...
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.evaluate import Drawn, Evaluation
from jobs.evaluate_measures import Picture, Score
from jobs.report.figures import signed
from jobs.report.page import environment
from jobs.report.parts import data_address

SHOWN = 120
"""Most pictures on the page, evenly spaced."""
SIDE = 256
"""Longest side of a picture on the page, in pixels: larger ones are scaled down."""
LOWER_IS_BETTER = frozenset({"identity-others", "attention-others"})


def write_evaluation(output: Path, found: Evaluation, settings: Mapping[str, Any]) -> Path:
    """Write the folder of an evaluation, with settings that the page states; return the page's path."""
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.png" for i in range(len(found.drawn))]
    for name, drawn in zip(names, found.drawn, strict=True):
        Image.fromarray(drawn.judged.picture).save(output / "pictures" / name)
    pictures = [
        {"picture": name, "group": d.judged.group, "text": d.judged.text, **{k: known(v) for k, v in d.values.items()}}
        for name, d in zip(names, found.drawn, strict=True)
    ]
    figures = {**settings, "scores": [asdict(score) for score in found.scores], "pictures": pictures}
    (output / "figures.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", "utf-8")
    page = output / "report.html"
    page.write_text(render(found, settings), "utf-8")
    return page


def known(value: float) -> float | None:
    """A measure as JSON has it, None for NaN."""
    return None if np.isnan(value) else value


def render(found: Evaluation, settings: Mapping[str, Any]) -> str:
    """Return the page with everything that it needs inside."""
    chosen = np.linspace(0, len(found.drawn) - 1, min(SHOWN, len(found.drawn))).round().astype(int)
    script = environment().get_template("report.js").render()
    page: str = (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            recipe=found.recipe,
            settings={name: value for name, value in settings.items() if value is not None},
            count=len(found.drawn),
            groups=len({drawn.judged.group for drawn in found.drawn}),
            measures=measure_rows(found.scores),
            samples=[card(int(i), found.drawn[i]) for i in chosen],
        )
    )
    return page


def measure_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """What the page says of each measure: its ends, the drawn pictures' mean, and its place between the ends."""
    rows = []
    for name in dict.fromkeys(score.measure for score in scores):
        of_measure = {score.pictures: score for score in scores if score.measure == name}
        drawn = of_measure.pop("drawn")
        ends = list(of_measure.values())
        row: dict[str, Any] = {
            "name": name,
            "drawn": signed(drawn.mean, ".3f"),
            "interval": f"{signed(drawn.low, '.3f')} to {signed(drawn.high, '.3f')}",
            "ends": [f"{end.pictures} {signed(end.mean, '.3f')}" for end in ends],
            "better": "lower" if name in LOWER_IS_BETTER else "higher",
            "share": None,
            "blind": False,
        }
        if len(ends) == 2:
            first, second = ends
            row["blind"] = first.low <= second.high and second.low <= first.high
            share = (drawn.mean - first.mean) / ((second.mean - first.mean) or 1)
            row["share"] = None if row["blind"] else round(100 * float(np.clip(share, 0, 1)), 1)
        rows.append(row)
    return rows


def card(number: int, drawn: Drawn) -> dict[str, Any]:
    """What the page shows of a picture: it, a real one, what the model was shown, text and measures."""
    judged = drawn.judged
    named = [("drawn", judged.picture), *(("real", picture) for picture in judged.real.pictures[:1])]
    named += [("shown", picture) for picture in drawn.references]
    return {
        "id": f"s{number}",
        "key": judged.group,
        "number": number,
        "pictures": [{"name": name, "address": address(picture)} for name, picture in named],
        "text": judged.text,
        "values": [(name, signed(value, ".3f")) for name, value in drawn.values.items() if not np.isnan(value)],
    }


def address(picture: Picture) -> str:
    """A picture as a data address, without loss: drawn ones may be small."""
    small = Image.fromarray(picture)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_address(small, "PNG", optimize=True)
