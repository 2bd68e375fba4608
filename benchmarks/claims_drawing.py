"""What `benchmarks.claims` draws with a trained model, and measures. Figures are called CLAIM:FIGURE."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.text_to_image import draw_pictures, found_colors, held_out_scenes, named_colors
from jobs.evaluate_attention import attention_shares
from jobs.evaluate_measures import Judged, Judges, Picture, Real, measure
from jobs.evaluate_samples import draw_batch, own_pictures, read_batch
from jobs.generate import to_bytes
from schemas.keys import rng_of
from schemas.masks import Mask
from training.config import RunConfig
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.drawing import Drawing
from training.latent_space import encode_pictures, latent_shape
from training.merge import MERGES, adapt
from training.recipes import training_of
from training.resume import read_note
from training.shards import Batch, find_shards
from transforms.models.clip import embed_segments, load_clip
from transforms.models.places import SAMPLE
from transforms.models.segmenter import load_segmenter
from transforms.scenes.paint import COLORS

Values = dict[str, float]
Pictures = NDArray[np.float64]
"""[N, H, W, 3] in [0, 1]."""

START = 800
"""Step of the noise schedule, of 1,000, from which scenes are drawn over their own layout."""
DRAWING = Drawing(steps=10, guidance=3.0, size=64, batch=16)
CAPTIONS = 60
"""Captions drawn from text alone."""


@cache
def judges() -> Judges:
    """The sample models that measure."""
    return Judges(load_clip(SAMPLE / "clip"), load_segmenter(str(SAMPLE / "segmenter")))


def open_run(run: Path, recipe: str) -> tuple[Any, RunConfig]:
    """Load the model of a run, and its config."""
    training = training_of(recipe)
    note = read_note(run)
    config = training.config(**{name: note[name] for name in training.config.model_fields if name in note})
    return training.model(training.load(run / "model"), config), config


def read_held_out(
    model: Any,  # noqa: ANN401 - the recipe's
    data: Path,
    recipe: str,
    config: RunConfig,
) -> tuple[Batch, list[str], list[list[Mask]]]:
    """Read all samples of a held-out dataset, as `jobs.evaluate_samples.read_batch` does."""
    return read_batch(training_of(recipe), recipe, find_shards(str(data), recipe), 10**6, model, config)


def measure_subjects(run: Path, folder: Path, seed: int) -> Values:
    """FastComposer: where subjects' tokens attend, and whose identity drawn things have."""
    model, config = open_run(run, "fastcomposer")
    batch, captions, masks = read_held_out(model, folder / "held-out-two", "fastcomposer", config)
    shares = {
        name: float(np.nanmean(values))
        for name, values in attention_shares(model, batch, 0, DRAWING.batch)["drawn"].items()
    }
    own, others = shares["attention-own"], shares["attention-others"]
    return {
        "localization:attention on its own mask": own,
        "localization:attention on others' masks": others,
        "localization:of that on subjects, on wrong ones": others / (own + others),
        **identities("localization", model, batch, captions, masks, seed),
    }


def measure_merges(run: Path, folder: Path, seed: int) -> Values:
    """MIP-Adapter: whose identity drawn things have, by each merge with the same weights."""
    model, config = open_run(run, "mip-adapter")
    batch, captions, masks = read_held_out(model, folder / "held-out-objects", "mip-adapter", config)
    values: Values = {}
    for name, merge in MERGES.items():
        adapt(model.unet, model.adapter.layers, merge)
        found = identities("merge", model, batch, captions, masks, seed)
        values |= {f"{figure}, {name}": value for figure, value in found.items()}
    return values


def identities(
    claim: str,
    model: Any,  # noqa: ANN401 - the recipe's
    batch: Batch,
    captions: Sequence[str],
    masks: Sequence[Sequence[Mask]],
    seed: int,
) -> Values:
    """Draw samples of two subjects, from noise and over their own layout, and measure whose identity things have."""
    own = own_pictures(batch)
    drawn = draw_batch(model, batch, DRAWING.model_copy(update={"seed": seed}))
    items = [
        Judged(key, picture, caption, Real([real], [row]))
        for key, picture, caption, real, row in zip(batch["keys"], drawn, captions, own, masks, strict=True)
    ]
    from_noise = measure(judges(), items)
    placed = draw_over_layout(model, batch, seed)
    right, wrong = placed_identities(placed, own, masks)
    return {
        f"{claim}:drawn from noise, identity": float(np.nanmean(from_noise["identity"])),
        f"{claim}:drawn from noise, identity of the other subject": float(np.nanmean(from_noise["identity-others"])),
        f"{claim}:drawn over the layout, identity of the right subject": right,
        f"{claim}:drawn over the layout, identity of the wrong subject": wrong,
        f"{claim}:drawn over the layout, share of the subjects' difference in colour": slope(
            contrast(placed, masks), contrast(own, masks)
        ),
    }


def contrast(pictures: Sequence[Picture], masks: Sequence[Sequence[Mask]]) -> NDArray[np.float64]:
    """Mean colour in the first of two masks minus that in the second, without brightness: [N, 3].

    The grey picture that is drawn over shows how bright the subjects are, and nothing else of their colours.
    """
    rows = []
    for picture, row in zip(pictures, masks, strict=True):
        if len(row) == 2 and all(mask.area for mask in row):
            first, second = (picture[mask.to_array()].mean(0) / 255 for mask in row)
            rows.append(first - second - (first - second).mean())
    return np.array(rows)


def placed_identities(
    drawn: Sequence[Picture], own: Sequence[Picture], masks: Sequence[Sequence[Mask]]
) -> tuple[float, float]:
    """Mean cosine by CLIP of what a drawn picture shows in each of two masks with both subjects of the real picture.

    Returns:
        With the subject of the same mask, and with the other one.
    """
    both = [i for i, row in enumerate(masks) if len(row) == 2 and all(mask.area for mask in row)]
    clip, kept = judges().clip, [masks[i] for i in both]
    shown, real = (
        embed_segments(clip, [pictures[i] for i in both], kept).reshape(len(both), 2, -1) for pictures in (drawn, own)
    )
    cosines = np.einsum("nid,njd->nij", shown, real)
    return float(cosines[:, [0, 1], [0, 1]].mean()), float(cosines[:, [0, 1], [1, 0]].mean())


@torch.no_grad()
def draw_over_layout(model: Any, batch: Batch, seed: int) -> list[Picture]:  # noqa: ANN401 - the recipe's
    """Draw samples from their own pictures, in grey and with the noise of step `START`, by DDIM with all conditions."""
    schedule = DDIMScheduler.from_config(model.scheduler.config)
    schedule.set_timesteps(DRAWING.steps)
    times = [time for time in schedule.timesteps if time <= START]
    if hasattr(model, "subject_share"):
        model.subject_share = 1.0
    drawn: list[Picture] = []
    for first in range(0, len(batch["keys"]), DRAWING.batch):
        part = {name: value[first : first + DRAWING.batch] for name, value in batch.items()}
        grey = part["pixel_values"].mean(1, keepdim=True).expand(-1, 3, -1, -1)
        noise = noise_of(model, part, seed)
        latents = schedule.add_noise(encode_pictures(model.vae, grey, torch.zeros_like(noise)), noise, times[0])
        for time, conditions in zip(times, model.sampling_conditions(part, len(times)), strict=True):
            without, conditional = model.unet(torch.cat([latents] * 2), time, **conditions).sample.chunk(2)
            guided = without + DRAWING.guidance * (conditional - without)
            latents = schedule.step(guided, time, latents).prev_sample
        pictures = model.vae.decode(latents / model.vae.config.scaling_factor).sample
        drawn += [to_bytes(picture) for picture in (pictures / 2 + 0.5).clamp(0, 1)]
    return drawn


def noise_of(model: Any, batch: Batch, seed: int) -> Tensor:  # noqa: ANN401 - the recipe's
    """Noise for the latents of a batch, each sample's a function of the seed and of its key."""
    shape = latent_shape(batch["pixel_values"], model.vae)[1:]
    rows = [rng_of(seed, "claims", key).standard_normal(shape, np.float32) for key in batch["keys"]]
    return torch.from_numpy(np.stack(rows))


def measure_blip(run: Path, folder: Path, seed: int) -> Values:
    """BLIP-Diffusion: how far drawn pictures follow the background of the input, and how far its subject."""
    model, config = open_run(run, "blip-diffusion")
    shown = [read_held_out(model, folder / f"held-out-{name}", "blip-diffusion", config)[0] for name in "ab"]
    drawing = DRAWING.model_copy(update={"seed": seed})
    first, second = (as_floats(draw_batch(model, batch, drawing)) for batch in shown)
    swapped = {**shown[0], "input_pixel_values": shown[0]["input_pixel_values"].roll(1, 0)}
    other = as_floats(draw_batch(model, swapped, drawing))
    inputs = [batch["input_pixel_values"].permute(0, 2, 3, 1).numpy().astype(np.float64) for batch in shown]
    return {
        "backgrounds:change of the picture with the background": float(np.abs(first - second).mean()),
        "backgrounds:change of the picture with the whole input": float(np.abs(first - other).mean()),
        "backgrounds:share of the background's colour that is drawn": slope(
            colour(first) - colour(second), colour(inputs[0]) - colour(inputs[1])
        ),
    }


def as_floats(pictures: Sequence[Picture]) -> Pictures:
    """Pictures in [0, 1]."""
    return np.stack(pictures).astype(np.float64) / 255


def colour(pictures: Pictures) -> NDArray[np.float64]:
    """Mean colour of the border of pictures, an eighth of the side wide, where the background is: [N, 3]."""
    width = pictures.shape[1] // 8
    border = np.ones(pictures.shape[1:3], bool)
    border[width:-width, width:-width] = False
    return pictures[:, border].mean(1)


def slope(drawn: NDArray[np.float64], shown: NDArray[np.float64]) -> float:
    """Slope of a line through the origin, by least squares: how much of a difference in what is shown is drawn."""
    return float((drawn * shown).sum() / (shown**2).sum())


def measure_texts(run: Path, folder: Path, seed: int) -> Values:  # noqa: ARG001 - as the other measures
    """Text alone: colours that captions name in the pictures drawn of them, and the loss on captioned pictures."""
    network = LatentDiffusion(Parts(**load_stable_diffusion(run / "model")))
    return {f"drops:text alone, {name}": value for name, value in measure_text_alone(network).items()}


def measure_text_alone(network: LatentDiffusion) -> Values:
    """Draw held-out captions with a text-to-image model, and count the colours that they name, and others."""
    scenes = held_out_scenes(CAPTIONS)
    drawn = draw_pictures(network, [scene.caption for scene in scenes], DRAWING.steps or 0, DRAWING.guidance or 1)
    named, others = [], []
    for scene, picture in zip(scenes, drawn, strict=True):
        shown = found_colors(picture)
        named += [color in shown for color in named_colors(scene)]
        others += [color in shown for color in COLORS if color not in {thing.color for thing in scene.objects}]
    return {"named colours present": float(np.mean(named)), "other colours present": float(np.mean(others))}


Measure = Callable[[Path, Path, int], Values]
"""Called with a run's folder, that of all runs, and the seed."""
