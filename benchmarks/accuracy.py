"""How right the sample models are, against the truth of scenes that training never saw.

    python -m benchmarks.accuracy [--count 300] [--treebank DIR]

Everything is measured on the pictures and captions as a user has them: JPEG and text files, through the steps
that `subjectloom build` runs.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.sample_models.metrics import LabelledMask, intersection_over_union, panoptic_quality
from jobs.sample_models.parser import evaluate
from jobs.scenes import write_scenes
from pipelines.fastcomposer import FastComposerConfig
from schemas.images import decode_image
from schemas.masks import Mask
from transforms.models.parser import load_parser, parse_captions
from transforms.models.presets import Models, resolve
from transforms.models.segmenter import load_segmenter, segment_images
from transforms.text.phrases import find_phrases

SEED = 1000
"""Scenes of `subjectloom scenes --seed 1000`; training draws from other streams."""
TREEBANK = Path(__file__).parents[1] / ".." / "shared" / "treebank"

Truth = dict[str, Any]
"""The contents of a scene's `truth/KEY.json`."""


def read_truths(scenes: Path) -> dict[str, Truth]:
    """Read the truth of every scene, by key."""
    paths = sorted((scenes / "truth").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def phrase_scores(models: Models, truths: dict[str, Truth]) -> dict[str, float]:
    """Precision, recall and F1 of noun phrases, by exact character spans."""
    parses = parse_captions(load_parser(models.parser), [truth["caption"] for truth in truths.values()])
    found = [{(p.start, p.end) for p in find_phrases(parse)} for parse in parses]
    true = [{(p["start"], p["end"]) for p in truth["phrases"]} for truth in truths.values()]
    hits = sum(len(f & t) for f, t in zip(found, true, strict=True))
    precision, recall = hits / max(sum(map(len, found)), 1), hits / max(sum(map(len, true)), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-9)}


def segment_scores(models: Models, scenes: Path, truths: dict[str, Truth]) -> dict[str, float]:
    """Panoptic quality over the objects."""
    return panoptic_quality(_segmented(models, scenes, truths))


def _segmented(
    models: Models, scenes: Path, truths: dict[str, Truth]
) -> Iterator[tuple[Sequence[LabelledMask], Sequence[LabelledMask]]]:
    assert models.segmenter is not None
    segmenter = load_segmenter(models.segmenter)
    for key, truth in truths.items():
        image = decode_image((scenes / "images" / f"{key}.jpg").read_bytes())
        predicted = [(s.label, s.mask.to_array()) for s in segment_images(segmenter, [image])[0]]
        yield predicted, [(o["noun"], Mask.from_json(o["segmentation"]).to_array()) for o in truth["objects"]]


def link_scores(output: Path, truths: dict[str, Truth]) -> dict[str, float]:
    """Precision and recall of the links between phrases and objects in a dataset built from scenes.

    A subject is right where its mask covers an object (IoU of at least 0.5) whose phrase in the caption, as it
    was written, is the subject's. A phrase that counts several objects ("two cups") may link to each of them
    once. Recall is over all objects that the caption names.
    """
    right = given = 0
    for sample in read_samples(str(output), "fastcomposer"):
        record = json.loads(sample.members["json"])
        objects = truths[record["key"]]["objects"]
        free = {j for j, o in enumerate(objects) if o["phrase"] is not None}
        given += len(record["subjects"])
        for subject in record["subjects"]:
            origin = tuple(record["phrases"][subject["phrase"]]["origin"])
            mask = Mask.from_json(subject["segmentation"]).to_array()
            fits = [
                j for j in free if _is_object(mask, objects[j]) and (objects[j]["start"], objects[j]["end"]) == origin
            ]
            right += len(fits[:1])
            free -= set(fits[:1])
    named = sum(o["phrase"] is not None for truth in truths.values() for o in truth["objects"])
    return {"precision": right / max(given, 1), "recall": right / max(named, 1)}


def _is_object(mask: np.ndarray[Any, np.dtype[np.bool_]], thing: dict[str, Any]) -> bool:
    return intersection_over_union(mask, Mask.from_json(thing["segmentation"]).to_array()) >= 0.5


def measure(count: int, treebank: Path, console: Console) -> dict[str, dict[str, float]]:
    """Measure everything on `count` scenes; the treebank's part is left out where `treebank` is missing."""
    models = resolve("sample", {})
    results: dict[str, dict[str, float]] = {}
    if (treebank / "dev.conllu.gz").exists():
        results["phrases, treebank"] = asdict(evaluate(load_parser(models.parser).nlp, treebank / "dev.conllu.gz"))
    with tempfile.TemporaryDirectory() as folder:
        scenes, output = Path(folder) / "scenes", Path(folder) / "dataset"
        list(write_scenes(scenes, count, SEED))
        truths = read_truths(scenes)
        results["phrases, scenes"] = phrase_scores(models, truths)
        results["panoptic, scenes"] = segment_scores(models, scenes, truths)
        build(Request("fastcomposer", str(scenes / "images"), str(output), FastComposerConfig(), models), console)
        results["links, scenes"] = link_scores(output, truths)
    return results


def main(
    count: Annotated[int, typer.Option(help="Scenes to measure on.")] = 300,
    treebank: Annotated[Path, typer.Option(help="Folder with dev.conllu.gz.")] = TREEBANK,
) -> None:
    """Print how right the sample models are."""
    console = Console()
    for what, scores in measure(count, treebank, console).items():
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        console.print(f"{what:20} {numbers}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
