"""Panoptic segmentation with transformers: Mask2Former, MaskFormer or EoMT, by checkpoint."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, PretrainedConfig

from schemas.example import Segment
from schemas.masks import Mask
from transforms.models.checkpoints import HubModel, device

COCO_CLASSES, COCO_THINGS = 133, 80
"""Number of classes of COCO panoptic, and of things among them: the first 80 in every published checkpoint."""

SCORE_THRESHOLDS = {"mask2former": 0.5, "maskformer": 0.5, "eomt": 0.8, "eomt_dinov3": 0.8}
"""Supported types of model, and the class score below which a query is ignored: the defaults of their processors."""

_CLAIMING = ("eomt", "eomt_dinov3")
"""Types whose processor itself leaves out pixels that no query claims; see `claimed_pixels`."""


@dataclass(eq=False)
class Segmenter:
    """A loaded checkpoint. `stuff` holds the class ids of stuff: a picture has at most one segment of each."""

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
    hub = HubModel("segmenter", "segmenter", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(PretrainedConfig.get_config_dict(**place)[0].get("model_type"), list(SCORE_THRESHOLDS))
        processor = AutoImageProcessor.from_pretrained(**place)
        # Weights may be stored in half precision; a CPU computes in single.
        model, loaded = AutoModelForUniversalSegmentation.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
    hub.check_weights(loaded)
    things = COCO_THINGS if len(model.config.id2label) == COCO_CLASSES else len(model.config.id2label)
    stuff = frozenset(range(things, len(model.config.id2label)))
    target = device()
    return Segmenter(model.eval().to(target), processor, target, stuff)


def segment_images(segmenter: Segmenter, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Segment, ...]]:
    """Segment pictures, each [H, W, 3] uint8 RGB of any size; return their segments in the model's order.

    Segments of a picture do not overlap. Pictures that the processor resizes to the same size go through the model in
    one batch. They are never padded to a common size: with padding, the result would depend on what else is in the
    batch.
    """
    # Stated, as the processor would take the rows of a picture that is one or three pixels high for its channels.
    inputs = [segmenter.processor(images=i, input_data_format="channels_last", return_tensors="pt") for i in images]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, picture in enumerate(inputs):
        groups[tuple(picture["pixel_values"].shape)].append(index)
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
        # The processor can fuse segments of stuff, but then gives two segments the same id (transformers 5.23 counts
        # on from the id of the fused one), which merges their masks. So `fused` does it afterwards.
        results = segmenter.processor.post_process_panoptic_segmentation(
            outputs, threshold=threshold, target_sizes=sizes
        )
        claimed = [
            claimed_pixels(classes, masks, size, threshold) if segmenter.kind not in _CLAIMING else np.ones(size, bool)
            for classes, masks, size in zip(
                outputs.class_queries_logits, outputs.masks_queries_logits, sizes, strict=True
            )
        ]
    return [_segments(segmenter, result, pixels) for result, pixels in zip(results, claimed, strict=True)]


def claimed_pixels(
    classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, ...], threshold: float
) -> NDArray[np.bool_]:
    """The pixels inside the mask of the query that they are assigned to: [H, W] bool.

    The processor assigns each pixel to the query with the highest product of class score and mask probability, however
    low that is. Mask2Former's own inference (Cheng et al. 2022, the published code) also requires that the mask
    probability is at least one half; without that, background pixels go to the least unlikely object.

    Args:
        classes: [Q, C + 1] class logits, the last one of "no object".
        masks: [Q, h, w] mask logits.
        size: (H, W) of the picture.
        threshold: class score below which a query is ignored.
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
    """Merge the regions of each class of `stuff` into one, in the place of the first: a picture has one sky.

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
