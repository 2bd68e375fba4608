"""Fixtures of the training tests: an untrained autoencoder, and a clean state of accelerate for each test."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.training.models import save_tiny_autoencoder


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained autoencoder for pictures of 64 pixels."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    save_tiny_autoencoder(folder)
    return folder


@pytest.fixture(autouse=True)
def new_accelerator() -> None:
    """Reset accelerate, which otherwise keeps the precision of the first test."""
    AcceleratorState._reset_state(reset_partial_state=True)
