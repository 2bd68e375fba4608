"""Run all benchmarks, each in a process of its own, and write their sections of `benchmarks/README.md`.

python -m benchmarks
"""

import subprocess
import sys

from benchmarks.tables import NAMES

if __name__ == "__main__":
    for benchmark in NAMES:
        print(f"{benchmark}:", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark}", "--write"], check=True)  # noqa: S603
