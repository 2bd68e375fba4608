"""Artificial examples, and datasets of them on disk."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.dataset import DatasetInfo, Job, ModelName
from schemas.example import Example, Match, Object, Phrase, Placement, Quality, Segment, Source, Subject
from schemas.images import encode_grey, encode_jpeg
from schemas.masks import Mask
from schemas.rejects import Reject
from schemas.samples import fastcomposer
from schemas.samples.base import SampleFormat
from transforms.batch import Batch
from transforms.dataset import prepare_output
from transforms.finish import finish_dataset
from transforms.settled import settle
from transforms.write import commit_shard

JOB = Job(
    recipe="fastcomposer",
    config={"threshold": 0.25, "input": "pictures"},
    models={"segmenter": ModelName(name="sample", revision="0123abc")},
    seed=7,
)


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A picture that differs from seed to seed, so smooth that JPEG keeps its colours."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    stream = io.BytesIO()
    corners.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """[height, width] bool, True inside `box`, [x, y, w, h] in pixels."""
    x, y, w, h = box
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def example(
    key: str,
    subjects: Sequence[tuple[str, tuple[int, int, int, int]]] = (("a dog", (4, 6, 20, 16)),),
    size: tuple[int, int] = (64, 48),
    extra_segments: int = 0,
    license: str = "CC0",  # noqa: A002
) -> Example:
    """A matched example of `size` (width, height): a phrase and a box-shaped segment per subject, in order.

    The caption joins the phrases with " and "; the class of a segment is the last word of its phrase.
    """
    width, height = size
    phrases, start = [], 0
    for text, _ in subjects:
        phrases.append(Phrase(text, start, start + len(text), text.split()[-1], (start, start + len(text))))
        start += len(text) + len(" and ")
    segments = [Segment(text.split()[-1], 0.9, Mask.from_array(box_mask(width, height, box))) for text, box in subjects]
    segments += [Segment("sky", 0.8, Mask.from_array(box_mask(width, height, (0, 0, 2, 2))))] * extra_segments
    return Example(
        key=key,
        image=jpeg(width, height, seed=sum(key.encode())),
        width=width,
        height=height,
        caption=" and ".join(text for text, _ in subjects),
        source=Source(f"pictures/{key}.jpg", license),
        source_caption=" and ".join(text for text, _ in subjects),
        phrases=tuple(phrases),
        segments=tuple(segments),
        matches=tuple(Match(i, i, 0.5 + 0.1 * i) for i in range(len(subjects))),
    )


def scored(matched: Example, quality: float, phash: int = 0) -> Example:
    """Turn a matched example into one of MIP-Adapter's: its subjects become objects, and it gets a quality."""
    pairs = [(match.phrase, matched.segments[match.segment]) for match in matched.matches]
    objects = tuple(Object(phrase, segment.bbox, 0.9, segment.mask, quality) for phrase, segment in pairs)
    return replace(matched, objects=objects, quality=Quality(quality, 0.0, quality), phash=phash)


def write_dataset(
    output: Path,
    shards: Sequence[Sequence[Example | Reject]],
    *,
    overwrite: bool = False,
    sample_format: SampleFormat = fastcomposer.FORMAT,
    job: Job = JOB,
) -> DatasetInfo:
    """Write a finished dataset, a shard for each sequence of records, without a pipeline."""
    job = job.model_copy(update={"recipe": sample_format.recipe})
    prepare_output(str(output), job, overwrite=overwrite)
    for shard, records in enumerate(shards):
        settled = settle(Batch(shard, tuple(records), (("segment", 1.5),)), sample_format)
        commit_shard(str(output), sample_format, shard, f"print-{shard}", [settled])
    fingerprints = {shard: f"print-{shard}" for shard in range(len(shards))}
    return finish_dataset(str(output), job, fingerprints, sample_format)


def on_another_background(key: str, size: tuple[int, int] = (64, 48)) -> Example:
    """An example of BLIP-Diffusion's: a dog with a soft edge, and the same dog on grey."""
    width, height = size
    alpha = np.zeros((height, width), np.uint8)
    alpha[6:22, 4:24] = 255
    alpha[6:22, 24] = 128
    plain = example(key, size=size)
    share = alpha[..., None] / 255
    composite = np.rint(plain.pixels() * share + 128 * (1 - share)).astype(np.uint8)
    return replace(
        plain,
        subject=Subject("dog", "a dog"),
        alpha=encode_grey(alpha),
        trimap=encode_grey(alpha),
        placement=Placement("painted"),
        composite=encode_jpeg(composite),
    )
