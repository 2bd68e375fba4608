"""Whether Paint by Example copies: a small model trained with and without augmented references and curved masks.

    python -m benchmarks.exemplar [--steps 300] [--count 64] [--sheet FILE.png] [--write]

Two models start from the sample text-to-image model and see the same scenes. Then each fills the hole of a held-out
scene, a box, with the reference of another scene. The drawn region, squashed to the reference's square, is compared
with the reference as it is (correlation of pixels, 1 for a copy) and mirrored: what is of the right colours correlates
with both, a copy with the first alone. The distance of mean colours (sRGB, 0 to 255) says whether the reference is used
at all; beside it stands that to another scene's reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from PIL import Image

from benchmarks.tables import Row, Write, report
from schemas.errors import RecordError
from schemas.example import Example
from schemas.samples.paint_by_example import FORMAT
from training.configs.paint_by_example import Config
from training.recipes.paint_by_example import Model, small, view
from training.shards import Raw, make_batch, to_floats
from training.small import SIDE
from transforms.models.places import SAMPLE
from transforms.regions.boxes import take_boxes
from transforms.scenes import make_scene
from transforms.scenes.truth import true_example

SEED = 2021
"""Stream of the scenes; the first ones are held out."""
TRAINED = 768
"""Scenes that are trained on."""
COMMON = {"resolution": SIDE, "reference": SIDE, "batch": 16, "pad": 2, "train_encoders": True}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "with": {},
    "without": {"augment": False, "arbitrary_mask": 0.0, "extend": 0.0},
}
BATCH = 16
"""Pictures drawn at a time."""

Pictures = NDArray[np.uint8]
"""[N, h, w, 3] uint8 sRGB."""


def scenes(count: int) -> list[Example]:
    """Scenes of one or two objects, with true boxes of which one is of the published size."""
    examples: list[Example] = []
    index = 0
    while len(examples) < count:
        scene = make_scene(np.random.default_rng([SEED, index]), 2 * SIDE, (1, 2), omitted=0)
        index += 1
        try:
            examples.append(take_boxes(true_example(scene, f"{index:06d}"), 0.02, 0.8))
        except RecordError:
            continue
    return examples


def raw_of(example: Example) -> Raw:
    """The sample of an example, as a dataset's reader yields it."""
    sample, _ = FORMAT.pack(example)
    return {"__key__": sample.key, "__url__": "", **sample.members}


def train_model(raws: Sequence[Raw], config: Config, steps: int) -> Model:
    """Train a model on samples; a function of the samples, the config and the steps."""
    model = Model(small(SAMPLE / "autoencoder", [""], 0), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    for step in range(steps):
        rng = np.random.default_rng([SEED, 1, step])
        chosen = [(step * BATCH + i, raws[j]) for i, j in enumerate(rng.integers(0, len(raws), BATCH))]
        batch = to_floats(make_batch(chosen, view, model.tools, config))
        losses = model(batch, model.draw(batch, rng))
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def swap_references(examples: Sequence[Example], config: Config) -> dict[str, Any]:
    """The batch of held-out scenes, with nothing at random, each with the reference of the next one."""
    batch = to_floats(make_batch([(0, raw_of(example)) for example in examples], view, None, config.plain()))
    return {**batch, "reference_pixel_values": batch["reference_pixel_values"].roll(-1, 0)}


def draw(model: Model, batch: Mapping[str, Any], steps: int, guidance: float) -> Pictures:
    """Fill the holes of a batch; the noise of a picture is a function of its place."""
    count = len(batch["keys"])
    shape = (model.vae.config.latent_channels, SIDE // 4, SIDE // 4)
    drawn = []
    for first in range(0, count, BATCH):
        part = {name: value[first : first + BATCH] for name, value in batch.items()}
        noise = np.stack(
            [np.random.default_rng([SEED, 2, first + i]).standard_normal(shape) for i in range(len(part["keys"]))]
        )
        drawn.append(model.sample(part, torch.from_numpy(noise).float(), steps=steps, guidance=guidance))
    return as_pictures(torch.cat(drawn))


def as_pictures(pixels: torch.Tensor) -> Pictures:
    """Turn [N, 3, H, W] in [0, 1] into [N, H, W, 3] uint8."""
    pictures: Pictures = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures


def region(picture: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The box of a hole, where `mask` [H, W] is below 0.5, squashed to the picture's square."""
    rows, columns = np.nonzero(mask < 0.5)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return np.asarray(Image.fromarray(picture).crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Correlation of the pixels of two pictures, each channel about its own mean; 0 if one of them is plain."""
    first, second = (picture - picture.mean((0, 1)) for picture in (a.astype(float), b.astype(float)))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else 0.0


def measure(regions: Pictures, references: Pictures) -> dict[str, float]:
    """Mean correlations with the reference as it is and mirrored, and distances of mean colours."""
    others = np.roll(references, 1, axis=0)
    pairs = list(zip(regions, references, others, strict=True))
    return {
        "as it is": float(np.mean([correlation(a, b) for a, b, _ in pairs])),
        "mirrored": float(np.mean([correlation(a, b[:, ::-1]) for a, b, _ in pairs])),
        "colour": float(np.mean([_distance(a, b) for a, b, _ in pairs])),
        "other": float(np.mean([_distance(a, c) for a, _, c in pairs])),
    }


def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.linalg.norm(a.mean((0, 1)) - b.mean((0, 1))))


def rows_of(way: str, measured: Mapping[str, float]) -> list[Row]:
    """The rows of a model."""
    return [
        Row(
            f"{way}: correlation with the reference",
            f"{measured['as it is']:.3f}",
            f"mirrored {measured['mirrored']:.3f}",
        ),
        Row(f"{way}: distance of mean colours", f"{measured['colour']:.1f}", f"to another's {measured['other']:.1f}"),
    ]


def main(
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = 300,
    count: Annotated[int, typer.Option(help="Held-out scenes.")] = 64,
    sampling: Annotated[int, typer.Option(help="DDIM steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="PNG: hole, reference, and what each model drew, 16 rows.")] = None,
    write: Write = False,
) -> None:
    """Train both models, let them draw, and measure."""
    for library in (diffusers, transformers):  # loading prints progress bars
        library.utils.logging.disable_progress_bar()
    examples = scenes(count + TRAINED)
    raws = [raw_of(replace(example, caption="")) for example in examples[count:]]
    rows: list[Row] = []
    columns: list[Pictures] = []
    for way, changes in WAYS.items():
        config = Config(**{**COMMON, **changes})
        batch = swap_references(examples[:count], config)
        references = as_pictures(batch["reference_pixel_values"])
        drawn = draw(train_model(raws, config, steps), batch, sampling, guidance)
        masks = batch["inpaint_mask"][:, 0].numpy()
        rows += rows_of(way, measure(np.stack([region(*pair) for pair in zip(drawn, masks, strict=True)]), references))
        columns = columns or [as_pictures(batch["inpaint_values"] / 2 + 0.5), references]
        columns.append(drawn)
    if sheet:
        lines = [np.concatenate([column[i] for column in columns], axis=1) for i in range(min(16, count))]
        Image.fromarray(np.concatenate(lines)).resize((len(columns) * 128, len(lines) * 128)).save(sheet)
    report("exemplar", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
