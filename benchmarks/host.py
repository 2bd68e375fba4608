"""Processor time that a picture of 640 x 480 pixels costs beside a GPU: what its models leave to the CPU.

    python -m benchmarks.host [--write]

Models, and all that is done with tensors on their device, are replaced by stubs that return results of the right shape
at once; what is left is moving buffers, run lengths and records. The unit is the time that decoding the picture takes,
measured in the same run: it is paid once per picture, and is not counted here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import typer
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from transformers import CLIPSegProcessor

from benchmarks.gpu import bert_tokenizer
from benchmarks.tables import Row, Write, report
from jobs.scenes import scene_of
from schemas.example import Example, Phrase, Segment, Source
from schemas.images import decode_image, encode_jpeg
from schemas.masks import Mask
from transforms.models import clip, clipseg, detector, sam, segmenter
from transforms.models.places import SAMPLE
from transforms.models.settings import Everything
from transforms.regions.ground import add_objects
from transforms.regions.heatmaps import add_heatmaps
from transforms.regions.segment import add_everything, add_segments, keep_segments
from transforms.regions.similarity import add_clip_similarity

HEIGHT, WIDTH = 480, 640
PICTURES, SEGMENTS, TEXTS, SURVIVORS = 8, 10, 3, 100
DEVICE = "meta"
"""torch's device without memory: arrays are gathered and moved to it as to a GPU, and the models are stubs anyway."""


@dataclass(frozen=True)
class Case:
    """A handler: what it does with a batch, what is replaced, and how much it may cost.

    Attributes:
        step: takes examples, with their pictures decoded.
        stubs: (module, name of a function, its replacement).
        bound: processor time per unit, in decodings of the picture.
        units: how many units there are in a picture; `unit` is their name.
    """

    step: Callable[[Sequence[Example]], object]
    stubs: Sequence[tuple[object, str, Callable[..., object]]]
    bound: float
    units: int = 1
    unit: str = "picture"


def cases(count: int) -> dict[str, Case]:
    """Return the handlers, by name, with stubs for `count` pictures."""
    vision = SimpleNamespace(image_size=352)
    config = SimpleNamespace(vision_config=vision, max_text_len=256, id2label={16: "dog"})
    model = SimpleNamespace(config=config, device=torch.device(DEVICE))
    embedder = clip.Clip(model, PreprocessCfg(), open_clip.get_tokenizer("ViT-L-14"), DEVICE)
    seeker = clipseg.ClipSeg(model, CLIPSegProcessor.from_pretrained(SAMPLE / "clipseg"), DEVICE)
    finder = segmenter.Segmenter(model, None, DEVICE, frozenset())
    seer = detector.Detector(model, None, bert_tokenizer(), DEVICE)
    masks = [blob(index) for index in range(SURVIVORS)]
    panoptic, boxed = [labels(masks[:SEGMENTS])] * count, [bits(masks[:5])] * count
    measures = torch.tensor(np.random.default_rng(0).uniform(1, 480, (SURVIVORS, 6)))
    everything = [sam._Everything(bits(masks), measures)] * count
    boxes = [[(9, 9, 99, 99)] * 5] * count
    # Three boxes of 900 are found; the segments that examples have are left out, as SAM's masks are measured apart.
    scores = torch.zeros(TEXTS, 900).fill_diagonal_(0.9)
    corners = torch.tensor([0.5, 0.5, 0.2, 0.2]).repeat(900, 1)
    return {
        "segmenter": Case(
            lambda examples: add_segments(finder, examples, keep_segments_of_any_size),
            [(segmenter, "_forward", lambda *_: panoptic)],
            bound=2,
        ),
        "CLIPSeg": Case(
            lambda examples: add_heatmaps(seeker, examples),
            [(clipseg, "_decode", lambda *_: torch.ones(count * TEXTS, 352, 352, dtype=torch.float16))],
            bound=0.5,
        ),
        "detector": Case(
            lambda examples: add_objects(seer, None, [replace(e, segments=()) for e in examples], 0.3),
            [(detector, "_forward", lambda *_: [(scores, corners)] * count)],
            bound=0.5,
        ),
        "CLIP": Case(
            lambda examples: add_clip_similarity(embedder, examples, with_labels=False),
            [
                (clip, "_encode_segments", lambda _, __, boxes: torch.ones(len(boxes), 768)),
                (clip, "_encode_texts", lambda _, tokens: torch.ones(len(tokens), 768)),
            ],
            bound=0.1,
            units=SEGMENTS,
            unit="crop",
        ),
        "SAM, 5 boxes": Case(
            lambda examples: sam.segment_boxes(model, [e.pixels() for e in examples], boxes),
            [(sam, "_forward_boxes", lambda *_: boxed)],
            bound=2,
        ),
        "SAM, 100 automatic masks": Case(
            lambda examples: add_everything(model, examples, Everything()),
            [(sam, "_forward_everything", lambda *_: everything)],
            bound=10,
        ),
    }


def keep_segments_of_any_size(example: Example, segments: Sequence[Segment]) -> Example:
    """Keep all segments."""
    return keep_segments(example, segments, 0.0)


def labels(masks: Sequence[NDArray[np.bool_]]) -> segmenter._Found:
    """Lay ten masks on one another, as the segmenter's part on the device returns them."""
    regions = np.zeros((WIDTH, HEIGHT), np.uint8)
    for index, mask in enumerate(masks):
        regions[mask.T] = index + 1
    ones = torch.ones(SEGMENTS, dtype=torch.uint8)
    return segmenter._Found([16] * SEGMENTS, [0.9] * SEGMENTS, torch.from_numpy(regions), ones)


def bits(masks: Sequence[NDArray[np.bool_]]) -> torch.Tensor:
    """Pack masks as SAM's part on the device does."""
    padded = np.zeros((-(-len(masks) // 8) * 8, WIDTH, HEIGHT), bool)
    padded[: len(masks)] = np.transpose(masks, (0, 2, 1))
    return torch.from_numpy(np.packbits(padded.reshape(-1, 8, WIDTH, HEIGHT), axis=1, bitorder="little")[:, 0])


def examples(count: int) -> list[Example]:
    """Make pictures with ten overlapping segments and three phrases each, their pixels decoded."""
    made = []
    for index in range(count):
        jpeg = encode_jpeg(picture(index))
        segments = tuple(Segment("dog", 0.9, Mask.from_array(blob(i))) for i in range(SEGMENTS))
        texts = [f"thing {i} of {index}" for i in range(TEXTS)]
        phrases = tuple(Phrase(text, 0, 1, "thing", (0, 1)) for text in texts)
        example = Example(f"{index}", jpeg, WIDTH, HEIGHT, "", Source(""), "", phrases=phrases, segments=segments)
        made.append(replace(example, _pixels=decode_image(jpeg)))
    return made


def picture(index: int) -> NDArray[np.uint8]:
    """A sample scene of 640 x 480 pixels."""
    return np.ascontiguousarray(scene_of(0, index, WIDTH).image[:HEIGHT])


@cache
def blob(index: int) -> NDArray[np.bool_]:
    """An ellipse of about 300 x 300 pixels with a ragged edge, as segments have."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    middle, radius = rng.uniform(150, 330, 2), rng.uniform(135, 165, 2)
    angle = np.arctan2(y - middle[0], x - middle[1])
    ragged = 1 + 0.1 * np.sin(angle * rng.integers(3, 9) + rng.uniform(0, 6))
    mask: NDArray[np.bool_] = np.hypot((y - middle[0]) / radius[0], (x - middle[1]) / radius[1]) < ragged
    return mask


def processor_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """The least processor time of all threads that a call takes."""
    function()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


def costs(count: int = PICTURES, repeats: int = 5) -> Iterator[tuple[str, Case, float]]:
    """Yield each handler with its processor time per unit, in decodings of a picture, measured beside it."""
    batch = examples(count)
    for name, case in cases(count).items():
        with ExitStack() as stubbed:
            for module, function, stub in case.stubs:
                stubbed.enter_context(patch.object(module, function, stub))
            spent = processor_seconds(partial(case.step, batch), repeats)
        decoding = processor_seconds(lambda: [decode_image(example.image) for example in batch], repeats)
        yield name, case, spent / case.units / decoding


def measure() -> Iterator[Row]:
    """Measure all handlers, and how long a decoding takes."""
    batch = examples(PICTURES)
    seconds = processor_seconds(lambda: [decode_image(example.image) for example in batch]) / len(batch)
    yield Row("decoding the picture", f"{seconds * 1e3:.1f} ms", "640 x 480 pixels")
    for name, case, cost in costs():
        yield Row(f"{name}, per {case.unit}", f"{cost:.2f} decodings", f"at most {case.bound:g}")


def main(write: Write = False) -> None:
    """Measure what the handlers of the models cost the CPU when there is a GPU."""
    torch.set_num_threads(1)
    report("host", __doc__ or "", list(measure()), write=write)


if __name__ == "__main__":
    typer.run(main)
