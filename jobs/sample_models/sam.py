"""Train the sample SAM: a small model of segment-anything's classes, from scratch on sample scenes, on a CPU.

    python -m jobs.sample_models.sam --output COARSE
    python -m jobs.sample_models.sam --start COARSE --steps 2000 --peak 6e-4 --output transforms/models/sample/sam

The first run trains a model with patches of 16 pixels, which is cheap; the second starts from its weights and has
patches of 8 pixels, four times as many, for thin and small objects.

The losses are those of Kirillov et al., "Segment Anything" (2023), section 3 and appendix A: focal loss and dice in the
proportion 20 to 1; a point is ambiguous, so only the best of its three masks is trained, a box is not and has one mask;
the predicted IoU is trained by squared error. Prompts are the true boxes, each side moved by up to a twenty-fifth of
the box's size, and points in objects or background. Masks are not refined by further points.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.metrics import intersection_over_union
from jobs.sample_models.pools import NO_OBJECT, Pool, held_out_scene, render_pool
from schemas.masks import Mask
from transforms.models.sam import REFINED, SamShape, load_sam, new_sam, save_sam, segment_boxes

SIDE = 256
"""Side of a picture in pixels."""
COARSE, FINE = SamShape(SIDE, patch=16), SamShape(SIDE, patch=8, window=8)
PROMPTS = 4
"""Boxes per picture and step, and as many points."""
MOVED = 0.04
"""Largest error of a box's side, as a share of the box's size: about that of a detector."""


def draw_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Box around `mask` [S, S], each side moved by up to `MOVED` of its size: [x0, y0, x1, y1] float32 in pixels."""
    x, y, w, h = Mask.from_array(mask).bbox
    moved = np.array([x, y, x + w, y + h]) + rng.uniform(-MOVED, MOVED, 4) * [w, h, w, h]
    return np.clip(moved, 0, SIDE).astype(np.float32)


def draw_point(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Choose a pixel of `mask` [S, S]: its centre (x, y), [2] float32."""
    y, x = divmod(int(rng.choice(np.flatnonzero(mask))), mask.shape[1])
    return np.array([x + 0.5, y + 0.5], np.float32)


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """20 times focal loss plus dice of logits [..., h, w] and targets [..., h, w] in [0, 1]: [...] float32."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    balance = 0.25 * target + 0.75 * (1 - target)
    focal = (balance * (1 - right) ** 2 * entropy).mean((-2, -1))
    shared = (probability * target).sum((-2, -1))
    dice = 1 - (2 * shared + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 20 * focal + dice


def mask_agreement(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of logits and targets [..., h, w], both thresholded at probability 0.5: [...] float32."""
    predicted, true = logits > 0, target > 0.5
    return (predicted & true).sum((-2, -1)) / (predicted | true).sum((-2, -1)).clamp(min=1)


def picture_loss(
    sam: Sam, embedding: Tensor, owners: NDArray[np.uint8], count: int, rng: np.random.Generator
) -> Tensor:
    """Prompt for one picture's objects with boxes and points, and compare the masks: a scalar.

    Args:
        sam: the model.
        embedding: of the picture, [C, g, g] float32.
        owners: [S, S] uint8, 0 or object + 1.
        count: number of objects.
        rng: draws the prompts.
    """
    for_boxes = [owners == j for j in rng.permutation(count)[:PROMPTS] + 1]
    for_points = [owners == j for j in rng.permutation(count + 1)[:PROMPTS]]
    for_boxes, for_points = [m for m in for_boxes if m.any()], [m for m in for_points if m.any()]
    boxes = torch.from_numpy(np.stack([draw_box(mask, rng) for mask in for_boxes]))
    points = torch.from_numpy(np.stack([draw_point(mask, rng) for mask in for_points]))[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int)
    side = embedding.shape[-1] * REFINED
    target = torch.from_numpy(np.stack([*for_boxes, *for_points])).float()[:, None]
    target = F.interpolate(target, (side, side), mode="area")
    box_target, point_target = target[: len(for_boxes)], target[len(for_boxes) :]
    prompts = (
        sam.prompt_encoder(points=None, boxes=boxes, masks=None),
        sam.prompt_encoder(points=(points, labels), boxes=None, masks=None),
    )
    (box_logits, box_iou), (point_logits, point_iou) = (
        sam.mask_decoder.predict_masks(embedding[None], sam.prompt_encoder.get_dense_pe(), *prompt)
        for prompt in prompts
    )
    # Of the decoder's four masks the first answers an unambiguous prompt, the other three are meanings of a point.
    box_logits, box_iou = box_logits[:, :1], box_iou[:, :1]
    point_target = point_target.expand_as(point_logits)
    meanings = mask_losses(point_logits, point_target)
    losses = [mask_losses(box_logits, box_target), meanings[:, :1], meanings[:, 1:].min(1, keepdim=True).values]
    with torch.no_grad():
        true_iou = mask_agreement(box_logits, box_target), mask_agreement(point_logits, point_target)
    errors = [F.mse_loss(box_iou, true_iou[0]), F.mse_loss(point_iou, true_iou[1])]
    return torch.stack([values.mean() for values in losses]).sum() + torch.stack(errors).sum()


def batch_loss(sam: Sam, pool: Pool, rng: np.random.Generator, count: int) -> Tensor:
    """Draw `count` scenes, each mirrored with probability 0.5, and return their mean loss, a scalar."""
    chosen = rng.choice(len(pool.images), count, replace=False)
    mirrored = rng.random(count) < 0.5
    owners = [pool.owners[i][:, ::-1] if flip else pool.owners[i] for i, flip in zip(chosen, mirrored, strict=True)]
    images = [pool.images[i][:, ::-1] if flip else pool.images[i] for i, flip in zip(chosen, mirrored, strict=True)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    pixels += torch.from_numpy(rng.normal(0, 2, pixels.shape).astype(np.float32))
    embeddings = sam.image_encoder(sam.preprocess(pixels))
    counts = (pool.kinds[chosen, :, 0] != NO_OBJECT).sum(axis=1)
    losses = [
        picture_loss(sam, embedding, np.ascontiguousarray(owner), int(objects), rng)
        for embedding, owner, objects in zip(embeddings, owners, counts, strict=True)
    ]
    return torch.stack(losses).mean()


def evaluate(sam: Sam, count: int = 64) -> float:
    """Mean IoU of masks prompted by the true boxes, over all objects of `count` held-out scenes."""
    sam.eval()
    found = []
    for scene in map(held_out_scene, range(count)):
        truths = [thing.mask for thing in scene.objects]
        (masks,) = segment_boxes(sam, [scene.image], [[Mask.from_array(truth).bbox for truth in truths]])
        found += [intersection_over_union(mask.to_array(), truth) for mask, truth in zip(masks, truths, strict=True)]
    sam.train()
    return float(np.mean(found))


def refine(coarse: dict[str, Tensor], sam: Sam) -> None:
    """Load weights of a SAM whose patches are twice as large into `sam`.

    A pixel of a patch gets the summed weight of the four pixels that it replaces; embeddings of positions and of
    distances are interpolated.

    Args:
        coarse: state dict of the coarse model.
        sam: the fine model.
    """
    weights = sam.state_dict()
    for name, value in weights.items():
        old = coarse[name]
        if name.endswith("patch_embed.proj.weight"):
            old = 4 * F.interpolate(old, value.shape[2:], mode="area")
        elif name.endswith("pos_embed"):
            old = F.interpolate(old.permute(0, 3, 1, 2), value.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        elif "rel_pos" in name:
            # One row per distance in patches, from -(n - 1) to n - 1: with smaller patches twice as many, and one more.
            rows = F.interpolate(old.T[None], 2 * len(old) - 1, mode="linear", align_corners=True)
            rows = F.pad(rows, (1, 1), mode="replicate")[0].T
            surplus = (len(rows) - len(value)) // 2
            old = rows[surplus : surplus + len(value)]
        weights[name] = old
    sam.load_state_dict(weights)


def train(
    output: Output,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a trained coarse SAM to start from; the result is a fine one.")
    ] = None,
    steps: Steps = 6000,
    scenes: Scenes = 10000,
    batch: Batch = 8,
    peak: Peak = 8e-4,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Train a small SAM on sample scenes and save it."""
    torch.manual_seed(seed)
    pool = render_pool(scenes)
    shape = FINE if start else COARSE
    sam = new_sam(shape).train()
    if start:
        refine(load_sam(start).state_dict(), sam)

    def loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            return batch_loss(sam, pool, rng, batch), {}

    settings = Settings(steps, peak, warmup=250, weight_decay=0.02, max_norm=1.0, seed=seed)
    fit(sam, loss, settings, evaluate=lambda _: {"IoU by boxes": evaluate(sam)}, every=250, checkpoint=checkpoint)
    save_sam(sam, shape, output)


if __name__ == "__main__":
    typer.run(train)
