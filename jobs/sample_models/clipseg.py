"""Train the sample CLIPSeg: a small `CLIPSegForImageSegmentation` on sample scenes, from nothing, on a CPU.

    python -m jobs.sample_models.clipseg --output transforms/models/sample/clipseg

The published one is a decoder on a frozen CLIP. Here nothing exists to be frozen, so all of it learns at once: its
towers, which transformers runs without gradients, are called one by one. Each step shows some pictures and asks
several phrases of each, true ones and some with nothing to see in it; the right answer is the union of the objects
that a phrase is true of. A linear probe on the vision tower's patches, thrown away afterwards, asks of each patch how
much of which noun, colour and texture is in it: that is learnt fast, and the rest builds on it.
"""

import math
from collections.abc import Sequence
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

from jobs.sample_models.clip import NOTHING
from jobs.sample_models.segmenter import HELD_OUT, TRAINING
from transforms.models.clipseg import ClipSeg, find_heatmaps
from transforms.scenes import make_scene
from transforms.scenes.grammar import ENDINGS, NUMBERS, PLURALS, Group, describe
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.shapes import NOUNS

SIDE, PATCH = 128, 16
"""Side of the pictures and of the patches in pixels."""
STORED = 192
"""Side of the rendered scenes, of which the pictures are parts."""
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
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    decoder = model.decoder
    for part in decoder.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            part.reset_parameters()  # transformers draws these with a spread of 1: the first steps would kill them
    with torch.no_grad():
        decoder.film_mul.weight.mul_(0.1)
        decoder.film_mul.bias.fill_(1)  # at first all texts let the picture pass
        decoder.film_add.weight.mul_(0.1)
        decoder.transposed_convolution[-1].bias.fill_(-2)  # most of a picture is not what is asked for
    return model


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
    alphas = np.stack([_small(thing.alpha, STORED) for thing in scene.objects])
    kinds = np.full((OBJECTS, 3), 255, np.uint8)
    for j, thing in enumerate(scene.objects):
        kinds[j] = [names.index(v) for names, v in zip(KINDS, (thing.noun, thing.color, thing.texture), strict=True)]
    shares = alphas.max(axis=0)
    owners = np.where(shares > 0, alphas.argmax(axis=0) + 1, 0).astype(np.uint8)
    return _small(scene.image, STORED), owners, shares, kinds


def _small(
    picture: NDArray[np.uint8], side: int, how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), how))


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


def draw_window(rng: np.random.Generator, owner: NDArray[np.uint8], whole: float) -> tuple[slice, slice]:
    """Draw rows and columns of a square part of a scene: about one of its objects, or, with probability `whole`, all.

    `owner` is [S, S]. What is shown large is learnt first.
    """
    things = np.setdiff1d(owner, 0)
    if rng.random() < whole or not len(things):
        return slice(0, STORED), slice(0, STORED)
    rows, columns = np.nonzero(owner == rng.choice(things))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    side = int(min(STORED, max(24, extent * rng.uniform(1.1, 3))))
    middle = [(v.min() + v.max()) / 2 + rng.uniform(-0.2, 0.2) * extent for v in (rows, columns)]
    top, left = (int(np.clip(m - side / 2, 0, STORED - side)) for m in middle)
    return slice(top, top + side), slice(left, left + side)


def draw_batch(pool: Pool, rng: np.random.Generator, count: int, phrases: int, whole: float) -> dict[str, Any]:
    """Draw `count` parts of scenes (`draw_window`), mirrored at random, and `phrases` phrases for each.

    Returns:
        pixels [B, 3, S, S] float32 in [0, 1]; texts, B x P in the order of the pictures; masks [B * P, S, S] float32
        in [0, 1]; objects [B, S, S] float32, how much of a pixel any object covers; patches [B, C, S / 16, S / 16]
        float32, how much of each patch shows which noun, colour, texture.
    """
    images, texts, masks, objects, patches = [], [], [], [], []
    for index in rng.integers(0, len(pool.images), count):
        kinds, window = pool.kinds[index], draw_window(rng, pool.owners[index], whole)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        image, owner, share = (a[index][window][:, flip] for a in (pool.images, pool.owners, pool.shares))
        owner = _small(owner, SIDE, Image.Resampling.NEAREST)
        share = _small(share, SIDE).astype(np.float32) / np.float32(255)
        for _ in range(phrases):
            phrase, told = draw_phrase(rng, kinds)
            texts.append(phrase)
            masks.append(share * np.isin(owner, 1 + np.flatnonzero(true_objects(told, kinds))))
        images.append(_small(image, SIDE))
        objects.append(share)
        patches.append(_patches(kinds, owner, share))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    noise = torch.from_numpy(rng.normal(0, 0.01, pixels.shape).astype(np.float32))
    return {
        "pixels": pixels + noise,
        "texts": texts,
        "masks": torch.from_numpy(np.stack(masks)) if masks else None,
        "objects": torch.from_numpy(np.stack(objects)),
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


def see(model: CLIPSegForImageSegmentation, pixels: torch.Tensor) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """Run the vision tower with gradients: its hidden states, and patch features [B, 128, S / 8, S / 8]."""
    seen = model.clip.vision_model((pixels - MEAN) / STD, output_hidden_states=True)
    grid = SIDE // PATCH
    return seen.hidden_states, seen.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))


def decode(
    model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, texts: list[str], states: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Run text tower and decoder with gradients: logits [B * P, S, S]."""
    words = processor(text=texts, padding=True, return_tensors="pt")
    meanings = model.clip.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    phrases = len(texts) // len(states[0])
    layers = [states[i + 1].repeat_interleave(phrases, dim=0) for i in model.extract_layers]
    return model.decoder(layers, meanings).logits


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy and soft Dice of logits [N, S, S] and masks [N, S, S] in [0, 1]."""
    shown = logits.sigmoid()
    both = (shown * masks).sum((1, 2))
    dice = 1 - (2 * both + 1) / (shown.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) * 5 + dice.mean()


def patch_loss(guessed: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Ask of each patch what it shows: `guessed` is [B, C + 16 * 16, h, w], logits.

    Cross-entropy of noun, colour and texture over the patches that an object covers by a third or more, and binary
    cross-entropy of object and background for each pixel.
    """
    patches = batch["patches"]
    covered = patches[:, : len(NOUNS)].sum(dim=1)
    covered = covered * (covered > 1 / 3)
    pixels = F.pixel_unshuffle(batch["objects"][:, None], PATCH)
    total = 3 * F.binary_cross_entropy_with_logits(guessed[:, patches.shape[1] :], pixels)
    start = 0
    for names in KINDS:
        logits, shares = (a[:, start : start + len(names)] for a in (guessed, patches))
        right = shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)
        total = total - ((right * logits.log_softmax(dim=1)).sum(dim=1) * covered).sum() / covered.sum().clamp(min=1)
        start += len(names)
    return total


def noun_accuracy(guessed: torch.Tensor, patches: torch.Tensor) -> float:
    """Share of the patches inside an object whose noun gets the highest of the logits [B, C, h, w]."""
    nouns = patches[:, : len(NOUNS)]
    inside = nouns.amax(dim=1) > 0.5
    right = guessed[:, : len(NOUNS)].argmax(dim=1) == nouns.argmax(dim=1)
    return right[inside].float().mean().item()


def evaluate(model: CLIPSegForImageSegmentation, count: int = 64) -> dict[str, float]:
    """Mean IoU of phrases and their objects on `count` held-out scenes, as the recipe runs the model."""
    clipseg = ClipSeg(model.eval(), new_processor(), "cpu")
    overlaps = []
    for index in range(count):
        scene = make_scene(np.random.default_rng([HELD_OUT, index]))
        named = sorted({thing.phrase for thing in scene.objects if thing.phrase})
        (maps,) = find_heatmaps(clipseg, [scene.image], [[scene.caption[a:b] for a, b in named]])
        for span, one in zip(named, maps, strict=True):
            truth = np.any([thing.mask for thing in scene.objects if thing.phrase == span], axis=0)
            found = np.asarray(Image.fromarray(one).resize(truth.shape[::-1], Image.Resampling.BILINEAR)) >= 0.5
            overlaps.append((found & truth).sum() / (found | truth).sum())
    model.train()
    return {"iou": float(np.mean(overlaps)), "above 0.5": float(np.mean(np.array(overlaps) > 0.5))}


def train(
    output: Annotated[Path, typer.Option(help="Folder that receives config, weights and processor.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 8000,
    towers: Annotated[int, typer.Option(help="Of these, the first ones that train the vision tower alone.")] = 4000,
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
    probe = torch.nn.Conv2d(model.config.vision_config.hidden_size, sum(map(len, KINDS)) + PATCH * PATCH, 1)
    both = torch.nn.ModuleList([model, probe])
    tower = [*probe.parameters(), *model.clip.vision_model.parameters()]
    late = [*model.clip.text_model.parameters(), *model.clip.text_projection.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW([{"params": tower}, {"params": late}], lr=peak, weight_decay=0.02)
    begin = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]
    for step in range(begin, steps):
        for group, start in zip(optimizer.param_groups, (0, towers), strict=True):
            warm = min(1.0, max(0, step + 1 - start) / 200)
            group["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = np.random.default_rng([seed, step])
        alone = step < towers
        inputs = draw_batch(pool, rng, 2 * batch if alone else batch, 0 if alone else phrases, 0 if alone else 0.5)
        states, features = see(model, inputs["pixels"])
        guessed = probe(features)
        patches = patch_loss(guessed, inputs)
        masks = torch.zeros(())
        if not alone:
            masks = mask_loss(decode(model, processor, inputs["texts"], states), inputs["masks"])
        optimizer.zero_grad()
        (2 * masks + patches).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            nouns = noun_accuracy(guessed, inputs["patches"])
            print(f"step {step}  masks {masks.item():.3f}  patches {patches.item():.3f}  nouns {nouns:.2f}", flush=True)
        if (step + 1) % 500 == 0 and step >= towers:
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
