"""What all loaders share."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from schemas.errors import ModelError
from tests.paths import ROOT
from transforms.models.checkpoints import HubModel, check_weights, dtype_of, explaining, settled
from transforms.models.parser import _uses_torch
from transforms.models.places import SAMPLE
from transforms.models.settings import Precision


def test_a_name_may_carry_a_revision_and_a_folder_never_does(tmp_path: Path) -> None:
    named = HubModel("clipseg", "CLIPSeg", "owner/model@abc123")
    assert named.place == {"pretrained_model_name_or_path": "owner/model", "revision": "abc123"}
    assert HubModel("clipseg", "CLIPSeg", "owner/model").place["revision"] == "main"
    folder = tmp_path / "a@b"
    folder.mkdir()
    local = HubModel("clipseg", "CLIPSeg", str(folder))
    assert local.is_folder
    assert local.place["pretrained_model_name_or_path"] == str(folder)


def test_a_fault_becomes_one_line_with_what_where_and_how(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"^no CLIPSeg no/such: looked for .* hub \(OSError: two lines\)") as caught,
        HubModel("clipseg", "CLIPSeg", "no/such").loading(),
    ):
        raise OSError("two\nlines")
    assert "Give --model clipseg=FOLDER, or go online once" in str(caught.value)
    (tmp_path / "config.json").touch()
    with (
        pytest.raises(ModelError, match=r"^the folder .* is no CLIPSeg that can be loaded \(KeyError: 'x'\)\. Give "),
        HubModel("clipseg", "CLIPSeg", str(tmp_path)).loading(),
    ):
        raise KeyError("x")


def test_our_own_errors_and_defects_pass_unchanged() -> None:
    with pytest.raises(ModelError, match=r"^mine$"), explaining("problem", "remedy"):
        raise ModelError("mine")
    with pytest.raises(ZeroDivisionError), explaining("problem", "remedy"):
        raise ZeroDivisionError


def test_missing_weights_are_an_error() -> None:
    check_weights("CLIPSeg", "x", [])
    with pytest.raises(ModelError, match=r"the CLIPSeg x lacks 2 of its weights, such as a: it is incomplete"):
        check_weights("CLIPSeg", "x", {"b", "a"})


def test_the_sample_parser_is_loaded_without_torch() -> None:
    program = (
        "import sys; from transforms.models.parser import load_parser; "
        f"load_parser({str(SAMPLE / 'parser')!r}); print('torch' in sys.modules); import torch; torch.zeros(1)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_pipeline_with_a_transformer_keeps_torch(tmp_path: Path) -> None:
    (tmp_path / "config.cfg").write_text("[components.transformer]\nfactory = 'curated_transformer'\n")
    assert _uses_torch(str(tmp_path))
    assert not _uses_torch(str(SAMPLE / "parser"))
    assert not _uses_torch("no_such_package")


@pytest.mark.parametrize(
    ("device", "is_fast", "precision"),
    [("cuda", True, "bf16"), ("cuda:1", True, "bf16"), ("cuda", False, "fp32"), ("cpu", True, "fp32")],
)
def test_auto_is_bf16_where_the_device_computes_in_it(
    device: str, is_fast: bool, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBJECTLOOM_DEVICE", device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: is_fast and not including_emulation)
    assert settled("auto") == precision
    assert dtype_of("auto") == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert settled("bf16") == "bf16"
    assert settled("fp32") == "fp32"
