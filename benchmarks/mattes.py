"""How right the sample CLIPSeg and the mattes drawn from it are, against the exact alpha of scenes it never saw.

    python -m benchmarks.mattes [--count 300]
    python -m benchmarks.mattes --sweep [--count 60]    what other confidences than the preset's would give

The subject of a scene is its largest object that the caption names, in a phrase of its own or of several alike; all
that the phrase is true of counts. Its text goes through the steps that `subjectloom build blip-diffusion` runs,
without the filters: CLIPSeg, trimap, matting. PyMatting solves the same trimaps.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from benchmarks.accuracy import SEED, Truth, read_truths
from benchmarks.matting import by_pymatting
from jobs.sample_models.metrics import intersection_over_union
from jobs.scenes import write_scenes
from pipelines.blip_diffusion import BlipDiffusionConfig, trimap_bounds, with_thresholds
from schemas.images import decode_image
from transforms.matting.closed_form import closed_form_alpha
from transforms.matting.cutout import TrimapBounds, enlarge
from transforms.matting.trimap import UNKNOWN, trimap_of_heatmap
from transforms.models.clipseg import ClipSeg, find_heatmaps, load_clipseg
from transforms.models.presets import resolve

BATCH = 8
SWEPT = SEED + 500
"""Seed of the scenes that confidences are chosen on."""
LOWER, UPPER = (0.02, 0.05, 0.1, 0.2, 0.3), (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Subject:
    """A scene's named subject: picture [H, W, 3] uint8, phrase, exact alpha [H, W] float64 in [0, 1]."""

    image: NDArray[np.uint8]
    phrase: str
    alpha: NDArray[np.float64]


def subjects_of(scenes: Path, truths: dict[str, Truth]) -> Iterator[Subject]:
    """Yield the subject of each scene whose caption names an object."""
    for key, truth in truths.items():
        alphas: dict[str, NDArray[np.float64]] = {}
        for thing in truth["objects"]:
            if thing["phrase"] is not None:
                with Image.open(scenes / "truth" / thing["alpha"]) as stored:
                    alpha = np.asarray(stored) / 255
                # Alphas are of what shows: where two meet, their sum covers the picture.
                alphas[thing["phrase"]] = np.minimum(alphas.get(thing["phrase"], 0) + alpha, 1)
        if alphas:
            phrase, alpha = max(alphas.items(), key=lambda one: one[1].sum())
            yield Subject(decode_image((scenes / "images" / f"{key}.jpg").read_bytes()), phrase, alpha)


def confidences(clipseg: ClipSeg, subjects: list[Subject]) -> Iterator[NDArray[np.float32]]:
    """Look for each subject in its picture, `BATCH` together: [H, W] float32 in [0, 1]."""
    for start in range(0, len(subjects), BATCH):
        some = subjects[start : start + BATCH]
        maps = find_heatmaps(clipseg, [one.image for one in some], [[one.phrase] for one in some])
        for subject, found in zip(some, maps, strict=True):
            yield enlarge(found[0], subject.alpha.shape)


def make_subjects(seed: int, count: int) -> list[Subject]:
    """Render `count` scenes and take their subjects."""
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        list(write_scenes(scenes, count, seed))
        return list(subjects_of(scenes, read_truths(scenes)))


def draw(confidence: NDArray[np.float32], sure: TrimapBounds, band: int) -> NDArray[np.uint8] | None:
    """Draw the trimap [H, W] of a confidence [H, W]; None where it has no sure pixel of either kind."""
    trimap = trimap_of_heatmap(confidence, sure.lower, sure.upper, band)
    return trimap if {0, 255} <= set(np.unique(trimap).tolist()) else None


def measure(count: int) -> dict[str, float]:
    """Measure on `count` scenes."""
    models = resolve("sample", {})
    config = with_thresholds(BlipDiffusionConfig(), models)
    sure = trimap_bounds(config)
    subjects = make_subjects(SEED, count)
    overlaps, errors, bands, peers, unsure = [], [], [], [], 0
    for subject, confidence in zip(subjects, confidences(load_clipseg(models.clipseg), subjects), strict=True):
        overlaps.append(intersection_over_union(confidence >= (sure.lower + sure.upper) / 2, subject.alpha >= 0.5))
        trimap = draw(confidence, sure, config.band)
        if trimap is None:
            unsure += 1
            continue
        image, unknown = subject.image / 255, trimap == UNKNOWN
        error = np.abs(closed_form_alpha(image, trimap) - subject.alpha)
        peer = np.abs(by_pymatting(image, trimap) - subject.alpha)
        errors.append(error.mean())
        bands.append(error[unknown].mean())
        peers.append(peer[unknown].mean())
    return {
        "subjects": len(subjects),
        "IoU": float(np.mean(overlaps)),
        "without a sure pixel": unsure,
        "error of alpha": float(np.mean(errors)),
        "in the unknown band": float(np.mean(bands)),
        "PyMatting's there": float(np.mean(peers)),
        "times PyMatting's": float(np.mean(bands) / np.mean(peers)),
    }


def sweep(count: int) -> Iterator[tuple[TrimapBounds, float, int]]:
    """Yield confidences with alpha's mean error on `count` scenes, and how many of these have no sure pixel."""
    models = resolve("sample", {})
    subjects = make_subjects(SWEPT, count)
    found = list(confidences(load_clipseg(models.clipseg), subjects))
    for sure in (TrimapBounds(lower, upper) for lower in LOWER for upper in UPPER):
        trimaps = [draw(confidence, sure, BlipDiffusionConfig().band) for confidence in found]
        errors = [
            np.abs(closed_form_alpha(subject.image / 255, trimap) - subject.alpha).mean()
            for subject, trimap in zip(subjects, trimaps, strict=True)
            if trimap is not None
        ]
        yield sure, float(np.mean(errors)), len(subjects) - len(errors)


def main(
    count: Annotated[int, typer.Option(help="Scenes to measure on.")] = 300,
    swept: Annotated[bool, typer.Option("--sweep", help="Try other confidences, on other scenes.")] = False,
) -> None:
    """Print how right subjects and mattes are."""
    console = Console()
    if swept:
        for sure, error, unsure in sweep(count):
            told = f"error of alpha {error:.4f}, {unsure} without a sure pixel"
            console.print(f"below {sure.lower}, above {sure.upper}: {told}", highlight=False)
        return
    for name, value in measure(count).items():
        console.print(f"{name:22} {value:.4g}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
