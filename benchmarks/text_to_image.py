"""Pictures that the sample text-to-image model draws of captions that it was not trained on.

    python -m benchmarks.text_to_image [--model FOLDER] [--count 300] [--sheet FILE.png] [--write]

Captions name the one or two objects of held-out scenes. A colour is present where enough pixels are near it, a noun
where the sample segmenter finds one; a relation is obeyed if the segmenter finds both objects and their centres lie as
the caption says. The Frechet distance is that of sample CLIP's features to those of training scenes of one or two kinds
of objects. Beside it stand the same measures of true pictures, before and after the autoencoder: no model of these
latents can be expected to do better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import diffusers
import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import linalg

from benchmarks.tables import Row, Write, report
from jobs.sample_models.text_to_image import halve, render
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.small import SIDE
from transforms.models.clip import embed_images, load_clip
from transforms.models.places import SAMPLE
from transforms.models.segmenter import Segmenter, load_segmenter, segment_images
from transforms.scenes import Scene, SceneObject, make_scene
from transforms.scenes.paint import COLORS

SEED = 1018
"""Stream of the held-out scenes."""
NEAR = 60.0
"""Largest distance of a pixel of a colour from that colour, in sRGB from 0 to 255."""
SHARE = 0.01
"""Least share of a picture's pixels that show a colour."""
RELATIONS = {"to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""Direction (x, y) from the object named first to the other one."""
BOUNDS = {"color": 0.95, "noun": 0.7, "relation": 0.7}
CAPTION = 40
"""Height of a caption in a contact sheet, in pixels."""
BATCH = 20
"""Pictures drawn or segmented at a time."""

Pictures = NDArray[np.uint8]
"""[N, SIDE, SIDE, 3] uint8 sRGB."""


@dataclass(frozen=True)
class Scores:
    """Shares of what captions name that pictures show, in [0, 1].

    Attributes:
        color: named colours.
        wrong_color: colours that a caption does not name; near 0 where the measure can be trusted.
        noun: nouns, each in the picture whose caption names it.
        relation: relations of two objects.
    """

    color: float
    wrong_color: float
    noun: float
    relation: float


def held_out_scenes(count: int) -> list[Scene]:
    """Render `count` scenes of one or two objects, each with a phrase of its own."""
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = make_scene(np.random.default_rng([SEED, index]), 2 * SIDE, (1, 2), omitted=0)
        if len({thing.phrase for thing in scene.objects}) == len(scene.objects):
            scenes.append(scene)
        index += 1
    return scenes


def found_colors(picture: NDArray[np.uint8]) -> set[str]:
    """Colours that a picture [H, W, 3] shows: each pixel counts for the nearest, if it is near enough."""
    palette = np.array(list(COLORS.values()), np.float32)
    distances = np.linalg.norm(picture[..., None, :].astype(np.float32) - palette, axis=-1)
    near = np.where(distances.min(-1) <= NEAR, distances.argmin(-1), len(COLORS))
    shares = np.bincount(near.ravel(), minlength=len(COLORS)) / near.size
    return {color for color, share in zip(COLORS, shares, strict=False) if share >= SHARE}


def find_centers(segmenter: Segmenter, pictures: Pictures) -> list[dict[str, NDArray[np.float64]]]:
    """Segment pictures at the segmenter's own size: for each, its nouns with the centre (x, y) of the first of each."""
    centers: list[dict[str, NDArray[np.float64]]] = []
    for first in range(0, len(pictures), BATCH):
        larger = [
            np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC))
            for picture in pictures[first : first + BATCH]
        ]
        for segments in segment_images(segmenter, larger):
            found: dict[str, NDArray[np.float64]] = {}
            for segment in segments:
                ys, xs = np.nonzero(segment.mask.to_array())
                found.setdefault(segment.label, np.array([xs.mean(), ys.mean()]))
            centers.append(found)
    return centers


def score(scenes: Sequence[Scene], pictures: Pictures, segmenter: Segmenter) -> Scores:
    """Measure how far pictures show what the captions of `scenes` name."""
    named, unnamed, nouns, relations = [], [], [], []
    for scene, picture, centers in zip(scenes, pictures, find_centers(segmenter, pictures), strict=True):
        shown, wanted = found_colors(picture), named_colors(scene)
        # The caption may leave a colour out: the object then has any one.
        named += [color in shown for color in sorted(wanted)]
        unnamed += [color in shown for color in COLORS if color not in {thing.color for thing in scene.objects}]
        nouns += [thing.noun in centers for thing in scene.objects]
        relations += obeyed(scene, centers)
    return Scores(
        *(float(np.mean(values)) if values else float("nan") for values in (named, unnamed, nouns, relations))
    )


def named_colors(scene: Scene) -> set[str]:
    """Colours in the phrases of a scene's objects."""
    return {thing.color for thing in scene.objects if thing.color in _phrase(scene, thing).split()}


def _phrase(scene: Scene, thing: SceneObject) -> str:
    assert thing.phrase is not None
    return scene.caption[slice(*thing.phrase)]


def obeyed(scene: Scene, centers: dict[str, NDArray[np.float64]]) -> list[bool]:
    """Whether two objects lie as the caption says: one value, or none where the caption says nothing about it."""
    said = [direction for words, direction in RELATIONS.items() if f" {words} " in scene.caption]
    first, *others = sorted(scene.objects, key=lambda thing: thing.phrase or (0, 0))
    if not said or len(others) != 1 or first.noun == others[0].noun:
        return []
    if first.noun not in centers or others[0].noun not in centers:
        return [False]
    way = centers[others[0].noun] - centers[first.noun]
    return [bool(way @ np.array(said[0]) > 0)]


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance of two normal distributions fitted to features [N, D] and [M, D].

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", equation 6.
    """
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The product of two covariances has real eigenvalues of at least 0, up to rounding.
    eigenvalues = linalg.eigvals(covariances[0] @ covariances[1]).real
    mixed = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * mixed
    return float(distance)


def draw_pictures(model: LatentDiffusion, captions: Sequence[str], steps: int, guidance: float) -> Pictures:
    """Draw a picture of each caption; its noise is a function of its place."""
    drawn = []
    for first in range(0, len(captions), BATCH):
        ids = model.tokenize(captions[first : first + BATCH])
        shape = (model.vae.config.latent_channels, SIDE // 4, SIDE // 4)
        noise = np.stack([np.random.default_rng([SEED, first + i]).standard_normal(shape) for i in range(len(ids))])
        batch = {"input_ids": ids}
        drawn.append(model.sample(batch, torch.from_numpy(noise).float(), steps=steps, guidance=guidance))
    return as_pictures(torch.cat(drawn))


@torch.no_grad()
def reconstruct(model: LatentDiffusion, pictures: Pictures) -> Pictures:
    """Encode and decode pictures with the model's autoencoder."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = [model.vae.decode(model.vae.encode(part).latent_dist.mode()).sample for part in pixels.split(BATCH)]
    return as_pictures((torch.cat(decoded) / 2 + 0.5).clamp(0, 1))


def as_pictures(pixels: torch.Tensor) -> Pictures:
    """Turn [N, 3, H, W] in [0, 1] into [N, H, W, 3] uint8."""
    pictures: Pictures = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures


def contact_sheet(captions: Sequence[str], pictures: Pictures, path: Path, columns: int = 6) -> None:
    """Save pictures at three times their size, each above its caption."""
    side = 3 * SIDE
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        x, y = place % columns * side, place // columns * (side + CAPTION)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        draw.multiline_text((x + 3, y + side + 1), "\n".join(wrap(caption, 30)[:3]), fill="black")
    sheet.save(path)


def rows_of(drawn: Scores, true: Scores, decoded: Scores) -> list[Row]:
    """Rows of each score: of drawn pictures, of true ones, and of true ones through the autoencoder."""
    titles = {
        "color": "named colours present",
        "wrong_color": "other colours present",
        "noun": "nouns found by the sample segmenter",
        "relation": "left, right, above, below obeyed",
    }
    rows = []
    for name, title in titles.items():
        bound = f"bound {BOUNDS[name]:.2f}; " if name in BOUNDS else ""
        best = f"true pictures {getattr(true, name):.3f}, through the autoencoder {getattr(decoded, name):.3f}"
        rows.append(Row(title, f"{getattr(drawn, name):.3f}", bound + best))
    return rows


def main(
    model: Annotated[Path, typer.Option(help="Folder of a Stable Diffusion for 64 pixels.")] = SAMPLE / "text_to_image",
    count: Annotated[int, typer.Option(help="Captions.")] = 300,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="PNG for the first 24 pictures with their captions.")] = None,
    write: Write = False,
) -> None:
    """Draw held-out captions and measure what the pictures show."""
    for library in (diffusers, transformers):  # loading prints progress bars
        library.utils.logging.disable_progress_bar()
    network = LatentDiffusion(Parts(**load_stable_diffusion(model)))
    segmenter, clip = load_segmenter(SAMPLE / "segmenter"), load_clip(SAMPLE / "clip")
    scenes = held_out_scenes(count)
    true = np.stack([halve(scene.image) for scene in scenes])
    drawn = draw_pictures(network, [scene.caption for scene in scenes], steps, guidance)
    if sheet:
        contact_sheet([scene.caption for scene in scenes[:24]], drawn[:24], sheet)
    scores = (score(scenes, pictures, segmenter) for pictures in (drawn, true, reconstruct(network, true)))
    features = embed_images(clip, list(drawn)).astype(np.float64)
    indices = [index for index in range(4 * count) if index % 5 < 3][: 2 * count]  # of one or two kinds of objects
    training = embed_images(clip, [render(index)[0] for index in indices]).astype(np.float64)
    halves = frechet_distance(training[::2], training[1::2])
    distance = frechet_distance(features, training[::2])
    rows = rows_of(*scores)
    rows.append(
        Row("Frechet distance to training scenes, CLIP", f"{distance:.3f}", f"of their two halves {halves:.3f}")
    )
    report("text_to_image", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
