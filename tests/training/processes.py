"""Run functions in processes that start quickly.

They are forked from a server that has already imported torch, diffusers and the small models. The server is a separate
process, so threads, autograd state and modules of the test process do not reach them.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "tests.training.runs", "tests.training.pairs"])


def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start `function` in a process."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def run(function: Callable[..., None], *arguments: object) -> None:
    """Run `function` in a process and check that it succeeds."""
    process = start(function, *arguments)
    process.join()
    assert process.exitcode == 0


def run_together(world: int, rendezvous: Path, function: Callable[..., None], *arguments: object) -> None:
    """Run `function` in `world` processes like a launcher; they connect through a new file, not a port."""
    ranks = [start(_join, rank, world, rendezvous, function, *arguments) for rank in range(world)]
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world


def _join(rank: int, world: int, rendezvous: Path, function: Callable[..., None], *arguments: object) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    function(*arguments)
    torch.distributed.destroy_process_group()
