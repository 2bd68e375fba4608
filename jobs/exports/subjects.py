"""The subjects of a sample, and pictures of them as references, for every recipe whose samples have some.

A reference is a picture of a subject that the sample's picture, the target, shows. fastcomposer and mip-adapter samples
have the subjects themselves, cut out of the target and laid on white; a blip-diffusion sample has its subject on
another background, a pair another picture of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.boxes import BBox, box_of, window
from schemas.example import Placement
from schemas.images import decode_grey, decode_image
from schemas.samples import blip_diffusion, fastcomposer, mip_adapter, pairs
from schemas.samples.base import SampleRecord
from schemas.shards import Sample

Pixels = NDArray[np.uint8]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Instance:
    """A subject in a picture.

    Attributes:
        text: The caption's words for it; its class where the caption has none.
        label: Its class or head noun.
        bbox: [x, y, w, h] in pixels of the picture.
        mask: [H, W] bool.
        score: Confidence of what found it, in [0, 1].
    """

    text: str
    label: str
    bbox: BBox
    mask: Bools
    score: float


@dataclass(frozen=True)
class Reference:
    """A picture of a subject.

    Attributes:
        text: The caption's words for the subject.
        pixels: [h, w, 3] uint8 RGB.
        bbox: The subject in `pixels`, [x, y, w, h].
        target_bbox: The subject in the target, [x, y, w, h].
    """

    text: str
    pixels: Pixels
    bbox: BBox
    target_bbox: BBox


@dataclass(frozen=True)
class Shown:
    """The common part of a sample: its target, a JPEG, with caption and size in pixels."""

    key: str
    caption: str
    image: bytes
    width: int
    height: int


def show(recipe: str, sample: Sample) -> Shown:
    """Return the target of a sample of `recipe`, a key of `INSTANCES`, or "captioned"."""
    record = _RECORDS[recipe].from_sample(sample)
    return Shown(record.key, record.caption, sample.members[_TARGETS.get(recipe, "jpg")], record.width, record.height)


def cut_out(pixels: Pixels, mask: Bools) -> Pixels:
    """Return the box of a mask, [H, W] bool and not empty, of a picture [H, W, 3], white outside of the mask."""
    inside = window(box_of(mask))
    return np.where(mask[inside][..., None], pixels[inside], 255).astype(np.uint8)


def _fastcomposer_instances(sample: Sample) -> list[Instance]:
    return [
        Instance(s.text, s.label, s.bbox, s.segmentation.to_mask().to_array(), s.score)
        for s in fastcomposer.Record.from_sample(sample).subjects
    ]


def _mip_adapter_instances(sample: Sample) -> list[Instance]:
    return [
        Instance(thing.text, thing.name, thing.bbox, thing.segmentation.to_mask().to_array(), thing.score)
        for thing in mip_adapter.Record.from_sample(sample).objects
    ]


def _blip_diffusion_instances(sample: Sample) -> list[Instance]:
    record = blip_diffusion.Record.from_sample(sample)
    mask = decode_grey(sample.members["alpha.png"]) >= 128
    return [Instance(record.phrase or record.subject, record.subject, record.bbox, mask, 1.0)]


def _pairs_instances(sample: Sample) -> list[Instance]:
    shown = pairs.Record.from_sample(sample).subject
    return [Instance(shown.text, shown.label, shown.bbox, shown.segmentation.to_mask().to_array(), 1.0)]


def _pairs_references(sample: Sample) -> list[Reference]:
    record = pairs.Record.from_sample(sample)
    pixels = decode_image(sample.members["reference.jpg"])
    return [Reference(record.subject.text, pixels, record.reference.subject.bbox, record.subject.bbox)]


def _blip_diffusion_references(sample: Sample) -> list[Reference]:
    record = blip_diffusion.Record.from_sample(sample)
    bbox = record.bbox
    if record.placement.flip or record.placement.scale != 1 or record.placement.shift != (0, 0):
        from transforms.matting.composite import place  # noqa: PLC0415 - needs Beam, which takes seconds to import

        alpha = decode_grey(sample.members["alpha.png"]) / 255
        moved = Placement(record.background, **record.placement.model_dump())
        bbox = box_of(place(np.zeros((*alpha.shape, 3)), alpha, moved)[1] >= 0.5)
    pixels = decode_image(sample.members["input.jpg"])
    return [Reference(record.phrase or record.subject, pixels, bbox, record.bbox)]


_RECORDS: Mapping[str, type[SampleRecord]] = {
    "captioned": SampleRecord,
    "pairs": pairs.Record,
    "fastcomposer": fastcomposer.Record,
    "mip-adapter": mip_adapter.Record,
    "blip-diffusion": blip_diffusion.Record,
}
_TARGETS = {"blip-diffusion": "target.jpg", "pairs": "target.jpg"}
"""The member that holds the target, where that is not "jpg"."""

INSTANCES: Mapping[str, Callable[[Sample], list[Instance]]] = {
    "fastcomposer": _fastcomposer_instances,
    "mip-adapter": _mip_adapter_instances,
    "blip-diffusion": _blip_diffusion_instances,
    "pairs": _pairs_instances,
}
"""The subjects of a sample, by recipe."""


_OTHER_PICTURES: Mapping[str, Callable[[Sample], list[Reference]]] = {
    "blip-diffusion": _blip_diffusion_references,
    "pairs": _pairs_references,
}
"""Recipes whose references are other pictures than cut-outs of the target."""


def references_of(recipe: str, sample: Sample) -> list[Reference]:
    """Return the references of a sample of `recipe`, a key of `INSTANCES`, in the order of its subjects."""
    if recipe in _OTHER_PICTURES:
        return _OTHER_PICTURES[recipe](sample)
    instances = INSTANCES[recipe](sample)
    pixels = decode_image(sample.members["jpg"])
    references = []
    for instance in instances:
        shown = cut_out(pixels, instance.mask)
        whole = (0, 0, shown.shape[1], shown.shape[0])
        references.append(Reference(instance.text, shown, whole, instance.bbox))
    return references


def layers_of(recipe: str, sample: Sample) -> list[Pixels]:
    """Split the target of a sample into layers, [H, W, 4] uint8 RGBA each, back to front.

    The first layer is the background; it is transparent where a subject covers it entirely. Laid over each other, the
    layers give the target again: exactly where masks have hard edges, and within rounding on the soft edge of a matte.
    There, the colours of subject and background are estimated.
    """
    if recipe == "blip-diffusion":
        alpha = decode_grey(sample.members["alpha.png"])
        return _matte_layers(decode_image(sample.members["target.jpg"]), alpha)
    pixels = decode_image(show(recipe, sample).image)
    masks = [instance.mask for instance in INSTANCES[recipe](sample)]
    return _mask_layers(pixels, masks)


def _mask_layers(pixels: Pixels, masks: Sequence[Bools]) -> list[Pixels]:
    """Cut a picture into the parts of masks, smaller ones in front, and the rest."""
    order = sorted(range(len(masks)), key=lambda i: (-int(masks[i].sum()), i))
    covered = np.zeros(pixels.shape[:2], bool)
    parts = []
    for index in reversed(order):
        parts.append(masks[index] & ~covered)
        covered |= masks[index]
    visible = [part for part in reversed(parts) if part.any()]
    return [_with_alpha(pixels, part * np.uint8(255)) for part in (~covered, *visible)]


def _matte_layers(pixels: Pixels, alpha: Pixels) -> list[Pixels]:
    from transforms.matting.closed_form import estimate_foreground  # noqa: PLC0415 - numba takes seconds to import

    image, share = pixels / 255, alpha / 255
    subject = np.where((share == 1)[..., None], image, estimate_foreground(image, share))
    rest = np.maximum(1 - share, 1 / 255)[..., None]
    behind = np.clip((image - share[..., None] * subject) / rest, 0, 1)
    back, front = (np.rint(colours * 255).astype(np.uint8) for colours in (behind, subject))
    return [_with_alpha(back, np.where(alpha < 255, np.uint8(255), np.uint8(0))), _with_alpha(front, alpha)]


def _with_alpha(pixels: Pixels, alpha: Pixels) -> Pixels:
    return np.dstack([np.where(alpha[..., None] > 0, pixels, 0).astype(np.uint8), alpha])
