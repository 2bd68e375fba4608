"""Which checkpoints a job runs: presets by name, each of whose models can be replaced alone.

No model library is imported here: presets are read before it is known which models run.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import cast, get_args
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from schemas.errors import ConfigError, ModelError, choices
from transforms.models.parser import package_of
from transforms.models.places import SAMPLE, located
from transforms.models.settings import HOSTING, Everything, Hosting, Precision


@dataclass(frozen=True)
class Models:
    """The checkpoints of a job and the settings that depend on them; a row per kind, with its value in each preset.

    A checkpoint is a folder, a file or a name; None: the preset has none. A model of transformers on the Hugging Face
    hub may be NAME@REVISION.
    """

    parser: str = field(metadata={"sample": "sample/parser", "hub": "en_core_web_sm"})
    # None: the source's own annotations are the segments.
    segmenter: str | None = field(
        metadata={"sample": "sample/segmenter", "hub": "facebook/mask2former-swin-large-coco-panoptic"}
    )
    clip: str = field(metadata={"sample": "sample/clip", "hub": "ViT-L-14/openai"})
    clipseg: str = field(metadata={"sample": "sample/clipseg", "hub": "CIDAS/clipseg-rd64-refined"})
    # None: pictures without a caption are rejected.
    captioner: str | None = field(metadata={"sample": None, "hub": "Salesforce/blip2-opt-6.7b"})
    # None: phrases are grounded by SAM's masks and CLIP. A .pth is run by groundingdino-py.
    detector: str | None = field(metadata={"sample": None, "hub": "IDEA-Research/grounding-dino-base"})
    sam: str = field(
        metadata={"sample": "sample/sam", "hub": "ybelkada/segment-anything/checkpoints/sam_vit_h_4b8939.pth"}
    )
    # None: depth maps and key points come from the source, and there are no soft edges.
    depth: str | None = field(metadata={"sample": None, "hub": "depth-anything/Depth-Anything-V2-Small-hf"})
    edges: str | None = field(metadata={"sample": None, "hub": "lllyasviel/Annotators/ControlNetHED.pth"})
    pose: str | None = field(metadata={"sample": None, "hub": "usyd-community/vitpose-base-simple"})

    # None: axes that need it are refused.
    aesthetic: str | None = field(
        metadata={"sample": None, "hub": "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"}
    )

    everything: Everything
    """How SAM looks for all masks of a picture."""
    thresholds: Mapping[str, float]
    """Lowest similarity of a match, for each kind of similarity; belongs to the CLIP."""
    trimap: tuple[float, float]
    """CLIPSeg's confidence below which a pixel is background, and the one above which it is the subject."""
    batch_size: int
    """Pictures that go through a model together, unless the recipe's config says otherwise."""
    hosting: Hosting = HOSTING
    """How workers hold the models."""


KINDS = tuple(kind.name for kind in fields(Models) if kind.metadata)
"""The kinds of model, as `--model KIND=...` takes them."""


def _preset(
    name: str,
    everything: Everything,
    thresholds: Mapping[str, float],
    trimap: tuple[float, float],
    batch_size: int,
) -> Models:
    checkpoints = {kind.name: kind.metadata[name] for kind in fields(Models) if kind.metadata}
    return Models(**checkpoints, everything=everything, thresholds=thresholds, trimap=trimap, batch_size=batch_size)


PRESETS = {
    "sample": _preset(
        "sample",
        # Its predicted IoUs are low and its edges soft: SAM's own bounds would leave next to nothing.
        everything=Everything(points=12, predicted_iou=0.4, stability=0),
        # On held-out scenes 99 % of the true pairs lie above 0.56 and 99 % of the others below 0.44.
        thresholds={"clip": 0.5, "clip-label": 0.14, "label": 0.5},
        # Of 25 pairs on 60 scenes (`benchmarks.mattes --sweep`): the error of alpha is within 6 % of the smallest, and
        # fewer pixels are unknown than with the best pair, 0.02 and 0.9.
        trimap=(0.1, 0.9),
        batch_size=8,
    ),
    "hub": _preset(
        "hub",
        everything=Everything(),
        # Cosines of published CLIP models lie between about 0.15 (unrelated) and 0.35 (a good caption).
        thresholds={"clip": 0.2, "clip-label": 0.15, "label": 0.5},
        # Chosen by reasoning, not measured: the published decoder's maps seldom exceed 0.5 on what they have found.
        trimap=(0.1, 0.5),
        batch_size=32,
    ),
}


def resolve(preset: str, overrides: Mapping[str, str]) -> Models:
    """Return a preset's models, with `overrides` (kind of model -> folder or name) in place of its own.

    The thresholds belong to the CLIP: a CLIP of no preset gets those of `hub`, which hold for published models.

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
        known = [other.thresholds for other in PRESETS.values() if other.clip == models.clip]
        models = replace(models, thresholds=known[0] if known else PRESETS["hub"].thresholds)
    return models


def host(models: Models, precision: str = "auto", copies: int | None = None, *, large: bool = False) -> Models:
    """Return the models with another hosting: that of `Hosting`, where it is given, else the preset's.

    Raises:
        ConfigError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ConfigError(
            f"--precision {precision}: there is no such precision{choices(precision, get_args(Precision))}"
        )
    hosting = Hosting(cast("Precision", precision), copies or models.hosting.copies, large or models.hosting.large)
    return replace(models, hosting=hosting)


def name_of(checkpoint: str) -> str:
    """The name of a checkpoint in `dataset.json`: "sample/KIND" for one of the sample preset, wherever it is."""
    path = Path(located(checkpoint))
    return f"sample/{path.name}" if path.parent == SAMPLE else checkpoint


def revision_of(checkpoint: str) -> str:
    """Identify the present content of a checkpoint; "" if that is not possible.

    - A file: its SHA-256.
    - A folder: the SHA-256 over names, sizes and contents of its files, sorted by name.
    - An installed package: its version; of a parser that is installed as a copy, the copy's.
    - A repository on the Hugging Face hub: the commit of its main branch, or of the revision in NAME@REVISION; offline,
      the commit that was downloaded last.
    """
    path = Path(located(checkpoint))
    if path.is_dir():
        return f"sha256:{_digest(path)}"
    if path.is_file():
        with path.open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    return _package_version(checkpoint) or _hub_commit(*hub_file(checkpoint))


def check_downloads(checkpoints: Mapping[str, str]) -> None:
    """Check that the checkpoints, by kind, are here or that the hub can be reached.

    Each library would try for a minute, one after the other, and then name one of them.

    Raises:
        ModelError: offline, and some were never downloaded; it names them all.
    """
    missing = [f"{kind} {checkpoint}" for kind, checkpoint in checkpoints.items() if not is_here(checkpoint)]
    if missing and not _hub_answers():
        raise ModelError(
            f"the Hugging Face hub cannot be reached, and these models are not on this machine: {', '.join(missing)}. "
            "Go online once, or give --model KIND=FOLDER for each"
        )


def is_here(checkpoint: str) -> bool:
    """Whether a checkpoint is a path, whose loader says what is wrong with it, a package, or was downloaded."""
    if checkpoint.startswith(("/", ".", "~")) or Path(located(checkpoint)).exists() or _package_version(checkpoint):
        return True
    from huggingface_hub import try_to_load_from_cache

    name, file = hub_file(checkpoint)
    repository, _, revision = name.partition("@")
    return "/" in repository and isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str)


def _hub_answers() -> bool:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(ENDPOINT, method="HEAD"), timeout=5).close()  # noqa: S310 - the hub's own address
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def _package_version(name: str) -> str:
    """Return the version of an installed package, "" if there is none."""
    try:
        return importlib.metadata.version(package_of(name))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def hub_file(checkpoint: str) -> tuple[str, str]:
    """Return the repository of a checkpoint, and a small file that it has, or the file that is the checkpoint."""
    owner, _, rest = checkpoint.partition("/")
    name, _, file = rest.partition("/")
    if file:
        return f"{owner}/{name}", file
    # Only here: open_clip, which knows the repositories of its models, imports torch.
    from transforms.models.clip import hub_repository

    clip = hub_repository(checkpoint)
    return (clip, "open_clip_config.json") if clip else (checkpoint, "config.json")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hub_commit(name: str, file: str) -> str:
    """Return the commit of a repository, by downloading the small `file` that every such repository has."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition("@")
    try:
        path = hf_hub_download(repository, file, revision=revision or None)
    except (OSError, ValueError):
        return ""  # offline and never downloaded, or no repository: loading the checkpoint says what is wrong
    return Path(path).parent.name
