"""Run all benchmarks, each in a process of its own, and write their sections of `benchmarks/README.md`.

python -m benchmarks
"""

import subprocess
import sys

import torch

from benchmarks.tables import NAMES

if __name__ == "__main__":
    for benchmark in NAMES:
        if benchmark == "gpu" and not torch.cuda.is_available():
            print("gpu: there is none here", flush=True)
            continue
        print(f"{benchmark}:", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark}", "--write"], check=True)  # noqa: S603
