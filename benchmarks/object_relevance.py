"""MIP-Adapter's object relevance score: does relevance know where an object is? On a small model or on a real one.

    python -m benchmarks.object_relevance [--steps 400] [--seeds 3]
    python -m benchmarks.object_relevance --model FOLDER [--data DATASET]

The paper's measure: noise is added to `Z_text`, the output of each cross-attention layer for the text, evenly or in
proportion to an object's relevance. The score of an object is the mean absolute change of the pixels inside its box
divided by that outside it. If relevance knows where the object is, noise by its relevance has a higher score than even
noise; if it also knows which object it is, noise by another object's relevance does not.

Each picture gets noise up to step `TIME` of the schedule and is drawn again from its caption, always with the same
noise: undisturbed, disturbed evenly, disturbed by relevance. Thus its boxes are known, and no detector has to find the
objects in the drawn picture. There are no references: relevance depends on text and picture alone.

Stable Diffusion's attention knows words. That of a small model after a few hundred steps does not, and its relevance is
chance. So the small model is first taught words, by the localization loss on the objects' names, each encoded alone as
for relevance, on scenes with exact truth; it is measured on other scenes. `--model` measures a model in a folder that
`subjectloom train mip-adapter --model` accepts.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import localization
from benchmarks.localization import examples_of
from benchmarks.tables import Row, Write, report
from schemas.samples import mip_adapter
from tests.datasets import write_dataset
from training.configs.mip_adapter import Config
from training.diffusion import Batch
from training.guidance import Conditions
from training.latent_space import encode_pictures
from training.localization import Subjects, localize
from training.loop import this_process, train
from training.merge import Predict, adapt, over_mean
from training.recipes.mip_adapter import NAME_LENGTH, Model, Parts, load, small, texts, view
from training.recipes.mip_adapter import TRAINING as RECIPE
from training.shards import batches, find_shards, read_texts, to_device
from training.small import FROM_NOTHING
from transforms.models.places import SAMPLE

SETTINGS = {**RECIPE.presets["sample"], "learning_rate": FROM_NOTHING, "batch": 8, "augment": False, "workers": 0}
TRAINING, HELD_OUT = 4000, 4001
"""Seeds of scenes."""
TIME, STEPS = 600, 20
"""Step of the noise schedule, of 1,000, from which pictures are drawn again; number of DDIM steps from pure noise."""
STRENGTH = 1.0
"""Standard deviation of the added noise, as a multiple of that of the layer's `Z_text`."""

Scores = NDArray[np.float64]
"""[N, 3] float64, for each object the scores of noise by its relevance, by another object's, and of even noise."""


class Words(Model):
    """The small model while it is taught words: its U-Net reads the caption, followed by each name encoded alone."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts, Config(train_encoders=True))
        self.image_encoder.requires_grad_(False)
        self.adapter.requires_grad_(False)
        localize(self.unet)

    def conditions(self, batch: Batch) -> Conditions:
        """The caption and the names; the subjects' tokens are the names' first words."""
        caption = self.encode_text(batch["input_ids"])
        names = [self.encode_text(ids) for ids in batch["object_input_ids"].unbind(1)]
        first = caption.shape[1] + 1 + NAME_LENGTH * torch.arange(len(names), device=caption.device)
        subjects = Subjects(first.expand(len(caption), -1), batch["object_mask"])
        return {
            "encoder_hidden_states": torch.cat([caption, *names], dim=1),
            "cross_attention_kwargs": {"subjects": subjects},
        }

    def penalty(self, batch: Batch, conditions: Conditions) -> dict[str, tuple[float, Tensor]]:
        """The localization loss of each name's first word."""
        subjects: Subjects = conditions["cross_attention_kwargs"]["subjects"]
        return {"localization": (localization.WEIGHT, subjects.loss(batch["object_segmentation"]))}


def teach(data: Path, output: Path, seed: int, steps: int) -> Parts:
    """Teach a small model words, on one thread."""
    torch.set_num_threads(1)
    config = Config(**{**SETTINGS, "steps": steps, "seed": seed, "checkpoint_every": steps})
    shards = find_shards(str(data), "mip-adapter")
    model = Words(small(SAMPLE / "autoencoder", read_texts(shards, texts), seed))
    for _ in train(model, lambda start: batches(shards, view, model.tools, config, start), config, output):
        pass
    return load(output / "model")


@dataclass(frozen=True)
class Disturbed:
    """Replaces the merge: adds noise to `Z_text`, evenly or by the relevance of object `chosen`.

    The noise is a function of the order of the calls: two passes through a U-Net add the same. A strength of 0 adds
    none.
    """

    generator: torch.Generator
    strength: float = STRENGTH
    chosen: int | None = None

    def __call__(self, text: Tensor, _images: Tensor, relevances: Tensor, _predict: Predict) -> Tensor:
        """Add the noise."""
        noise = torch.randn(text.shape, generator=self.generator).to(text) * self.strength * text.std()
        if self.chosen is None:
            return text + noise
        return text + noise * over_mean(relevances[:, self.chosen])[..., None]


@torch.no_grad()
def redraw(model: Model, batch: dict[str, Any], disturbed: Disturbed) -> Tensor:
    """Add noise to a batch's pictures up to step `TIME` and draw them again: [B, 3, H, W] float32 in [-1, 1]."""
    adapt(model.unet, model.adapter.layers, disturbed)
    draws = model.draw(batch, np.random.default_rng(TIME)).to(model.unet.device)
    latents = encode_pictures(model.vae, batch["pixel_values"], torch.zeros_like(draws.latent_noise))
    schedule = DDIMScheduler.from_config(model.scheduler.config)
    schedule.set_timesteps(STEPS, device=latents.device)
    times = [time for time in schedule.timesteps if time <= TIME]
    latents = schedule.add_noise(latents, draws.noise, times[0].expand(len(latents)))
    conditions = model.conditions(batch)
    for time in times:
        prediction = model.unet(latents, time, **conditions).sample
        latents = schedule.step(prediction, time, latents).prev_sample
    return model.vae.decode(latents / model.vae.config.scaling_factor).sample.float().clamp(-1, 1)


def measure(model: Model, stream: Iterator[dict[str, Any]]) -> Scores:
    """Score the objects of batches, except those alone in their picture and those whose box covers all of it."""
    rows = []
    for seed, batch in enumerate(stream):
        pictures = {
            chosen: redraw(model, batch, Disturbed(torch.Generator().manual_seed(seed), chosen=chosen))
            for chosen in (None, *range(batch["object_mask"].shape[1]))
        }
        plain = redraw(model, batch, Disturbed(torch.Generator(), strength=0.0))
        even, *by_relevance = [(drawn - plain).abs().mean(1).double().cpu().numpy() for drawn in pictures.values()]
        there = batch["object_mask"].cpu().numpy()
        for j, change in enumerate(by_relevance):
            other = (j + 1) % len(by_relevance)
            boxes = batch["object_bbox"][:, j].double().cpu().numpy()
            scores = np.stack([scores_of(c, boxes) for c in (change, by_relevance[other], even)], axis=1)
            rows.append(scores[there[:, j] & there[:, other]])
    found = np.concatenate(rows)
    return found[np.isfinite(found).all(1)]


def scores_of(change: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide the mean change inside a box by that outside it: [N] float64; NaN if one side has no pixel.

    Args:
        change: absolute change of each pixel of N pictures, [N, H, W] float64.
        boxes: [N, 4] float64, xywh in pixels of the pictures; a pixel is inside if its middle is.
    """
    x, y, w, h = boxes.T[:, :, None, None]
    rows, columns = (np.arange(length) + 0.5 for length in change.shape[1:])
    inside = (x <= columns) & (columns < x + w) & (y <= rows[:, None]) & (rows[:, None] < y + h)
    with np.errstate(invalid="ignore", divide="ignore"):
        within, without = ((change * region).sum((1, 2)) / region.sum((1, 2)) for region in (inside, ~inside))
        return within / without


def score(parts: Parts, data: Path, count: int, batch: int) -> Scores:
    """Score a model on `count` samples of a dataset."""
    model = Model(parts).to(this_process().device)
    side = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    reference = min(side, parts.image_encoder.config.image_size)
    config = Config(resolution=side, reference=reference, batch=batch, workers=0).plain()
    stream = batches(find_shards(str(data), "mip-adapter"), view, model.tools, config)
    return measure(model, (to_device(loaded, model.unet.device) for loaded in islice(stream, count // batch)))


def _teach_and_score(job: tuple[Path, int, int, int]) -> Scores:
    folder, seed, steps, held_out = job
    for library in (diffusers, transformers):  # loading and saving print progress bars
        library.utils.logging.disable_progress_bar()
    parts = teach(folder / "training", folder / f"seed{seed}", seed, steps)
    return score(parts, folder / "held-out", held_out, 16)


def rows(scores: Sequence[Scores]) -> Iterator[Row]:
    """Rows of each model: mean scores with their standard errors."""
    for seed, of_model in enumerate(scores):
        means, errors = of_model.mean(0), of_model.std(0, ddof=1) / np.sqrt(len(of_model))
        for column, name in ((2, "even noise"), (0, "noise by its relevance"), (1, "noise by another's relevance")):
            yield Row(f"{name}, seed {seed}", f"{means[column]:.3f} ± {errors[column]:.3f}", f"{len(of_model)} objects")
        yield Row(
            f"objects with a higher score by relevance than by even noise, seed {seed}",
            f"{(of_model[:, 0] > of_model[:, 2]).mean():.0%}",
        )


def main(
    output: Annotated[Path, typer.Option(help="A new folder, for data and runs.")] = Path("runs/object-relevance"),
    model: Annotated[str | None, typer.Option(help="Measure the model in this folder instead of small ones.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --model: a mip-adapter dataset, by default of scenes.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each training.")] = 400,
    seeds: Annotated[int, typer.Option(help="Number of trainings.")] = 3,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 1500,
    held_out: Annotated[int, typer.Option(help="Pictures to measure on.")] = 160,
    processes: Annotated[int, typer.Option(help="Trainings at a time, a thread each.")] = 2,
    write: Write = False,
) -> None:
    """Compare even noise with noise in proportion to relevance."""
    if data is None:
        data = output / "held-out"
        write_dataset(data, [examples_of(HELD_OUT, held_out, 512 if model else 128)], sample_format=mip_adapter.FORMAT)
    if model:
        scores = [score(load(model), data, held_out, 1)]
        report("object_relevance", __doc__ or "", list(rows(scores)), write=write)
        return
    write_dataset(output / "training", [examples_of(TRAINING, scenes)], sample_format=mip_adapter.FORMAT)
    jobs = [(output, seed, steps, held_out) for seed in range(seeds)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(_teach_and_score, jobs))
    report("object_relevance", __doc__ or "", list(rows(scores)), write=write)


if __name__ == "__main__":
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    typer.run(main)
