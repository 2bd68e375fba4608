"""What all loaders of checkpoints share: where to look, on which device to run, and what to say when loading fails."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from threading import Lock
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from schemas.errors import ModelError
from schemas.folders import describe_folder
from schemas.machine import DEVICE
from transforms.models.settings import Precision

Loaded = TypeVar("Loaded")

FAULTS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)
"""What libraries raise for a checkpoint that is missing, broken or of another kind."""


def device() -> str:
    """The device that models run on: the one that `--device` names, else "cuda" if there is one, else "cpu".

    Raises:
        ModelError: this machine does not have the one that was asked for.
    """
    chosen = os.environ.get(DEVICE) or ("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not available.get(chosen.partition(":")[0]):
        raise ModelError(f"--device {chosen}: torch finds no such device here; without --device it takes what there is")
    return chosen


def settled(precision: Precision) -> Precision:
    """Replace "auto" by "bf16" if models run on a CUDA device that computes in it, by "fp32" on any other device."""
    if precision != "auto":
        return precision
    is_cuda = device().startswith("cuda")
    return "bf16" if is_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def dtype_of(precision: Precision) -> torch.dtype:
    """The type of a model's weights and of the tensors that it takes."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[settled(precision)]


def load_once(load: Callable[[], Loaded]) -> Callable[[], Loaded]:
    """Return a function that calls `load` on its first call and returns the same object ever after, in all threads."""
    lock, loaded = Lock(), list[Loaded]()

    def get() -> Loaded:
        with lock:
            if not loaded:
                loaded.append(load())
            return loaded[0]

    return get


@contextmanager
def explaining(problem: str, remedy: str, faults: tuple[type[Exception], ...] = FAULTS) -> Iterator[None]:
    """Turn what a library raises while it loads a checkpoint into a ModelError of one line.

    Args:
        problem: what is missing and where it was looked for, as "no CLIP X: looked for a folder of that name".
        remedy: what to do, as "Give --model clip=FOLDER".
        faults: the exceptions that are explained.

    Raises:
        ModelError: the block raised one of `faults`.
    """
    try:
        yield
    except faults as error:
        reason = shorten(f"{type(error).__name__}: {error}", 140)
        raise ModelError(f"{problem} ({reason}). {remedy}") from error


def check_folder(option: str, what: str, checkpoint: str | Path, file: str) -> None:
    """Raise a ModelError if `checkpoint` is a folder without `file`: it holds something else than `what`.

    `option` is what a folder follows on the command line, such as "--model sam=".
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not (folder / file).is_file():
        raise ModelError(
            f"the folder {checkpoint} is no {what} that can be loaded: {describe_folder(folder)}. Give "
            f"{option}FOLDER, one with {file}"
        )


@dataclass(frozen=True)
class HubModel:
    """A model of transformers: a folder, or a repository on the Hugging Face hub as NAME or NAME@REVISION.

    A revision is a commit, a branch or a tag. `kind` is the option's word for the model ("clipseg"), `what` the one
    for messages ("CLIPSeg"). `flag` is what a folder follows on the command line, by default "--model KIND=".
    """

    kind: str
    what: str
    checkpoint: str
    flag: str = ""

    @property
    def option(self) -> str:
        """What a folder follows on the command line."""
        return self.flag or f"--model {self.kind}="

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint is a local folder."""
        return Path(self.checkpoint).is_dir()

    @property
    def place(self) -> dict[str, str]:
        """The keyword arguments of `from_pretrained` that name the checkpoint."""
        name, _, revision = (self.checkpoint, "", "") if self.is_folder else self.checkpoint.partition("@")
        return {"pretrained_model_name_or_path": name, "revision": revision or "main"}

    @contextmanager
    def loading(self) -> Iterator[dict[str, str]]:
        """Yield `place`, with transformers kept quiet; explain what goes wrong inside the block.

        Raises:
            ModelError: there is no such checkpoint, or it cannot be loaded.
        """
        from transformers.utils import logging

        logging.set_verbosity_error()
        check_folder(self.option, self.what, self.checkpoint, "config.json")
        if self.is_folder:
            logging.disable_progress_bar()  # a download takes minutes and shows its bar, a folder seconds
        if self.is_folder:
            problem = f"the folder {self.checkpoint} is no {self.what} that can be loaded"
        else:
            problem = f"no {self.what} {self.checkpoint}: looked for a folder of that name and on the Hugging Face hub"
        or_download = "" if self.is_folder else ", or go online once so that it is downloaded"
        with explaining(problem, f"Give {self.option}FOLDER{or_download}"):
            yield self.place

    def check_type(self, found: object, wanted: Sequence[str]) -> None:
        """Raise a ModelError unless the `model_type` of its config is one of `wanted`."""
        if found not in wanted:
            raise ModelError(
                f"the {self.what} {self.checkpoint} is a model of type {found}: give {self.option}FOLDER_OR_NAME"
                f" of type {', '.join(wanted)}"
            )

    def check_weights(self, loaded: Mapping[str, Any]) -> None:
        """Raise a ModelError if the checkpoint lacks weights, which transformers would draw at random.

        `loaded` is what `from_pretrained` returns with `output_loading_info=True`.
        """
        check_weights(self.what, self.checkpoint, loaded["missing_keys"])


def check_weights(what: str, checkpoint: str | Path, missing: Sequence[str] | set[str]) -> None:
    """Raise a ModelError if weights are `missing` (their names) from a checkpoint."""
    if missing:
        raise ModelError(
            f"the {what} {checkpoint} lacks {len(missing)} of its weights, such as {min(missing)}: it is incomplete, "
            "or its config is another model's"
        )
