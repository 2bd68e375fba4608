"""Checkpoints published as one .pth file, local or on the Hugging Face hub."""

import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download


def find_file(name: str) -> Path:
    """Find a local file, or download OWNER/REPOSITORY/PATH from the Hugging Face hub on first use.

    Raises:
        OSError or ValueError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    owner, *rest = name.split("/", 2)
    if not owner or len(rest) < 2:
        raise FileNotFoundError(f"there is no file {name}")
    return Path(hf_hub_download(f"{owner}/{rest[0]}", rest[1]))


def read_weights(path: Path) -> Any:  # noqa: ANN401 - each publisher nests its tensors in its own way
    """Load the tensors of a .pth file onto the CPU; no code in it is executed.

    Raises:
        OSError, ValueError or RuntimeError: it is broken, or holds anything but tensors.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except EOFError as error:
        raise ValueError("it is empty") from error
    except pickle.UnpicklingError as error:
        raise ValueError("it holds other things than weights, and these are never loaded") from error
