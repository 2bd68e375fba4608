"""Train the sample CLIP: a small open_clip model on crops and phrases of sample scenes, on a CPU.

    python -m jobs.sample_models.clip --output transforms/models/sample/clip

Several phrases are true of a crop ("a ball", "a red ball", "a striped red ball"), so its positives in the contrastive
loss are all true phrases of the batch, not only the one drawn for it. Phrases that name nothing visible ("a sunny day")
are negatives in every batch.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from transformers import CLIPTokenizer

from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.pools import TRAINING, map_scenes
from transforms.regions.similarity import masked_crop
from transforms.scenes import make_scene
from transforms.scenes.grammar import ENDINGS, JOINS, NUMBERS, OPENINGS, PLURALS, Group, describe
from transforms.scenes.paint import COLORS, TEXTURES
from transforms.scenes.shapes import NOUNS

SIDE = 64
"""Side of a crop in pixels."""
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 64},
    # With this name open_clip looks for a tokenizer in the model's own folder.
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 772,
        "width": 64,
        "heads": 4,
        "layers": 2,
        "hf_tokenizer_name": "clip",
    },
}
NOTHING = tuple(sorted({ending.split(maxsplit=1)[1] for ending in ENDINGS if ending}))
"""Phrases that name nothing visible."""

_PLURALS = [PLURALS.get(noun, f"{noun}s") for noun in NOUNS]
_LISTED = [*NOUNS, *_PLURALS, *COLORS, *TEXTURES, *NUMBERS.values(), *OPENINGS, *JOINS, *ENDINGS]
WORDS = " ".join(_LISTED) + " a an the one is are small little large big to the left right of above below"
"""All words of the scenes' captions."""

Kind = tuple[str, str, str]
"""Noun, colour and texture of an object."""


def new_tokenizer() -> CLIPTokenizer:
    """Build CLIP's tokenizer with only those merges, and so tokens, that `WORDS` need.

    `WORDS` get the same tokens as from CLIP's tokenizer; other text is split into shorter ones, down to bytes. The full
    vocabulary would make up half of the model.
    """
    whole = open_clip.SimpleTokenizer()
    used: set[tuple[str, str]] = set()
    for word in re.findall(r"[a-z]+", WORDS.lower()):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while pairs := [pair for pair in pairwise(pieces) if pair in whole.bpe_ranks]:
            first = min(pairs, key=whole.bpe_ranks.__getitem__)
            used.add(first)
            at = list(pairwise(pieces)).index(first)
            pieces[at : at + 2] = ["".join(first)]
    merges = sorted(used, key=whole.bpe_ranks.__getitem__)
    letters = sorted(whole.encoder, key=whole.encoder.__getitem__)[:512]
    tokens = [*letters, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=letters[0],
        model_max_length=CONFIG["text_cfg"]["context_length"],
    )


def render_crops(scenes: int) -> tuple[NDArray[np.uint8], list[Kind]]:
    """Crop all objects of the first `scenes` training scenes: [N, SIDE, SIDE, 3] uint8, and the kind of each."""
    crops = [crop for of_scene in map_scenes(_crops, scenes) for crop in of_scene]
    return np.stack([crop for crop, _ in crops]), [kind for _, kind in crops]


def _crops(index: int) -> list[tuple[NDArray[np.uint8], Kind]]:
    rng = np.random.default_rng([TRAINING, index])
    scene = make_scene(rng)
    crops = []
    for thing in scene.objects:
        mask = _disturb(rng, thing.mask)
        crop = Image.fromarray(masked_crop(scene.image, mask)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        crops.append((np.asarray(crop), (thing.noun, thing.color, thing.texture)))
    return crops


def _disturb(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow or shrink a mask by up to three pixels: in a build masks come from a segmenter and are not exact."""
    amount = int(rng.integers(-3, 4))
    if amount == 0:
        return mask
    step = ndimage.binary_dilation if amount > 0 else ndimage.binary_erosion
    disturbed: NDArray[np.bool_] = step(mask, iterations=abs(amount))
    return disturbed if disturbed.any() else mask


def draw_phrase(rng: np.random.Generator, kind: Kind) -> tuple[str, NDArray[np.bool_]]:
    """Write a true phrase for an object; return it and which of noun, colour and texture it states, [3] bool."""
    count = int(rng.choice((1, 1, 1, 2)))
    phrase = describe(rng, Group(*kind, count, (0.5, 0.5), float(rng.uniform(0.2, 0.5))), needs_color=False)
    words = phrase.split()
    return phrase, np.array([True, kind[1] in words, kind[2] in words])


def read(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Turn texts into token ids [N, 24] int64."""
    ids: torch.Tensor = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def true_pairs(kinds: list[Kind], stated: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which phrase (row) is true of which crop (column): [N, N] bool.

    Args:
        kinds: kind of each crop; phrase i was written for crop i.
        stated: which of noun, colour and texture each phrase states, [N, 3] bool.
    """
    features = np.array(kinds)
    same = features[:, None, :] == features[None, :, :]
    pairs: NDArray[np.bool_] = (same | ~stated[:, None, :]).all(axis=2)
    return pairs


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, nothing: torch.Tensor, pairs: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy in which every true pair is a positive.

    Args:
        image: embeddings of crops, [N, D] float32 of unit length.
        text: embeddings of phrases, [N, D] float32 of unit length.
        nothing: embeddings of phrases that are true of no crop, [K, D].
        pairs: [N, N] bool, which phrase (row) is true of which crop (column).
        scale: inverse temperature, a scalar.
    """
    to_text = scale * image @ torch.cat([text, nothing]).T
    to_image = scale * text @ image.T
    wrong = torch.zeros(len(image), len(nothing), dtype=torch.bool)
    return (_multi_positive(to_text, torch.cat([pairs.T, wrong], dim=1)) + _multi_positive(to_image, pairs)) / 2


def _multi_positive(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    target = positive.float() / positive.sum(dim=1, keepdim=True)
    return F.cross_entropy(logits, target)


def save(model: torch.nn.Module, output: Path) -> None:
    """Write the model as open_clip publishes models: `open_clip_config.json`, tokenizer, half-precision safetensors."""
    new_tokenizer().save_pretrained(output)
    config = {
        "model_cfg": CONFIG,
        "preprocess_cfg": {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)},
    }
    (output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: w.half() if w.is_floating_point() else w for name, w in model.state_dict().items()}
    save_file({name: w.contiguous() for name, w in weights.items()}, output / "open_clip_model.safetensors")


def train(
    output: Output,
    steps: Steps = 3000,
    scenes: Scenes = 8000,
    batch: Batch = 128,
    peak: Peak = 1e-3,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
) -> None:
    """Train a small CLIP on crops and phrases of sample scenes and save it in open_clip's format."""
    torch.manual_seed(seed)
    crops, kinds = render_crops(scenes)
    tokenizer = new_tokenizer()
    model = open_clip.CLIP(**CONFIG).train()
    nothing = read(tokenizer, NOTHING)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) * 255 for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )

    def loss(_: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = rng.choice(len(crops), batch, replace=False)
        chosen_kinds = [kinds[i] for i in chosen]
        phrases, stated = zip(*(draw_phrase(rng, kind) for kind in chosen_kinds), strict=True)
        images = torch.from_numpy(crops[chosen]).permute(0, 3, 1, 2).float()
        if rng.random() < 0.5:
            images = images.flip(-1)
        image = model.encode_image((images - mean) / std, normalize=True)
        text = model.encode_text(torch.cat([read(tokenizer, phrases), nothing]), normalize=True)
        pairs = torch.from_numpy(true_pairs(chosen_kinds, np.stack(stated)))
        # A bounded temperature keeps cosines of true pairs near 1 and of false ones near 0: readable thresholds.
        scale = model.logit_scale.exp().clamp(max=30)
        return contrastive_loss(image, text[:batch], text[batch:], pairs, scale), {"scale": scale.item()}

    settings = Settings(steps, peak, warmup=100, weight_decay=0.05, seed=seed)
    fit(model, loss, settings, checkpoint=checkpoint)
    save(model.eval(), output)


if __name__ == "__main__":
    typer.run(train)
