"""Train the sample SAM: a small model of segment-anything's classes, on sample scenes, from nothing, on a CPU.

    python -m jobs.sample_models.sam --output COARSE
    python -m jobs.sample_models.sam --start COARSE --steps 2000 --peak 6e-4 --output transforms/models/sample/sam

The first has patches of 16 pixels, which are cheap; the second begins with what it learnt and has patches of 8: four
times as many, for what is thin or small.

As in Kirillov et al., "Segment Anything" (2023), section 3 and appendix A: focal loss and dice in the proportion 20
to 1; a point may mean several things, so of its three masks only the best one learns; a box means one thing, and so
does its mask; the predicted IoU learns by squared error. Prompts are boxes of the truth, each side moved by up to a
twenty-fifth of their size, and points in the objects or in what is behind them. There is no second round of clicks.
"""

from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from jobs.sample_models.metrics import intersection_over_union
from jobs.sample_models.segmenter import HELD_OUT, TRAINING, learning_rate
from schemas.masks import Mask
from transforms.models.sam import REFINED, SamShape, load_sam, new_sam, save_sam, segment_boxes
from transforms.scenes import make_scene

SIDE = 256
COARSE, FINE = SamShape(SIDE, patch=16), SamShape(SIDE, patch=8, window=8)
PROMPTS = 4
"""Boxes of a picture in a step, and as many points."""
MOVED = 0.04
"""Most that a side of a box is off, as a share of the box's: about what a detector's are."""


@dataclass(frozen=True)
class Pool:
    """Rendered scenes: images [N, S, S, 3] uint8; owners [N, S, S] uint8, 0 or object + 1; counts [N] of objects."""

    images: NDArray[np.uint8]
    owners: NDArray[np.uint8]
    counts: NDArray[np.int64]


def render_pool(count: int) -> Pool:
    """Render the first `count` training scenes, on all cores."""
    with get_context("fork").Pool() as workers:
        scenes = workers.map(_render, range(count), chunksize=64)
    return Pool(*(np.stack(arrays) for arrays in zip(*scenes, strict=True)))


def _render(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    scene = make_scene(np.random.default_rng([TRAINING, index]), SIDE)
    owners = np.zeros(scene.image.shape[:2], np.uint8)
    for j, thing in enumerate(scene.objects):
        owners[thing.mask] = j + 1
    return scene.image, owners, len(scene.objects)


def draw_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Frame `mask` [S, S], each side moved by up to `MOVED` of the box's: corners [4] float32."""
    x, y, w, h = Mask.from_array(mask).bbox
    moved = np.array([x, y, x + w, y + h]) + rng.uniform(-MOVED, MOVED, 4) * [w, h, w, h]
    return np.clip(moved, 0, SIDE).astype(np.float32)


def draw_point(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Choose a pixel of `mask` [S, S]: [2] float32, (x, y)."""
    places = np.flatnonzero(mask)
    y, x = divmod(int(rng.choice(places)), mask.shape[1])
    return np.array([x + 0.5, y + 0.5], np.float32)


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss times 20 and dice of masks [..., h, w], float32; the target in [0, 1]: [...]."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    balance = 0.25 * target + 0.75 * (1 - target)
    focal = (balance * (1 - right) ** 2 * entropy).mean((-2, -1))
    shared = (probability * target).sum((-2, -1))
    dice = 1 - (2 * shared + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 20 * focal + dice


def mask_agreement(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of masks [..., h, w], both cut at one half: [...] float32."""
    one, other = logits > 0, target > 0.5
    return (one & other).sum((-2, -1)) / (one | other).sum((-2, -1)).clamp(min=1)


def picture_loss(
    sam: Sam, embedding: Tensor, owners: NDArray[np.uint8], count: int, rng: np.random.Generator
) -> Tensor:
    """Prompt one picture with boxes and points, and compare the masks: a scalar.

    Args:
        sam: the model.
        embedding: of the picture, [C, g, g] float32.
        owners: [S, S] uint8, 0 or object + 1.
        count: of its objects.
        rng: draws the prompts.
    """
    framed = [owners == j for j in rng.permutation(count)[:PROMPTS] + 1]
    pointed = [owners == j for j in rng.permutation(count + 1)[:PROMPTS]]
    framed, pointed = [m for m in framed if m.any()], [m for m in pointed if m.any()]
    boxes = torch.from_numpy(np.stack([draw_box(mask, rng) for mask in framed]))
    points = torch.from_numpy(np.stack([draw_point(mask, rng) for mask in pointed]))[:, None]
    labels = torch.ones(points.shape[:2], dtype=torch.int)
    side = embedding.shape[-1] * REFINED
    target = torch.from_numpy(np.stack([*framed, *pointed])).float()[:, None]
    target = F.interpolate(target, (side, side), mode="area")
    asked = [sam.prompt_encoder(points=None, boxes=boxes, masks=None)]
    asked.append(sam.prompt_encoder(points=(points, labels), boxes=None, masks=None))
    answers = [
        sam.mask_decoder.predict_masks(embedding[None], sam.prompt_encoder.get_dense_pe(), *prompts)
        for prompts in asked
    ]
    by_box, by_point = answers
    losses = [mask_losses(by_box[0][:, :1], target[: len(framed)])]
    several = mask_losses(by_point[0], target[len(framed) :].expand_as(by_point[0]))
    losses += [several[:, :1], several[:, 1:].min(1, keepdim=True).values]
    guesses = [by_box[1][:, :1], by_point[1]]
    with torch.no_grad():
        truths = [
            mask_agreement(by_box[0][:, :1], target[: len(framed)]),
            mask_agreement(by_point[0], target[len(framed) :].expand_as(by_point[0])),
        ]
    errors = [F.mse_loss(guess, truth) for guess, truth in zip(guesses, truths, strict=True)]
    return torch.stack([one.mean() for one in losses]).sum() + torch.stack(errors).sum()


def batch_loss(sam: Sam, pool: Pool, rng: np.random.Generator, count: int) -> Tensor:
    """Draw `count` scenes, mirrored at random, and return their mean loss, a scalar."""
    chosen = rng.choice(len(pool.images), count, replace=False)
    mirrored = rng.random(count) < 0.5
    owners = [pool.owners[i][:, ::-1] if flip else pool.owners[i] for i, flip in zip(chosen, mirrored, strict=True)]
    images = [pool.images[i][:, ::-1] if flip else pool.images[i] for i, flip in zip(chosen, mirrored, strict=True)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    pixels += torch.from_numpy(rng.normal(0, 2, pixels.shape).astype(np.float32))
    embeddings = sam.image_encoder(sam.preprocess(pixels))
    counts = pool.counts[chosen]
    losses = [
        picture_loss(sam, embedding, np.ascontiguousarray(owner), int(objects), rng)
        for embedding, owner, objects in zip(embeddings, owners, counts, strict=True)
    ]
    return torch.stack(losses).mean()


def evaluate(sam: Sam, stream: int = HELD_OUT, count: int = 64) -> float:
    """Return the mean IoU of masks prompted by the true boxes, over all objects of `count` unseen scenes."""
    sam.eval()
    found = []
    for index in range(count):
        scene = make_scene(np.random.default_rng([stream, index]))
        truths = [thing.mask for thing in scene.objects]
        masks = segment_boxes(sam, scene.image, [Mask.from_array(truth).bbox for truth in truths])
        found += [intersection_over_union(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    sam.train()
    return float(np.mean(found))


def refine(known: dict[str, Tensor], sam: Sam) -> None:
    """Begin `sam` with the weights of one whose patches are twice as large.

    A patch's pixels weigh as the four did that they stand for; what the other knew of places and distances is
    looked up between them.
    """
    weights = sam.state_dict()
    for name, value in weights.items():
        old = known[name]
        if name.endswith("patch_embed.proj.weight"):
            old = 4 * F.interpolate(old, value.shape[2:], mode="area")
        elif name.endswith("pos_embed"):
            old = F.interpolate(old.permute(0, 3, 1, 2), value.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        elif "rel_pos" in name:
            # Distances are counted in patches, from the farthest back to the farthest on: twice as many, and one more.
            every = F.interpolate(old.T[None], 2 * len(old) - 1, mode="linear", align_corners=True)
            every = F.pad(every, (1, 1), mode="replicate")[0].T
            beyond = (len(every) - len(value)) // 2
            old = every[beyond : beyond + len(value)]
        weights[name] = old
    sam.load_state_dict(weights)


def train(
    output: Annotated[Path, typer.Option(help="Folder that receives config and weights.")],
    start: Annotated[Path | None, typer.Option(help="A coarse SAM to begin with: the result is a fine one.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 6000,
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 10000,
    batch: Annotated[int, typer.Option(help="Scenes in a step.")] = 8,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File to resume from and to write every 250 steps.")] = None,
) -> None:
    """Train a small SAM on sample scenes and save it."""
    torch.manual_seed(seed)
    pool = render_pool(scenes)
    shape = FINE if start else COARSE
    sam = new_sam(shape).train()
    if start:
        refine(load_sam(start).state_dict(), sam)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=peak, weight_decay=0.02)
    done = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        sam.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    for step in range(done, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak, warmup=250)
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(sam, pool, np.random.default_rng([seed, step]), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)
        if (step + 1) % 250 == 0:
            if checkpoint:
                state = {"model": sam.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            print(f"step {step + 1}  IoU by boxes {evaluate(sam):.3f}", flush=True)
    save_sam(sam, shape, output)


if __name__ == "__main__":
    typer.run(train)
