"""How good the objects of a picture are to learn from: MIP-Adapter's object quality score.

    S_quality = S_single + S_pair
    S_single = 1 / N1 * sum over objects o of cos(g_text(o), g_img(o)),           N1 = |O|
    S_pair = - 1 / N2 * sum over ordered pairs o' != o'' of cos(g_img(o'), g_img(o'')),  N2 = |O| (|O| - 1)

The first part asks whether each phrase names what its box holds, the second whether the objects can be told apart:
twins teach a model to mix them up. g_text and g_img are CLIP's towers; an object's picture is its masked crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RunInference
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example, Quality
from schemas.rejects import Reason
from transforms.batch import Batch, advance, each
from transforms.models.clip import Clip, embed_images, embed_texts, load_clip
from transforms.models.handler import StepHandler
from transforms.regions.similarity import masked_crop

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


def add_quality(clip: Clip, examples: Sequence[Example]) -> list[Example]:
    """Fill the objects' `similarity` and the examples' `quality`, four decimals each.

    All crops, and all texts, go through the model together.
    """
    crops = [masked_crop(e.pixels(), one.mask.to_array()) for e in examples for one in e.objects]
    phrases = [e.phrases[one.phrase].text for e in examples for one in e.objects]
    names = list(dict.fromkeys(phrases))
    place = {name: i for i, name in enumerate(names)}
    images, texts = embed_images(clip, crops), embed_texts(clip, names)
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
        replace(one, similarity=round(float(cosine), 4))
        for one, cosine in zip(example.objects, _cosines(text, image), strict=True)
    )
    rounded = Quality(round(quality.single, 4), round(quality.pair, 4), round(quality.total, 4))
    return replace(example, objects=objects, quality=rounded)


def check_quality(example: Example, min_quality: float) -> Example:
    """Return the example; raise LOW_QUALITY where its quality is below `min_quality`."""
    quality = example.quality
    assert quality is not None
    if quality.total < min_quality:
        detail = f"{quality.total} ({quality.single} {quality.pair:+}), at least {min_quality} is asked"
        raise RecordError(Reason.LOW_QUALITY, detail)
    return example


@dataclass(eq=False)
class ScoreQuality(beam.PTransform):
    """Fill `quality` and the similarities of `objects`: PCollection[Batch] -> PCollection[Batch].

    `checkpoint` names the CLIP model. Pictures below `min_quality`, in [-2, 2], become rejects; None keeps all.
    """

    checkpoint: str
    min_quality: float | None = None

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches, then look at each example by itself."""
        scored = batches | "compare with CLIP" >> RunInference(
            StepHandler(STAGE, partial(load_clip, self.checkpoint), add_quality)
        )
        return scored if self.min_quality is None else scored | "check quality" >> beam.Map(self._check)

    def _check(self, batch: Batch) -> Batch:
        # A step of its own: refused while CLIP runs, a picture would send the whole batch through it again.
        bound = self.min_quality
        assert bound is not None
        return advance(batch, STAGE, each(lambda example: check_quality(example, bound)))
