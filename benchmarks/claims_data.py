"""The scenes of `benchmarks.claims`: of two subjects, and of one subject on a random background or on its own."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np

from schemas.example import Example, Phrase, Placement
from schemas.images import decode_grey, decode_image, encode_jpeg
from schemas.samples import FORMATS
from schemas.shards import write_tar
from transforms.scenes import make_scene
from transforms.scenes.paint import COLORS, TEXTURES, paint_background
from transforms.scenes.truth import named_alone, true_example

STREAM = 4000
"""Stream of the scenes."""
SIDE = 128
"""Of the stored pictures, in pixels."""
LOOKS = re.compile(rf"\b(?:{'|'.join([*COLORS, *TEXTURES])}) ")
"""What captions say of looks."""
HELD_OUT = 10**6
"""Number of the first scene that is not trained on."""
SMALLEST = 0.03
"""Share of the picture that a single subject covers at least."""


def write_scenes(folder: Path, scenes: int, held_out: int) -> None:
    """Write all datasets below `folder`, unless they are there.

    two, objects           scenes of two subjects, for FastComposer and for MIP-Adapter
    random, own            scenes of one subject, shown on a random background or as it is, for BLIP-Diffusion
    held-out-...           others: "held-out-two", "held-out-objects"; "held-out-a" and "held-out-b" show the same
                           subjects on two random backgrounds
    """
    if (folder / "held-out-b").is_dir():
        return
    for prefix, first, number in (("", 0, scenes), ("held-out-", HELD_OUT, held_out)):
        pairs = list(islice(kept(two_subjects, first), number))
        write_dataset(folder / f"{prefix}two", "fastcomposer", pairs)
        write_dataset(folder / f"{prefix}objects", "mip-adapter", pairs)
    for name, background, first, number in (
        ("random", 0, 0, scenes),
        ("own", None, 0, scenes),
        ("held-out-a", 1, HELD_OUT, held_out),
        ("held-out-b", 2, HELD_OUT, held_out),
    ):
        singles = islice(kept(partial(single_subject, background=background), first), number)
        write_dataset(folder / name, "blip-diffusion", singles)


def kept(example_of: Callable[[int], Example | None], first: int) -> Iterator[Example]:
    """Yield the examples of the scenes from number `first` on that there are."""
    for index in count(first):
        if (example := example_of(index)) is not None:
            yield example


def write_dataset(folder: Path, recipe: str, examples: Iterable[Example]) -> None:
    """Write one shard, which appears when it is whole, unless it is there."""
    if folder.is_dir():
        return
    aside = folder.with_name(f".{folder.name}")
    aside.mkdir(parents=True, exist_ok=True)
    with (aside / f"{recipe}-000000.tar").open("wb") as stream:
        write_tar(stream, (FORMATS[recipe].pack(example)[0] for example in examples))
    aside.rename(folder)


def two_subjects(index: int) -> Example | None:
    """Scene `index` of two subjects of different nouns and colours, with a caption of the nouns; None for others."""
    scene = make_scene(np.random.default_rng([STREAM, 0, index]), SIDE, (2, 2), omitted=0)
    things = named_alone(scene)
    if len(scene.objects) != 2 or len({t.noun for t in things}) != 2 or len({t.color for t in things}) != 2:
        return None
    phrases, caption = [], ""
    for thing in things:
        caption += " and " if caption else ""
        text = f"{'an' if thing.noun[0] in 'aeiou' else 'a'} {thing.noun}"
        span = len(caption), len(caption) + len(text)
        phrases.append(Phrase(text, *span, thing.noun, span))
        caption += text
    example = true_example(scene, f"{index:07d}")
    return replace(example, caption=caption, source_caption=caption, phrases=tuple(phrases))


def single_subject(index: int, background: int | None) -> Example | None:
    """Scene `index` of one subject, shown on random background number `background`, None for its own.

    Every second caption does not say what it looks like. None if the subject is too small, or the scene shows several.
    """
    scene = make_scene(np.random.default_rng([STREAM, 1, index]), SIDE, (1, 1), omitted=0)
    painted = paint_background(np.random.default_rng([STREAM, 2, index, background or 0]), SIDE, SIDE)
    example = true_example(scene, f"{index:07d}", np.rint(painted).astype(np.uint8))
    if len(scene.objects) != 1 or decode_grey(example.alpha).mean() < SMALLEST * 255:
        return None
    if index % 2:
        caption = LOOKS.sub("", example.caption)
        example = replace(example, caption=caption, source_caption=caption)
    if background is None:
        example = replace(example, composite=encode_jpeg(decode_image(example.image)), placement=Placement("none"))
    return example
