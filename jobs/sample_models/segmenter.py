"""Train the sample segmenter: a small Mask2Former, from scratch on sample scenes, on a CPU.

    python -m jobs.sample_models.segmenter --output transforms/models/sample/segmenter

On one core a step takes half a second at 128 pixels and one at 192. Two things make so short a training possible:
- Most steps see pictures of 128 x 128 pixels; only the last ones, which sharpen edges, see 192 x 192.
- A linear probe on the features of the pixel decoder, discarded afterwards, predicts the noun of each pixel's object
  and where that object's centre lies. The first steps train with it alone, which is cheap; all others add the queries'
  loss. The centre tells two objects of one noun apart: without it the features do not depend on where in the picture
  they are (deformable attention gives positions to its queries, never to its values), and twins become one segment.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.metrics import panoptic_quality
from jobs.sample_models.pools import NO_OBJECT, Pool, held_out_scene, render_pool
from transforms.models.segmenter import Segmenter, segment_images
from transforms.scenes.shapes import NOUNS

SIZES = (128, 192)
"""Side of a picture in pixels in the first and in the last part of the training."""
WIDTH = 64
"""Channels of the features."""


def new_model() -> Mask2FormerForUniversalSegmentation:
    """Build the untrained model: 2.3 million parameters, twenty queries, one class per noun."""
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
        # The usual 0.1 is for a hundred queries. A sixth of these find an object, and twins must be separated.
        no_object_weight=0.25,
        train_num_points=2048,
        id2label=dict(enumerate(NOUNS)),
        label2id={noun: i for i, noun in enumerate(NOUNS)},
    )
    return Mask2FormerForUniversalSegmentation(config)


def new_processor(side: int = SIZES[-1]) -> Mask2FormerImageProcessor:
    """Build the processor that resizes every picture to `side` x `side` pixels."""
    return Mask2FormerImageProcessor(size={"height": side, "width": side}, ignore_index=255, num_labels=len(NOUNS))


def draw_batch(pool: Pool, rng: np.random.Generator, size: int, count: int) -> dict[str, Any]:
    """Draw `count` scenes, each mirrored with probability 0.5, as the model's inputs at `size` x `size` pixels.

    Scenes with two objects of one noun are drawn four times as often as others: twins are the hardest to learn.
    """
    nouns = pool.kinds[..., 0]
    ordered = np.sort(nouns, axis=1)
    twins = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_OBJECT)).any(axis=1)
    weight = np.where(twins, 4.0, 1.0)
    chosen = rng.choice(len(pool.images), count, replace=False, p=weight / weight.sum())
    images = torch.from_numpy(pool.images[chosen]).permute(0, 3, 1, 2).float() / 255
    owners = torch.from_numpy(pool.owners[chosen])
    mirrored = torch.from_numpy(rng.random(count) < 0.5)
    images[mirrored] = images[mirrored].flip(-1)
    owners[mirrored] = owners[mirrored].flip(-1)
    images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    images += torch.from_numpy(rng.normal(0, 0.01, images.shape).astype(np.float32))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    masks, classes = [], []
    for owner, of_objects in zip(owners, nouns[chosen], strict=True):
        present = np.flatnonzero(of_objects != NO_OBJECT)
        masks.append(torch.stack([owner == int(j) + 1 for j in present]).float())
        classes.append(torch.from_numpy(of_objects[present].astype(np.int64)))
    return {
        "pixel_values": (images - mean) / std,
        "mask_labels": [F.interpolate(m[None], (size, size), mode="area")[0] for m in masks],
        "class_labels": classes,
    }


def pixel_targets(masks: Sequence[torch.Tensor], classes: Sequence[torch.Tensor], side: int) -> torch.Tensor:
    """Target of the probe: [B, 3, side, side] float32, noun + 1 (0 for background) and centre of each pixel's object.

    The centre is the mean (y, x) of the object's visible pixels, from -1 (top, left) to 1.

    Args:
        masks: for each picture its objects, [N, S, S] float32 in [0, 1].
        classes: for each picture the nouns of its objects, [N] int64.
        side: height and width of the features.
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
    """Cross-entropy of each pixel's noun plus L1 error of its object's centre, from features [B, C, h, w] float32."""
    target = pixel_targets(batch["mask_labels"], batch["class_labels"], features.shape[-1])
    answer = probe(features)
    noun = target[:, 0].long()
    weight = torch.ones(len(NOUNS) + 1)
    weight[0] = 0.1  # most pixels are background
    inside = (noun > 0).float()[:, None]
    centre = (inside * (answer[:, -2:] - target[:, 1:]).abs()).sum() / inside.sum().clamp(min=1)
    return F.cross_entropy(answer[:, :-2], noun, weight=weight) + centre


def evaluate(model: Mask2FormerForUniversalSegmentation, count: int = 64) -> dict[str, float]:
    """Panoptic quality on `count` held-out scenes of 256 x 256 pixels, resized by the processor."""
    segmenter = Segmenter(model.eval(), new_processor(), device="cpu", stuff=frozenset())
    pictures = []
    for scene in map(held_out_scene, range(count)):
        (segments,) = segment_images(segmenter, [scene.image])
        found = [(segment.label, segment.mask.to_array()) for segment in segments]
        pictures.append((found, [(thing.noun, thing.mask) for thing in scene.objects]))
    model.train()
    return panoptic_quality(pictures)


def train(
    output: Output,
    steps: Steps = 6700,
    pixels: Annotated[int, typer.Option(help="Number of first steps, which train the pixel decoder only.")] = 1200,
    sharp: Annotated[float, typer.Option(help="Share of the steps, the last ones, on pictures of full size.")] = 0.3,
    scenes: Scenes = 12000,
    batch: Batch = 16,
    peak: Peak = 8e-4,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Train a small Mask2Former on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    pool = render_pool(scenes)
    model = new_model().train()
    probe = torch.nn.Conv2d(WIDTH, len(NOUNS) + 1 + 2, 1)

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        size = SIZES[0] if step < steps * (1 - sharp) else SIZES[1]
        inputs = draw_batch(pool, rng, size, batch)
        if step < pixels:
            features = model.model.pixel_level_module(inputs["pixel_values"]).decoder_last_hidden_state
            queries = torch.zeros(())
        else:
            outputs = model(**inputs)
            features, queries = outputs.pixel_decoder_last_hidden_state, outputs.loss
        per_pixel = pixel_loss(probe, features, inputs)
        return queries + 10 * per_pixel, {"queries": queries.item(), "per pixel": per_pixel.item()}

    fit(
        torch.nn.ModuleList([model, probe]),
        loss,
        Settings(steps, peak, warmup=200, weight_decay=0.02, max_norm=5.0, seed=seed),
        evaluate=lambda done: evaluate(model) if done > pixels else {},
        checkpoint=checkpoint,
    )
    model.half().save_pretrained(output)  # half the size; it is loaded in single precision
    new_processor().save_pretrained(output)


if __name__ == "__main__":
    typer.run(train)
