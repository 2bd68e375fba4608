"""The check with which each worker of a remote engine begins: a wrong folder or a missing GPU fails at once."""

import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam

from schemas.errors import InputError, ModelError
from transforms.batch import Batch
from transforms.dataset import STATE
from transforms.files import exists, join, remove_files, replace_file


@dataclass(frozen=True)
class Needs:
    """What a worker needs.

    Attributes:
        output: the dataset's folder, made ready by `transforms.dataset.prepare_output`; workers write to it.
        paths: files and folders that it reads, as checkpoints.
        cuda: whether it has to have a CUDA device.
    """

    output: str
    paths: Sequence[str] = ()
    cuda: bool = False


class CheckWorker(beam.DoFn):
    """Pass batches on; before the first, check that this worker has what it needs."""

    def __init__(self, needs: Needs) -> None:
        super().__init__()
        self._needs = needs

    def setup(self) -> None:
        """Check, once per worker."""
        check_worker(self._needs)

    def process(self, batch: Batch) -> Iterator[Batch]:
        """Pass a batch on."""
        yield batch


def check_worker(needs: Needs) -> None:
    """Check that this machine has what a worker needs.

    Raises:
        InputError: the output is not there or cannot be written to.
        ModelError: a path is not there, or there is no CUDA device.
    """
    worker = f"the worker {socket.gethostname()}"
    if not exists(join(needs.output, STATE, "job.json")):
        raise InputError(f"{worker} does not see {needs.output}: give an address, or a folder that all machines share")
    probe = join(needs.output, STATE, f"{uuid.uuid4().hex}.tmp")
    try:
        replace_file(probe, b"")
        remove_files([probe])
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{worker} cannot write to {needs.output}: {error}") from error
    for path in needs.paths:
        if Path(path).is_absolute() and not exists(path):
            raise ModelError(f"{worker} has no {path}: put it into its image, or give an address or a name on the hub")
    if needs.cuda:
        import torch

        if not torch.cuda.is_available():
            raise ModelError(f"{worker} has no CUDA device: check the accelerator option, the driver and the image")
