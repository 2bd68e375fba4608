"""Four claims of the papers in small, each beside its ablation.

    python -m benchmarks.claims [--only localization] [--steps 250] [--seeds 3] [--processes 2] [--write]

FastComposer: the localization loss keeps subjects apart. BLIP-Diffusion: random backgrounds keep the background out of
the subject prompt; 15 % of dropped subject prompts keep text-to-image intact. MIP-Adapter: the weighted merge is better
than the uniform one, with the same weights.

All models start from the sample text-to-image model. Runs that are compared differ in one field or in their data alone:
first weights, order of the samples and noise are the same.

In the captions of two subjects no colour and no texture is named ("a ball and a cup"), so that the references alone say
what things look like; in those of one subject, in every second caption. Held-out scenes are drawn twice: from noise,
where the segmenter looks for the subjects; and over the layout of their own pictures, from these without their colours
and with the noise of step `START`, where it is known which subject is where. Identities are cosines by the sample CLIP.

A run that is there already is not made again: delete its folder, or name another `--output`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer

from benchmarks.claims_data import write_scenes
from benchmarks.claims_drawing import (
    Measure,
    Values,
    measure_blip,
    measure_merges,
    measure_subjects,
    measure_text_alone,
    measure_texts,
)
from benchmarks.tables import Row, Write, report
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.loop import train
from training.recipes import training_of
from training.shards import batches, find_shards, read_texts
from transforms.models.places import SAMPLE

START_MODEL = SAMPLE / "text_to_image"
COMMON: Mapping[str, Any] = {"batch": 8, "workers": 0, "average": 0.98, "warmup": 20, "sample_every": 10**6}
"""Config fields of all runs; the others are those of the preset `sample`."""
RATE = 5e-4
"""Learning rate of all runs."""


@dataclass(frozen=True)
class Arm:
    """A training, one for each seed.

    Attributes:
        recipe: of the model.
        data: name of its dataset.
        fields: config fields that set it apart.
        measures: what is measured of it.
    """

    recipe: str
    data: str
    fields: Mapping[str, Any]
    measures: tuple[Measure, ...]


PLAIN = {"mirror": False, "augment": False, "max_subjects": 2}
ARMS: Mapping[str, Arm] = {
    "loss": Arm("fastcomposer", "two", {**PLAIN, "localization_weight": 3.0}, (measure_subjects,)),
    "no-loss": Arm("fastcomposer", "two", {**PLAIN, "localization_weight": 0.0}, (measure_subjects,)),
    "random": Arm("blip-diffusion", "random", {}, (measure_blip, measure_texts)),
    "own": Arm("blip-diffusion", "own", {}, (measure_blip,)),
    "no-drops": Arm("blip-diffusion", "random", {"subject_dropped": 0.0}, (measure_texts,)),
    "merge": Arm("mip-adapter", "objects", {"augment": False}, (measure_merges,)),
}
"""All trainings by name."""
CLAIMS: Mapping[str, Sequence[str]] = {
    "localization": ("loss", "no-loss"),
    "backgrounds": ("random", "own"),
    "drops": ("random", "no-drops"),
    "merge": ("merge",),
}
"""The trainings of each claim."""


def run_arm(job: tuple[Path, str, int, int]) -> tuple[str, int, Values]:
    """Train an arm on one thread and measure it, unless that was done before."""
    folder, name, seed, steps = job
    arm, run = ARMS[name], folder / f"{name}-{seed}"
    figures = run / "measured.json"
    if not figures.is_file():
        torch.set_num_threads(1)
        for library in (diffusers, transformers):  # loading and saving print progress bars
            library.utils.logging.disable_progress_bar()
        train_arm(arm, folder / arm.data, run, seed, steps)
        values: Values = {}
        for measure in arm.measures:
            values |= measure(run, folder, seed)
        figures.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return name, seed, json.loads(figures.read_text("utf-8"))


def train_arm(arm: Arm, data: Path, run: Path, seed: int, steps: int) -> None:
    """Train a model, or go on with its training."""
    training = training_of(arm.recipe)
    fields = {**training.presets["sample"], **COMMON, "learning_rate": RATE, "checkpoint_every": 50, **arm.fields}
    config = training.config(**{**fields, "steps": steps, "seed": seed})
    shards = find_shards(str(data), arm.recipe)
    model: Any = training.model(training.small(START_MODEL, read_texts(shards, training.texts), seed), config)

    def read(start: int) -> Iterator[dict[str, Any]]:
        return batches(shards, training.view, model.tools, config, start)

    for _ in train(model, read, config, run, resume=True):
        pass


def rows_of(claim: str, measured: Mapping[tuple[str, int], Values], seeds: int) -> list[Row]:
    """Rows of a claim: each figure's mean over the seeds, of each of its trainings, and the values."""
    rows = []
    for arm in CLAIMS[claim]:
        for figure in measured[arm, 0]:
            if figure.partition(":")[0] != claim:
                continue
            values = [measured[arm, seed][figure] for seed in range(seeds)]
            spread = ", ".join(f"{value:.3f}" for value in values)
            rows.append(Row(f"{figure.replace(':', ',')}, {TITLES[arm]}", f"{np.mean(values):.3f}", f"seeds {spread}"))
    return rows


TITLES = {
    "loss": "with the loss",
    "no-loss": "without it",
    "random": "random backgrounds, 15 % dropped",
    "own": "own backgrounds",
    "no-drops": "nothing dropped",
    "merge": "one training",
}


def main(
    output: Annotated[Path, typer.Option(help="Folder for data and runs.")] = Path("runs/claims"),
    only: Annotated[list[str] | None, typer.Option(help=f"A claim: {', '.join(CLAIMS)}; by default all.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each training.")] = 250,
    seeds: Annotated[int, typer.Option(help="Trainings of each kind.")] = 3,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 1200,
    held_out: Annotated[int, typer.Option(help="Scenes to measure on.")] = 48,
    processes: Annotated[int, typer.Option(help="Trainings at a time, a thread each.")] = 2,
    write: Write = False,
) -> None:
    """Train with and without, draw held-out scenes, and compare."""
    claims = only or list(CLAIMS)
    write_scenes(output, scenes, held_out)
    arms = dict.fromkeys(arm for claim in claims for arm in CLAIMS[claim])
    jobs = [(output, arm, seed, steps) for arm in arms for seed in range(seeds)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        measured = {(arm, seed): values for arm, seed, values in pool.map(run_arm, jobs)}
    rows = [row for claim in claims for row in rows_of(claim, measured, seeds)]
    if "drops" in claims:
        base = measure_text_alone(LatentDiffusion(Parts(**load_stable_diffusion(START_MODEL))))
        rows += [Row(f"drops, text alone, {name}, before training", f"{value:.3f}") for name, value in base.items()]
    report("claims", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
