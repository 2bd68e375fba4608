"""Whether MIP-Adapter's object quality ranks good pictures above bad ones, on scenes of known quality.

    python -m benchmarks.object_quality [--count 1000] [--write]

Half of the pictures are good: their objects are different things, each with its own phrase of the caption. In a quarter
every object has the phrase of another one in the picture ("wrong phrases"). In a quarter an object is beside its
own copy, both with the right phrase ("twins"). The figures are the mean quality of each kind, and the share of the good
pictures that is in the better half of all by the total quality and by each of its two parts. In the hard set only one
object of a picture with wrong phrases has a wrong one, taken from another scene.
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

from benchmarks.tables import Row, Write, report
from jobs.scenes import scene_of
from schemas.example import Example, Object, Quality
from schemas.masks import Mask
from transforms.models.clip import load_clip
from transforms.models.presets import PRESETS
from transforms.scenes.truth import true_example
from transforms.selection.quality import add_quality

SEED = 3001
"""Seed of the scenes; no sample model is trained on scenes of this seed."""
BATCH = 8
"""Pictures per batch of CLIP, as in a build."""

Kind = Literal["good", "wrong phrases", "one wrong phrase", "twins"]
KINDS: tuple[Kind, ...] = ("good", "wrong phrases", "good", "twins")
HARDER: tuple[Kind, ...] = ("good", "one wrong phrase", "good", "twins")
"""Kinds of pictures, in turn."""


@dataclass(frozen=True)
class Scored:
    """A picture of a kind, and its quality."""

    kind: Kind
    quality: Quality


def pictures(count: int, kinds: Sequence[Kind] = KINDS) -> Iterator[tuple[Kind, Example]]:
    """Make `count` pictures of these kinds in turn."""
    found = (example for index in numbers() if (example := good_picture(index)) is not None)
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
    """Turn a scene into a picture with a phrase per object; None if it does not have two or more different things."""
    example = true_example(scene_of(SEED, index, 128), f"{index:06d}")
    names = {phrase.root for phrase in example.phrases}
    return example if len(example.phrases) == len(names) >= 2 else None


def with_wrong_phrases(example: Example) -> Example:
    """Give every object the phrase of the next one."""
    count = len(example.objects)
    return replace(example, objects=tuple(replace(o, phrase=(o.phrase + 1) % count) for o in example.objects))


def with_wrong_phrase(example: Example, other: Example) -> Example:
    """Give the first object the phrase of another picture's first object."""
    wrong = replace(example.phrases[0], text=other.phrases[0].text, root=other.phrases[0].root)
    return replace(example, phrases=(wrong, *example.phrases[1:]))


def with_twins(example: Example) -> Example:
    """Keep the first object only, and paste a copy of it into the corner that is farthest from it."""
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
    """Share of the good pictures that are in the better half of all pictures by `part` of their quality."""
    ordered = sorted(scored, key=lambda picture: -getattr(picture.quality, part))
    better = ordered[: len(scored) // 2]
    return sum(picture.kind == "good" for picture in better) / sum(picture.kind == "good" for picture in scored)


def rows(scored: Sequence[Scored], title: str) -> Iterator[Row]:
    """Rows of a set of pictures: the mean scores of each kind, and the share of good pictures in the better half."""
    for kind in dict.fromkeys(picture.kind for picture in scored):
        values = np.array([(q.single, q.pair, q.total) for q in (p.quality for p in scored if p.kind == kind)])
        single, pair, total = values.mean(axis=0)
        note = f"single {single:+.3f}, pair {pair:+.3f}; {len(values)} pictures"
        yield Row(f"{title}, mean quality of {kind}", f"{total:+.3f}", note)
    for part in ("total", "single", "pair"):
        yield Row(f"{title}, good pictures in the better half by {part}", f"{share_of_good(scored, part):.1%}")


def main(
    count: Annotated[int, typer.Option(help="Pictures of each set.")] = 1000,
    write: Write = False,
) -> None:
    """Score good pictures among bad ones, and among bad ones that are harder to recognize."""
    sets = {"easy set": KINDS, "hard set": HARDER}
    figures = [row for title, kinds in sets.items() for row in rows(score(count, kinds), title)]
    report("object_quality", __doc__ or "", figures, write=write)


if __name__ == "__main__":
    typer.run(main)
