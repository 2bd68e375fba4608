"""Do drawn pictures obey their maps? ControlNet, T2I-Adapter and Composer, trained in small on sample scenes.

    python -m benchmarks.control RUNS [--train NAME] [--steps 500] [--count 32] [--sheets FOLDER] [--write]

Each model starts from the sample text-to-image model and learns from scenes of 64 pixels with their true maps; its run
is a folder of RUNS, and `--train` trains one and stops. From captions and maps of held-out scenes the models draw
pictures; the map is taken again from what was drawn, by the operator that made it, and compared with the map that was
given. Beside it stands the same comparison without the map, from the same noise (the text-to-image model; for Composer
itself without any condition), and for the scenes' own pictures after the autoencoder: no model of these latents can be
expected to do better. Sample models estimate segments; depth is estimated by a small network that is trained here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from json import loads
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from benchmarks.depth_reader import DepthReader, train_depth_reader
from benchmarks.map_measures import EDGES, MEASURES, Given, Readers, visible_error
from benchmarks.tables import Row, Write, report
from benchmarks.text_to_image import SEED, Pictures, as_pictures, held_out_scenes, reconstruct
from jobs.sample_models.text_to_image import halve, training_scene
from jobs.train import run_training
from schemas.example import Example, Segment, Source
from schemas.images import encode_jpeg
from schemas.maps import canny_edges, decode_map, make_map, to_pixels
from schemas.masks import Mask
from schemas.samples import FORMATS
from tests.datasets import write_dataset
from training.configs.composer import CONDITIONS
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.recipes import training_of
from training.shards import Batch, batches_once, find_shards
from training.small import SIDE
from transforms.maps.describe import add_embeddings, add_palette
from transforms.maps.draw import Drawing, draw_maps
from transforms.models.clip import load_clip
from transforms.models.places import SAMPLE
from transforms.models.segmenter import load_segmenter
from transforms.scenes import Scene
from transforms.scenes.relief import true_relief

MAPS = ("canny", "sketch", "depth", "segmentation")
"""Maps of the data sets."""
SCENES = 2000
"""Scenes that the models are trained on."""
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "controlnet-canny": ("controlnet", {"map": "canny"}),
    "controlnet-depth": ("controlnet", {"map": "depth"}),
    "controlnet-segmentation": ("controlnet", {"map": "segmentation"}),
    "t2i-adapter": ("t2i-adapter", {"maps": ("canny", "depth")}),
    "composer": ("composer", {}),
}
"""Recipe of each run, and its settings beside those of the preset."""
SETTINGS = {"batch": 8, "workers": 0, "precision": "bf16", "channels_last": True, "trackers": ()}
"""Settings of all runs: those with which a CPU takes the least time."""
GUIDANCE, STEPS = 3.0, 10
"""Weight of the guidance, and steps of DPM-Solver++."""
BATCH = 16
"""Pictures that are drawn at a time."""
READ = 600
"""Scenes that the network for depth is trained on."""


def example_of(scene: Scene, key: str) -> Example:
    """An example of a scene at half its size, with its maps; depth and segments are the truth."""
    halved = halve(scene.image)
    alphas = [thing.alpha.reshape(SIDE, 2, SIDE, 2).mean((1, 3)) for thing in scene.objects]
    things = [(thing.noun, alpha >= 128) for thing, alpha in zip(scene.objects, alphas, strict=True)]
    height = true_relief(scene)[0].reshape(SIDE, 2, SIDE, 2).mean((1, 3))
    bounds = (0.0, float(scene.image.shape[0]))
    depth = make_map("depth", to_pixels("depth", height, bounds), "scene", "", {}, bounds)
    example = Example(
        key=key,
        image=encode_jpeg(halved),
        width=SIDE,
        height=SIDE,
        caption=scene.caption,
        source=Source(key),
        source_caption=scene.caption,
        segments=tuple(Segment(noun, 1.0, Mask.from_array(mask)) for noun, mask in things if mask.any()),
        maps={"depth": depth},
    )
    return draw_maps(example, MAPS, Drawing())


def described(examples: Sequence[Example]) -> list[Example]:
    """Add what Composer's samples hold besides: palette and embedding."""
    return add_embeddings(load_clip(SAMPLE / "clip"), [add_palette(example, 10.0) for example in examples])


def data_of(runs: Path, recipe: str) -> Path:
    """Write the data set of a recipe below `runs`, unless it is there."""
    folder = runs / f"data-{recipe}"
    if not (folder / "dataset.json").exists():
        examples = [example_of(training_scene(index), f"{index:06d}") for index in range(SCENES)]
        finished = described(examples) if recipe == "composer" else examples
        write_dataset(folder, [finished], sample_format=FORMATS[recipe], overwrite=True)
    return folder


def train(runs: Path, name: str, steps: int) -> None:
    """Train one of `RUNS` on one thread, or go on with it."""
    recipe, fields = RUNS[name]
    training = training_of(recipe)
    own = {**SETTINGS, "steps": steps, "sample_every": steps, "latent_cache": str(runs / "latents"), **fields}
    config = training.config(**{**training.presets["sample"], **own})
    torch.set_num_threads(1)
    losses: list[float] = []
    data = str(data_of(runs, recipe))
    for metrics in run_training(recipe, data, runs / name, config, preset="sample", model=None, resume=True):
        losses.append(metrics["noise"])
        if metrics["step"] % 50 == 0:
            print(f"{name} {metrics['step']} {np.mean(losses[-50:]):.4f}", flush=True)


def load_run(runs: Path, name: str) -> tuple[Any, Any]:
    """Load the model of a run, and its config with nothing drawn at random."""
    recipe, fields = RUNS[name]
    training = training_of(recipe)
    config = training.config(**{**training.presets["sample"], "batch": BATCH, **fields}).plain()
    return training.model(training.load(runs / name / "model"), config), config


def held_out(runs: Path, recipe: str, count: int) -> Path:
    """Write held-out samples of a recipe below `runs`, unless they are there."""
    folder = runs / f"held-out-{recipe}-{count}"
    if not (folder / "dataset.json").exists():
        examples = described(given_of(count).examples)
        write_dataset(folder, [examples], sample_format=FORMATS[recipe], overwrite=True)
    return folder


def given_of(count: int) -> Given:
    """Held-out scenes with their maps."""
    scenes = held_out_scenes(count)
    examples = [example_of(scene, f"{index:06d}") for index, scene in enumerate(scenes)]
    return Given(scenes, examples, np.stack([example.pixels() for example in examples]))


def batches_of(runs: Path, name: str, model: Any, config: Any, count: int) -> Iterator[Batch]:  # noqa: ANN401
    """The held-out samples as batches of a run's recipe, in their order."""
    recipe = RUNS[name][0]
    shards = find_shards(str(held_out(runs, recipe, count)), recipe)
    return batches_once(shards, training_of(recipe).view, model.tools, config)


def draw(path: Path, load: Callable[[], LatentDiffusion], batches: Iterable[Batch]) -> Pictures:
    """Draw a picture for each sample, whose noise is a function of its place; keep them in the file `path`."""
    if path.exists():
        return np.asarray(np.load(path))
    model = load()
    model.sampler = DPMSolverMultistepScheduler
    drawn: list[torch.Tensor] = []
    for batch in batches:
        first = sum(map(len, drawn))
        shape = (model.vae.config.latent_channels, SIDE // 4, SIDE // 4)
        noise = [np.random.default_rng([SEED, first + i]).standard_normal(shape) for i in range(len(batch["keys"]))]
        start = torch.from_numpy(np.stack(noise)).float()
        drawn.append(model.sample(batch, start, steps=STEPS, guidance=GUIDANCE))
    pictures = as_pictures(torch.cat(drawn))
    np.save(path, pictures)
    return pictures


def compare(name: str, title: str, drawn: Pictures, without: Pictures, readers: Readers, given: Given) -> Row:
    """The row of one measure: of drawn pictures, of those drawn without the map, and of the scenes' own."""
    measured, measure = MEASURES[name]
    values = [measure(readers, given, pictures) for pictures in (drawn, without, own_pictures(given))]
    return Row(f"{title}: {measured}", f"{values[0]:.3f}", f"without {values[1]:.3f}, own pictures {values[2]:.3f}")


@cache
def own_pictures(given: Given) -> Pictures:
    """The scenes' pictures after the autoencoder."""
    return reconstruct(base_model(), given.pictures)


@cache
def depth_reader() -> DepthReader:
    """Train the network that estimates depth."""
    examples = [example_of(training_scene(index), str(index)) for index in range(READ)]
    depths = [decode_map("depth", example.maps["depth"].png).astype(np.uint16) for example in examples]
    return train_depth_reader(np.stack([example.pixels() for example in examples]), depths)


@cache
def base_model() -> LatentDiffusion:
    """The sample text-to-image model."""
    return LatentDiffusion(Parts(**load_stable_diffusion(SAMPLE / "text_to_image")))


def base_batches(given: Given) -> Iterator[Batch]:
    """The captions as batches."""
    captions = [example.caption for example in given.examples]
    for first in range(0, len(captions), BATCH):
        part = captions[first : first + BATCH]
        yield {"keys": part, "input_ids": base_model().tokenize(part)}


def rows_of(runs: Path, readers: Readers, given: Given, sheets: Path | None) -> Iterator[Row]:
    """Draw with the runs that have ended, and yield the figures."""
    base = draw(runs / f"drawn-base-{len(given.examples)}.npy", base_model, base_batches(given))
    sheet(sheets, "captions", [given.pictures, base])
    for name in (name for name in RUNS if (runs / name / "model").is_dir()):
        config = loads((runs / name / "config.json").read_text(encoding="utf-8"))
        yield Row(f"{name}: steps of training", str(config["steps"]), f"of {config['batch']} samples")
        recipe = RUNS[name][0]
        if recipe == "controlnet":
            yield from controlnet_rows(runs, name, base, readers, given, sheets)
        elif recipe == "t2i-adapter":
            yield from adapter_rows(runs, base, readers, given, sheets)
        else:
            yield from composer_rows(runs, readers, given, sheets)


def controlnet_rows(
    runs: Path, name: str, base: Pictures, readers: Readers, given: Given, sheets: Path | None
) -> Iterator[Row]:
    """Yield the figures of a ControlNet: of its map, and of the captions' colours."""
    kind, drawn = str(RUNS[name][1]["map"]), draw_with(runs, name, given)
    measures = ("segmentation", "classes") if kind == "segmentation" else (kind,)
    for measure in (*measures, "caption"):
        yield compare(measure, f"controlnet, {kind}", drawn, base, readers, given)
    sheet(sheets, name, [given.pictures, shown_maps(given, kind), base, drawn])


def adapter_rows(runs: Path, base: Pictures, readers: Readers, given: Given, sheets: Path | None) -> Iterator[Row]:
    """Yield the figures of T2I-Adapters: of each of two maps alone, and of both."""
    alone = {kind: draw_with(runs, "t2i-adapter", given, kind, partial(only, kind=kind)) for kind in ("canny", "depth")}
    both = draw_with(runs, "t2i-adapter", given)
    for kind, drawn in alone.items():
        yield compare(kind, f"t2i-adapter, {kind}", drawn, base, readers, given)
        yield compare(kind, "t2i-adapter, canny and depth", both, base, readers, given)
    maps = [shown_maps(given, kind) for kind in alone]
    sheet(sheets, "t2i-adapter", [given.pictures, *maps, base, *alone.values(), both])


def composer_rows(runs: Path, readers: Readers, given: Given, sheets: Path | None) -> Iterator[Row]:
    """Yield the figures of a Composer: of each condition alone, beside none."""
    nothing = draw_with(runs, "composer", given, "nothing", partial(keep_only, name=""))
    columns = {name: draw_with(runs, "composer", given, name, partial(keep_only, name=name)) for name in CONDITIONS}
    for name, drawn in columns.items():
        if name != "masked":
            yield compare(name, f"composer, {name}", drawn, nothing, readers, given)
    model, config = load_run(runs, "composer")
    batches = list(batches_of(runs, "composer", model, config, len(given.examples)))
    pictures = (columns["masked"], nothing, own_pictures(given))
    values = [f"{visible_error(batches, shown):.3f}" for shown in pictures]
    title = "composer, masked: visible pixels in [0, 1], mean error"
    yield Row(title, values[0], f"without {values[1]}, own pictures {values[2]}")
    sheet(sheets, "composer", [given.pictures, nothing, *columns.values()])


def draw_with(
    runs: Path, name: str, given: Given, tag: str = "", change: Callable[[Batch], Batch] = lambda batch: batch
) -> Pictures:
    """Draw the held-out samples with a run; `change` is made to the batches, and `tag` names it."""
    count = len(given.examples)
    path = runs / f"drawn-{'-'.join(filter(None, (name, tag)))}-{count}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    model, config = load_run(runs, name)
    return draw(path, lambda: model, map(change, batches_of(runs, name, model, config, count)))


def only(batch: Batch, kind: str) -> Batch:
    """A T2I-Adapter's batch with one map."""
    return {name: value for name, value in batch.items() if name != other_of(kind)}


def other_of(kind: str) -> str:
    """The other one of the two maps of the T2I-Adapter."""
    return "depth" if kind == "canny" else "canny"


def keep_only(batch: Batch, name: str) -> Batch:
    """A Composer's batch with one condition; "" for none."""
    keep = torch.tensor([name == condition for condition in CONDITIONS]).expand_as(batch["keep"])
    if name == "caption":
        return {**batch, "keep": keep}
    empty = base_model().tokenize([""]).expand_as(batch["input_ids"])
    return {**batch, "input_ids": empty, "keep": keep}


def shown_maps(given: Given, kind: str) -> Pictures:
    """The maps of the examples as pictures."""
    pixels = [decode_map(kind, example.maps[kind].png) for example in given.examples]
    if kind == "canny":
        grey = [np.where(canny_edges(p.astype(np.uint16), *EDGES), 255, 0) for p in pixels]
    else:
        grey = [p.astype(float) / max(int(p.max()), 1) * 255 for p in pixels]
    return np.repeat(np.stack(grey).astype(np.uint8)[..., None], 3, axis=3)


def sheet(folder: Path | None, name: str, columns: Sequence[Pictures], rows: int = 12) -> None:
    """Save a sheet with a row for each scene, at twice the size, unless `folder` is None."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = [np.concatenate([column[i] for column in columns], axis=1) for i in range(min(rows, len(columns[0])))]
    whole = Image.fromarray(np.concatenate(lines))
    whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST).save(folder / f"{name}.png")


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs, their data and what was drawn.")],
    only_run: Annotated[str | None, typer.Option("--train", help="Train this run, and draw nothing.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 500,
    count: Annotated[int, typer.Option(help="Held-out scenes.")] = 32,
    sheets: Annotated[Path | None, typer.Option(help="Folder for a sheet of pictures of each run.")] = None,
    write: Write = False,
) -> None:
    """Train a run, or draw with those that have ended and compare."""
    for library in (diffusers, transformers):  # loading prints progress bars
        library.utils.logging.disable_progress_bar()
    runs.mkdir(parents=True, exist_ok=True)
    if only_run:
        train(runs, only_run, steps)
        return
    readers = Readers(load_segmenter(SAMPLE / "segmenter"), load_clip(SAMPLE / "clip"), depth_reader)
    report("control", __doc__ or "", list(rows_of(runs, readers, given_of(count), sheets)), write=write)


if __name__ == "__main__":
    typer.run(main)
