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
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import typer
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from transformers import CLIPSegProcessor

from benchmarks.tables import Row, Write, report
from jobs.scenes import scene_of
from schemas.example import Example, Phrase, Segment, Source
from schemas.images import decode_image, encode_jpeg
from schemas.masks import Mask
from transforms.models import clip, clipseg
from transforms.models.presets import SAMPLE
from transforms.regions.heatmaps import add_heatmaps
from transforms.regions.similarity import add_clip_similarity

HEIGHT, WIDTH = 480, 640
PICTURES, SEGMENTS, TEXTS = 8, 10, 3
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


def cases() -> dict[str, Case]:
    """Return the handlers, by name."""
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(image_size=352)))
    embedder = clip.Clip(model, PreprocessCfg(), open_clip.get_tokenizer("ViT-L-14"), DEVICE)
    seeker = clipseg.ClipSeg(model, CLIPSegProcessor.from_pretrained(SAMPLE / "clipseg"), DEVICE)
    return {
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
        "CLIPSeg": Case(
            lambda examples: add_heatmaps(seeker, examples),
            [(clipseg, "_decode", lambda *_: torch.ones(PICTURES * TEXTS, 352, 352, dtype=torch.float16))],
            bound=0.5,
        ),
    }


def examples(count: int = PICTURES) -> list[Example]:
    """Make pictures with ten overlapping segments and three phrases each, their pixels decoded."""
    made = []
    for index in range(count):
        jpeg = encode_jpeg(picture(index))
        segments = tuple(Segment("dog", 0.9, Mask.from_array(blob(index, i))) for i in range(SEGMENTS))
        texts = [f"thing {i} of {index}" for i in range(TEXTS)]
        phrases = tuple(Phrase(text, 0, 1, "thing", (0, 1)) for text in texts)
        example = Example(f"{index}", jpeg, WIDTH, HEIGHT, "", Source(""), "", phrases=phrases, segments=segments)
        made.append(replace(example, _pixels=decode_image(jpeg)))
    return made


def picture(index: int) -> NDArray[np.uint8]:
    """A sample scene of 640 x 480 pixels."""
    return np.ascontiguousarray(scene_of(0, index, WIDTH).image[:HEIGHT])


def blob(picture: int, index: int) -> NDArray[np.bool_]:
    """An ellipse of about 300 x 300 pixels with a ragged edge, as segments have."""
    rng = np.random.default_rng((picture, index))
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


def costs(repeats: int = 5) -> Iterator[tuple[str, Case, float]]:
    """Yield each handler with its processor time per unit, in decodings of a picture, measured beside it."""
    batch = examples()
    for name, case in cases().items():
        with ExitStack() as stubbed:
            for module, function, stub in case.stubs:
                stubbed.enter_context(patch.object(module, function, stub))
            spent = processor_seconds(partial(case.step, batch), repeats)
        decoding = processor_seconds(lambda: [decode_image(example.image) for example in batch], repeats)
        yield name, case, spent / case.units / decoding


def measure() -> Iterator[Row]:
    """Measure all handlers, and how long a decoding takes."""
    batch = examples()
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
