"""Do drawn pictures obey their maps? ControlNet, T2I-Adapter and Composer, trained in small on sample scenes.

    python -m benchmarks.control RUNS [--train NAME] [--steps 800] [--count 64] [--sheets FOLDER] [--write]

Each model starts from the sample text-to-image model and learns from scenes of 64 pixels with their true maps; its run
is a folder of RUNS, and `--train` trains one and stops. From captions and maps of held-out scenes the models draw
pictures; the map is taken again from what was drawn, by the operator that made it, and compared with the map that was
given. Beside it stands the same comparison without the map, from the same noise (the text-to-image model; for Composer
itself without any condition), and for the scenes' own pictures after the autoencoder: no model of these latents can be
expected to do better. Sample models estimate segments; depth is estimated by a small network that is trained here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from PIL import Image

from benchmarks.depth_reader import DepthReader
from benchmarks.tables import Write
from benchmarks.text_to_image import (
    SEED,
    Pictures,
    as_pictures,
    found_colors,
    held_out_scenes,
    named_colors,
)
from jobs.sample_models.text_to_image import halve, training_scene
from jobs.train import run_training
from schemas.example import Example, Segment, Source
from schemas.images import encode_jpeg
from schemas.maps import canny_edges, decode_map, make_map, to_pixels
from schemas.masks import Mask
from schemas.samples import FORMATS
from tests.datasets import write_dataset
from training.diffusion import LatentDiffusion
from training.map_view import LUMA
from training.maps import intensity
from training.recipes import training_of
from training.shards import Batch, batches_once, find_shards
from training.small import SIDE
from transforms.maps.describe import add_embeddings, add_palette
from transforms.maps.draw import Drawing, draw_maps
from transforms.maps.edges import canny_gradient, xdog_sketch
from transforms.maps.palette import color_histogram
from transforms.models.clip import Clip, embed_images, load_clip
from transforms.models.places import SAMPLE
from transforms.models.segmenter import Segmenter, segment_images
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
GUIDANCE, STEPS = 3.0, 25
BATCH = 16
NEAR = 1
"""Distance in pixels within which an edge counts as found."""
EDGES = 100.0, 200.0
"""Thresholds of canny edges."""


@dataclass(frozen=True)
class Given:
    """What was given for N pictures.

    Attributes:
        scenes: their scenes.
        examples: with their maps.
        pictures: their own, [N, SIDE, SIDE, 3] uint8.
    """

    scenes: Sequence[Scene]
    examples: Sequence[Example]
    pictures: Pictures


@dataclass(frozen=True)
class Readers:
    """The models that maps are taken with."""

    segmenter: Segmenter
    clip: Clip
    depth: DepthReader


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


def draw(model: LatentDiffusion, batches: Iterator[Batch]) -> Pictures:
    """Draw a picture for each sample; its noise is a function of its place."""
    drawn: list[torch.Tensor] = []
    for batch in batches:
        first = sum(map(len, drawn))
        shape = (model.vae.config.latent_channels, SIDE // 4, SIDE // 4)
        noise = [np.random.default_rng([SEED, first + i]).standard_normal(shape) for i in range(len(batch["keys"]))]
        start = torch.from_numpy(np.stack(noise)).float()
        drawn.append(model.sample(batch, start, steps=STEPS, guidance=GUIDANCE))
    return as_pictures(torch.cat(drawn))


def edge_f1(given: Given, pictures: Pictures) -> float:
    """F1 of canny edges, mean over the pictures; an edge within `NEAR` pixels of one of the other counts as found."""
    return float(np.mean([_f1(_edges_of(a), _edges_of(b)) for a, b in zip(given.pictures, pictures, strict=True)]))


def _edges_of(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return canny_edges(canny_gradient(picture), *EDGES)


def _f1(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    if not expected.any() or not found.any():
        return float(expected.any() == found.any())
    recall, precision = ((a & _grown(b)).sum() / a.sum() for a, b in ((expected, found), (found, expected)))
    return float(2 * recall * precision / max(recall + precision, 1e-9))


def _grown(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(edges, NEAR)
    size = 2 * NEAR + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.asarray(windows.any((2, 3)))


def depth_error(readers: Readers, given: Given, pictures: Pictures) -> float:
    """Mean absolute error of the estimated nearness, of which 0 and 1 are the farthest and the nearest point."""
    true = np.stack([decode_map("depth", example.maps["depth"].png) for example in given.examples]).astype(np.float32)
    low, high = (getattr(true, name)((1, 2), keepdims=True) for name in ("min", "max"))
    return float(np.abs(readers.depth.read(pictures) - (true - low) / (high - low)).mean())


def segment_iou(readers: Readers, given: Given, pictures: Pictures) -> tuple[float, float]:
    """IoU of each thing and the found segment that overlaps it most: of any class, and of the thing's own."""
    larger = [np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BICUBIC)) for p in pictures]
    found = [s for i in range(0, len(larger), BATCH) for s in segment_images(readers.segmenter, larger[i : i + BATCH])]
    any_class, own_class = [], []
    for example, segments in zip(given.examples, found, strict=True):
        masks = [(s.label, s.mask.to_array()[2::4, 2::4]) for s in segments]
        for thing in example.segments:
            true = thing.mask.to_array()
            overlaps = [(label, (true & mask).sum() / (true | mask).sum()) for label, mask in masks]
            any_class.append(max((share for _, share in overlaps), default=0.0))
            own_class.append(max((share for label, share in overlaps if label == thing.label), default=0.0))
    return float(np.mean(any_class)), float(np.mean(own_class))


def sketch_error(given: Given, pictures: Pictures) -> float:
    """Mean absolute difference of the sketches' strengths, in [0, 1]."""
    pairs = zip(given.pictures, pictures, strict=True)
    return float(np.mean([np.abs(xdog_sketch(a) - xdog_sketch(b)).mean() for a, b in pairs]))


def intensity_error(given: Given, pictures: Pictures) -> float:
    """Mean absolute difference of the greys, in [0, 1]."""
    a, b = (intensity(p, LUMA).astype(float) for p in (given.pictures, pictures))
    return float(np.abs(a - b).mean() / 255)


def palette_distance(given: Given, pictures: Pictures) -> float:
    """Share of the palette's mass that lies on other colours, in [0, 1]."""
    pairs = zip(given.pictures, pictures, strict=True)
    return float(np.mean([np.abs(color_histogram(a) - color_histogram(b)).sum() / 2 for a, b in pairs]))


def image_cosine(readers: Readers, given: Given, pictures: Pictures) -> float:
    """Cosine of the CLIP embeddings."""
    a, b = (embed_images(readers.clip, list(p)) for p in (given.pictures, pictures))
    return float((a * b).sum(1).mean())


def colors_named(given: Given, pictures: Pictures) -> float:
    """Share of the colours named in the captions that the pictures show."""
    shown = [
        color in found_colors(picture)
        for scene, picture in zip(given.scenes, pictures, strict=True)
        for color in sorted(named_colors(scene))
    ]
    return float(np.mean(shown))


def visible_error(batches: Sequence[Batch], pictures: Pictures) -> float:
    """Mean absolute difference of the pixels that the masked picture shows, in [0, 1]."""
    masked = torch.cat([batch["masked"] for batch in batches]).permute(0, 2, 3, 1).numpy()
    visible = masked[..., 3] == 0
    return float(np.abs(masked[..., :3] - pictures / 255)[visible].mean())


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs and their data.")],
    only: Annotated[str | None, typer.Option("--train", help="Train this run, and draw nothing.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 500,
    count: Annotated[int, typer.Option(help="Held-out scenes.")] = 64,
    sheets: Annotated[Path | None, typer.Option(help="Folder for a sheet of pictures of each run.")] = None,
    write: Write = False,
) -> None:
    """Train a run, or draw with those that are there and compare."""
    for library in (diffusers, transformers):  # loading prints progress bars
        library.utils.logging.disable_progress_bar()
    if only:
        train(runs, only, steps)
        return
    print(count, sheets, write)


if __name__ == "__main__":
    typer.run(main)
