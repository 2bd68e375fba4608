"""SAM with segment-anything: masks of boxes, and of everything in a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from schemas.boxes import BBox, to_corners
from transforms.models.checkpoints import check_folder, device, explaining
from transforms.models.pth import find_file, read_weights
from transforms.models.settings import Everything

REFINED = 4
"""Decoded masks have this many times as many pixels per side as the embedding."""


@dataclass(frozen=True)
class SamShape:
    """Sizes of a SAM other than the published three; `side` and `patch` in pixels.

    With a `window`, in patches, every other layer, beginning with the first, attends within windows of that size.
    """

    side: int = 256
    patch: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    prompt_width: int = 64
    window: int = 0


def new_sam(shape: SamShape) -> Sam:
    """Build an untrained SAM that normalises colours as the published ones do."""
    grid = shape.side // shape.patch
    return Sam(
        ImageEncoderViT(
            img_size=shape.side,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            out_chans=shape.prompt_width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=shape.window,
            global_attn_indexes=tuple(range(1, shape.depth, 2)),
        ),
        PromptEncoder(shape.prompt_width, (grid, grid), (shape.side, shape.side), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=shape.prompt_width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=shape.prompt_width, num_heads=4, mlp_dim=4 * shape.prompt_width
            ),
            iou_head_hidden_dim=shape.prompt_width,
        ),
    )


def save_sam(sam: Sam, shape: SamShape, folder: Path) -> None:
    """Write a SAM to a folder that `load_sam` reads: `config.json` and `model.safetensors`, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "segment-anything", **asdict(shape)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.half().contiguous() for name, value in sam.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def load_sam(checkpoint: str | Path) -> Sam:
    """Load a SAM: a folder that `save_sam` wrote, or one of the published checkpoints.

    Those are files with their size in the name (`sam_vit_h_4b8939.pth`), local or on the Hugging Face hub as
    OWNER/REPOSITORY/PATH. Nothing that they hold is executed.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    check_folder("sam", "SAM", checkpoint, "config.json")
    problem = (
        f"no SAM {checkpoint}: looked for a folder with config.json and model.safetensors, and for a published file "
        "named sam_vit_h*, sam_vit_l* or sam_vit_b*"
    )
    with explaining(problem, "Give --model sam=PATH"):
        sam = _from_folder(Path(checkpoint)) if Path(checkpoint).is_dir() else _published(str(checkpoint))
    return sam.eval().to(device())


def _from_folder(folder: Path) -> Sam:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (kind := config.pop("model_type", "")) != "segment-anything":
        raise ValueError(f"it is a model of type {kind}, not segment-anything")
    sam = new_sam(SamShape(**config))
    sam.load_state_dict(load_file(folder / "model.safetensors"))
    return sam


def _published(checkpoint: str) -> Sam:
    sizes = [size for size in sam_model_registry if size in Path(checkpoint).name]
    if not sizes:
        raise ValueError("its name has no size: vit_h, vit_l or vit_b")
    path = find_file(checkpoint)
    sam = sam_model_registry[sizes[0]]()
    # The registry itself would unpickle whatever the file holds.
    sam.load_state_dict(read_weights(path))
    return sam


def segment_boxes(sam: Sam, image: NDArray[np.uint8], boxes: Sequence[BBox]) -> list[NDArray[np.bool_]]:
    """Segment the thing in each box; the picture is embedded once, the boxes are decoded in one batch.

    Args:
        sam: the model.
        image: [H, W, 3] uint8 RGB.
        boxes: [x, y, w, h] in pixels.

    Returns:
        [H, W] bool for each box; it may be empty.
    """
    if not boxes:
        return []
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    corners = torch.tensor([to_corners(box) for box in boxes], dtype=torch.float32, device=sam.device)
    prompts = predictor.transform.apply_boxes_torch(corners, image.shape[:2])
    masks, _, _ = predictor.predict_torch(None, None, boxes=prompts, multimask_output=False)
    return list(masks[:, 0].cpu().numpy())


def segment_everything(
    sam: Sam, image: NDArray[np.uint8], settings: Everything
) -> list[tuple[NDArray[np.bool_], float]]:
    """Segment all things that a grid of point prompts finds in `image` [H, W, 3] uint8 RGB.

    Returns:
        [H, W] bool and the predicted IoU in [0, 1] of each mask, the largest first; empty masks are left out.
    """
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points,
        pred_iou_thresh=settings.predicted_iou,
        stability_score_thresh=settings.stability,
    )
    found: list[dict[str, Any]] = generator.generate(image)
    ordered = sorted(found, key=lambda mask: (-mask["area"], mask["bbox"]))
    return [
        (mask["segmentation"], min(1.0, float(mask["predicted_iou"]))) for mask in ordered if mask["segmentation"].any()
    ]
