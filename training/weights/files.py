"""Files of weights: read and written in PyTorch's and in safetensors' format; which names a model lacks."""

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import InputError, ModelError

Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """Read a file of weights. One of nested dicts has names joined by dots.

    Only tensors are loaded from PyTorch's format, never code.

    Raises:
        InputError: there is no such file.
        ModelError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged, or holds Python objects beside tensors, which are not "
            "loaded as they could run code"
        ) from error
    found = flatten(loaded) if isinstance(loaded, Mapping) else {}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} holds no weights")
    return found


def flatten(nested: Mapping[str, object]) -> Weights:
    """Join the names of nested dicts by dots."""
    found: Weights = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= add_prefix(f"{name}.", flatten(value))
        else:
            found[str(name)] = value  # type: ignore[assignment]
    return found


def write_weights(path: Path, weights: Mapping[str, Tensor], groups: Collection[str] = ()) -> None:
    """Write weights in safetensors' format if that is the name's ending, else in PyTorch's.

    Args:
        path: the file; its folder is created.
        weights: what to write.
        groups: in PyTorch's format, the first parts of names that become dicts of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    if path.suffix == ".safetensors":
        save_file(stored, path, {"format": "pt"})
    else:
        torch.save({group: under(f"{group}.", stored) for group in groups} if groups else stored, path)


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Pick the weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def other_than(prefixes: tuple[str, ...], weights: Mapping[str, Tensor]) -> Weights:
    """Pick the weights whose names start with none of `prefixes`."""
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


def add_prefix(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Put `prefix` before all names."""
    return {f"{prefix}{name}": value for name, value in weights.items()}


def fill(parts: Mapping[str, nn.Module], weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights into modules, the names of whose weights start with the module's; names and shapes must be equal.

    Raises:
        ModelError: they differ; states the first few names.
    """
    module = nn.ModuleDict(parts)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    problems = (
        ("missing", [name for name in expected if name not in found]),
        ("unknown", [name for name in found if name not in expected]),
        ("of another shape", [name for name in expected if name in found and found[name] != expected[name]]),
    )
    stated = "; ".join(f"{kind}: {first_few(names)}" for kind, names in problems if names)
    if stated:
        raise ModelError(f"the weights in {source} do not fit the model: {stated}")
    module.load_state_dict(weights)


def first_few(names: Collection[str], most: int = 3) -> str:
    """List the first `most` names, and the number of the others."""
    listed = ", ".join(list(names)[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
