"""Whether pictures look like the sample scenes, the only pictures that the small models of the package know.

On a scene the sample segmenter is sure of what it finds, on a photograph it is not. Of 80 scenes 85 % have a mean score
of their segments above `SURE`, of 93 photographs 4 %. Of groups of six, judged by their median, 99 % of the scenes' lie
above it and none of 5,000 of the photographs'.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median

import numpy as np
from numpy.typing import NDArray

from schemas.errors import SubjectloomError
from schemas.example import Example
from schemas.rejects import Reject
from transforms.models.presets import PRESETS
from transforms.sources.records import Chunk, attempt

PICTURES = 6
"""How many of a source's first pictures are looked at."""
SURE = 0.945
"""Mean score of a picture's segments above which it looks like a scene."""
SMALLEST_SIDE, FEWEST_COLOURS = 96, 1_500
"""Pictures with a shorter side, in pixels, or with fewer colours are drawings or tests: nothing is said of them."""

Picture = NDArray[np.uint8]


def check_likeness(chunk: Chunk) -> None:
    """Look at the first pictures of a source.

    Raises:
        SubjectloomError: they look like photographs.
    """
    if look_like_photographs(read_pictures(chunk)):
        raise SubjectloomError(
            "these pictures look like photographs, and the models of the preset sample know sample scenes only: their "
            "masks would be wrong. Give --preset hub, or write out --preset sample to use the small models all the same"
        )


def look_like_photographs(pictures: Sequence[Picture]) -> bool:
    """Return whether `pictures`, [H, W, 3] uint8 each, are no scenes; False if none of them can be judged."""
    from transforms.models.segmenter import load_segmenter, segment_images  # noqa: PLC0415 - the child has no use for it

    judged = [picture for picture in pictures if is_rich(picture)]
    if not judged:
        return False
    segmenter = load_segmenter(str(PRESETS["sample"].segmenter))
    scores = []
    for picture in judged:
        (segments,) = segment_images(segmenter, [picture])
        scores.append(sum(segment.score for segment in segments) / max(1, len(segments)))
    return median(scores) <= SURE


def is_rich(picture: Picture) -> bool:
    """Return whether a picture [H, W, 3] uint8 is large enough and has enough colours to be a scene or a photograph."""
    colours = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    return min(picture.shape[:2]) >= SMALLEST_SIDE and len(np.unique(colours)) >= FEWEST_COLOURS


def read_pictures(chunk: Chunk) -> list[Picture]:
    """Read the first pictures of a chunk, at most `PICTURES`, in a child process; none if that dies of one of them."""
    command = [sys.executable, "-c", "from jobs.likeness import answer_parent; answer_parent()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, input=pickle.dumps(chunk), capture_output=True, env=environment, check=False)  # noqa: S603
    return [] if done.returncode else list(pickle.loads(done.stdout))  # noqa: S301 - from our own child


def answer_parent() -> None:
    """Write the first pictures of the chunk that stdin holds to stdout."""
    chunk = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    pictures = [example.pixels() for example in islice(first_examples(chunk), PICTURES)]
    pickle.dump(pictures, sys.stdout.buffer)


def first_examples(chunk: Chunk) -> Iterator[Example]:
    """Yield the examples of a chunk that can be read."""
    for item in chunk.items:
        for record in item.read():
            example = record if isinstance(record, Reject) else attempt(record.key, record.uri, record.load)
            if isinstance(example, Example):
                yield example
