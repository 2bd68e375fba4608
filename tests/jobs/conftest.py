"""Running the command in this process."""

import sys
from collections.abc import Callable

import pytest

from jobs.main import main

Run = Callable[..., tuple[int, str]]
"""Runs `subjectloom ARGUMENTS`; returns the exit status and what was printed, on both channels."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr("logging.disable", lambda _: None)  # it would outlive the test

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["subjectloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        status = stopped.value.code
        return (status if isinstance(status, int) else 0), printed.out + printed.err

    return command
