"""Which checkpoints a job runs: presets by name, each of whose models can be replaced alone."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from schemas.errors import ConfigError

SAMPLE = Path(__file__).parent / "sample"


@dataclass(frozen=True)
class Models:
    """Checkpoints by what they do, and the lowest similarity of a match for each kind of similarity.

    No `segmenter`: the source's own annotations are the segments.
    """

    parser: str
    segmenter: str | None
    clip: str
    thresholds: Mapping[str, float]


PRESETS = {
    # Trained by this project on its own scenes (jobs/train_*.py); only the parser serves real captions.
    "sample": Models(
        parser=str(SAMPLE / "parser"),
        segmenter=str(SAMPLE / "segmenter"),
        clip=str(SAMPLE / "clip"),
        # On held-out scenes 99 % of the true pairs lie above 0.56 and 99 % of the others below 0.44.
        thresholds={"clip": 0.5, "clip-label": 0.14, "label": 0.5},
    ),
    # Cosines of published CLIP models lie between about 0.15 (unrelated) and 0.35 (a good caption).
    "hub": Models(
        parser="en_core_web_sm",
        segmenter="facebook/mask2former-swin-large-coco-panoptic",
        clip="ViT-L-14/openai",
        thresholds={"clip": 0.2, "clip-label": 0.15, "label": 0.5},
    ),
}
KINDS = ("parser", "segmenter", "clip")


def resolve(preset: str, overrides: Mapping[str, str]) -> Models:
    """Return a preset's models with those of `overrides` (kind to folder or name) in their place.

    Raises:
        ConfigError: there is no such preset or kind of model.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}: choose of {', '.join(PRESETS)}")
    for kind in overrides:
        if kind not in KINDS:
            close = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"there is no model {kind!r} to replace{hint}: choose of {', '.join(KINDS)}")
    models = PRESETS[preset]
    for kind, checkpoint in overrides.items():
        models = replace(models, **{kind: checkpoint})  # type: ignore[arg-type]
    return models


def revision_of(checkpoint: str) -> str:
    """Return what a checkpoint was when the job ran: for a folder the hash of its files, "" where nothing is known.

    The hash is SHA-256 over names and contents of the folder's files, sorted.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return _hub_commit(checkpoint)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _hub_commit(name: str) -> str:
    """Return the commit that the local hub cache holds for a repository's main branch, "" if none."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return ""
    for repository in repositories:
        if repository.repo_id == name and "main" in repository.refs:
            return str(repository.refs["main"].commit_hash)
    return ""
