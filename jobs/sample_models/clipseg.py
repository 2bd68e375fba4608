"""Train the sample CLIPSeg: a small `CLIPSegForImageSegmentation`, from scratch on sample scenes, on a CPU.

    python -m jobs.sample_models.clipseg --output transforms/models/sample/clipseg

The published model is a decoder on a frozen CLIP. Here there is no pretrained CLIP, so the towers are trained as well;
transformers runs them without gradients, hence they are called one by one. A step takes some pictures and several
phrases for each, some of them true of nothing in it; the target is the union of the objects that a phrase is true of.
A linear probe on the patches of the vision tower, discarded afterwards, predicts how much of which noun, colour and
texture a patch shows: that is learnt fast, and the decoder builds on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.metrics import intersection_over_union
from jobs.sample_models.pools import KINDS, NO_OBJECT, held_out_scene, kinds_of, map_scenes, training_scene
from transforms.models.clipseg import ClipSeg, find_heatmaps
from transforms.scenes.grammar import ENDINGS, NUMBERS, PLURALS, Group, describe
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.shapes import NOUNS

SIDE, PATCH = 128, 16
"""Side of a picture and of a patch in pixels."""
STORED = 192
"""Side in pixels of the rendered scenes, from which pictures are cropped."""
MEAN, STD = 0.5, 0.25
ABSENT, EMPTY = 0.12, 0.03
"""Share of phrases that may be true of nothing in the picture, and of those that name nothing visible."""

Stated = tuple[str | None, str | None, str | None]
"""Noun, colour and texture that a phrase states, None for what it leaves open."""


@dataclass(frozen=True)
class Pool:
    """N scenes of `STORED` x `STORED` pixels.

    Attributes:
        images: [N, S, S, 3] uint8 sRGB.
        owners: [N, S, S] uint8, index + 1 of the object that covers most of a pixel, 0 for none.
        shares: [N, S, S] uint8, how much of the pixel it covers, 255 for all.
        kinds: [N, 5, 3] uint8, as in `jobs.sample_models.pools.Pool`.
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
            part.reset_parameters()  # transformers draws them with a standard deviation of 1: too large to train
    with torch.no_grad():
        decoder.film_mul.weight.mul_(0.1)
        decoder.film_mul.bias.fill_(1)  # start with maps that no text changes
        decoder.film_add.weight.mul_(0.1)
        decoder.transposed_convolution[-1].bias.fill_(-2)  # most pixels show something else than the phrase
    return model


def new_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer of about five hundred tokens, one for each word of the scenes' captions."""
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
    images, owners, shares, kinds = zip(*map_scenes(render, count), strict=True)
    return Pool(np.stack(images), np.stack(owners), np.stack(shares), np.stack(kinds))


def render(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Render training scene `index`: its row of each array of `Pool`."""
    scene = training_scene(index)
    alphas = np.stack([_small(thing.alpha, STORED) for thing in scene.objects])
    shares = alphas.max(axis=0)
    owners = np.where(shares > 0, alphas.argmax(axis=0) + 1, 0).astype(np.uint8)
    return _small(scene.image, STORED), owners, shares, kinds_of(scene)


def _small(
    picture: NDArray[np.uint8], side: int, how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), how))


def draw_phrase(rng: np.random.Generator, kinds: NDArray[np.uint8]) -> tuple[str, Stated]:
    """Write a phrase for a scene with objects `kinds` [5, 3]; return it and what it states."""
    chance = rng.random()
    if chance < EMPTY:
        return str(rng.choice(NOTHING)), (None, None, None)
    present = kinds[kinds[:, 0] != NO_OBJECT]
    kind = [names[i] for names, i in zip(KINDS, present[rng.integers(len(present))], strict=True)]
    if chance < EMPTY + ABSENT:  # a wrong phrase that differs from a true one in a word teaches the most
        changed = int(rng.choice(3, p=(0.45, 0.45, 0.1)))
        kind[changed] = str(rng.choice(KINDS[changed]))
    count = int(rng.choice((1, 2, 3), p=(0.8, 0.12, 0.08)))
    group = Group(kind[0], kind[1], kind[2], count, (0.5, 0.5), float(rng.uniform(0.2, 0.5)))
    phrase = describe(rng, group, needs_color=False)
    words = phrase.split()
    return phrase, (kind[0], kind[1] if kind[1] in words else None, kind[2] if kind[2] in words else None)


def true_objects(stated: Stated, kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of a scene's objects, `kinds` [5, 3], a phrase is true of: [5] bool; none if it names no noun."""
    fits = (kinds[:, 0] != NO_OBJECT) & (stated[0] is not None)
    for column, (names, value) in enumerate(zip(KINDS, stated, strict=True)):
        if value is not None:
            fits &= kinds[:, column] == names.index(value)
    return fits


def draw_window(rng: np.random.Generator, owner: NDArray[np.uint8], whole: float) -> tuple[slice, slice]:
    """Draw the rows and columns of a square crop around one object of a scene.

    Large objects are learnt first, so most crops are close.

    Args:
        rng: draws object, size and place of the crop.
        owner: [S, S] uint8, 0 or object + 1.
        whole: probability of the whole scene instead.
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
    """Draw `count` crops of scenes (`draw_window`), each mirrored with probability 0.5, and `phrases` phrases for each.

    Returns:
        `pixels` [B, 3, S, S] float32 in [0, 1]; `texts`, B * P strings in the order of the pictures; `masks`
        [B * P, S, S] float32 in [0, 1], None without phrases; `objects` [B, S, S] float32, how much of a pixel any
        object covers; `patches` [B, C, S / 16, S / 16] float32, how much of each patch shows which noun, colour and
        texture.
    """
    images, texts, masks, objects, patches = [], [], [], [], []
    for index in rng.integers(0, len(pool.images), count):
        kinds, window = pool.kinds[index], draw_window(rng, pool.owners[index], whole)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        image, owner, share = (a[index][window][:, flip] for a in (pool.images, pool.owners, pool.shares))
        owner = _small(owner, SIDE, Image.Resampling.NEAREST)
        share = _small(share, SIDE).astype(np.float32) / np.float32(255)
        for _ in range(phrases):
            phrase, stated = draw_phrase(rng, kinds)
            texts.append(phrase)
            masks.append(share * np.isin(owner, 1 + np.flatnonzero(true_objects(stated, kinds))))
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
    """Share of each pixel that shows which noun, colour and texture: [C, S, S] float32 in [0, 1]."""
    painted = np.zeros((sum(map(len, KINDS)), *owner.shape), np.float32)
    for j, kind in enumerate(kinds[kinds[:, 0] != NO_OBJECT]):
        start = 0
        for names, value in zip(KINDS, kind, strict=True):
            painted[start + value][owner == j + 1] = share[owner == j + 1]
            start += len(names)
    return painted


def run_vision(model: CLIPSegForImageSegmentation, pixels: torch.Tensor) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """Run the vision tower with gradients: its hidden states, and patch features [B, 128, S / 16, S / 16]."""
    outputs = model.clip.vision_model((pixels - MEAN) / STD, output_hidden_states=True)
    grid = SIDE // PATCH
    return outputs.hidden_states, outputs.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))


def decode(
    model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, texts: list[str], states: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Run text tower and decoder with gradients: logits [B * P, S, S]."""
    tokens = processor(text=texts, padding=True, return_tensors="pt")
    embeddings = model.clip.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    phrases = len(texts) // len(states[0])
    layers = [states[i + 1].repeat_interleave(phrases, dim=0) for i in model.extract_layers]
    return model.decoder(layers, embeddings).logits


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """5 times binary cross-entropy plus soft Dice loss of logits [N, S, S] and masks [N, S, S] in [0, 1]."""
    probability = logits.sigmoid()
    shared = (probability * masks).sum((1, 2))
    dice = 1 - (2 * shared + 1) / (probability.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) * 5 + dice.mean()


def patch_loss(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Loss of the probe.

    Cross-entropy of noun, colour and texture over the patches that objects cover by a third or more, plus 3 times the
    binary cross-entropy of object and background over all pixels.

    Args:
        logits: [B, C + 16 * 16, h, w]: nouns, colours and textures of each patch, then a logit for each of its pixels.
        batch: from `draw_batch`.
    """
    patches = batch["patches"]
    covered = patches[:, : len(NOUNS)].sum(dim=1)
    covered = covered * (covered > 1 / 3)
    pixels = F.pixel_unshuffle(batch["objects"][:, None], PATCH)
    total = 3 * F.binary_cross_entropy_with_logits(logits[:, patches.shape[1] :], pixels)
    start = 0
    for names in KINDS:
        predicted, shares = (a[:, start : start + len(names)] for a in (logits, patches))
        target = shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)
        entropy = (target * predicted.log_softmax(dim=1)).sum(dim=1)
        total = total - (entropy * covered).sum() / covered.sum().clamp(min=1)
        start += len(names)
    return total


def noun_accuracy(logits: torch.Tensor, patches: torch.Tensor) -> float:
    """Share of the patches at least half inside an object whose noun has the highest of the logits [B, C, h, w]."""
    nouns = patches[:, : len(NOUNS)]
    inside = nouns.amax(dim=1) > 0.5
    right = logits[:, : len(NOUNS)].argmax(dim=1) == nouns.argmax(dim=1)
    return right[inside].float().mean().item()


def evaluate(model: CLIPSegForImageSegmentation, count: int = 64) -> dict[str, float]:
    """Mean IoU of named objects on `count` held-out scenes, found as in a build, and the share of IoUs above 0.5."""
    clipseg = ClipSeg(model.eval(), new_processor(), "cpu")
    overlaps = []
    for scene in map(held_out_scene, range(count)):
        spans = sorted({thing.phrase for thing in scene.objects if thing.phrase})
        (maps,) = find_heatmaps(clipseg, [scene.image], [[scene.caption[a:b] for a, b in spans]])
        for span, heatmap in zip(spans, maps, strict=True):
            truth = np.any([thing.mask for thing in scene.objects if thing.phrase == span], axis=0)
            resized = Image.fromarray(heatmap).resize(truth.shape[::-1], Image.Resampling.BILINEAR)
            overlaps.append(intersection_over_union(np.asarray(resized) >= 0.5, truth))
    model.train()
    return {"IoU": float(np.mean(overlaps)), "above 0.5": float(np.mean(np.array(overlaps) > 0.5))}


def train(
    output: Output,
    steps: Steps = 8000,
    towers: Annotated[int, typer.Option(help="Number of first steps, which train the vision tower only.")] = 4000,
    scenes: Scenes = 12000,
    batch: Batch = 16,
    phrases: Annotated[int, typer.Option(help="Phrases per scene.")] = 3,
    peak: Peak = 1e-3,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Train a small CLIPSeg on sample scenes and save it in the format of the published checkpoints."""
    torch.manual_seed(seed)
    pool, processor = render_pool(scenes), new_processor()
    model = new_model().train()
    probe = torch.nn.Conv2d(model.config.vision_config.hidden_size, sum(map(len, KINDS)) + PATCH * PATCH, 1)
    tower = [*probe.parameters(), *model.clip.vision_model.parameters()]
    rest = [*model.clip.text_model.parameters(), *model.clip.text_projection.parameters(), *model.decoder.parameters()]

    def loss(step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        count, per_picture, whole = (2 * batch, 0, 0.0) if step < towers else (batch, phrases, 0.5)
        inputs = draw_batch(pool, rng, count, per_picture, whole)
        states, features = run_vision(model, inputs["pixels"])
        logits = probe(features)
        patches, masks = patch_loss(logits, inputs), torch.zeros(())
        if step >= towers:
            masks = mask_loss(decode(model, processor, inputs["texts"], states), inputs["masks"])
        accuracy = noun_accuracy(logits, inputs["patches"])
        return 2 * masks + patches, {"masks": masks.item(), "patches": patches.item(), "nouns": accuracy}

    fit(
        torch.nn.ModuleList([model, probe]),
        loss,
        Settings(steps, peak, warmup=200, weight_decay=0.02, max_norm=1.0, seed=seed),
        evaluate=lambda done: evaluate(model) if done > towers else {},
        checkpoint=checkpoint,
        groups=[(0, tower), (towers, rest)],
    )
    save(model, output)


def save(model: CLIPSegForImageSegmentation, output: Path) -> None:
    """Write config, processor and half-precision weights, which are loaded in single precision."""
    model.half().save_pretrained(output)
    new_processor().save_pretrained(output)


if __name__ == "__main__":
    typer.run(train)
