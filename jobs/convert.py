"""`subjectloom weights convert`: weights that others released as models of ours, and ours as theirs.

Each system is a family of formats, among which `subjectloom` is the folder that a training run writes as RUN/model/.
What a file does not hold (configs, tokenizers, the scheduler; for adapters all of Stable Diffusion) comes from a base.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from schemas.errors import ConfigError, InputError, ModelError, choices
from training import adapter as ip_adapter
from training import diffusion
from training.diffusion import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, load_stable_diffusion
from training.recipes import blip_diffusion, fastcomposer, mip_adapter
from training.recipes.blip_diffusion.published import is_published, save_published
from training.weights import blip_diffusion as blip_names
from training.weights import fastcomposer as fastcomposer_names
from training.weights import ip_adapter as adapter_names
from training.weights import stable_diffusion as sd_names
from training.weights.files import Weights, add_prefix, fill, read_weights, under, write_weights

Base = str | Path | None
OURS = "subjectloom"


@dataclass(frozen=True)
class Format:
    """How weights are read and written in a format.

    Attributes:
        read: from a file or folder, under our names.
        write: to a new file or folder, from weights, the source's path for errors, and the base.
        file: whether it is a file.
    """

    read: Callable[[Path], Weights]
    write: Callable[[Weights, Path, Path, Base], None]
    file: bool = False


def convert(source: Path, output: Path, given: str, wanted: str, base: str | None = None) -> None:
    """Convert weights.

    Args:
        source: a file or folder in the format `given`.
        output: a new file or folder in the format `wanted`.
        given: a format.
        wanted: another one of the same system.
        base: folder, or the hub's name, of a model for what `source` does not hold; by default a model's own folder, or
            the published ones.

    Raises:
        ConfigError: there is no such format, or no such conversion.
        InputError: `source` does not exist, or `output` does.
        ModelError: `source` holds something else, or does not fit the base.
    """
    known = {name for family in FAMILIES for name in family}
    for option, name in (("--from", given), ("--to", wanted)):
        if name not in known:
            raise ConfigError(f"{option}: there is no format {name!r}{choices(name, sorted(known))}")
    family = next((formats for formats in FAMILIES if given in formats and wanted in formats), None)
    if family is None or (given == wanted and given != "ip-adapter"):
        targets = {name for formats in FAMILIES if given in formats for name in formats} - {given}
        raise ConfigError(
            f"weights are not converted from {given} to {wanted}; from {given}: {', '.join(sorted(targets))}"
        )
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    if source.is_file() != family[given].file:
        raise InputError(f"{source}: {given} is a {'file' if family[given].file else 'folder'}")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"{output} exists already: name a new one")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    origin = source if source.is_dir() and given != "lavis" else None
    family[wanted].write(family[given].read(source), output, source, base or origin)


def networks(parts: diffusion.Parts) -> dict[str, nn.Module]:
    """The networks among a model's parts."""
    found: dict[str, Any] = {field.name: getattr(parts, field.name) for field in fields(parts)}
    return {name: part for name, part in found.items() if isinstance(part, nn.Module)}


def weights_of(parts: diffusion.Parts) -> Weights:
    """All weights of a model: "PART.NAME" to tensor."""
    return nn.ModuleDict(networks(parts)).state_dict()


def check_holds(folder: Path, name: str, kind: str) -> None:
    """Refuse a folder without a part that models of a kind have."""
    if not (folder / name).exists():
        raise ModelError(f"{folder} is no {kind} model that Subjectloom saved: it has no {name}")


def check_weights(path: Path, weights: Weights, name: str, kind: str) -> Weights:
    """Refuse a file whose weights lack one that all of a kind have, and say of which kind they are if that is known."""
    if not any(name in weight for weight in weights):
        others = [other for other, part in SIGNS.items() if any(part in weight for weight in weights)]
        guess = f"; --from {others[0]} may be right" if others else ""
        raise ModelError(f"{path} is not of the format {kind}: it has no weight {name.strip('.')}{guess}")
    return weights


SIGNS = {"fastcomposer": "postfuse_module.", "mip-adapter": adapter_names.PREDICTOR, "ip-adapter": "ip_adapter.1."}
"""Parts of the names of weights from which a file's format can be told."""


def read_fastcomposer(path: Path) -> Weights:
    """Read the released file, or a checkpoint of the authors' trainer."""
    weights = check_weights(path, read_weights(path), SIGNS["fastcomposer"], "fastcomposer")
    return fastcomposer_names.from_released(weights)


def read_own_fastcomposer(folder: Path) -> Weights:
    """Read a folder of ours."""
    check_holds(folder, "fuser", "FastComposer")
    return weights_of(fastcomposer.load(folder))


def write_fastcomposer(weights: Weights, output: Path, _source: Path, _base: Base) -> None:
    """Write the file that the authors' code loads."""
    write_weights(output, fastcomposer_names.to_released(weights))


def write_own_fastcomposer(weights: Weights, output: Path, source: Path, base: Base) -> None:
    """Write a folder of ours."""
    parts = fastcomposer.load(base or STABLE_DIFFUSION)
    fill(networks(parts), weights, source)
    fastcomposer.Model(parts).save(output)


def read_ip_adapter(path: Path) -> Weights:
    """Read an IP-Adapter in either of its formats."""
    weights = check_weights(path, read_weights(path), SIGNS["ip-adapter"], "ip-adapter")
    if any(adapter_names.PREDICTOR in name for name in weights):
        raise ModelError(f"{path} is a MIP-Adapter's: give --from mip-adapter")
    return adapter_names.from_released(weights)


def read_mip_adapter(path: Path) -> Weights:
    """Read a MIP-Adapter's model.bin."""
    weights = check_weights(path, read_weights(path), SIGNS["mip-adapter"], "mip-adapter")
    return adapter_names.from_released(weights)


def read_own_adapter(folder: Path) -> Weights:
    """Read the adapter in a folder of ours."""
    xl = (folder / ip_adapter.XL_WEIGHTS).exists()
    name = ip_adapter.XL_WEIGHTS if xl else ip_adapter.WEIGHTS
    check_holds(folder, name, "MIP-Adapter")
    return adapter_names.from_released(read_weights(folder / name))


def write_ip_adapter(weights: Weights, output: Path, _source: Path, _base: Base) -> None:
    """Write an IP-Adapter, without a predictor; the file's ending says in which of its formats."""
    released = adapter_names.to_released(adapter_names.without_predictor(weights))
    write_weights(output, released, adapter_names.GROUPS)


def write_mip_adapter(weights: Weights, output: Path, source: Path, _base: Base) -> None:
    """Write a MIP-Adapter's model.bin."""
    if not any(adapter_names.PREDICTOR in name for name in weights):
        raise ModelError(f"{source} has no predictor, which a MIP-Adapter has: train it first")
    write_weights(output, adapter_names.to_released(weights), adapter_names.GROUPS)


def write_own_adapter(weights: Weights, output: Path, source: Path, base: Base) -> None:
    """Write a folder of ours: the adapter, its Stable Diffusion and its image encoder."""
    key = weights.get("ip_adapter.1.to_k_ip.weight")
    published = STABLE_DIFFUSION_XL if key is not None and key.shape[1] > 1024 else STABLE_DIFFUSION
    origin = base or published
    found = load_stable_diffusion(origin, allow_xl=True)
    adapter = ip_adapter.adapter_of(weights, found["unet"], source)
    encoder = ip_adapter.load_image_encoder(origin, adapter.image_proj)
    mip_adapter.Model(mip_adapter.Parts(**found, image_encoder=encoder, adapter=adapter)).save(output)


def read_lavis(folder: Path) -> Weights:
    """Read a folder of LAVIS. An averaged prompt in it is left out, as it does not say of which subject it is."""
    files = {name: read_weights(folder / path) for name, path in blip_names.LAVIS_FILES.items()}
    text = sd_names.without_positions(files["text_encoder"])
    return {
        **blip_names.from_lavis(files),
        **add_prefix("unet.", files["unet"]),
        **add_prefix("vae.", sd_names.new_autoencoder(files["vae"])),
        **add_prefix("text_encoder.", {name.removeprefix("text_model."): value for name, value in text.items()}),
    }


def read_diffusers(folder: Path) -> Weights:
    """Read a folder of diffusers' `BlipDiffusionPipeline`."""
    if not (folder / "qformer").is_dir() or not is_published(folder):
        raise ModelError(f"{folder} is not of the format diffusers: its qformer/ is missing or another's")
    return weights_of(blip_diffusion.load(folder))


def read_own_blip_diffusion(folder: Path) -> Weights:
    """Read a folder of ours; with one averaged prompt, it is `AVERAGE`."""
    check_holds(folder, "prompter", "BLIP-Diffusion")
    parts = blip_diffusion.load(folder)
    averages = list(parts.subjects.values())
    if len(averages) > 1:
        raise ModelError(
            f"{folder} has averaged prompts of {len(averages)} subjects; the other formats keep one at most"
        )
    return {**weights_of(parts), **({AVERAGE: averages[0]} if averages else {})}


AVERAGE = "average"
"""Name of the averaged prompt, [Q, D], among a fine-tuned model's weights."""


def write_lavis(weights: Weights, output: Path, _source: Path, _base: Base) -> None:
    """Write a folder of LAVIS. BLIP-2's heads, which BLIP-Diffusion does not use, are not in it."""
    text = add_prefix("text_model.", under("text_encoder.", weights))
    files = {
        **blip_names.to_lavis(weights),
        "unet": under("unet.", weights),
        "vae": sd_names.old_autoencoder(under("vae.", weights)),
        "text_encoder": sd_names.with_positions(text),
    }
    for name, path in blip_names.LAVIS_FILES.items():
        write_weights(output / path, files[name])
    if AVERAGE in weights:
        cache = output / blip_names.LAVIS_AVERAGE
        cache.parent.mkdir()
        torch.save(weights[AVERAGE][None], cache)


def write_diffusers(weights: Weights, output: Path, source: Path, base: Base) -> None:
    """Write a folder for diffusers' `BlipDiffusionPipeline`, which has no place for an averaged prompt."""
    save_published(filled_blip_diffusion(weights, source, base), output)


def write_own_blip_diffusion(weights: Weights, output: Path, source: Path, base: Base) -> None:
    """Write a folder of ours."""
    blip_diffusion.Model(filled_blip_diffusion(weights, source, base)).save(output)


def filled_blip_diffusion(weights: Weights, source: Path, base: Base) -> blip_diffusion.Parts:
    """The base's parts with these weights."""
    parts = blip_diffusion.load(*([base] if base else []))
    fill(networks(parts), {name: value for name, value in weights.items() if name != AVERAGE}, source)
    return parts


FAMILIES: tuple[Mapping[str, Format], ...] = (
    {
        OURS: Format(read_own_fastcomposer, write_own_fastcomposer),
        "fastcomposer": Format(read_fastcomposer, write_fastcomposer, file=True),
    },
    {
        OURS: Format(read_own_adapter, write_own_adapter),
        "ip-adapter": Format(read_ip_adapter, write_ip_adapter, file=True),
        "mip-adapter": Format(read_mip_adapter, write_mip_adapter, file=True),
    },
    {
        OURS: Format(read_own_blip_diffusion, write_own_blip_diffusion),
        "lavis": Format(read_lavis, write_lavis),
        "diffusers": Format(read_diffusers, write_diffusers),
    },
)
"""The formats of each system."""
