"""Accuracy of the sample models on scenes that no model was trained on, and of the parser on real text.

    python -m benchmarks.accuracy [--count 300] [--treebank DIR] [--captions DIR] [--write]

Pictures and captions are read from JPEG and text files and go through the steps of `subjectloom build`. Precision,
recall and F1 of noun phrases compare exact character spans; links are those of phrases and objects in the dataset that
was built. Beside the sample parser stands `en_core_web_sm`, the one of the hub preset, where it is installed.
"""

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.tables import Row, Write, report
from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.sample_models.metrics import LabelledMask, intersection_over_union, panoptic_quality
from jobs.sample_models.parser import evaluate
from jobs.scenes import write_scenes
from pipelines.fastcomposer import FastComposerConfig
from schemas.images import decode_image
from schemas.masks import Mask
from transforms.models.parser import Parser, load_parser, package_of, parse_captions
from transforms.models.presets import Models, resolve
from transforms.models.segmenter import load_segmenter, segment_images
from transforms.text.phrases import find_phrases

SEED = 1000
"""Seed of the scenes; no sample model is trained on scenes of this seed."""
SHARED = Path(__file__).parents[2] / "shared"
TREEBANK = SHARED / "treebank"
CAPTIONS = SHARED / "real" / "tiny_coco"
HUB = resolve("hub", {}).parser

Truth = dict[str, Any]
"""Contents of a scene's `truth/KEY.json`."""


def read_truths(scenes: Path) -> dict[str, Truth]:
    """Read the truth of every scene, by key."""
    paths = sorted((scenes / "truth").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def phrase_scores(parser: Parser, truths: dict[str, Truth]) -> dict[str, float]:
    """Precision, recall and F1 of noun phrases, by exact character spans."""
    found = phrase_spans(parser, [truth["caption"] for truth in truths.values()])
    true = [{(p["start"], p["end"]) for p in truth["phrases"]} for truth in truths.values()]
    hits = sum(len(f & t) for f, t in zip(found, true, strict=True))
    precision, recall = hits / max(sum(map(len, found)), 1), hits / max(sum(map(len, true)), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-9)}


def phrase_spans(parser: Parser, captions: Sequence[str]) -> list[set[tuple[int, int]]]:
    """Character spans of each caption's phrases."""
    return [{(p.start, p.end) for p in find_phrases(parse)} for parse in parse_captions(parser, captions)]


def caption_scores(parser: Parser, other: Parser, captions: Sequence[str]) -> dict[str, float]:
    """How far two parsers agree on captions without truth: F1 of their spans, share of captions read alike."""
    spans = list(zip(phrase_spans(parser, captions), phrase_spans(other, captions), strict=True))
    shared, total = sum(len(a & b) for a, b in spans), sum(len(a) + len(b) for a, b in spans)
    return {"f1": 2 * shared / max(total, 1), "captions read alike": sum(a == b for a, b in spans) / max(len(spans), 1)}


def hub_parser() -> Parser | None:
    """The parser of the hub preset, if it is installed."""
    return load_parser(HUB) if importlib.util.find_spec(package_of(HUB)) else None


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

    A subject is right if its mask matches an object (IoU of at least 0.5) that has the subject's phrase in the scene's
    caption. A phrase for several objects ("two cups") may link to each of them once. Recall is over all objects that
    the caption names.
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


def measure(count: int, treebank: Path, captions: Path) -> Iterator[Row]:
    """Measure everything on `count` scenes; the parser on real text only if `treebank` and `captions` are there."""
    models = resolve("sample", {})
    with tempfile.TemporaryDirectory() as folder:
        scenes, output = Path(folder) / "scenes", Path(folder) / "dataset"
        list(write_scenes(scenes, count, SEED))
        truths = read_truths(scenes)
        yield from parser_rows(load_parser(models.parser), hub_parser(), treebank, captions, truths)
        yield from rows("segments, scenes", segment_scores(models, scenes, truths), {"pq": 0.80})
        build(
            Request("fastcomposer", str(scenes / "images"), str(output), FastComposerConfig(), models),
            Console(stderr=True),
        )
        yield from rows("links, scenes", link_scores(output, truths), {"precision": 0.93, "recall": 0.88})


def parser_rows(
    parser: Parser, hub: Parser | None, treebank: Path, captions: Path, truths: dict[str, Truth]
) -> Iterator[Row]:
    """Measure the sample parser, beside that of the hub preset."""
    if (dev := treebank / "dev.conllu.gz").exists():
        peer = asdict(evaluate(hub.nlp, dev)) if hub else {}
        yield from rows("parser, treebank dev", asdict(evaluate(parser.nlp, dev)), {"noun_phrase_f1": 0.90}, peer)
    if hub and (file := captions / "annotations" / "captions_tiny.json").exists():
        texts = [note["caption"] for note in json.loads(file.read_text(encoding="utf-8"))["annotations"]]
        scores = caption_scores(parser, hub, texts)
        yield from rows(f"noun phrases, {len(texts)} COCO captions, agreement with {HUB}", scores, {})
    peer = phrase_scores(hub, truths) if hub else {}
    yield from rows("noun phrases, scenes", phrase_scores(parser, truths), {"f1": 0.97}, peer)


def rows(
    subject: str, scores: Mapping[str, float], bounds: Mapping[str, float], peer: Mapping[str, float] | None = None
) -> Iterator[Row]:
    """Make a row of each score, with its lower bound if there is one, and the score of the hub preset's parser."""
    for name, value in scores.items():
        notes = [f"at least {bounds[name]:.2f}"] if name in bounds else []
        notes += [f"{HUB} {peer[name]:.3f}"] if peer else []
        yield Row(f"{subject}: {name.replace('_', ' ')}", f"{value:.3f}", "; ".join(notes))


def main(
    count: Annotated[int, typer.Option(help="Scenes to measure on.")] = 300,
    treebank: Annotated[Path, typer.Option(help="Folder with dev.conllu.gz.")] = TREEBANK,
    captions: Annotated[Path, typer.Option(help="Folder with annotations/captions_tiny.json.")] = CAPTIONS,
    write: Write = False,
) -> None:
    """Measure how accurate the sample models are."""
    report("accuracy", __doc__ or "", list(measure(count, treebank, captions)), write=write)


if __name__ == "__main__":
    typer.run(main)
