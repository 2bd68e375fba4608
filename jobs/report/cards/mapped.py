"""The card of the recipes with condition maps: the picture, and each map, which lets it shine through."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from jobs.hints import hint_of
from jobs.report import figures
from jobs.report.card import Card, Section, counted, default_card, numbers
from jobs.report.parts import common_fields, data_address, thumbnail
from schemas.dataset import DatasetInfo
from schemas.maps import MAPS
from schemas.samples import composer, controlnet, t2i_adapter
from schemas.samples.base import SampleFormat
from schemas.samples.mapped import Record
from schemas.shards import Sample

SIDE = 360
"""Longest side of each picture, in pixels."""

COLORS = 8
"""Colours of a palette that are shown: those with the largest shares."""


def fill(sample_format: SampleFormat, sample: Sample) -> dict[str, Any]:
    """Return what `mapped.html.j2` shows of a sample."""
    record = sample_format.record.from_sample(sample)
    assert isinstance(record, Record)
    picture, size = thumbnail(sample.members["jpg"], SIDE)
    return common_fields(record) | {
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "maps": [
            {
                "name": kind,
                "address": _shrunk(hint_of(kind, sample, record), size),
                "made": " ".join(part for part in (found.operator, found.version, found.parameters) if part),
            }
            for kind, found in record.maps.items()
        ],
        "caption": record.caption,
        "caption_origin": record.caption_origin,
        "shown": _shown(record),
        "colors": _colors(record),
    }


def _shrunk(hint: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """A map as a PNG in a data address, of the thumbnail's size; means of pixels, so that thin lines stay."""
    return data_address(Image.fromarray(hint).resize(size, Image.Resampling.BOX), "PNG", optimize=True)


def _shown(record: Record) -> list[str]:
    """What the maps show: the people, and the classes of the segments."""
    people = len(record.people or ())
    shown = [f"{people} {'person' if people == 1 else 'people'}"] if people else []
    return shown + list(dict.fromkeys(segment.label for segment in record.segments or ()))


def _colors(record: Record) -> list[dict[str, Any]]:
    """The largest shares of Composer's palette, as CSS colours."""
    if not isinstance(record, composer.Record):
        return []
    from transforms.maps.palette import palette_colors  # noqa: PLC0415 - scikit-image, which no other report needs

    shares = np.array(record.palette)
    rgb = np.rint(palette_colors() * 255).astype(int)
    if len(rgb) != len(shares):
        return []
    largest = np.argsort(-shares, kind="stable")[:COLORS]
    return [
        {"color": "rgb({}, {}, {})".format(*rgb[i]), "share": round(100 * float(shares[i]), 1)}
        for i in largest.tolist()
    ]


def sections(index: pa.Table, info: DatasetInfo) -> list[Section]:  # noqa: ARG001 - the config draws nothing here
    """Return a histogram of each map's mean, the maps that show nothing, and the number of segments and people."""
    kinds, means = (pc.list_flatten(index[name]) for name in ("maps", "means"))
    values = {kind: numbers(means.filter(pc.equal(kinds, kind))) for kind in sorted(set(kinds.to_pylist()))}
    counts: Mapping[str, NDArray[np.int64]] = {name: numbers(index[name], np.int64) for name in ("segments", "people")}
    return [
        Section(
            "Maps",
            [
                figures.score_histogram(
                    found * _SCALES.get(kind, 1), _MEANS.get(kind, f"mean of {kind}, from 0 for black to 1")
                )
                for kind, found in values.items()
            ],
        ),
        Section(
            "Contents",
            panels={
                "Maps that show nothing": figures.label_bars(counted(pc.list_flatten(index["flat"])), "map", "samples"),
                **{
                    f"{name.capitalize()} per sample": figures.count_histogram(found, f"{name} in a sample")
                    for name, found in counts.items()
                    if found.any()
                },
            },
        ),
    ]


_SCALES = {"canny": MAPS["canny"].largest}
"""By what the mean of a map is multiplied, where a share of the largest pixel says nothing."""
_MEANS = {"canny": "mean of canny, gradient per pixel", "segmentation": "mean of segmentation, share of 255"}


def card_of(sample_format: SampleFormat, title: str) -> Card:
    """Return the card of a recipe whose samples have maps."""
    return replace(
        default_card(sample_format),
        title=title,
        lead="The slider of a sample, or the pointer on a map, lets the picture shine through its maps.",
        template="mapped.html.j2",
        fill=partial(fill, sample_format),
        sections=sections,
        score="",
        count="",
        groups={},
        wide=True,
    )


CARDS = {
    "controlnet": card_of(controlnet.FORMAT, "ControlNet"),
    "t2i-adapter": card_of(t2i_adapter.FORMAT, "T2I-Adapter"),
    "composer": card_of(composer.FORMAT, "Composer"),
}
