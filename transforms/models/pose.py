"""Key points of people with transformers' ViTPose, in boxes that are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoImageProcessor, PretrainedConfig, VitPoseForPoseEstimation

from schemas.boxes import BBox
from schemas.maps import COCO_POINTS, Person
from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.places import located
from transforms.models.settings import Precision


@dataclass(eq=False)
class PoseModel:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


def load_pose(checkpoint: str | Path, precision: Precision = "fp32") -> PoseModel:
    """Load a ViTPose of COCO's 17 points, from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    checkpoint = located(checkpoint)
    hub = HubModel("pose", "pose model", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(PretrainedConfig.get_config_dict(**place)[0].get("model_type"), ["vitpose"])
        processor = AutoImageProcessor.from_pretrained(**place)
        model, loaded = VitPoseForPoseEstimation.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
        if model.config.num_labels != len(COCO_POINTS):
            raise ValueError(f"it finds {model.config.num_labels} points: COCO's {len(COCO_POINTS)} are needed")
    hub.check_weights(loaded)
    target = device()
    return PoseModel(model.eval().to(target), processor, target)


def find_people(
    pose: PoseModel, images: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[BBox]]
) -> list[list[Person]]:
    """Find the key points of the person in each box.

    Args:
        pose: the model.
        images: pictures, each [H, W, 3] uint8 RGB.
        boxes: of the people in each picture, [x, y, w, h] in pixels.

    Returns:
        A person per box, for each picture.
    """
    found: list[list[Person]] = []
    for image, people in zip(images, boxes, strict=True):
        if not people:
            found.append([])
            continue
        frames = [[list(map(float, box)) for box in people]]
        inputs = pose.processor(images=[image], boxes=frames, input_data_format="channels_last", return_tensors="pt")
        with torch.inference_mode():
            outputs = pose.model(inputs["pixel_values"].to(pose.device, pose.model.dtype))
        outputs.heatmaps = outputs.heatmaps.float().cpu()
        results = pose.processor.post_process_pose_estimation(outputs, boxes=frames)[0]
        found.append([_person(result["keypoints"].numpy(), result["scores"].numpy()) for result in results])
    return found


def _person(points: NDArray[np.floating], scores: NDArray[np.floating]) -> Person:
    return Person.of(np.column_stack([points, scores.reshape(-1).clip(0, 1)]))
