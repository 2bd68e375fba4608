from pathlib import Path

import pytest
import torch

from schemas.errors import ModelError
from training.checkpoint import (
    complete_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path: Path) -> None:
    tensors = {
        "weights": {"a.b": torch.arange(6.0).view(2, 3).T},
        "average": {"a.b": torch.ones(2, dtype=torch.bfloat16)},
    }
    folder = save_checkpoint(tmp_path, 7, tensors, {"average_steps": 3}, keep=2)
    loaded, state = load_checkpoint(folder)
    assert torch.equal(loaded["weights"]["a.b"], tensors["weights"]["a.b"])
    assert loaded["average"]["a.b"].dtype == torch.bfloat16
    assert state == {"step": 7, "average_steps": 3}


def test_only_the_newest_checkpoints_are_kept_and_incomplete_ones_ignored(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"weights": {"a": torch.zeros(1)}}, {}, keep=2)
    (tmp_path / "checkpoints" / ".00000020").mkdir()  # left behind by a killed run
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["00000010", "00000015"]
    save_checkpoint(tmp_path, 20, {"weights": {"a": torch.zeros(1)}}, {}, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000015", "00000020"]


def test_checkpoints_contain_no_pickle(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, {"weights": {"a": torch.zeros(1)}}, {}, keep=1)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_reported(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path, 1, {"weights": {"a": torch.zeros(1)}}, {}, keep=1)
    (folder / name).write_bytes(b"{cut")
    with pytest.raises(ModelError, match=f"checkpoint {folder} cannot be read: .*Delete it"):
        load_checkpoint(folder)


def test_a_restored_optimizer_continues_with_the_same_numbers() -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        names = {parameter: name for name, parameter in layer.named_parameters()}
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for step in range(6):
            if step == stop:
                saved = optimizer_tensors(optimizer, names)
                optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
                restore_optimizer(optimizer, names, saved)
            optimizer.zero_grad()
            layer(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(None), run(3))
