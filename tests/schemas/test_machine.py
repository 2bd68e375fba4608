"""Threads and device, of this process and of those that it starts."""

import os
import subprocess
import sys

import pytest

from schemas.errors import ConfigError, ModelError
from schemas.machine import DEVICE, THREADS, choose_device, limit_threads, threads_for
from transforms.models.checkpoints import device

REPORT = "import torch, numba; print(torch.get_num_threads(), numba.get_num_threads())"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore, after each test, what these functions set."""
    for name in (*THREADS, DEVICE, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("count", [1, 2])
def test_processes_that_start_later_have_as_many_threads(count: int) -> None:
    limit_threads(count)
    child = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True)
    assert child.stdout.split() == [str(count), str(min(count, os.cpu_count() or 1))]
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    limit_threads(1)  # as this process, and so its tests, has


def test_workers_share_the_cores_and_small_models_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemas.machine.cores", lambda: 8)
    assert threads_for(1, small_models=False) == 8
    assert threads_for(3, small_models=False) == 2
    assert threads_for(99, small_models=False) == 1
    assert threads_for(1, small_models=True) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_for(3, small_models=True) == 5  # the user's own choice


def test_a_device_is_checked_before_a_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match="--device tpu: there is no such device; one of cuda, mps, cpu"):
        choose_device("tpu")
    choose_device("cpu")
    assert device() == "cpu"
    choose_device("mps")
    if sys.platform != "darwin":
        with pytest.raises(ModelError, match="--device mps: torch finds no such device here"):
            device()
