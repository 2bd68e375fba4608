"""Accuracy of the sample CLIPSeg and of mattes from its heatmaps, on scenes that no model was trained on.

    python -m benchmarks.mattes [--count 300] [--write]
    python -m benchmarks.mattes --sweep [--count 60]    other thresholds than the preset's

The subject of a scene is the phrase of its caption whose objects cover the most pixels. It goes through the steps of
`subjectloom build blip-diffusion` without the filters: CLIPSeg, trimap, matting. The alphas are compared with the
scenes' exact ones, and with those of PyMatting on the same trimaps.
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

from benchmarks.accuracy import SEED, Truth, read_truths
from benchmarks.matting import by_pymatting
from benchmarks.tables import Row, Write, report
from jobs.sample_models.metrics import intersection_over_union
from jobs.scenes import write_scenes
from pipelines.blip_diffusion import BlipDiffusionConfig
from schemas.images import decode_image
from transforms.matting.closed_form import closed_form_alpha
from transforms.matting.cutout import TrimapBounds, enlarge
from transforms.matting.trimap import UNKNOWN, trimap_of_heatmap
from transforms.models.clipseg import ClipSeg, find_heatmaps, load_clipseg
from transforms.models.presets import resolve

BATCH = 8
SWEPT = SEED + 500
"""Seed of the scenes on which thresholds are chosen."""
LOWER, UPPER = (0.02, 0.05, 0.1, 0.2, 0.3), (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Subject:
    """Subject of a scene: picture [H, W, 3] uint8, phrase, exact alpha [H, W] float64 in [0, 1]."""

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
                # Alphas are of visible parts: where two objects meet, they add up to 1.
                alphas[thing["phrase"]] = np.minimum(alphas.get(thing["phrase"], 0) + alpha, 1)
        if alphas:
            phrase, alpha = max(alphas.items(), key=lambda item: item[1].sum())
            yield Subject(decode_image((scenes / "images" / f"{key}.jpg").read_bytes()), phrase, alpha)


def confidences(clipseg: ClipSeg, subjects: list[Subject]) -> Iterator[NDArray[np.float32]]:
    """CLIPSeg's confidence of each subject, in batches of `BATCH`: [H, W] float32 in [0, 1]."""
    for start in range(0, len(subjects), BATCH):
        batch = subjects[start : start + BATCH]
        maps = find_heatmaps(clipseg, [subject.image for subject in batch], [[subject.phrase] for subject in batch])
        for subject, found in zip(batch, maps, strict=True):
            yield enlarge(found[0], subject.alpha.shape)


def make_subjects(seed: int, count: int) -> list[Subject]:
    """Render `count` scenes and take their subjects."""
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        list(write_scenes(scenes, count, seed))
        return list(subjects_of(scenes, read_truths(scenes)))


def make_trimap(confidence: NDArray[np.float32], bounds: TrimapBounds, band: int) -> NDArray[np.uint8] | None:
    """Make the trimap [H, W] of a confidence [H, W]; None if it has no foreground or no background pixel."""
    trimap = trimap_of_heatmap(confidence, bounds.lower, bounds.upper, band)
    return trimap if {0, 255} <= set(np.unique(trimap).tolist()) else None


def measure(count: int) -> list[Row]:
    """Measure on `count` scenes."""
    models = resolve("sample", {})
    config, bounds = BlipDiffusionConfig(), TrimapBounds(*models.trimap)
    subjects = make_subjects(SEED, count)
    overlaps, errors, bands, peers, without_trimap = [], [], [], [], 0
    for subject, confidence in zip(subjects, confidences(load_clipseg(models.clipseg), subjects), strict=True):
        overlaps.append(intersection_over_union(confidence >= (bounds.lower + bounds.upper) / 2, subject.alpha >= 0.5))
        trimap = make_trimap(confidence, bounds, config.band)
        if trimap is None:
            without_trimap += 1
            continue
        image, unknown = subject.image / 255, trimap == UNKNOWN
        error = np.abs(closed_form_alpha(image, trimap) - subject.alpha)
        peer = np.abs(by_pymatting(image, trimap) - subject.alpha)
        errors.append(error.mean())
        bands.append(error[unknown].mean())
        peers.append(peer[unknown].mean())
    ratio = np.mean(bands) / np.mean(peers)
    return [
        Row("IoU of CLIPSeg's mask", f"{np.mean(overlaps):.3f}", f"at least 0.80; {len(subjects)} subjects"),
        Row("mean error of alpha", f"{np.mean(errors):.4f}", "at most 0.02"),
        Row("mean error in the unknown band", f"{np.mean(bands):.4f}"),
        Row("PyMatting's on the same trimaps", f"{np.mean(peers):.4f}"),
        Row("error in the unknown band over PyMatting's", f"{ratio:.3f}", "at most 1.1"),
        Row("subjects without a trimap", str(without_trimap), "no pixel is surely subject, or none background"),
    ]


def sweep(count: int) -> Iterator[tuple[TrimapBounds, float, int]]:
    """Yield thresholds, alpha's mean error on `count` scenes, and the number of subjects without a trimap."""
    models = resolve("sample", {})
    subjects = make_subjects(SWEPT, count)
    found = list(confidences(load_clipseg(models.clipseg), subjects))
    for bounds in (TrimapBounds(lower, upper) for lower in LOWER for upper in UPPER):
        trimaps = [make_trimap(confidence, bounds, BlipDiffusionConfig().band) for confidence in found]
        errors = [
            np.abs(closed_form_alpha(subject.image / 255, trimap) - subject.alpha).mean()
            for subject, trimap in zip(subjects, trimaps, strict=True)
            if trimap is not None
        ]
        yield bounds, float(np.mean(errors)), len(subjects) - len(errors)


def main(
    count: Annotated[int, typer.Option(help="Scenes to measure on.")] = 300,
    swept: Annotated[bool, typer.Option("--sweep", help="Try other thresholds, on other scenes.")] = False,
    write: Write = False,
) -> None:
    """Measure how accurate masks and mattes of subjects are."""
    if swept:
        for bounds, error, without_trimap in sweep(count):
            trimaps = f"{without_trimap} without a trimap"
            print(f"below {bounds.lower}, above {bounds.upper}: error of alpha {error:.4f}, {trimaps}")
        return
    report("mattes", __doc__ or "", measure(count), write=write)


if __name__ == "__main__":
    typer.run(main)
