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

STAGE, EMBED_STAGE = "quality", "embeddings"


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


def embed_objects(clip: "Clip", examples: Sequence[Example]) -> list[Example]:
    """Fill the objects' `embeddings`. All crops, and all texts, go through the model in one batch."""
    from transforms.models.clip import embed_segments, embed_texts

    phrases = [e.phrases[thing.phrase].text for e in examples for thing in e.objects]
    if not phrases:
        return [*examples]
    names = list(dict.fromkeys(phrases))
    place = {name: i for i, name in enumerate(names)}
    masks = [[thing.mask for thing in e.objects] for e in examples]
    images, texts = embed_segments(clip, [e.pixels() for e in examples], masks), embed_texts(clip, names)
    pairs = iter(np.stack([texts[[place[phrase] for phrase in phrases]], images], axis=1))
    return [
        replace(e, objects=tuple(replace(thing, embeddings=next(pairs).copy()) for thing in e.objects))
        for e in examples
    ]


def score_quality(example: Example) -> Example:
    """Fill the objects' `similarity` and the example's `quality` from embeddings, rounded to four decimals."""
    both = np.stack([thing.embeddings for thing in example.objects if thing.embeddings is not None])
    text, image = both[:, 0], both[:, 1]
    quality = object_quality(text, image)
    objects = tuple(
        replace(thing, similarity=round(float(cosine), 4))
        for thing, cosine in zip(example.objects, _cosines(text, image), strict=True)
    )
    rounded = Quality(round(quality.single, 4), round(quality.pair, 4), round(quality.total, 4))
    return replace(example, objects=objects, quality=rounded)


def add_quality(clip: "Clip", examples: Sequence[Example]) -> list[Example]:
    """Embed the objects of examples and score their quality."""
    return [score_quality(example) for example in embed_objects(clip, examples)]


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
class EmbedObjects(Step):
    """Fill the `embeddings` of `objects`; `checkpoint` names the CLIP model.

    It stands before the gates: which objects go through the model together, and so the last digits of their
    embeddings, depends on no gate.
    """

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """CLIP."""
        return {"clip": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run CLIP over the batches."""
        load = partial(_load, self.checkpoint, self.hosting.precision)
        return run_model(batches, EMBED_STAGE, load, embed_objects, self.hosting)


@dataclass(eq=False)
class ScoreQuality(Step):
    """Fill `quality` and the similarities of `objects`, from their embeddings.

    Pictures below `min_quality`, in [-2, 2], become rejects; None keeps all.
    """

    min_quality: float | None = None

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Score each example by itself."""
        bound = self.min_quality

        def score(example: Example) -> Example:
            scored = score_quality(example)
            return scored if bound is None else check_quality(scored, bound)

        return map_batches(batches, STAGE, each(score))
