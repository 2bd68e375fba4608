"""Set-up of the whole suite; it runs before any test module is imported."""

import os
from collections import Counter

# Read once, when a library is loaded, so they are set before NumPy and torch are imported; child processes inherit
# them. The tests' arrays are too small to gain from more threads, which only compete with the other test process.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test downloads anything: a missing file is an error immediately, not after a minute of retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No test needs its files after a power failure; to wait for the disk would take a large part of the suite's time.
os.fsync = lambda fd: None  # noqa: ARG005

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and start the files with the most slow tests.

    So the test processes end at about the same time.
    """
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch  # noqa: PLC0415 - most tests need none

        missing = [] if torch.cuda.is_available() else on_gpu
        for item in missing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
