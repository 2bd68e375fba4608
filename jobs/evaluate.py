"""How well a model draws the samples of a dataset: `subjectloom evaluate`.

For each sample a picture is drawn from its caption and references, as the dataset has them. Three measures, by CLIP:

    identity   cosine of a reference and of the drawn thing that is most like it. Things are what the segmenter finds,
               cut out, and so are references; they are matched one to one, greedily, and the lowest of a sample's
               references counts, as in FastComposer's multi-subject score. It is 0 with fewer things than references.
    clip-t     cosine of the picture and the caption
    clip-i     cosine of the picture and the sample's own picture

A number alone says little, as it depends on CLIP, on the segmenter and on the size of the pictures. So each measure has
two ends beside it, of real pictures of the dataset at the same size: `own`, the sample's own picture in place of the
drawn one, and `another`, the picture of the next sample. Where the two ends meet, the measure sees nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.drawing import DrawRequest, find_model
from jobs.generate import open_model, to_bytes
from schemas.errors import InputError
from schemas.keys import rng_of
from schemas.masks import Mask
from schemas.samples import FORMATS
from training.latent_space import downsampling
from training.recipes import training_of
from training.shards import Batch, find_shards, make_batch, read_samples, to_device
from transforms.models.clip import Clip, embed_images, embed_segments, embed_texts, load_clip
from transforms.models.presets import resolve
from transforms.models.segmenter import Segmenter, load_segmenter, segment_images
from transforms.regions.match import greedy_match

RESAMPLES = 2000
"""Bootstrap resamples of the samples, for the confidence intervals."""

MASKED = (("subject_mask", "subject_segmentation"), ("object_mask", "object_segmentation"))
"""Entries of a batch: which references its samples have, [B, M] bool, and their masks, [B, M, R, R]."""

Pictures = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Score:
    """A measure of some pictures.

    Attributes:
        measure: identity, clip-t or clip-i.
        pictures: "another", "drawn" or "own".
        mean: over the samples.
        low: lower end of the mean's 95 % confidence interval, by bootstrap over the samples.
        high: its upper end.
    """

    measure: str
    pictures: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on how many samples."""

    scores: list[Score]
    samples: int


def evaluate(request: DrawRequest, data: Sequence[str], count: int) -> Evaluation:
    """Draw the first `count` samples of a dataset that can be read, and measure the pictures.

    Args:
        request: the model, and how it draws; its prompts and references are not used.
        data: the dataset, as `find_shards` reads it. Samples that the model was trained on flatter it.
        count: number of samples, two at least.

    Raises:
        InputError: the run or the dataset cannot be used, or it holds fewer than two samples.
        ModelError: a model is missing.
    """
    start = find_model(request)
    training, shards = training_of(start.recipe), find_shards(list(data), start.recipe)
    model, drawing = open_model(start, request)
    config = start.config.model_copy(update={"resolution": drawing.size}).plain()
    raws = list(islice(read_samples(shards), count))
    batch = to_device(make_batch([(0, raw) for raw in raws], training.view, model.tools, config), model.unet.device)
    keys = batch["keys"]
    if len(keys) < 2:
        raise InputError(f"{', '.join(data)} holds {len(keys)} samples that can be read: two are needed")
    readable = {raw["__key__"]: raw["json"] for raw in raws if raw["__key__"] in keys}
    captions = [FORMATS[start.recipe].record.model_validate_json(readable[key]).caption for key in keys]
    side = int(drawing.size or 0) // downsampling(model.vae)
    shape = (model.vae.config.latent_channels, side, side)
    drawn: list[NDArray[np.uint8]] = []
    for first in range(0, len(keys), drawing.batch):
        rows = slice(first, first + drawing.batch)
        part = {name: value[rows] for name, value in batch.items()}
        noise = [rng_of(drawing.seed, "evaluate", key).standard_normal(shape, np.float32) for key in keys[rows]]
        pictures = model.sample(
            part,
            torch.from_numpy(np.stack(noise)).to(model.unet.device),
            steps=drawing.steps,
            guidance=drawing.guidance,
        )
        drawn += [to_bytes(picture.cpu()) for picture in pictures]
    own = [to_bytes(picture.cpu() / 2 + 0.5) for picture in batch["pixel_values"]]
    models = resolve(request.find_with or start.preset, {})
    clip, segmenter = load_clip(models.clip), load_segmenter(str(models.segmenter))
    references = embed_references(clip, model, batch, own)
    sets = {"another": [*own[1:], own[0]], "drawn": drawn, "own": own}
    values: dict[tuple[str, str], NDArray[np.float64]] = {}
    texts, own_embedded = embed_texts(clip, captions), embed_images(clip, own)
    for name, pictures in sets.items():
        embedded = embed_images(clip, pictures)
        if any(map(len, references)):
            values["identity", name] = identities(clip, segmenter, pictures, references)
        values["clip-t", name] = (embedded * texts).sum(1)
        values["clip-i", name] = (embedded * own_embedded).sum(1)
    scores = [Score(measure, name, *interval(found)) for (measure, name), found in sorted(values.items())]
    return Evaluation(scores, len(keys))


def embed_references(
    clip: Clip,
    model: Any,  # noqa: ANN401 - the recipe's model
    batch: Batch,
    own: Pictures,
) -> list[NDArray[np.float32]]:
    """Embed the references of each sample, [M, D]: cut out of its own picture, where the batch has their masks.

    Otherwise they are embedded as the model sees them.
    """
    names = next((names for names in MASKED if names[0] in batch), None)
    if names is None:
        shown = model.references(batch).cpu()
        return [embed_images(clip, [to_bytes(picture) for picture in row]) for row in shown]
    valid, masks = (batch[name].cpu().numpy() for name in names)
    kept = [[Mask.from_array(mask > 0) for mask in row[there]] for row, there in zip(masks, valid, strict=True)]
    embedded = iter(embed_segments(clip, own, kept))
    return [np.array([next(embedded) for _ in row]) for row in kept]


def identities(
    clip: Clip, segmenter: Segmenter, pictures: Pictures, references: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """The identity of each picture with its sample's references, [N]; NaN for a sample without references.

    Args:
        clip: embeds things.
        segmenter: finds them.
        pictures: N pictures, [H, W, 3] uint8.
        references: of each, [M, D], unit rows.
    """
    masks = [[s.mask for s in found if s.is_thing and s.area] for found in segment_images(segmenter, pictures)]
    embedded = iter(embed_segments(clip, pictures, masks))
    things = [np.array([next(embedded) for _ in row]) for row in masks]
    return np.array([identity(*pair) for pair in zip(references, things, strict=True)])


def identity(references: NDArray[np.float32], things: NDArray[np.float32]) -> float:
    """The lowest cosine of references [M, D] with things [N, D], matched one to one, greedily; unit rows.

    It is 0 if there are fewer things than references, and NaN without references.
    """
    if not len(references):
        return float("nan")
    if len(things) < len(references):
        return 0.0
    return min(match.score for match in greedy_match(references @ things.T, -1.1))


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean of values, NaN left out, and its 95 % confidence interval by bootstrap."""
    known = values[~np.isnan(values)]
    rng = np.random.default_rng(0)
    means = rng.choice(known, (RESAMPLES, len(known))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(known.mean()), float(low), float(high)
