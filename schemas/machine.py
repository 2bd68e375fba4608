"""What a job uses of the machine it runs on: threads and device, in this process and in those that it starts.

Both are set in the environment, which worker processes inherit, and before numpy, torch or numba is imported: their
thread pools read it once.
"""

import os
import sys

from schemas.errors import ConfigError

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Environment variables that hold the number of threads: OpenMP's (torch), those of three BLAS libraries, numba's."""
DEVICES = ("cuda", "mps", "cpu")
DEVICE = "SUBJECTLOOM_DEVICE"
"""Environment variable of the device that models run on; unset: a GPU that CUDA finds, else the CPU."""


def limit_threads(count: int) -> None:
    """Let numeric libraries use `count` threads a process, and let threads that wait sleep instead of spin.

    Threads that spin take the cores from the processes that have work: on a busy machine a build becomes ten times
    slower.
    """
    os.environ.update(dict.fromkeys(THREADS, str(count)))
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["KMP_BLOCKTIME"] = "0"  # the same for Intel's OpenMP
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def threads_for(workers: int, *, small_models: bool) -> int:
    """Return the number of threads of each of `workers` processes: those of the environment, else a fair share.

    Small models get one thread: what there is to share takes less time than sharing it.
    """
    if given := os.environ.get(THREADS[0], ""):
        return max(1, int(given)) if given.isdecimal() else 1
    return 1 if small_models else max(1, cores() // max(1, workers))


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> None:
    """Let models run on `name`: "cuda", "cuda:1", "mps" or "cpu".

    Raises:
        ConfigError: there is no such device.
    """
    if name.partition(":")[0] not in DEVICES:
        raise ConfigError(f"--device {name}: there is no such device; one of {', '.join(DEVICES)}")
    os.environ[DEVICE] = name


def use_machine(threads: int | None, device: str | None, processes: int, *, small_models: bool) -> None:
    """Set threads and device for this process and its workers, before anything that uses them is imported.

    Raises:
        ConfigError: there is no such device.
    """
    limit_threads(threads or threads_for(processes, small_models=small_models))
    if device is not None:
        choose_device(device)
