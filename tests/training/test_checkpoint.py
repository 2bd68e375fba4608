import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import training.checkpoint
from schemas.errors import InputError, ModelError
from tests.training import processes
from training.checkpoint import (
    CheckpointWriter,
    delete_old_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    resumable_checkpoints,
    save_checkpoint,
)
from training.resume import complete_checkpoints


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path: Path) -> None:
    tensors = {
        "weights": {"a.b": torch.arange(6.0).view(2, 3).T},
        "average": {"a.b": torch.ones(2, dtype=torch.bfloat16)},
    }
    folder = save_checkpoint(tmp_path, 7, tensors, {"average_steps": 3})
    loaded, state = load_checkpoint(folder)
    assert torch.equal(loaded["weights"]["a.b"], tensors["weights"]["a.b"])
    assert loaded["average"]["a.b"].dtype == torch.bfloat16
    assert state == {"step": 7, "average_steps": 3}


def steps_of(run: Path) -> list[int]:
    return [int(path.name) for path in complete_checkpoints(run)]


def test_only_the_newest_checkpoints_are_kept_and_incomplete_ones_deleted(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=2) as writer:
        for step in (5, 10, 15):
            writer.save(step, {"weights": {"a": torch.zeros(1)}}, {})
    (tmp_path / "checkpoints" / ".00000019").mkdir()  # left behind by a killed run
    assert steps_of(tmp_path) == [10, 15]
    with CheckpointWriter(tmp_path, keep=2) as writer:
        writer.save(20, {"weights": {"a": torch.zeros(1)}}, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000015", "00000020"]


@pytest.mark.parametrize(("keep", "kept"), [(1, [4, 6]), (2, [4, 6]), (3, [4, 5, 6]), (4, [3, 4, 5, 6])])
def test_the_newest_checkpoint_with_moments_is_kept_too(tmp_path: Path, keep: int, kept: list[int]) -> None:
    """Steps 2 and 4 have moments."""
    for step in range(1, 7):
        moments = {"optimizer": {"a/exp_avg": torch.zeros(1)}} if step in (2, 4) else {}
        save_checkpoint(tmp_path, step, {"weights": {"a": torch.zeros(1)}, **moments}, {})
    assert [path.name for path in resumable_checkpoints(tmp_path)] == ["00000002", "00000004"]
    delete_old_checkpoints(tmp_path, keep)
    assert steps_of(tmp_path) == kept


def test_a_checkpoint_holds_the_values_of_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing waits here until the values have changed, and a second save until the first is written."""
    released, order = threading.Event(), []

    def write(path: Path, step: int, *rest: Any) -> Path:  # noqa: ANN401
        assert released.wait(10)
        order.append(step)
        return save_checkpoint(path, step, *rest)

    monkeypatch.setattr(training.checkpoint, "save_checkpoint", write)
    values = torch.zeros(3)
    with CheckpointWriter(tmp_path, keep=9) as writer:
        writer.save(1, {"weights": {"a": values}}, {})
        assert steps_of(tmp_path) == []
        values += 1
        released.set()
        writer.save(2, {"weights": {"a": values}}, {})
        assert order[:1] == [1]
        assert steps_of(tmp_path)[:1] == [1]
    for number, folder in enumerate(complete_checkpoints(tmp_path)):
        assert load_checkpoint(folder)[0]["weights"]["a"].tolist() == [number] * 3
    assert order == [1, 2]


def write_and_die(run: Path) -> None:
    """Write a checkpoint, and be killed in the middle of the next one."""
    save_checkpoint(run, 1, {"weights": {"a": torch.zeros(1)}}, {})

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    training.checkpoint._flush = die  # type: ignore[assignment]
    with CheckpointWriter(run, keep=1) as writer:
        writer.save(2, {"weights": {"a": torch.ones(1)}}, {})


def test_a_run_that_is_killed_while_it_writes_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    process = processes.start(write_and_die, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".00000002", "00000001"]
    assert steps_of(tmp_path) == [1]
    assert load_checkpoint(complete_checkpoints(tmp_path)[0])[0]["weights"]["a"].tolist() == [0]


def test_a_checkpoint_that_cannot_be_written_is_reported_by_the_next_one_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.checkpoint, "save_checkpoint", fail)

    def save(steps: Sequence[int], error: type[Exception] | None = None) -> None:
        with CheckpointWriter(tmp_path, keep=1) as writer:
            for step in steps:
                writer.save(step, {}, {})
            if error:
                raise error

    message = f"a checkpoint of {tmp_path} cannot be written: .*No space left on device. --resume goes on"
    with pytest.raises(InputError, match=message):
        save([1])
    with pytest.raises(InputError, match=message):
        save([1, 2], KeyError)
    with pytest.raises(KeyError):  # an error of the run itself says more
        save([1], KeyError)


def test_checkpoints_contain_no_pickle(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, {"weights": {"a": torch.zeros(1)}}, {})
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_reported(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path, 1, {"weights": {"a": torch.zeros(1)}}, {})
    (folder / name).write_bytes(b"{cut")
    with pytest.raises(ModelError, match=f"checkpoint {folder} cannot be read: .*Delete it"):
        load_checkpoint(folder)


@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_continues_with_the_same_numbers(fused: bool) -> None:
    def run(stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        names = {parameter: name for name, parameter in layer.named_parameters()}
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
        for step in range(6):
            if step == stop:
                saved = optimizer_tensors(optimizer, names)
                optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
                restore_optimizer(optimizer, names, saved)
            optimizer.zero_grad()
            layer(torch.full((1, 3), float(step))).square().sum().backward()
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(None), run(3))


class Counting(torch.optim.SGD):
    """Keeps a step in a Python integer and moments of 8 bits, as bitsandbytes' optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ANN401
        del closure
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            state["state1"] = torch.full((2,), state["step"], dtype=torch.uint8)


def test_whole_numbers_of_an_optimizer_are_restored_as_such() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    names = dict(zip(parameters, "ab", strict=True))
    first, second = Counting(parameters, lr=1.0), Counting(parameters, lr=1.0)
    first.step()
    restore_optimizer(second, names, optimizer_tensors(first, names))
    assert [type(second.state[parameter]["step"]) for parameter in parameters] == [int, int]
    second.step()
    assert [second.state[parameter]["step"] for parameter in parameters] == [2, 2]
