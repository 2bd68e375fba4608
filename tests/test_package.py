"""The package `subjectloom`: its public names, and `python -m subjectloom`."""

import subprocess
import sys
from pathlib import Path

import subjectloom
from subjectloom.__main__ import PACKAGES

ROOT = Path(__file__).parents[1]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, with ours on its path behind it."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_public_names_are_these() -> None:
    """Whoever removes or renames one breaks the programs of others."""
    assert subjectloom.__all__ == [
        "ConfigError", "DatasetInfo", "DrawRequest", "Drawing", "FORMATS", "InputError", "ModelError", "RECIPES",
        "Reference", "Request", "Sample", "SubjectloomError", "batches", "build", "export_dataset", "find_shards",
        "generate", "inspect", "read_info", "read_sample", "read_table", "resolve", "run_training", "training_of",
        "write_pictures", "write_report",
    ]  # fmt: skip
    assert all(getattr(subjectloom, name) is not None for name in subjectloom.__all__)
    assert dir(subjectloom) == subjectloom.__all__


def test_the_import_alone_loads_no_library(tmp_path: Path) -> None:
    code = "import sys, subjectloom; print(any(name in sys.modules for name in ('numpy', 'torch', 'apache_beam')))"
    assert run("-c", code, folder=tmp_path).stdout == "False\n"


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = run("-m", "subjectloom", "recipes", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fastcomposer" in done.stdout


def test_packages_of_the_user_with_the_names_of_ours_are_reported(tmp_path: Path) -> None:
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} >= set(PACKAGES)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    done = run("-m", "subjectloom", "recipes", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: Python finds {tmp_path / 'jobs'} in place of Subjectloom's package of that name: start in another "
        "folder, or rename yours\n"
    )
