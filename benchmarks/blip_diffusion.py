"""What a short training of a small BLIP-Diffusion model reaches: held-out loss before, after, and with wrong inputs.

    python -m benchmarks.blip_diffusion [--steps 1000] [--seeds 3]

Trains the small model from random weights on pairs of sample scenes with their exact alphas: this measures the
training, not the pipeline before it. On pairs of scenes from another seed, always with the same noise at the same
levels, it prints the loss before training and after it; and after it with the inputs of other samples, and without
subject prompts. Gaps are given in standard errors over the held-out samples. A thousand steps lower the loss tenfold by
what all pictures have in common; the model needs more steps until it uses its input.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray

from benchmarks.tables import Row, Write, report
from jobs.scenes import scene_of
from schemas.example import Example
from schemas.images import decode_grey
from schemas.samples.blip_diffusion import FORMAT
from schemas.shards import write_tar
from training.diffusion import noise_target
from training.latent_space import encode_pictures
from training.loop import train
from training.recipes.blip_diffusion import TRAINING as RECIPE
from training.recipes.blip_diffusion import Config, Model, load, small, texts, view
from training.shards import batches, batches_once, find_shards, read_texts
from training.small import FROM_NOTHING
from transforms.models.places import SAMPLE
from transforms.scenes.paint import paint_background
from transforms.scenes.truth import true_example

SETTINGS = {**RECIPE.presets["sample"], "learning_rate": FROM_NOTHING, "workers": 0}
TRAINING, HELD_OUT = 3000, 3001
"""Seeds of scenes."""
TIMES = (100, 300, 500, 700, 900)
"""Steps of the noise schedule, of 1,000, at which the loss is measured."""
AREA = (0.03, 0.7)
"""Smallest and largest subject, as shares of the picture."""

Losses = NDArray[np.float64]
"""[N] float64, a loss for each held-out sample: the mean over `TIMES`."""


@dataclass(frozen=True)
class Measured:
    """Losses on the held-out samples: before training, after it, with wrong inputs, without subject prompts."""

    before: Losses
    after: Losses
    wrong: Losses
    dropped: Losses


def examples_of(seed: int, count: int, size: int = 96) -> list[Example]:
    """Make `count` examples of scenes, each with its largest object as the subject."""
    examples = (example_of(seed, index, size) for index in range(20 * count))
    return list(islice((example for example in examples if example is not None), count))


def example_of(seed: int, index: int, size: int = 96) -> Example | None:
    """Composite a scene's largest object on another background; None if the object is too small or too large."""
    background = paint_background(np.random.default_rng([seed, index]), size, size)
    example = true_example(scene_of(seed, index, size), f"{index:06d}", np.rint(background).astype(np.uint8))
    return example if AREA[0] <= decode_grey(example.alpha).mean() / 255 <= AREA[1] else None


def write_pairs(folder: Path, examples: list[Example]) -> Path:
    """Write one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "blip-diffusion-000000.tar").open("wb") as stream:
        write_tar(stream, (FORMAT.pack(example)[0] for example in examples))
    return folder


@torch.no_grad()
def losses_of(model: Model, held_out: list[dict[str, Any]]) -> Losses:
    """Measure a model on batches; the noise is a function of a batch's place and the noise level alone."""
    found = []
    for number, batch in enumerate(held_out):
        conditions = model.conditions(batch)
        levels = []
        for time in TIMES:
            drawn = model.draw(batch, np.random.default_rng([number, time]))
            draws = replace(drawn, timesteps=torch.full_like(drawn.timesteps, time))
            latents = encode_pictures(model.vae, batch["pixel_values"], draws.latent_noise)
            noisy = model.scheduler.add_noise(latents, draws.noise, draws.timesteps)
            prediction = model.unet(noisy, draws.timesteps, **conditions).sample
            levels.append((prediction - noise_target(model.scheduler, latents, draws)).square().mean((1, 2, 3)))
        found.append(torch.stack(levels).double().mean(0))
    return torch.cat(found).numpy()


def with_wrong_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Give each sample the input of the one before it; its texts stay."""
    return {**batch, "input_pixel_values": batch["input_pixel_values"].roll(1, 0)}


def without_prompts(batch: dict[str, Any], model: Model) -> dict[str, Any]:
    """Remove the subject prompt: the text encoder reads the words of the template before it."""
    ended = torch.where(batch["subject_prompt_mask"], model.tokenizer.pad_token_id, batch["input_ids"])
    return {**batch, "input_ids": ended, "subject_prompt_mask": torch.zeros_like(batch["subject_prompt_mask"])}


def measure(folder: Path, seed: int, steps: int) -> Measured:
    """Train one model on one thread, and measure it on `folder`/held-out."""
    torch.set_num_threads(1)
    for library in (diffusers, transformers):  # loading and saving print progress bars
        library.utils.logging.disable_progress_bar()
    config = Config(**{**SETTINGS, "steps": steps, "seed": seed, "checkpoint_every": steps})
    shards, unseen = (find_shards(str(folder / name), "blip-diffusion") for name in ("training", "held-out"))
    model = Model(small(SAMPLE / "autoencoder", read_texts(shards, texts), seed), config)
    held_out = list(batches_once(unseen, view, model.tools, config))
    before = losses_of(model, held_out)
    run = folder / f"seed{seed}"
    for _ in train(model, lambda start: batches(shards, view, model.tools, config, start), config, run):
        pass
    trained = Model(load(run / "model"))
    return Measured(
        before,
        losses_of(trained, held_out),
        losses_of(trained, [with_wrong_inputs(batch) for batch in held_out]),
        losses_of(trained, [without_prompts(batch, trained) for batch in held_out]),
    )


def in_standard_errors(gaps: Losses) -> float:
    """Mean of the samples' gaps, in units of its standard error."""
    return float(gaps.mean() / (gaps.std(ddof=1) / np.sqrt(len(gaps))))


def main(
    output: Annotated[Path, typer.Option(help="A new folder, for data and runs.")] = Path("runs/blip-diffusion"),
    steps: Annotated[int, typer.Option(help="Optimizer steps of each training.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Number of trainings.")] = 3,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 1500,
    held_out: Annotated[int, typer.Option(help="Scenes to measure on.")] = 160,
    processes: Annotated[int, typer.Option(help="Trainings at a time, a thread each.")] = 2,
    write: Write = False,
) -> None:
    """Train, and compare losses on held-out pairs."""
    write_pairs(output / "training", examples_of(TRAINING, scenes))
    write_pairs(output / "held-out", examples_of(HELD_OUT, held_out))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        measured = list(pool.map(measure, [output] * seeds, range(seeds), [steps] * seeds))
    rows = []
    for seed, losses in enumerate(measured):
        after = losses.after
        compared = {
            "before training": losses.before,
            "with wrong inputs": losses.wrong,
            "without prompts": losses.dropped,
        }
        rows.append(Row(f"loss after training, seed {seed}", f"{after.mean():.4f}"))
        for name, values in compared.items():
            gap = f"{(values - after).mean():.4f} more, {in_standard_errors(values - after):.1f} standard errors"
            rows.append(Row(f"loss {name}, seed {seed}", f"{values.mean():.4f}", gap))
    report("blip_diffusion", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
