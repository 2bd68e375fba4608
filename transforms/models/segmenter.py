"""Panoptic segmentation with transformers: Mask2Former, MaskFormer, OneFormer or EoMT, by checkpoint."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation
from transformers.utils import logging

from schemas.errors import ModelError
from schemas.example import Segment
from schemas.masks import Mask

COCO_THINGS = 80
"""Of the 133 classes of COCO panoptic, the first 80 are things."""


SCORE_THRESHOLD = 0.5
"""Queries less sure of their class than this find nothing: the processors' default."""


@dataclass(eq=False)
class Segmenter:
    """A loaded checkpoint. `stuff` holds the class ids of stuff, of which a picture has one segment each."""

    model: Any
    processor: Any
    device: str
    stuff: frozenset[int]


def load_segmenter(checkpoint: str | Path) -> Segmenter:
    """Load a checkpoint for universal segmentation, from a folder or by its name on the Hugging Face hub.

    Raises:
        ModelError: there is no such checkpoint, or it is of another kind.
    """
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint)
        model = AutoModelForUniversalSegmentation.from_pretrained(checkpoint).eval().to(device)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no segmenter {checkpoint}: looked for a folder of that name and on the Hugging Face hub "
            f"({shorten(str(error), 120)}). Give --model segmenter=FOLDER, or go online once so that it is downloaded"
        ) from error
    labels = model.config.id2label
    return Segmenter(
        model, processor, device, frozenset(range(COCO_THINGS, 133)) if len(labels) == 133 else frozenset()
    )


def segment_images(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Segment, ...]]:
    """Segment pictures, each [H, W, 3] uint8 RGB of any size; return their segments in the model's order.

    Pictures that the processor brings to one size go through the model together. They are never padded to
    a common size: padding changes the result, and with it what else is in the batch.
    """
    inputs = [segmenter.processor(images=image, return_tensors="pt") for image in images]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(inputs):
        groups[tuple(one["pixel_values"].shape)].append(index)
    segments: list[tuple[Segment, ...]] = [()] * len(images)
    for members in groups.values():
        together = {name: torch.cat([inputs[i][name] for i in members]) for name in ("pixel_values", "pixel_mask")}
        sizes = [images[i].shape[:2] for i in members]
        for index, found in zip(members, _segment(segmenter, together, sizes), strict=True):
            segments[index] = found
    return segments


def _segment(
    segmenter: Segmenter, inputs: dict[str, torch.Tensor], sizes: Sequence[tuple[int, ...]]
) -> list[tuple[Segment, ...]]:
    with torch.inference_mode():
        outputs = segmenter.model(**{name: value.to(segmenter.device) for name, value in inputs.items()})
        results = segmenter.processor.post_process_panoptic_segmentation(
            outputs, SCORE_THRESHOLD, label_ids_to_fuse=set(segmenter.stuff), target_sizes=sizes
        )
        claimed = [
            claimed_pixels(classes, masks, size)
            for classes, masks, size in zip(
                outputs.class_queries_logits, outputs.masks_queries_logits, sizes, strict=True
            )
        ]
    return [_segments(segmenter, *one) for one in zip(results, claimed, strict=True)]


def claimed_pixels(classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Tell which pixels are inside the mask of the query that they are given to: [H, W] bool.

    `classes` is [Q, C + 1] logits, the last of them "no object", `masks` [Q, h, w] logits, `size` (H, W). The
    processor gives each pixel to the query with the highest score times mask probability, however low that is.
    Mask2Former's own inference (Cheng et al. 2022, as published) also asks that the mask's probability there is
    at least one half; without that, a picture's background falls to whichever object is least unlikely.
    """
    scores, labels = classes.softmax(-1).max(-1)
    sure = (labels != classes.shape[-1] - 1) & (scores > SCORE_THRESHOLD)
    if not sure.any():
        return np.zeros(size, bool)
    inside = F.interpolate(masks[sure].sigmoid()[None], size, mode="bilinear", align_corners=False)[0]
    best = (inside * scores[sure].view(-1, 1, 1)).argmax(0, keepdim=True)
    claimed: NDArray[np.bool_] = (inside.gather(0, best)[0] >= 0.5).cpu().numpy()
    return claimed


def _segments(segmenter: Segmenter, result: dict[str, Any], claimed: NDArray[np.bool_]) -> tuple[Segment, ...]:
    label_map = result["segmentation"].cpu().numpy()
    found = []
    for info in result["segments_info"]:
        mask = (label_map == info["id"]) & claimed
        if mask.any():
            label = segmenter.model.config.id2label[info["label_id"]]
            thing = info["label_id"] not in segmenter.stuff
            found.append(Segment(label, round(float(info["score"]), 4), Mask.from_array(mask), thing))
    return tuple(found)
