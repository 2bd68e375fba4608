"""One sample of a prompt and the subjects of several photographs, as a recipe's view reads it.

FastComposer and MIP-Adapter learn from pictures that show all of a sample's subjects. Here each subject comes from a
photograph of its own, so its surroundings are cut off and the cuts are laid side by side on a square:

    ball.jpg       cup.jpg           square
    +---------+    +-------+         +-----+-----+
    |  +--+   |    | +---+ |         |+--+ |+---+|
    |  |o |   | +  | | u | |  ---->  ||o | || u ||
    |  +--+   |    | +---+ |         |+--+ |+---+|
    +---------+    +-------+         +-----+-----+
                                     |           |
                                     +-----------+

Of this picture the model is shown the subjects alone. A single square photograph stays as it is, byte for byte.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.drawing import find_phrases
from schemas.boxes import BBox, window
from schemas.example import Example, Grounded, Match, Object, Phrase, Placement, Quality, Segment, Source, Subject
from schemas.images import encode_grey, encode_jpeg
from schemas.keys import clean_key
from schemas.layouts import Frame, Layout
from schemas.masks import Mask, union
from transforms.models.clip import load_clip
from transforms.models.clip_features import embed_phrases

LONGEST = 1024
"""Longest side of a cut, in pixels: larger ones are scaled down. Image encoders are shown 224 to 336."""
BLANK = 512
"""Side of the picture of a sample without references, in pixels."""


def compose(found: Sequence[Example], prompt: str) -> Example:
    """Make the example of a prompt and of subjects that were found in photographs, one in each.

    Args:
        found: examples with one phrase each, and a match with a segment or an object.
        prompt: contains these phrases.

    Raises:
        ConfigError: it does not contain one.
    """
    spans = find_phrases([example.caption for example in found], prompt)
    if len(found) == 1 and found[0].width == found[0].height:
        key, image, masks = found[0].key, found[0].image, [mask_of(found[0])]
    else:
        key = clean_key("-".join(example.key for example in found))
        pixels, arrays = side_by_side([cut(example) for example in found])
        image, masks = encode_jpeg(pixels), [Mask.from_array(array) for array in arrays]
    height, width = masks[0].size
    phrases, segments, matches, objects = [], [], [], []
    for i, (example, span, mask) in enumerate(zip(found, spans, masks, strict=True)):
        things, (match,) = example.objects, example.matches or (Match(0, 0, 1.0),)
        score, similarity = (things[0].score, things[0].similarity) if things else (match.score, 0.0)
        label = example.segments[match.segment].label if example.segments else ""
        phrases.append(replace(example.phrases[0], text=prompt[slice(*span)], start=span[0], end=span[1], origin=span))
        segments.append(Segment(label, 1.0, mask))
        matches.append(Match(i, i, match.score))
        objects.append(Object(i, mask.bbox, score, mask, similarity))
    return Example(
        key=key,
        image=image,
        width=width,
        height=height,
        caption=prompt,
        source=Source(" ".join(example.source.uri for example in found)),
        source_caption=prompt,
        phrases=tuple(phrases),
        segments=tuple(segments),
        matches=tuple(matches),
        objects=tuple(objects),
        quality=Quality(0.0, 0.0, 0.0),
    )


def mask_of(example: Example) -> Mask:
    """The mask of the one subject of an example."""
    if example.objects:
        return example.objects[0].mask
    match = example.matches[0]
    return union([example.segments[segment].mask for segment in (match.segment, *match.others)])


def cut(example: Example) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Cut a photograph to the box of its subject: pixels [h, w, 3] uint8 and mask [h, w] bool, at most `LONGEST`."""
    mask = mask_of(example)
    inside = window(mask.bbox)
    pixels, shown = example.pixels()[inside], mask.to_array()[inside]
    if (scale := LONGEST / max(shown.shape)) >= 1:
        return pixels, shown
    size = max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale))
    resized = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(resized), np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.NEAREST))


def side_by_side(
    cuts: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Lay cuts on a square, in rows: its pixels [S, S, 3] uint8, and the mask [S, S] bool of each."""
    cell = max(max(mask.shape) for _, mask in cuts)
    columns = math.ceil(math.sqrt(len(cuts)))
    square = np.zeros((columns * cell, columns * cell, 3), np.uint8)
    masks = []
    for i, (pixels, mask) in enumerate(cuts):
        row, column = divmod(i, columns)
        place = window((column * cell, row * cell, mask.shape[1], mask.shape[0]))
        square[place] = pixels
        masks.append(np.zeros(square.shape[:2], bool))
        masks[-1][place] = mask
    return square, masks


def blank(prompt: str, subject: str = "") -> Example:
    """Make the example of a prompt without a photograph; `subject` is the text of a subject that the model knows."""
    grey = np.full((BLANK, BLANK), 128, np.uint8)
    image, opaque = encode_jpeg(np.stack([grey] * 3, axis=-1)), encode_grey(np.full_like(grey, 255))
    return Example(
        key="prompt",
        image=image,
        width=BLANK,
        height=BLANK,
        caption=prompt,
        source=Source(""),
        source_caption=prompt,
        phrases=(Phrase(subject, 0, len(subject), subject, (0, len(subject))),),
        subject=Subject(subject),
        trimap=opaque,
        alpha=opaque,
        composite=image,
        placement=Placement("blank"),
    )


def place(example: Example, layout: Layout, clip: str) -> Example:
    """Give an example the boxes of a layout, with the embeddings of their phrases by the CLIP `clip`, a checkpoint.

    Of what is in the boxes there is no picture: those embeddings are 0.
    """
    grounded = tuple(
        Grounded(phrase.text, ((phrase.start, phrase.end),), whole_pixels(box, example.width, example.height), 1.0)
        for phrase in layout.phrases
        for box in phrase.boxes
    )
    before, after = embed_phrases(load_clip(clip), [thing.text for thing in grounded])
    nothing = {"image_after": np.zeros_like(after), "image_reprojected": np.zeros_like(before)}
    return replace(example, grounded=grounded, embeddings={"text_before": before, "text_after": after, **nothing})


def whole_pixels(box: Frame, width: int, height: int) -> BBox:
    """A box in shares of the sides as [x, y, w, h] in pixels, rounded, at least one pixel wide and high."""
    x, y = min(round(box[0] * width), width - 1), min(round(box[1] * height), height - 1)
    return x, y, max(round(box[2] * width) - x, 1), max(round(box[3] * height) - y, 1)
