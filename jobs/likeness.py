"""Whether pictures look like the sample scenes, the only pictures that the small models of the package know.

On a scene the sample segmenter is sure of what it finds, on a photograph it is not: of 48 scenes 95 % have segments
with a mean score above 0.95, of 120 photographs 95 % one below 0.94.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median

from schemas.example import Example
from transforms.models.presets import PRESETS
from transforms.models.segmenter import load_segmenter, segment_images
from transforms.sources.records import Chunk

PICTURES = 6
"""How many of a source's first pictures are looked at."""
SURE = 0.945
"""Mean score of a picture's segments above which it looks like a scene."""


def look_like_scenes(examples: Sequence[Example]) -> bool:
    """Return whether the median of the pictures' mean scores is above `SURE`; a picture without segments counts 0."""
    segmenter = load_segmenter(str(PRESETS["sample"].segmenter))
    scores = []
    for example in examples:
        (segments,) = segment_images(segmenter, [example.pixels()])
        scores.append(sum(segment.score for segment in segments) / max(1, len(segments)))
    return not scores or median(scores) > SURE


def first_pictures(chunks: Sequence[Chunk]) -> list[Example]:
    """Read the first pictures of a source, at most `PICTURES`; what cannot be read is left out."""

    def pictures() -> Iterator[Example]:
        for chunk in chunks:
            for item in chunk.items:
                yield from (record for record in item.read() if isinstance(record, Example))

    return list(islice(pictures(), PICTURES))
