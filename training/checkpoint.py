"""Checkpoints of a run: folders of safetensors that are either complete or absent.

    RUN/checkpoints/00000500/{state.json, NAME.safetensors ...}

A checkpoint is written under another name and then renamed, so that a killed run leaves only complete ones.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from schemas.errors import ModelError

Tensors = dict[str, Tensor]


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`."""
    folder = run / "checkpoints"
    target, aside = folder / f"{step:08d}", folder / f".{step:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, values in tensors.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in values.items()}, aside / f"{name}.safetensors"
        )
    (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=2) + "\n", encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    _flush(folder)
    for old in complete_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return target


def _flush(path: Path) -> None:
    """Write a file or folder through to the disk, so that after a power cut a name that exists has its contents."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete_checkpoints(run: Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Read a checkpoint: its tensors by file, and its state.

    Raises:
        ModelError: one of its files is damaged.
    """
    try:
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"checkpoint {folder} cannot be read: {error}. Delete it to go on from the one before"
        ) from error
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Parameter, str]) -> Tensors:
    """Flatten an optimizer's state: "PARAMETER NAME/exp_avg" to tensor."""
    return {
        f"{name}/{field}": torch.as_tensor(value)
        for parameter, name in names.items()
        for field, value in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Parameter, str], tensors: Tensors) -> None:
    """Set an optimizer's state from the result of `optimizer_tensors`."""
    parameters = {name: parameter for parameter, name in names.items()}
    for path, value in tensors.items():
        name, _, field = path.rpartition("/")
        # AdamW counts its steps on the CPU; the moments live beside their parameter.
        device = value.device if field == "step" else parameters[name].device
        optimizer.state[parameters[name]][field] = value.to(device)
