"""Checkpoints of a run: folders of safetensors that are either complete or absent.

    RUN/checkpoints/00000500/state.json               the number of steps, and other numbers
                             weights.safetensors      the weights that are trained
                             average.safetensors      their moving average, if the run has one
                             optimizer.safetensors    the optimizer's moments, in some checkpoints only

A checkpoint is written under another name and then renamed, so that a killed run leaves only complete ones. A run is
resumed from one with moments; the others are for exporting their weights.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from schemas.errors import InputError, ModelError
from training.resume import complete_checkpoints

Tensors = dict[str, Tensor]


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread of its own, one at a time, while training goes on.

    As a context manager it finishes writing at the end of the block.

    Args:
        run: the run's folder.
        keep: number of checkpoints to keep; see `delete_old_checkpoints`.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        """Copy `tensors` to the CPU's memory, and start to write the checkpoint of `step`, after the former one.

        Raises:
            InputError: the former checkpoint could not be written.
        """
        self.wait()
        copies = {
            name: {key: value.detach().to("cpu", copy=True) for key, value in values.items()}
            for name, values in tensors.items()
        }
        self._writing = self._thread.submit(self._write, step, copies, dict(state))

    def _write(self, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        folder = save_checkpoint(self.run, step, tensors, state)
        delete_old_checkpoints(self.run, self.keep)
        return folder

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            InputError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            raise InputError(
                f"a checkpoint of {self.run} cannot be written: {error}. --resume goes on from the one before"
            ) from error

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step` and return its folder."""
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
    return target


def delete_old_checkpoints(run: Path, keep: int) -> None:
    """Delete all checkpoints but `keep`: the newest ones, and the newest with moments in place of the oldest of these.

    The newest one is kept in any case.
    """
    checkpoints = complete_checkpoints(run)
    newest = checkpoints[-1:]
    kept = {*newest, *resumable_checkpoints(run)[-1:]}
    for folder in reversed(checkpoints):
        if len(kept) < keep:
            kept.add(folder)
    for folder in checkpoints:
        if folder not in kept:
            folder.rename(folder.with_name(f".{folder.name}"))  # a folder that is half deleted is not a checkpoint
    for leftover in (run / "checkpoints").glob(".[0-9]*"):
        shutil.rmtree(leftover)


def _flush(path: Path) -> None:
    """Write a file or folder through to the disk, so that after a power cut a name that exists has its contents."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def resumable_checkpoints(run: Path) -> list[Path]:
    """List a run's checkpoints with the optimizer's moments, oldest first."""
    return [folder for folder in complete_checkpoints(run) if (folder / "optimizer.safetensors").exists()]


def load_checkpoint(folder: Path, names: Iterable[str] | None = None) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Read a checkpoint: its tensors by file, of all files or those with these `names`, and its state.

    Raises:
        ModelError: one of its files is damaged.
    """
    try:
        files = [path.stem for path in folder.glob("*.safetensors")] if names is None else names
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in files}
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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Tensor | float]] = {}
    for path, value in tensors.items():
        name, _, field = path.rpartition("/")
        # bitsandbytes counts steps in Python's integers, torch in floating-point tensors.
        number = value.item() if value.dim() == 0 and not value.is_floating_point() else value
        state.setdefault(numbers[name], {})[field] = number
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
