"""Datasets as the folders that other programs load: a table of formats, and a module per format.

Importing this package loads no format's module, so that the command line can list the formats and their options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from schemas.errors import ConfigError, choices


class Summary(Protocol):
    """What an export wrote and what it left out."""

    def lines(self, destination: Path) -> list[str]:
        """Return it as lines for the terminal; `destination` is the folder."""
        ...


@dataclass(frozen=True)
class Option:
    """An option of a format.

    Attributes:
        name: The keyword of the export function, such as "held_out" for `--held-out`.
        type: The type of its value; the option of a bool is a flag.
        help: What it does, and its default.
        minimum: Its lowest value, or None.
    """

    name: str
    type: type
    help: str
    minimum: int | None = None


@dataclass(frozen=True)
class Export:
    """A format that datasets are exported to.

    Attributes:
        recipes: The recipes whose datasets can be exported to it.
        help: What it is, in a few words.
        load: Imports and returns the function `(output, destination, **options)` that writes it.
        options: The options of that function.
    """

    recipes: tuple[str, ...]
    help: str
    load: Callable[[], Callable[..., Summary]]
    options: tuple[Option, ...] = ()


def _fastcomposer() -> Callable[..., Summary]:
    from jobs.exports.fastcomposer import export_fastcomposer

    return export_fastcomposer


def _coco() -> Callable[..., Summary]:
    from jobs.exports.coco import export_coco

    return export_coco


def _gligen() -> Callable[..., Summary]:
    from jobs.exports.gligen import export_gligen

    return export_gligen


def _mip_adapter() -> Callable[..., Summary]:
    from jobs.exports.mip_adapter import export_mip_adapter

    return export_mip_adapter


def _references() -> Callable[..., Summary]:
    from jobs.exports.references import export_references

    return export_references


def _simpletuner() -> Callable[..., Summary]:
    from jobs.exports.simpletuner import export_simpletuner

    return export_simpletuner


def _instancediffusion() -> Callable[..., Summary]:
    from jobs.exports.instancediffusion import export_instancediffusion

    return export_instancediffusion


WITH_SUBJECTS = ("fastcomposer", "blip-diffusion", "mip-adapter", "pairs")
"""The recipes whose samples have subjects, and pictures of them (`jobs.exports.subjects`)."""


def _paint_by_example() -> Callable[..., Summary]:
    from jobs.exports.paint_by_example import export_paint_by_example

    return export_paint_by_example


def _controlnet() -> Callable[..., Summary]:
    from jobs.exports.conditions import export_controlnet

    return export_controlnet


def _imagefolder() -> Callable[..., Summary]:
    from jobs.exports.conditions import export_imagefolder

    return export_imagefolder


def _t2i_adapter() -> Callable[..., Summary]:
    from jobs.exports.conditions import export_t2i_adapter

    return export_t2i_adapter


_MAPPED = ("controlnet", "t2i-adapter", "composer")
_MAP = Option("map", str, "the kind of map (default: the dataset's first)")
_SIZE = Option("size", int, "side of the squares that are cut, in pixels, 0 for whole pictures", minimum=0)

EXPORTS: Mapping[str, Export] = {
    "fastcomposer": Export(
        recipes=("fastcomposer",),
        help="the folder that the published trainer loads",
        load=_fastcomposer,
        options=(
            Option("square", bool, "crop pictures to squares, in which its loader loses no subject"),
            Option(
                "held_out", int, "number of pictures held out for testing (default: 1,000, at most a tenth)", minimum=0
            ),
            Option("seed", int, "seed for choosing the pictures held out (default: 0)", minimum=0),
        ),
    ),
    "coco": Export(recipes=("fastcomposer",), help="COCO JSON with run-length masks", load=_coco),
    "mip-adapter": Export(
        recipes=("mip-adapter",), help="the folder that the published trainer loads", load=_mip_adapter
    ),
    "references": Export(
        recipes=WITH_SUBJECTS,
        help="targets with reference pictures of their subjects, for a --trainer",
        load=_references,
        options=(
            Option(
                "trainer",
                str,
                "diffsynth-studio, musubi-tuner, musubi-tuner-layers, ai-toolkit, diffusion-pipe, omnigen2, uno or "
                "ms-diffusion",
            ),
        ),
    ),
    "simpletuner": Export(
        recipes=WITH_SUBJECTS, help="pictures with boxes and masks for SimpleTuner's grounding", load=_simpletuner
    ),
    "instancediffusion": Export(
        recipes=WITH_SUBJECTS,
        help="JSON files with boxes, masks and embeddings of the subjects' texts",
        load=_instancediffusion,
        options=(
            Option(
                "text_encoder", str, "CLIP whose text embeddings it trains on (default: openai/clip-vit-large-patch14)"
            ),
        ),
    ),
    "gligen": Export(recipes=("gligen",), help="the table that the published trainer loads", load=_gligen),
    "paint-by-example": Export(
        recipes=("paint-by-example",), help="the tree that the published loader reads", load=_paint_by_example
    ),
    "controlnet": Export(_MAPPED, "source/, target/ and prompt.json", _controlnet, (_MAP, _SIZE)),
    "imagefolder": Export(_MAPPED, "Hugging Face's, with a conditioning column", _imagefolder, (_MAP, _SIZE)),
    "t2i-adapter": Export(_MAPPED, "a list of pictures with maps beside them", _t2i_adapter, (_MAP, _SIZE)),
}
"""The formats by name."""


def export_dataset(name: str, output: str, destination: Path, options: Mapping[str, Any]) -> list[str]:
    """Export a dataset and return lines for the terminal.

    Args:
        name: The format, a key of `EXPORTS`.
        output: Folder of the dataset.
        destination: A folder that does not exist, or is empty.
        options: Options of the format by name; those left out have their defaults.

    Raises:
        ConfigError: There is no such format, or it has no such option.
        InputError: `output` holds no finished dataset of the format's recipe, or `destination` is not empty.
    """
    if name not in EXPORTS:
        raise ConfigError(f"there is no format {name!r}{choices(name, EXPORTS)}")
    export = EXPORTS[name]
    foreign = sorted(options.keys() - {option.name for option in export.options})
    if foreign:
        flags = ", ".join(f"--{option.replace('_', '-')}" for option in foreign)
        raise ConfigError(f"the format {name} has no option {flags}: leave it out, or choose another --format")
    return export.load()(output, destination, **options).lines(destination)


def formats_help() -> str:
    """Return the formats in a line, for the command's help."""
    return "; ".join(
        f"{name}: {export.help}, from {' or '.join(export.recipes)} datasets" for name, export in EXPORTS.items()
    )


def all_options() -> list[Option]:
    """Return the options of all formats, each once; the help begins with the formats that it belongs to."""
    owners: dict[Option, list[str]] = {}
    for name, export in EXPORTS.items():
        for option in export.options:
            owners.setdefault(option, []).append(name)
    return [replace(option, help=f"{', '.join(names)}: {option.help}") for option, names in owners.items()]
