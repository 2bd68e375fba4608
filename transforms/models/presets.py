"""Which checkpoints a job runs: presets by name, each of whose models can be replaced alone."""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import hf_hub_download

from schemas.errors import ConfigError, choices
from transforms.models.clip import hub_repository
from transforms.models.sam import Everything

SAMPLE = Path(__file__).parent / "sample"


@dataclass(frozen=True)
class Models:
    """Checkpoints by what they do, the lowest similarity of a match for each kind of similarity, CLIPSeg's confidences.

    A model of transformers from the hub may be NAME@REVISION. A `detector` that ends in .pth is its authors' own.
    No `segmenter`: the source's own annotations are the segments. No `captioner`: the source's own captions are all.
    `trimap` holds the confidence below which a pixel is background, and that above which it is the subject's.
    No `detector`: phrases are grounded by SAM's masks and CLIP. `everything` is how SAM looks for all masks.
    """

    parser: str
    segmenter: str | None
    clip: str
    clipseg: str
    captioner: str | None
    detector: str | None
    sam: str
    everything: Everything
    thresholds: Mapping[str, float]
    trimap: tuple[float, float]


PRESETS = {
    # Trained by this project on its own scenes (jobs/sample_models/); only the parser reads real captions.
    "sample": Models(
        parser=str(SAMPLE / "parser"),
        segmenter=str(SAMPLE / "segmenter"),
        clip=str(SAMPLE / "clip"),
        clipseg=str(SAMPLE / "clipseg"),
        captioner=None,
        detector=None,
        sam=str(SAMPLE / "sam"),
        # Its predicted IoUs are low and its edges soft: SAM's own bounds would leave next to nothing.
        everything=Everything(points=12, predicted_iou=0.4, stability=0),
        # On held-out scenes 99 % of the true pairs lie above 0.56 and 99 % of the others below 0.44.
        thresholds={"clip": 0.5, "clip-label": 0.14, "label": 0.5},
        # Of 25 pairs on 60 scenes (`benchmarks.mattes --sweep`) within 6 % of alpha's least error, with fewer unknown
        # pixels to solve for than the best, 0.02 and 0.9.
        trimap=(0.1, 0.9),
    ),
    # Cosines of published CLIP models lie between about 0.15 (unrelated) and 0.35 (a good caption).
    "hub": Models(
        parser="en_core_web_sm",
        segmenter="facebook/mask2former-swin-large-coco-panoptic",
        clip="ViT-L-14/openai",
        clipseg="CIDAS/clipseg-rd64-refined",
        captioner="Salesforce/blip2-opt-6.7b",
        detector="IDEA-Research/grounding-dino-base",
        sam="ybelkada/segment-anything/checkpoints/sam_vit_h_4b8939.pth",
        everything=Everything(),
        thresholds={"clip": 0.2, "clip-label": 0.15, "label": 0.5},
        # Reasoned, not measured: the published decoder's maps are seldom surer than that of what they have found.
        trimap=(0.1, 0.5),
    ),
}
KINDS = ("parser", "segmenter", "clip", "clipseg", "captioner", "detector", "sam")


def resolve(preset: str, overrides: Mapping[str, str]) -> Models:
    """Return a preset's models with those of `overrides` (kind to folder or name) in their place.

    The lowest similarities of a match belong to the CLIP: one that no preset names has those of `hub`, which hold
    for published models.

    Raises:
        ConfigError: there is no such preset or kind of model.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}{choices(preset, PRESETS)}")
    for kind in overrides:
        if kind not in KINDS:
            raise ConfigError(f"there is no model {kind!r} to replace{choices(kind, KINDS)}")
    models = replace(PRESETS[preset], **overrides)  # type: ignore[arg-type]
    if "clip" in overrides:
        known = [one.thresholds for one in PRESETS.values() if one.clip == models.clip]
        models = replace(models, thresholds=known[0] if known else PRESETS["hub"].thresholds)
    return models


def name_of(checkpoint: str) -> str:
    """Name a checkpoint as `dataset.json` does: those of the sample preset apart from where they are installed."""
    path = Path(checkpoint)
    return f"sample/{path.name}" if path.parent == SAMPLE else checkpoint


def revision_of(checkpoint: str) -> str:
    """Return what a checkpoint is at this moment, "" where that cannot be told.

    For a file it is its SHA-256; for a folder SHA-256 over the names, sizes and contents of its files, sorted by name;
    for an installed package its version; for a repository on the Hugging Face hub the commit that its main branch, or
    the revision in NAME@REVISION, stands at (offline: stood at when it was last downloaded).
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return f"sha256:{_digest(folder)}"
    if folder.is_file():
        with folder.open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    try:
        return importlib.metadata.version(checkpoint)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    clip = hub_repository(checkpoint)
    return _hub_commit(clip, "open_clip_config.json") if clip else _hub_commit(checkpoint, "config.json")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hub_commit(name: str, file: str) -> str:
    """Return the commit of a repository, by fetching the small `file` that every such repository has."""
    repository, _, revision = name.partition("@")
    try:
        path = hf_hub_download(repository, file, revision=revision or None)
    except (OSError, ValueError):
        return ""  # not reached and never downloaded, or none of the hub's: the loading tells what is wrong
    return Path(path).parent.name
