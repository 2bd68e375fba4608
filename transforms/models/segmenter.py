"""Panoptic segmentation with transformers: Mask2Former, MaskFormer or EoMT, by checkpoint."""

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
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation
from transformers.utils import logging

from schemas.errors import ModelError
from schemas.example import Segment
from schemas.masks import Mask

COCO_CLASSES, COCO_THINGS = 133, 80
"""Of the 133 classes of COCO panoptic, the first 80 are things in every published checkpoint."""

SCORE_THRESHOLDS = {"mask2former": 0.5, "maskformer": 0.5, "eomt": 0.8, "eomt_dinov3": 0.8}
"""The types of model that are served. Queries less sure of their class find nothing: their processors' defaults."""

_CLAIMING = ("eomt", "eomt_dinov3")
"""Types whose processor leaves out pixels that no query claims; see `claimed_pixels`."""


@dataclass(eq=False)
class Segmenter:
    """A loaded checkpoint. `stuff` holds the class ids of stuff, of which a picture has one segment each."""

    model: Any
    processor: Any
    device: str
    stuff: frozenset[int]

    @property
    def kind(self) -> str:
        """The type of model, a key of `SCORE_THRESHOLDS`."""
        return str(self.model.config.model_type)


def load_segmenter(checkpoint: str | Path) -> Segmenter:
    """Load a checkpoint for universal segmentation, from a folder or from the Hugging Face hub.

    One on the hub is NAME or NAME@REVISION, where a revision is a commit, a branch or a tag.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    logging.set_verbosity_error()
    is_folder = Path(checkpoint).is_dir()
    if is_folder:
        logging.disable_progress_bar()  # a download takes minutes and shows its bar, a folder seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, revision = (str(checkpoint), "", "") if is_folder else str(checkpoint).partition("@")
    place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
    try:
        kind = AutoConfig.from_pretrained(**place).model_type
        if kind not in SCORE_THRESHOLDS:
            raise ModelError(
                f"{checkpoint} is a model of type {kind}, no panoptic segmenter that is served here: "
                f"take one of type {', '.join(SCORE_THRESHOLDS)}"
            )
        processor = AutoImageProcessor.from_pretrained(**place)
        # Weights may be stored in half precision; a CPU computes in single.
        model, loaded = AutoModelForUniversalSegmentation.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_missing(checkpoint, error, is_folder=is_folder)) from error
    if loaded["missing_keys"]:
        raise ModelError(
            f"the segmenter {checkpoint} lacks {len(loaded['missing_keys'])} of its weights, "
            f"such as {min(loaded['missing_keys'])}: it is incomplete, or of another kind than its config.json says"
        )
    things = COCO_THINGS if len(model.config.id2label) == COCO_CLASSES else len(model.config.id2label)
    stuff = frozenset(range(things, len(model.config.id2label)))
    return Segmenter(model.eval().to(device), processor, device, stuff)


def _missing(checkpoint: str | Path, error: Exception, *, is_folder: bool) -> str:
    reason = shorten(str(error), 120)
    if is_folder:
        return f"the folder {checkpoint} is no segmenter that can be loaded ({reason}). Give --model segmenter=FOLDER"
    return (
        f"no segmenter {checkpoint}: looked for a folder of that name and on the Hugging Face hub "
        f"({reason}). Give --model segmenter=FOLDER, or go online once so that it is downloaded"
    )


def segment_images(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Segment, ...]]:
    """Segment pictures, each [H, W, 3] uint8 RGB of any size; return their segments in the model's order.

    No two segments of a picture share a pixel. Pictures that the processor brings to one size go through the
    model together. They are never padded to a common size: padding changes the result, and with it what else
    is in the batch.
    """
    # Said, not guessed: the processor would take a picture one or three pixels high for channels.
    inputs = [segmenter.processor(images=i, input_data_format="channels_last", return_tensors="pt") for i in images]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(inputs):
        groups[tuple(one["pixel_values"].shape)].append(index)
    segments: list[tuple[Segment, ...]] = [()] * len(images)
    for members in groups.values():
        names = [name for name in ("pixel_values", "pixel_mask") if name in inputs[members[0]]]
        together = {name: torch.cat([inputs[i][name] for i in members]) for name in names}
        sizes = [images[i].shape[:2] for i in members]
        for index, found in zip(members, _segment(segmenter, together, sizes), strict=True):
            segments[index] = found
    return segments


def _segment(
    segmenter: Segmenter, inputs: dict[str, torch.Tensor], sizes: Sequence[tuple[int, ...]]
) -> list[tuple[Segment, ...]]:
    threshold = SCORE_THRESHOLDS[segmenter.kind]
    with torch.inference_mode():
        outputs = segmenter.model(**{name: value.to(segmenter.device) for name, value in inputs.items()})
        # The processor can fuse the segments of stuff, but then gives two segments one id (transformers 5.23
        # counts on from the id of the fused one), and their masks become one. So `fused` does it afterwards.
        results = segmenter.processor.post_process_panoptic_segmentation(
            outputs, threshold=threshold, target_sizes=sizes
        )
        claimed = [
            claimed_pixels(classes, masks, size, threshold) if segmenter.kind not in _CLAIMING else np.ones(size, bool)
            for classes, masks, size in zip(
                outputs.class_queries_logits, outputs.masks_queries_logits, sizes, strict=True
            )
        ]
    return [_segments(segmenter, *one) for one in zip(results, claimed, strict=True)]


def claimed_pixels(
    classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, ...], threshold: float
) -> NDArray[np.bool_]:
    """Tell which pixels are inside the mask of the query that they are given to: [H, W] bool.

    `classes` is [Q, C + 1] logits, the last of them "no object", `masks` [Q, h, w] logits, `size` (H, W). The
    processor gives each pixel to the query with the highest score times mask probability, however low that is.
    Mask2Former's own inference (Cheng et al. 2022, as published) also asks that the mask's probability there is
    at least one half; without that, a picture's background falls to whichever object is least unlikely.
    """
    scores, labels = classes.softmax(-1).max(-1)
    sure = (labels != classes.shape[-1] - 1) & (scores > threshold)
    if not sure.any():
        return np.zeros(size, bool)
    inside = F.interpolate(masks[sure].sigmoid()[None], size, mode="bilinear", align_corners=False)[0]
    best = (inside * scores[sure].view(-1, 1, 1)).argmax(0, keepdim=True)
    claimed: NDArray[np.bool_] = (inside.gather(0, best)[0] >= 0.5).cpu().numpy()
    return claimed


def _segments(segmenter: Segmenter, result: dict[str, Any], claimed: NDArray[np.bool_]) -> tuple[Segment, ...]:
    label_map = result["segmentation"].cpu().numpy()
    infos = [(info["label_id"], float(info["score"]), info["id"]) for info in result["segments_info"]]
    found = []
    for label_id, score, ids in fused(infos, segmenter.stuff):
        mask = np.isin(label_map, ids) & claimed
        if mask.any():
            label = segmenter.model.config.id2label[label_id]
            found.append(Segment(label, round(score, 4), Mask.from_array(mask), label_id not in segmenter.stuff))
    return tuple(found)


def fused(infos: Sequence[tuple[int, float, int]], stuff: frozenset[int]) -> list[tuple[int, float, list[int]]]:
    """Join the regions of each class of `stuff`, where the first of them stands: a picture has one sky.

    Takes (class id, score, region id), returns (class id, highest score, region ids).
    """
    joined: list[tuple[int, float, list[int]]] = []
    place: dict[int, int] = {}
    for label_id, score, region in infos:
        if label_id in place:
            i = place[label_id]
            joined[i] = (label_id, max(joined[i][1], score), [*joined[i][2], region])
        else:
            if label_id in stuff:
                place[label_id] = len(joined)
            joined.append((label_id, score, [region]))
    return joined
