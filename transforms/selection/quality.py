"""How good the objects of a picture are to learn from: MIP-Adapter's object quality score.

    S_quality = S_single + S_pair
    S_single = 1 / N1 * sum over objects o of cos(g_text(o), g_img(o)),           N1 = |O|
    S_pair = - 1 / N2 * sum over ordered pairs o' != o'' of cos(g_img(o'), g_img(o'')),  N2 = |O| (|O| - 1)

The first part says whether each phrase names what is in its box, the second whether the objects differ: from similar
ones a model learns to confuse them. g_text and g_img are CLIP's towers; an object's picture is its masked crop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Quality
from schemas.rejects import Reason
from transforms.batch import Batch, each
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.step import Step, map_batches, run_model

if TYPE_CHECKING:
    from transforms.models.clip import Clip

STAGE = "quality"


def object_quality(text: NDArray[np.floating], image: NDArray[np.floating]) -> Quality:
    """Score the N objects whose phrases and crops have the embeddings `text` and `image`, [N, D] each, unit rows.

    Each part lies in [-1, 1], the total in [-2, 2]; it is computed in float64. A single object has no pair: 0.

    Raises:
        ValueError: there is no object, or the two shapes differ.
    """
    if text.shape != image.shape or not len(text):
        raise ValueError(f"embeddings of shape {text.shape} and {image.shape}: one of each per object is needed")
    single = float(_cosines(text, image).mean())
    pair = _pair_part(image.astype(np.float64))
    return Quality(single, pair, single + pair)


def _cosines(text: NDArray[np.floating], image: NDArray[np.floating]) -> NDArray[np.float64]:
    """The cosine of each phrase with its own crop: [N]."""
    return (text.astype(np.float64) * image.astype(np.float64)).sum(axis=1)


def _pair_part(image: NDArray[np.float64]) -> float:
    count = len(image)
    if count == 1:
        return 0.0
    return -float((image @ image.T)[~np.eye(count, dtype=bool)].mean())


def add_quality(clip: "Clip", examples: Sequence[Example]) -> list[Example]:
    """Fill the objects' `similarity` and the examples' `quality`, rounded to four decimals.

    All crops, and all texts, go through the model in one batch.
    """
    from transforms.models.clip import embed_segments, embed_texts

    phrases = [e.phrases[thing.phrase].text for e in examples for thing in e.objects]
    names = list(dict.fromkeys(phrases))
    place = {name: i for i, name in enumerate(names)}
    masks = [[thing.mask for thing in e.objects] for e in examples]
    images, texts = embed_segments(clip, [e.pixels() for e in examples], masks), embed_texts(clip, names)
    scored = []
    start = 0
    for example in examples:
        stop = start + len(example.objects)
        text = texts[[place[phrase] for phrase in phrases[start:stop]]]
        scored.append(_with_quality(example, text, images[start:stop]))
        start = stop
    return scored


def _with_quality(example: Example, text: NDArray[np.float32], image: NDArray[np.float32]) -> Example:
    quality = object_quality(text, image)
    objects = tuple(
        replace(thing, similarity=round(float(cosine), 4))
        for thing, cosine in zip(example.objects, _cosines(text, image), strict=True)
    )
    rounded = Quality(round(quality.single, 4), round(quality.pair, 4), round(quality.total, 4))
    return replace(example, objects=objects, quality=rounded)


def check_quality(example: Example, min_quality: float) -> Example:
    """Return the example unchanged.

    Raises:
        RecordError: LOW_QUALITY, its total quality is below `min_quality`.
    """
    quality = example.quality
    assert quality is not None
    if quality.total < min_quality:
        detail = f"{quality.total} ({quality.single} {quality.pair:+}), the lowest allowed is {min_quality}"
        raise RecordError(Reason.LOW_QUALITY, detail)
    return example


def _load(checkpoint: str, precision: Precision) -> "Clip":
    from transforms.models.clip import load_clip

    return load_clip(checkpoint, precision)


@dataclass(eq=False)
class ScoreQuality(Step):
    """Fill `quality` and the similarities of `objects`.

    `checkpoint` names the CLIP model. Pictures below `min_quality`, in [-2, 2], become rejects; None keeps all.
    """

    checkpoint: str
    min_quality: float | None = None
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP."""
        return {"clip": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches, then check each example by itself."""
        load = partial(_load, self.checkpoint, self.hosting.precision)
        scored = run_model(batches, STAGE, load, add_quality, self.hosting)
        bound = self.min_quality
        if bound is None:
            return scored
        # A step of its own: a reject within the first would run its whole batch through CLIP again.
        return map_batches(scored, STAGE, each(lambda example: check_quality(example, bound)))
