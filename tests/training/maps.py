"""Samples with condition maps whose pixels are known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.example import Example, Segment, Source
from schemas.images import encode_jpeg
from schemas.maps import Map, Person, draw_people, make_map
from schemas.masks import Mask
from schemas.samples import FORMATS
from training.shards import Raw

WIDTH, HEIGHT = 96, 64
CAPTION = "a red ball and a blue cup"
LABELS = ("ball", "cup", "sky")
PERSON = Person(tuple((20.0 + 11 * (i % 6), 8.0 + 20 * (i // 6), 0.9) for i in range(17)))


def numbers() -> NDArray[np.uint8]:
    """Segments 1 and 2 are the left and the right half of the picture, without its top rows, which are 3."""
    drawn = np.ones((HEIGHT, WIDTH), np.uint8)
    drawn[:, WIDTH // 2 :] = 2
    drawn[:10] = 3
    return drawn


def stored() -> Mapping[str, NDArray[Any]]:
    """A map of each kind: ramps, a vertical edge, and normals that lean to the right in the left half."""
    ramp = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
    edge = np.zeros((HEIGHT, WIDTH), np.uint16)
    edge[:, 40] = np.linspace(0, 400, HEIGHT).astype(np.uint16)
    lean = np.zeros((HEIGHT, WIDTH, 3))
    lean[:, : WIDTH // 2] = (0.6, 0, 0.8)
    lean[:, WIDTH // 2 :] = (0, 0, 1)
    return {
        "canny": edge,
        "sketch": ramp,
        "scribble": np.where(ramp < 100, 0, ramp).astype(np.uint8),
        "lines": np.where(ramp < 100, 0, ramp).astype(np.uint8),
        "edges": ramp,
        "depth": ramp.astype(np.uint16) * 100 + 5000,
        "normal": np.rint((lean + 1) * 127.5).astype(np.uint8),
        "pose": draw_people([np.array(PERSON.points)], WIDTH, HEIGHT),
        "segmentation": numbers(),
    }


def mapped_example(key: str = "sample", caption: str = CAPTION, kinds: tuple[str, ...] = ()) -> Example:
    """An example with maps of `kinds`, by default all."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    chosen = {kind: pixels for kind, pixels in stored().items() if kind in kinds or not kinds}
    masks = [Mask.from_array(numbers() == i + 1) for i in range(len(LABELS))]
    return Example(
        key=key,
        image=encode_jpeg(picture),
        width=WIDTH,
        height=HEIGHT,
        caption=caption,
        source=Source("memory"),
        source_caption=caption,
        segments=tuple(Segment(label, 1.0, mask, label != "sky") for label, mask in zip(LABELS, masks, strict=True)),
        people=(PERSON,),
        maps={kind: _map(kind, pixels) for kind, pixels in chosen.items()},
        palette=np.full(180, 1 / 180, np.float32),
        embedding=np.eye(64, dtype=np.float32)[0],
    )


def _map(kind: str, pixels: NDArray[Any]) -> Map:
    parameters = {"palette": "coco"} if kind == "segmentation" else {}
    return make_map(kind, pixels, "test", "1", parameters, (0.0, 1.0) if kind == "depth" else None)


def mapped_raw(recipe: str, **fields: Any) -> Raw:  # noqa: ANN401 - of `mapped_example`
    """The same as a sample of a recipe, as a dataset's reader yields it."""
    sample, _ = FORMATS[recipe].pack(mapped_example(**fields))
    return {"__key__": sample.key, "__url__": "", **sample.members}
