"""Train the sample segmenter: a small Mask2Former on sample scenes, from nothing, on a CPU.

    python -m jobs.sample_models.segmenter --output transforms/models/sample/segmenter

On one core a step takes half a second at 128 pixels and one at 192. What makes so short a training possible:
- the pictures grow: most steps see 128 x 128 pixels, the last ones 192 x 192, where edges become sharp;
- a linear probe on the pixel decoder's features, thrown away afterwards, asks of each pixel the noun of its object and
  where that object's centre lies: alone in the first steps, which are cheap, and beside the queries in all others.
  The centre is what tells two objects of one noun apart. Without it the features held no trace of where in the
  picture they lie (deformable attention tells positions to its queries, never to its values), and twins became one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from jobs.sample_models.metrics import LabelledMask, panoptic_quality
from transforms.models.segmenter import Segmenter, segment_images
from transforms.scenes import make_scene
from transforms.scenes.shapes import NOUNS

SIZES = (128, 192)
"""Side of the pictures in pixels, in the first and in the last part of the training."""
WIDTH = 64
TRAINING, HELD_OUT = 1, 2
"""Streams of scenes: no scene of one is in the other. Benchmarks take streams from 1000 on."""


@dataclass(frozen=True)
class Pool:
    """Rendered scenes: images [N, S, S, 3] uint8, maps [N, S, S] uint8 (0, or object + 1), nouns [N, 5] uint8."""

    images: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    nouns: NDArray[np.uint8]


def new_model() -> Mask2FormerForUniversalSegmentation:
    """Build the untrained model: 2.4 million parameters, twenty queries, one class a noun."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 2, 2, 2], layer_type="basic", out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=2 * WIDTH,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=4 * WIDTH,
        num_queries=20,
        dropout=0.0,
        class_weight=4.0,
        # The usual 0.1 is for a hundred queries; of these twenty a sixth find an object, and twins must be told apart.
        no_object_weight=0.25,
        train_num_points=2048,
        id2label=dict(enumerate(NOUNS)),
        label2id={noun: i for i, noun in enumerate(NOUNS)},
    )
    return Mask2FormerForUniversalSegmentation(config)


def new_processor(side: int = SIZES[-1]) -> Mask2FormerImageProcessor:
    """Build the processor that resizes every picture to `side` x `side` pixels."""
    return Mask2FormerImageProcessor(size={"height": side, "width": side}, ignore_index=255, num_labels=len(NOUNS))


def render_pool(count: int) -> Pool:
    """Render the first `count` training scenes at 256 x 256 pixels, on all cores."""
    with get_context("fork").Pool() as workers:
        scenes = workers.map(_render, range(count), chunksize=64)
    return Pool(*(np.stack(arrays) for arrays in zip(*scenes, strict=True)))


def _render(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    scene = make_scene(np.random.default_rng([TRAINING, index]))
    label_map = np.zeros(scene.image.shape[:2], np.uint8)
    nouns = np.full(5, 255, np.uint8)
    for j, thing in enumerate(scene.objects):
        label_map[thing.mask] = j + 1
        nouns[j] = NOUNS.index(thing.noun)
    return scene.image, label_map, nouns


def draw_batch(pool: Pool, rng: np.random.Generator, size: int, count: int) -> dict[str, Any]:
    """Draw `count` scenes, mirrored at random, as the model's inputs at `size` x `size` pixels.

    Scenes with two objects of one noun come four times as often as others: to tell twins apart is learnt last.
    """
    ordered = np.sort(pool.nouns, axis=1)
    twins = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 255)).any(axis=1)
    weight = np.where(twins, 4.0, 1.0)
    chosen = rng.choice(len(pool.images), count, replace=False, p=weight / weight.sum())
    images = torch.from_numpy(pool.images[chosen]).permute(0, 3, 1, 2).float() / 255
    maps = torch.from_numpy(pool.maps[chosen])
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    images[mirrored] = images[mirrored].flip(-1)
    maps[mirrored] = maps[mirrored].flip(-1)
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    images += torch.from_numpy(rng.normal(0, 0.01, images.shape).astype(np.float32))
    processor_mean, processor_std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    masks, classes = [], []
    for label_map, nouns in zip(maps, pool.nouns[chosen], strict=True):
        present = [j for j in range(5) if nouns[j] != 255]
        masks.append(torch.stack([label_map == j + 1 for j in present]).float())
        classes.append(torch.tensor([int(nouns[j]) for j in present]))
    return {
        "pixel_values": (images - processor_mean) / processor_std,
        "mask_labels": [F.interpolate(m[None], (size, size), mode="area")[0] for m in masks],
        "class_labels": classes,
    }


def pixel_targets(masks: Sequence[torch.Tensor], classes: Sequence[torch.Tensor], side: int) -> torch.Tensor:
    """What the probe is asked of each pixel: [B, 3, side, side] float32, its noun + 1 (0: none), its object's centre.

    Args:
        masks: a picture's objects, [N, S, S] float32 in [0, 1]; one picture each.
        classes: their nouns, [N] int64.
        side: of the features, in pixels.

    The centre is the mean (y, x) of the object's visible pixels, from -1 (top, left) to 1.
    """
    target = torch.zeros(len(masks), 3, side, side)
    line = torch.linspace(-1, 1, side)
    for image, objects, nouns in zip(target, masks, classes, strict=True):
        for mask, noun in zip(F.interpolate(objects[None], (side, side), mode="area")[0], nouns, strict=True):
            area = mask.sum().clamp(min=1e-6)
            centre = (mask.sum(1) @ line / area, mask.sum(0) @ line / area)
            image[:, mask > 0.5] = torch.stack([noun + 1, *centre])[:, None]
    return target


def pixel_loss(probe: torch.nn.Module, features: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Cross-entropy of each pixel's noun, and L1 of its object's centre, from features [B, C, h, w] float32."""
    target = pixel_targets(batch["mask_labels"], batch["class_labels"], features.shape[-1])
    answer = probe(features)
    noun = target[:, 0].long()
    weight = torch.ones(len(NOUNS) + 1)
    weight[0] = 0.1  # most pixels are background
    inside = (noun > 0).float()[:, None]
    centre = (inside * (answer[:, -2:] - target[:, 1:]).abs()).sum() / inside.sum().clamp(min=1)
    return F.cross_entropy(answer[:, :-2], noun, weight=weight) + centre


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Warm up over `warmup` steps, then fall to zero along a cosine."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def evaluate(model: Mask2FormerForUniversalSegmentation, count: int = 64) -> dict[str, float]:
    """Panoptic quality on `count` held-out scenes of 256 x 256 pixels, through the processor."""
    return panoptic_quality(_segment_held_out(model, count))


def _segment_held_out(
    model: Mask2FormerForUniversalSegmentation, count: int
) -> Iterator[tuple[Sequence[LabelledMask], Sequence[LabelledMask]]]:
    segmenter = Segmenter(model.eval(), new_processor(), device="cpu", stuff=frozenset())
    for index in range(count):
        scene = make_scene(np.random.default_rng([HELD_OUT, index]))
        (segments,) = segment_images(segmenter, [scene.image])
        yield [(s.label, s.mask.to_array()) for s in segments], [(thing.noun, thing.mask) for thing in scene.objects]
    model.train()


def train(
    output: Annotated[Path, typer.Option(help="Folder that receives config, weights and processor.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 6700,
    pixels: Annotated[int, typer.Option(help="Steps, the first ones, that train on pixels alone.")] = 1200,
    sharp: Annotated[float, typer.Option(help="Share of the steps, the last ones, at full size.")] = 0.3,
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 12000,
    batch: Annotated[int, typer.Option(help="Scenes in a step.")] = 16,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File to resume from and to write every 500 steps.")] = None,
) -> None:
    """Train a small Mask2Former on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    pool = render_pool(scenes)
    model = new_model().train()
    probe = torch.nn.Conv2d(WIDTH, len(NOUNS) + 1 + 2, 1)
    both = torch.nn.ModuleList([model, probe])
    optimizer = torch.optim.AdamW(both.parameters(), lr=peak, weight_decay=0.02)
    start = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        size = SIZES[0] if step < steps * (1 - sharp) else SIZES[1]
        inputs = draw_batch(pool, np.random.default_rng([seed, step]), size, batch)
        if step < pixels:
            features = model.model.pixel_level_module(inputs["pixel_values"]).decoder_last_hidden_state
            queries, per_pixel = torch.zeros(()), pixel_loss(probe, features, inputs)
        else:
            outputs = model(**inputs)
            queries = outputs.loss
            per_pixel = pixel_loss(probe, outputs.pixel_decoder_last_hidden_state, inputs)
        optimizer.zero_grad()
        (queries + 10 * per_pixel).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 5.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}  loss {queries.item():.2f}  per pixel {per_pixel.item():.3f}", flush=True)
        if (step + 1) % 500 == 0:
            if checkpoint:
                state = {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            if step >= pixels:
                print(f"step {step + 1}  {evaluate(model)}", flush=True)
    model.half().save_pretrained(output)  # half the size; it is loaded in single precision
    new_processor().save_pretrained(output)


if __name__ == "__main__":
    typer.run(train)
