"""SAM with segment-anything: masks of boxes, and of everything in a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from schemas.errors import ModelError
from schemas.masks import BBox
from transforms.models.pth import find_file, read_weights

REFINED = 4
"""A mask has this share more pixels a side than the embedding that it is decoded from."""


@dataclass(frozen=True)
class SamShape:
    """Sizes of a SAM that is none of the published three; `side` and `patch` in pixels.

    With a `window`, in patches, the first of each two layers looks no farther than its windows.
    """

    side: int = 256
    patch: int = 16
    width: int = 128
    depth: int = 4
    heads: int = 4
    prompt_width: int = 64
    window: int = 0


def new_sam(shape: SamShape) -> Sam:
    """Build an untrained SAM, its colours normalised as the published ones' are."""
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

    Those are files whose name tells their size (`sam_vit_h_4b8939.pth`), local or on the Hugging Face hub as
    OWNER/REPOSITORY/PATH. Nothing that they hold is executed.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        sam = _from_folder(Path(checkpoint)) if Path(checkpoint).is_dir() else _published(str(checkpoint))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no SAM {checkpoint}: looked for a folder with config.json and model.safetensors, and for a published "
            f"file named sam_vit_h*, sam_vit_l* or sam_vit_b* ({shorten(str(error), 120)}). Give --model sam=PATH"
        ) from error
    return sam.eval().to(device)


def _from_folder(folder: Path) -> Sam:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.pop("model_type", "") != "segment-anything":
        raise ValueError("its config.json is not a SAM's")
    sam = new_sam(SamShape(**config))
    sam.load_state_dict(load_file(folder / "model.safetensors"))
    return sam


def _published(checkpoint: str) -> Sam:
    sizes = [size for size in sam_model_registry if size in Path(checkpoint).name]
    if not sizes:
        raise ValueError("its name tells no size")
    path = find_file(checkpoint)
    sam = sam_model_registry[sizes[0]]()
    # The registry itself would unpickle whatever the file holds.
    sam.load_state_dict(read_weights(path))
    return sam


def segment_boxes(sam: Sam, image: NDArray[np.uint8], boxes: Sequence[BBox]) -> list[NDArray[np.bool_]]:
    """Segment what each box holds; the picture is embedded once, the boxes are decoded together.

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
    corners = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=torch.float32, device=sam.device)
    prompts = predictor.transform.apply_boxes_torch(corners, image.shape[:2])
    masks, _, _ = predictor.predict_torch(None, None, boxes=prompts, multimask_output=False)
    return list(masks[:, 0].cpu().numpy())


@dataclass(frozen=True)
class Everything:
    """Settings of automatic masks, segment-anything's own by default.

    `points` prompts a side, of which those are kept whose predicted IoU and whose stability reach the bounds.
    """

    points: int = 32
    predicted_iou: float = 0.88
    stability: float = 0.95


def segment_everything(
    sam: Sam, image: NDArray[np.uint8], settings: Everything
) -> list[tuple[NDArray[np.bool_], float]]:
    """Segment all that a grid of points finds in `image` [H, W, 3] uint8 RGB.

    Returns:
        [H, W] bool and the predicted IoU in [0, 1] of each mask, the largest first; none is empty.
    """
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points,
        pred_iou_thresh=settings.predicted_iou,
        stability_score_thresh=settings.stability,
    )
    found: list[dict[str, Any]] = generator.generate(image)
    ordered = sorted(found, key=lambda one: (-one["area"], one["bbox"]))
    return [
        (one["segmentation"], min(1.0, float(one["predicted_iou"]))) for one in ordered if one["segmentation"].any()
    ]
