"""Does the localization loss keep subjects separate? A small FastComposer model, trained with it and without.

    python -m benchmarks.localization [--steps 1100] [--seeds 3]

Both runs start from the same weights and use the same batches and the same noise; only the loss' weight differs. On
held-out scenes with two or more subjects it prints which share of the attention of a subject's token falls inside that
subject's own mask and which inside other subjects' masks (identities that blend), and draws the maps side by side.
Chance is the share of the picture that the masks cover.

The scenes carry their exact masks: this measures the loss, not the pipeline before it. The paper's weight of 0.001
acts through 150,000 steps on a U-Net that attends well already; a thousand steps from
random weights need `WEIGHT`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
import transformers
import typer
from PIL import Image, ImageDraw

from benchmarks.tables import Row, Write, report
from jobs.evaluate_attention import TIMES, shares_of
from jobs.scenes import scene_of
from schemas.example import Example
from tests.datasets import write_dataset
from training.configs.fastcomposer import Config
from training.diffusion import Draws
from training.latent_space import encode_pictures
from training.localization import Subjects
from training.loop import train
from training.recipes.fastcomposer import TRAINING as RECIPE
from training.recipes.fastcomposer import Model, load, small, texts, view
from training.shards import batches, find_shards, read_texts
from training.small import FROM_NOTHING
from transforms.models.places import SAMPLE
from transforms.scenes.truth import true_example

WEIGHT = 3.0
"""Weight of the localization loss for the small model. Of 0.1, 1 and 3 it falls fastest with 3; 10 is too large."""
SETTINGS = {
    **RECIPE.presets["sample"],
    "learning_rate": FROM_NOTHING,
    "batch": 8,
    "augment": False,
    "mirror": False,
    "workers": 0,
}
"""Settings of both runs. Plain references and small batches: attention finds its subjects in fewer minutes."""
TRAINING, HELD_OUT = 2000, 2001
"""Seeds of scenes."""
TILE = 128
"""Side of a drawn map, in pixels."""


@dataclass(frozen=True)
class Shares:
    """Means over layers, heads, noise levels and subjects: of a token's attention, and of the picture by chance."""

    own: float
    others: float
    own_by_chance: float
    others_by_chance: float

    @property
    def blended(self) -> float:
        """Share of the attention on subjects that falls on the wrong ones."""
        return self.others / (self.own + self.others)


def examples_of(seed: int, count: int, size: int = 128) -> list[Example]:
    """Make `count` examples of scenes with two subjects or more, with the scenes' exact truth."""
    examples = (true_example(scene_of(seed, index, size), f"{index:06d}") for index in range(20 * count))
    return list(islice((example for example in examples if len(example.matches) >= 2), count))


def train_run(data: Path, output: Path, seed: int, weight: float, steps: int) -> None:
    """Train a model on one thread."""
    torch.set_num_threads(1)
    fields = {"steps": steps, "localization_weight": weight, "seed": seed, "checkpoint_every": steps}
    config = Config(**{**SETTINGS, **fields})
    shards = find_shards(str(data), "fastcomposer")
    model = Model(small(SAMPLE / "autoencoder", read_texts(shards, texts), seed), config)
    for _ in train(model, lambda start: batches(shards, view, model.tools, config, start), config, output):
        pass


def held_out_batches(model: Model, data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield batches of `count` held-out samples in all, with nothing dropped."""
    config = Config(**SETTINGS).plain().model_copy(update={"batch": 16})
    stream = batches(find_shards(str(data), "fastcomposer"), view, model.tools, config)
    for _ in range(count // config.batch):
        yield next(stream)


@torch.no_grad()
def attention_of(model: Model, batch: dict[str, Any], time: int) -> Subjects:
    """Record the subjects' attention in a batch whose latents have the noise of step `time`."""
    drawn = model.draw(batch, np.random.default_rng(time))
    draws = replace(drawn, timesteps=torch.full_like(drawn.timesteps, time))
    return _record_attention(model, batch, draws)


def _record_attention(model: Model, batch: dict[str, Any], draws: Draws) -> Subjects:
    latents = encode_pictures(model.vae, batch["pixel_values"], draws.latent_noise)
    conditions = model.conditions(batch)
    model.unet(model.scheduler.add_noise(latents, draws.noise, draws.timesteps), draws.timesteps, **conditions)
    subjects: Subjects = conditions["cross_attention_kwargs"]["subjects"]
    return subjects


def measure(run: Path, data: Path, count: int) -> Shares:
    """Measure a trained model on `count` held-out scenes."""
    model = Model(load(run / "model"))
    rows = [
        shares_of(attention, batch["subject_segmentation"], batch["subject_mask"])[batch["subject_mask"]].numpy()
        for batch in held_out_batches(model, data, count)
        for time in TIMES
        for attention in attention_of(model, batch, time).maps.values()
    ]
    return Shares(*np.concatenate(rows).mean(axis=0).tolist())


def draw_maps(runs: dict[str, Path], data: Path, path: Path, scenes: int = 6) -> None:
    """Draw scenes in rows: the picture, then each run's maps of two subjects, whose own masks are outlined in red."""
    columns: list[torch.Tensor] = []
    for run in runs.values():
        model = Model(load(run / "model"))
        batch = next(held_out_batches(model, data, 16))
        maps = [_as_pictures(layer) for layer in attention_of(model, batch, TIMES[1]).maps.values()]
        mean = torch.stack(maps).mean(0)[:scenes]
        masks = F.interpolate(batch["subject_segmentation"][:scenes], (TILE, TILE))
        edges = masks - F.avg_pool2d(masks, 3, 1, 1) > 0.05
        heat = (mean / mean.amax((-1, -2), keepdim=True))[:, :, None].repeat(1, 1, 3, 1, 1)
        red = torch.tensor([1.0, 0.25, 0.25]).view(3, 1, 1)
        heat = torch.where(edges[:, :, None], red, heat)
        pictures = F.interpolate(batch["pixel_values"][:scenes] / 2 + 0.5, (TILE, TILE))
        columns = [*(columns or [pictures]), heat[:, 0], heat[:, 1]]
    sheet = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
    picture = Image.new("RGB", (sheet.shape[2], sheet.shape[1] + 16), "white")
    picture.paste(Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).astype(np.uint8)), (0, 16))
    for x, title in zip((0, TILE, 3 * TILE), ("picture", *runs), strict=True):
        ImageDraw.Draw(picture).text((x + 4, 2), title, fill="black")
    picture.save(path)


def _as_pictures(attention: torch.Tensor) -> torch.Tensor:
    """Draw a layer's maps [B, heads, h*w, M], the mean over its heads, 1 on average: [B, M, TILE, TILE]."""
    side = int(attention.shape[2] ** 0.5)
    maps = attention.mean(1).transpose(1, 2).unflatten(-1, (side, side))
    return F.interpolate(maps / maps.mean((-1, -2), keepdim=True), (TILE, TILE), mode="bilinear")


def _train_and_measure(job: tuple[Path, int, float, int, int]) -> Shares:
    folder, seed, weight, steps, held_out = job
    run = run_of(folder, seed, weight)
    train_run(folder / "training", run, seed, weight, steps)
    return measure(run, folder / "held-out", held_out)


def run_of(folder: Path, seed: int, weight: float) -> Path:
    """Folder of a run."""
    return folder / f"seed{seed}-weight{weight:g}"


FIGURES = {
    "own": "share of attention inside its own mask",
    "others": "share of attention inside other subjects' masks",
    "blended": "share of the attention on subjects that is on wrong ones",
}
"""Fields of `Shares` with their descriptions."""


def compare(field: str, without: Sequence[Shares], trained: Sequence[Shares]) -> list[Row]:
    """Rows of a figure without the loss, with it, and by chance: the mean over seeds and its range."""
    chance = Shares(without[0].own_by_chance, without[0].others_by_chance, 0, 0)
    rows = [Row(f"{FIGURES[field]}, by chance", f"{getattr(chance, field):.3f}")]
    for name, shares in (("without the loss", without), ("with it", trained)):
        values = [getattr(of_seed, field) for of_seed in shares]
        rows.append(
            Row(f"{FIGURES[field]}, {name}", f"{np.mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}")
        )
    return rows


def main(
    output: Annotated[Path, typer.Option(help="A new folder, for runs and pictures.")] = Path("runs/localization"),
    steps: Annotated[int, typer.Option(help="Optimizer steps of each training.")] = 1100,
    seeds: Annotated[int, typer.Option(help="Pairs of trainings.")] = 3,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 1500,
    held_out: Annotated[int, typer.Option(help="Scenes to measure on.")] = 160,
    weight: Annotated[float, typer.Option(help="Weight of the localization loss.")] = WEIGHT,
    processes: Annotated[int, typer.Option(help="Trainings at a time, a thread each.")] = 2,
    write: Write = False,
) -> None:
    """Train with and without the localization loss, and compare where subjects' tokens attend."""
    write_dataset(output / "training", [examples_of(TRAINING, scenes)])
    write_dataset(output / "held-out", [examples_of(HELD_OUT, held_out)])
    jobs = [(output, seed, w, steps, held_out) for seed in range(seeds) for w in (0.0, weight)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        measured = dict(zip([(job[1], job[2]) for job in jobs], pool.map(_train_and_measure, jobs), strict=True))
    without, trained = ([measured[seed, w] for seed in range(seeds)] for w in (0.0, weight))
    rows = [row for field in FIGURES for row in compare(field, without, trained)]
    report("localization", __doc__ or "", rows, write=write)
    runs = {"without": run_of(output, 0, 0.0), "with the loss": run_of(output, 0, weight)}
    draw_maps(runs, output / "held-out", output / "maps.png")
    print(f"attention maps: {output / 'maps.png'}")


if __name__ == "__main__":
    for library in (diffusers, transformers):  # loading and saving print progress bars
        library.utils.logging.disable_progress_bar()
    typer.run(main)
