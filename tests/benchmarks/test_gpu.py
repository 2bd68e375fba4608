"""The benchmark of GPUs, tried out with the sample models on the CPU."""

import ast
from pathlib import Path

import pytest

from benchmarks.gpu import main, measure
from tests.paths import ROOT


@pytest.mark.slow
def test_every_handler_is_measured_beside_its_model() -> None:
    device, *rows = measure("cpu", small=True, threads=[2], seconds=0)
    assert device.value == "cpu"
    assert len(rows) == 7
    for row in rows:
        assert float(row.value.removesuffix(" of bare bf16")) > 0
        assert "in 2 threads" in row.note
        assert "bare fp32" in row.note


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(Exception, match="there is no CUDA device here; --device cpu --small"):
        main(device="cuda")


def test_it_needs_neither_beam_nor_spacy() -> None:
    reached, waiting = set[Path](), [ROOT / "benchmarks" / "gpu.py"]
    libraries = set[str]()
    while waiting:
        path = waiting.pop()
        reached.add(path)
        # What a function imports is not needed to import the module.
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
            for name in names:
                base = ROOT.joinpath(*name.split("."))
                files = [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()]
                waiting += [file for file in files if file not in reached]
                libraries |= set() if files else {name.partition(".")[0]}
    assert {"torch", "transformers", "open_clip"} <= libraries
    assert not {"apache_beam", "spacy", "thinc"} & libraries
