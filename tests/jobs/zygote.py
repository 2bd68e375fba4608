"""Start `subjectloom` many times in a process group of its own, importing it once.

As a program: for each line of stdin, a JSON list of the file for what is printed and the arguments, fork a process that
runs the command, and print its number; "wait N" waits for that process and prints its exit status.
"""

# ruff: noqa: PLC0415
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.paths import ROOT


class Zygote:
    """The process that forks others."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def _ask(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def start(self, output: Path, *arguments: object) -> int:
        """Run `subjectloom ARGUMENTS`, which prints to the file `output`; return the process, and its group."""
        return int(self._ask(json.dumps([str(output), *map(str, arguments)])))

    def wait(self, process: int) -> int:
        """Wait for a process; return its exit status, negative for a signal."""
        return int(self._ask(f"wait {process}"))


@contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote for the duration of the block."""
    command = [sys.executable, "-m", "tests.jobs.zygote"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Zygote(process)
        process.kill()


def run(output: str, *arguments: str) -> None:
    """Become the command, in a group of its own."""
    from jobs.main import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.argv = ["subjectloom", *arguments]
    main()


def serve() -> None:
    """Answer the lines of stdin."""
    import jobs.build
    import jobs.main
    import jobs.report.page  # noqa: F401

    for line in sys.stdin:
        if line.startswith("wait"):
            answer = os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1])
        else:
            answer = os.fork()
            if not answer:
                status = 0
                try:
                    run(*json.loads(line))
                except SystemExit as stop:
                    status = stop.code if isinstance(stop.code, int) else 0
                finally:
                    sys.stdout.flush()
                    os._exit(status)
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
