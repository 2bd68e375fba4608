"""A sample scene as an `Example` that needs no model: every field is the exact truth."""

import numpy as np
from numpy.typing import NDArray

from schemas.example import Example, Match, Object, Phrase, Placement, Quality, Segment, Source, Subject
from schemas.images import encode_grey, encode_jpeg
from schemas.masks import Mask
from transforms.scenes.scene import Scene, SceneObject


def true_example(scene: Scene, key: str, background: NDArray[np.uint8] | None = None) -> Example:
    """Describe a scene in all the fields that the recipes read.

    Phrase i names segment i, match i and object i: the objects that the caption names in a phrase of their own, in the
    order of `scene.objects`. Objects that share a phrase ("two cups") and those that the caption leaves out are not
    among them, so there may be none. The subject is the object with the largest area, named or not. All scores are 1.

    Args:
        scene: from `make_scene`.
        key: key of the example.
        background: [H, W, 3] uint8 of the picture's size, on which the subject is composited; without it `composite`
            and `placement` are left empty.
    """
    height, width, _ = scene.image.shape
    named = named_alone(scene)
    masks = [Mask.from_array(thing.mask) for thing in named]
    subject = max(scene.objects, key=lambda thing: int(thing.alpha.sum()))
    trimap = np.select([subject.alpha == 0, subject.alpha == 255], [0, 255], 128).astype(np.uint8)
    return Example(
        key=key,
        image=encode_jpeg(scene.image),
        width=width,
        height=height,
        caption=scene.caption,
        source=Source(key),
        source_caption=scene.caption,
        phrases=tuple(_phrase(scene.caption, thing) for thing in named),
        segments=tuple(Segment(thing.noun, 1.0, mask) for thing, mask in zip(named, masks, strict=True)),
        matches=tuple(Match(i, i, 1.0) for i in range(len(named))),
        subject=Subject(subject.noun, mask=Mask.from_array(subject.mask)),
        trimap=encode_grey(trimap),
        alpha=encode_grey(subject.alpha),
        composite=b"" if background is None else encode_jpeg(_composite(scene.image, subject.alpha, background)),
        placement=None if background is None else Placement("painted"),
        objects=tuple(Object(i, mask.bbox, 1.0, mask, 1.0) for i, mask in enumerate(masks)),
        quality=Quality(1.0, 0.0, 1.0),
    )


def named_alone(scene: Scene) -> list[SceneObject]:
    """Objects of a scene that have a phrase of their own in the caption and at least one pixel."""
    spans = [thing.phrase for thing in scene.objects]
    return [thing for thing in scene.objects if thing.phrase and spans.count(thing.phrase) == 1 and thing.mask.any()]


def _phrase(caption: str, thing: SceneObject) -> Phrase:
    assert thing.phrase is not None
    start, end = thing.phrase
    return Phrase(caption[start:end], start, end, thing.noun, thing.phrase)


def _composite(image: NDArray[np.uint8], alpha: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    opacity = alpha[..., None] / 255
    return np.rint(opacity * image + (1 - opacity) * background).astype(np.uint8)
