"""Train the sample CLIPSeg: a small `CLIPSegForImageSegmentation` on sample scenes, from nothing, on a CPU.

    python -m jobs.train_clipseg --output transforms/models/sample/clipseg

The published one is a decoder on a frozen CLIP. Here nothing exists to be frozen, so all of it learns at once: its
towers, which transformers runs without gradients, are called one by one. Each step shows some pictures and asks
several phrases of each, true ones and some with nothing to see in it; the right answer is the union of the objects
that a phrase is true of. A linear probe on the vision tower's patches, thrown away afterwards, asks of each patch how
much of which noun, colour and texture is in it: that is learnt fast, and the rest builds on it.
"""

import math
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTImageProcessor,
)

from jobs.train_clip import NOTHING
from jobs.train_segmenter import HELD_OUT, TRAINING
from transforms.models.clipseg import ClipSeg, find_texts
from transforms.scenes import make_scene
from transforms.scenes.grammar import ENDINGS, NUMBERS, PLURALS, Group, describe
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.shapes import NOUNS

SIDE, PATCH = 128, 8
"""Side of the pictures and of the patches in pixels."""
MEAN, STD = 0.5, 0.25
OBJECTS = 5
KINDS = (NOUNS, tuple(COLORS), TEXTURES)
ABSENT, EMPTY = 0.12, 0.03
"""Share of the phrases that are true of nothing in the picture, and of those that name nothing to be seen."""

Told = tuple[str | None, str | None, str | None]
"""Noun, colour and texture that a phrase tells, None where it does not."""


@dataclass(frozen=True)
class Pool:
    """Rendered scenes.

    images [N, S, S, 3] uint8; owners [N, S, S] uint8, the object (0: none, else index + 1) that shows most in a pixel;
    shares [N, S, S] uint8, how much of the pixel it covers; kinds [N, 5, 3] uint8, indices into `KINDS`, 255 for none.
    """

    images: NDArray[np.uint8]
    owners: NDArray[np.uint8]
    shares: NDArray[np.uint8]
    kinds: NDArray[np.uint8]


def new_model() -> CLIPSegForImageSegmentation:
    """Build the untrained model: 1.2 million parameters."""
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 24, "vocab_size": len(new_tokenizer()),
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    config = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=64,
        extract_layers=[1, 2, 3],
        reduce_dim=64,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
    )
    return CLIPSegForImageSegmentation(config)


def new_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer of some five hundred tokens: each word of the scenes' captions is one of them."""
    plurals = (PLURALS.get(noun, f"{noun}s") for noun in NOUNS)
    words = [*NOUNS, *COLORS, *TEXTURES, *NUMBERS.values(), *plurals, *" ".join(ENDINGS).split()]
    words += ["a", "an", "the", "one", "small", "little", "large", "big"]
    return CLIPTokenizer().train_new_from_iterator([[" ".join(words)]], vocab_size=4000)


def new_processor() -> CLIPSegProcessor:
    """Build the processor: every picture is resized to `SIDE` x `SIDE` pixels."""
    images = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 24
    return CLIPSegProcessor(images, tokenizer)


def render_pool(count: int) -> Pool:
    """Render the first `count` training scenes, on all cores."""
    with get_context("fork").Pool() as workers:
        scenes = workers.map(_render, range(count), chunksize=64)
    return Pool(*(np.stack(arrays) for arrays in zip(*scenes, strict=True)))


def _render(index: int) -> tuple[NDArray[np.uint8], ...]:
    scene = make_scene(np.random.default_rng([TRAINING, index]))
    alphas = np.stack([_small(thing.alpha) for thing in scene.objects])
    kinds = np.full((OBJECTS, 3), 255, np.uint8)
    for j, thing in enumerate(scene.objects):
        kinds[j] = [names.index(v) for names, v in zip(KINDS, (thing.noun, thing.color, thing.texture), strict=True)]
    shares = alphas.max(axis=0)
    owners = np.where(shares > 0, alphas.argmax(axis=0) + 1, 0).astype(np.uint8)
    return _small(scene.image), owners, shares, kinds


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def draw_phrase(rng: np.random.Generator, kinds: NDArray[np.uint8]) -> tuple[str, Told]:
    """Write a phrase for a scene whose objects are `kinds` [5, 3]; return it and what it tells."""
    chance = rng.random()
    if chance < EMPTY:
        return str(rng.choice(NOTHING)), (None, None, None)
    present = kinds[kinds[:, 0] != 255]
    kind = [names[i] for names, i in zip(KINDS, present[rng.integers(len(present))], strict=True)]
    if chance < EMPTY + ABSENT:  # near misses teach the most: one word of a true phrase is another
        changed = int(rng.choice(3, p=(0.45, 0.45, 0.1)))
        kind[changed] = str(rng.choice(KINDS[changed]))
    count = int(rng.choice((1, 2, 3), p=(0.8, 0.12, 0.08)))
    group = Group(kind[0], kind[1], kind[2], count, (0.5, 0.5), float(rng.uniform(0.2, 0.5)))
    phrase = describe(rng, group, needs_color=False)
    words = phrase.split()
    return phrase, (kind[0], kind[1] if kind[1] in words else None, kind[2] if kind[2] in words else None)


def true_objects(told: Told, kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which objects of a scene, `kinds` [5, 3], a phrase is true of: [5] bool; none where it tells no noun."""
    fits = (kinds[:, 0] != 255) & (told[0] is not None)
    for column, (names, value) in enumerate(zip(KINDS, told, strict=True)):
        if value is not None:
            fits &= kinds[:, column] == names.index(value)
    return fits


def draw_batch(pool: Pool, rng: np.random.Generator, count: int, phrases: int) -> dict[str, Any]:
    """Draw `count` scenes, mirrored at random, and `phrases` phrases for each.

    Returns:
        pixels [B, 3, S, S] float32 in [0, 1]; texts, B x P in the order of the pictures; masks [B * P, S, S] float32
        in [0, 1]; patches [B, C, S / 8, S / 8] float32, how much of each patch shows which noun, colour, texture.
    """
    chosen = rng.choice(len(pool.images), count, replace=False)
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    images, owners, shares = (array[chosen][:, :, flip] for array in (pool.images, pool.owners, pool.shares))
    cover = shares.astype(np.float32) / 255
    texts, masks, patches = [], [], []
    for kinds, owner, share in zip(pool.kinds[chosen], owners, cover, strict=True):
        for _ in range(phrases):
            phrase, told = draw_phrase(rng, kinds)
            texts.append(phrase)
            masks.append(share * np.isin(owner, 1 + np.flatnonzero(true_objects(told, kinds))))
        patches.append(_patches(kinds, owner, share))
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    noise = torch.from_numpy(rng.normal(0, 0.01, pixels.shape).astype(np.float32))
    return {
        "pixels": pixels + noise,
        "texts": texts,
        "masks": torch.from_numpy(np.stack(masks)),
        "patches": F.avg_pool2d(torch.from_numpy(np.stack(patches)), PATCH),
    }


def _patches(kinds: NDArray[np.uint8], owner: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Paint what each pixel shows: [nouns + colours + textures, S, S] float32, its share in [0, 1]."""
    painted = np.zeros((sum(map(len, KINDS)), *owner.shape), np.float32)
    for j, kind in enumerate(kinds[kinds[:, 0] != 255]):
        start = 0
        for names, value in zip(KINDS, kind, strict=True):
            painted[start + value][owner == j + 1] = share[owner == j + 1]
            start += len(names)
    return painted


def run(
    model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, batch: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run model and towers with gradients: logits [B * P, S, S] and patch features [B, 128, S / 8, S / 8]."""
    words = processor(text=batch["texts"], padding=True, return_tensors="pt")
    seen = model.clip.vision_model((batch["pixels"] - MEAN) / STD, output_hidden_states=True)
    meanings = model.clip.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    phrases = len(batch["texts"]) // len(batch["pixels"])
    layers = [seen.hidden_states[i + 1].repeat_interleave(phrases, dim=0) for i in model.extract_layers]
    grid = SIDE // PATCH
    features = seen.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    return model.decoder(layers, meanings).logits, features


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy and soft Dice of logits [N, S, S] and masks [N, S, S] in [0, 1]."""
    shown = logits.sigmoid()
    both = (shown * masks).sum((1, 2))
    dice = 1 - (2 * both + 1) / (shown.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) * 5 + dice.mean()


def evaluate(model: CLIPSegForImageSegmentation, count: int = 64) -> dict[str, float]:
    """Mean IoU of phrases and their objects on `count` held-out scenes, as the recipe runs the model."""
    clipseg = ClipSeg(model.eval(), new_processor(), "cpu")
    overlaps = []
    for index in range(count):
        scene = make_scene(np.random.default_rng([HELD_OUT, index]))
        named = sorted({thing.phrase for thing in scene.objects if thing.phrase})
        (maps,) = find_texts(clipseg, [scene.image], [[scene.caption[a:b] for a, b in named]])
        for span, one in zip(named, maps, strict=True):
            truth = np.any([thing.mask for thing in scene.objects if thing.phrase == span], axis=0)
            found = np.asarray(Image.fromarray(one).resize(truth.shape[::-1], Image.Resampling.BILINEAR)) >= 0.5
            overlaps.append((found & truth).sum() / (found | truth).sum())
    model.train()
    return {"iou": float(np.mean(overlaps)), "above 0.5": float(np.mean(np.array(overlaps) > 0.5))}


def train(
    output: Annotated[Path, typer.Option(help="Folder that receives config, weights and processor.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 8000,
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 12000,
    batch: Annotated[int, typer.Option(help="Scenes in a step.")] = 16,
    phrases: Annotated[int, typer.Option(help="Phrases asked of each.")] = 3,
    peak: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File to resume from and to write every 500 steps.")] = None,
) -> None:
    """Train a small CLIPSeg on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    pool, processor = render_pool(scenes), new_processor()
    model = new_model().train()
    probe = torch.nn.Conv2d(model.config.vision_config.hidden_size, sum(map(len, KINDS)), 1)
    both = torch.nn.ModuleList([model, probe])
    optimizer = torch.optim.AdamW(both.parameters(), lr=peak, weight_decay=0.02)
    start = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, steps):
        warm = min(1.0, (step + 1) / 200)
        optimizer.param_groups[0]["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        inputs = draw_batch(pool, np.random.default_rng([seed, step]), batch, phrases)
        logits, features = run(model, processor, inputs)
        masks = mask_loss(logits, inputs["masks"])
        patches = F.binary_cross_entropy_with_logits(probe(features), inputs["patches"])
        optimizer.zero_grad()
        (masks + 10 * patches).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}  masks {masks.item():.3f}  patches {patches.item():.4f}", flush=True)
        if (step + 1) % 500 == 0:
            if checkpoint:
                state = {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            print(f"step {step + 1}  {evaluate(model)}", flush=True)
    save(model, output)


def save(model: CLIPSegForImageSegmentation, output: Path) -> None:
    """Write config, processor and weights; half the size, they are loaded in single precision."""
    model.half().save_pretrained(output)
    new_processor().save_pretrained(output)


if __name__ == "__main__":
    typer.run(train)
