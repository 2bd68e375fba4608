"""FSDP: two processes that divide the weights compute what two with whole weights do."""

import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tests.training import processes
from tests.training.models import tiny_batch, tiny_parts
from tests.training.runs import CONFIG, losses, losses_of_run, run
from training.config import RunConfig
from training.resume import complete_checkpoints
from training.trainer import Trainer

FIELDS = {"accumulation": 2, "checkpoint_every": 1, "sample_every": 2, "held_out_every": 2}


def train_divided(vae: Path, output: Path, fsdp: bool, steps: int) -> None:
    """Train with two micro-batches a step; each process must hold half of the weights, if they are divided."""
    config = CONFIG.model_copy(update={**FIELDS, "fsdp": fsdp, "steps": steps})
    shares: list[float] = []
    step = Trainer.step

    def watched(self: Trainer, *arguments: object) -> dict[str, float]:
        metrics = step(self, *arguments)  # type: ignore[arg-type]
        parameters = [p.to_local() if isinstance(p, DTensor) else p for p in self.names]
        shares.append(sum(p.numel() for p in parameters) / sum(p.numel() for p in self.names))
        return metrics

    Trainer.step = watched  # type: ignore[method-assign, assignment]
    shown = tiny_batch(tiny_parts(vae), [[True, True]])
    held_out = [tiny_batch(tiny_parts(vae), [[True, True]], seed=7)]  # one process has a batch, the other has none
    run(vae, output, config, resume=True, show=shown, held_out=held_out)
    assert shares == pytest.approx([0.5 if fsdp else 1.0] * len(shares), abs=0.02)
    assert int(os.environ["WORLD_SIZE"]) == 2


def train_both_ways(vae: Path, folder: Path) -> None:
    """Two steps with whole weights; and with divided ones, interrupted after the first."""
    train_divided(vae, folder / "whole", fsdp=False, steps=2)
    train_divided(vae, folder / "divided", fsdp=True, steps=1)
    train_divided(vae, folder / "divided", fsdp=True, steps=2)


def test_divided_weights_give_the_same_run_model_and_checkpoints(vae: Path, tmp_path: Path) -> None:
    """Also when it is interrupted, and when the last step is made by one process with whole weights."""
    processes.run_together(2, tmp_path / "rendezvous", train_both_ways, vae, tmp_path)
    whole, divided = losses_of_run(tmp_path / "whole"), losses_of_run(tmp_path / "divided")
    assert torch.tensor(divided) == pytest.approx(torch.tensor(whole), rel=1e-4)
    assert len(list((tmp_path / "divided" / "samples").iterdir())) == 2
    folders = [complete_checkpoints(tmp_path / name)[-1] for name in ("whole", "divided")]
    names = [f"checkpoints/{folders[0].name}/{kind}.safetensors" for kind in ("weights", "average", "optimizer")]
    for name in (
        *names,
        "model/unet/diffusion_pytorch_model.safetensors",
        "model/fuser/diffusion_pytorch_model.safetensors",
    ):
        first, second = (load_file(tmp_path / run / name) for run in ("whole", "divided"))
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key].shape == value.shape, key
            assert torch.allclose(second[key], value, atol=2e-4, rtol=1e-3), key
    config = CONFIG.model_copy(update={**FIELDS, "fsdp": True, "steps": 3})
    assert losses(run(vae, tmp_path / "divided", config, resume=True))[0][0] == 2


@pytest.mark.parametrize("fields", [{"precision": "fp16"}, {"optimizer": "adamw_8bit"}])
def test_what_does_not_go_with_divided_weights_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="fsdp goes with precision no or bf16"):
        RunConfig.model_validate({"fsdp": True, **fields})
