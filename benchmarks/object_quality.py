"""Does the object quality score know a good picture from a bad one? On scenes whose truth makes them either.

    python -m benchmarks.object_quality [--count 1000]

Half of the pictures are good: every object has the caption's own words for it, and they are different things. A
quarter has wrong phrases: every object is called what another one in the picture is. A quarter has twins: an object
stands beside its own copy, both rightly named. Printed is the score of each kind, and which share of the good ones is
in the better half of all, chosen by the whole score and by each of its two parts alone.

Then the same with a harder kind of wrong phrase: only one of the objects is called what an object of another scene is.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count as numbers
from itertools import cycle, islice
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.localization import example_of
from schemas.example import Example, Object, Quality
from schemas.masks import Mask
from transforms.models.clip import load_clip
from transforms.models.presets import PRESETS
from transforms.selection.quality import add_quality

SEED = 3001
"""Of scenes that no training saw."""
BATCH = 8
"""Pictures that go through CLIP together, as in a build."""

Kind = Literal["good", "wrong phrases", "one wrong phrase", "twins"]
KINDS: tuple[Kind, ...] = ("good", "wrong phrases", "good", "twins")
HARDER: tuple[Kind, ...] = ("good", "one wrong phrase", "good", "twins")
"""Taken in turn."""


@dataclass(frozen=True)
class Scored:
    """A picture of a kind, and its quality."""

    kind: Kind
    quality: Quality


def pictures(count: int, kinds: Sequence[Kind] = KINDS) -> Iterator[tuple[Kind, Example]]:
    """Make `count` pictures of these kinds in turn."""
    found = (one for index in numbers() if (one := good_picture(index)) is not None)
    for kind in islice(cycle(kinds), count):
        example = next(found)
        if kind == "wrong phrases":
            example = with_wrong_phrases(example)
        elif kind == "one wrong phrase":
            names = {phrase.root for phrase in example.phrases}
            example = with_wrong_phrase(example, next(o for o in found if not names & {p.root for p in o.phrases}))
        elif kind == "twins":
            example = with_twins(example)
        yield kind, example


def good_picture(index: int) -> Example | None:
    """Turn a scene into a picture with an object per phrase; None where they are not all different things."""
    example = example_of(SEED, index)
    if example is None or len({phrase.root for phrase in example.phrases}) < len(example.phrases):
        return None
    objects = tuple(Object(i, segment.bbox, 1.0, segment.mask) for i, segment in enumerate(example.segments))
    return replace(example, objects=objects)


def with_wrong_phrases(example: Example) -> Example:
    """Call every object what the next one is."""
    count = len(example.objects)
    return replace(example, objects=tuple(replace(one, phrase=(one.phrase + 1) % count) for one in example.objects))


def with_wrong_phrase(example: Example, other: Example) -> Example:
    """Call the first object what the first object of another picture is called."""
    wrong = replace(example.phrases[0], text=other.phrases[0].text, root=other.phrases[0].root)
    return replace(example, phrases=(wrong, *example.phrases[1:]))


def with_twins(example: Example) -> Example:
    """Leave the first object, and put its copy into the picture, in the corner that is farthest from it."""
    first = example.objects[0]
    mask, pixels = first.mask.to_array(), example.pixels().copy()
    x, y, w, h = first.bbox
    left = 0 if x + w / 2 > example.width / 2 else example.width - w
    top = 0 if y + h / 2 > example.height / 2 else example.height - h
    copy = np.zeros_like(mask)
    copy[top : top + h, left : left + w] = mask[y : y + h, x : x + w]
    pixels[copy] = example.pixels()[mask]
    twin = Object(0, (left, top, w, h), 1.0, Mask.from_array(copy))
    original = Mask.from_array(mask & ~copy)
    first = replace(first, mask=original, bbox=original.bbox)
    return replace(example, image=_jpeg(pixels), objects=(first, twin), _pixels=None)


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=95)
    return stored.getvalue()


def score(count: int, kinds: Sequence[Kind] = KINDS) -> list[Scored]:
    """Score `count` pictures of these kinds with the sample CLIP."""
    clip = load_clip(PRESETS["sample"].clip)
    scored: list[Scored] = []
    batch: list[tuple[Kind, Example]] = []
    for number, picture in enumerate(pictures(count, kinds), start=1):
        batch.append(picture)
        if len(batch) == BATCH or number == count:
            examples = add_quality(clip, [example for _, example in batch])
            scored += [Scored(kind, e.quality) for (kind, _), e in zip(batch, examples, strict=True) if e.quality]
            batch = []
    return scored


def share_of_good(scored: Sequence[Scored], part: str) -> float:
    """Return the share of the good pictures that are among the better half of all by `part` of their quality."""
    ordered = sorted(scored, key=lambda one: -getattr(one.quality, part))
    chosen = ordered[: len(scored) // 2]
    return sum(one.kind == "good" for one in chosen) / sum(one.kind == "good" for one in scored)


def show(scored: Sequence[Scored], console: Console) -> None:
    """Print the scores of each kind, and how many of the good ones the better half holds."""
    table = Table(title=f"object quality of {len(scored)} pictures, means")
    for title in ("kind", "pictures", "single", "pair", "total", "10 % to 90 %"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind in dict.fromkeys(one.kind for one in scored):
        rows = np.array([(q.single, q.pair, q.total) for q in (one.quality for one in scored if one.kind == kind)])
        low, high = np.percentile(rows[:, 2], [10, 90])
        means = (f"{mean:+.3f}" for mean in rows.mean(axis=0))
        table.add_row(kind, str(len(rows)), *means, f"{low:+.3f} to {high:+.3f}")
    console.print(table)
    for part in ("total", "single", "pair"):
        console.print(f"the better half by {part:6} holds {share_of_good(scored, part):.1%} of the good ones")


def main(count: Annotated[int, typer.Option(help="Pictures of each set.")] = 1000) -> None:
    """Score good pictures among bad ones, and among bad ones that are harder to tell."""
    console = Console(highlight=False)
    for kinds in (KINDS, HARDER):
        show(score(count, kinds), console)


if __name__ == "__main__":
    typer.run(main)
