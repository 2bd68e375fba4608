import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.sample_models.fit import Settings, fit, learning_rate

SETTINGS = Settings(steps=6, peak=0.1, warmup=2, weight_decay=0.01, max_norm=0.5, seed=3)


class Linear:
    """A linear model that learns y = 2x; its inputs are drawn by NumPy, their noise by torch."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        torch.manual_seed(0)
        self.model, self.settings, self.losses = nn.Linear(1, 1), settings, dict[int, float]()

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, Mapping[str, float]]:
        x = torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32))
        value = (self.model(x + torch.randn(8, 1)) - 2 * x).square().mean()
        self.losses[step] = value.item()
        return value, {"bias": self.model.bias.item()}


def test_learning_rate_by_hand() -> None:
    settings = Settings(steps=8, peak=0.4, warmup=4, weight_decay=0)
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert learning_rate(0, settings) == pytest.approx(0.1)
    assert learning_rate(2, settings) == pytest.approx(0.3 * cosine[2])
    assert learning_rate(4, settings) == pytest.approx(0.2)
    assert learning_rate(7, settings) == pytest.approx(0.4 * cosine[7])
    assert learning_rate(3, settings, start=4) == 0
    assert learning_rate(5, settings, start=4) == pytest.approx(0.2 * cosine[5])


def test_steps_are_those_of_adamw_with_clipped_gradients() -> None:
    run, by_hand = Linear(), Linear()
    fit(run.model, run.loss, SETTINGS)
    torch.manual_seed(0)
    model = by_hand.model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    norms = []
    for step in range(6):
        optimizer.param_groups[0]["lr"] = learning_rate(step, SETTINGS)
        value, _ = by_hand.loss(step, np.random.default_rng([3, step]))
        optimizer.zero_grad()
        value.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norms.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
        for gradient in gradients:
            gradient.mul_(min(1.0, 0.5 / (norms[-1] + 1e-6)))
        optimizer.step()
    assert max(norms) > 0.5
    assert list(run.losses.values()) == pytest.approx(list(by_hand.losses.values()), rel=1e-5)


def test_a_resumed_run_gives_the_numbers_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = Linear()
    fit(unbroken.model, unbroken.loss, SETTINGS)
    path = tmp_path / "run.pt"

    def stop_at_four(done: int) -> Mapping[str, float]:
        if done == 4:
            raise KeyboardInterrupt
        return {}

    stopped = Linear()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped.model, stopped.loss, SETTINGS, evaluate=stop_at_four, every=2, checkpoint=path)
    resumed = Linear()
    fit(resumed.model, resumed.loss, SETTINGS, every=2, checkpoint=path)
    assert list(resumed.losses) == [4, 5]
    assert stopped.losses | resumed.losses == unbroken.losses
    assert torch.equal(resumed.model.weight, unbroken.model.weight)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_later_group_keeps_its_weights_until_its_start() -> None:
    run = Linear()
    before = run.model.bias.item()
    biases = []

    def note(_: int) -> Mapping[str, float]:
        biases.append(run.model.bias.item())
        return {}

    fit(run.model, run.loss, SETTINGS, evaluate=note, every=1, groups=[(0, [run.model.weight]), (3, [run.model.bias])])
    assert biases[:3] == [before] * 3
    assert before != biases[3] != biases[4]


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run = Linear()
    fit(run.model, run.loss, SETTINGS, evaluate=lambda done: {"IoU": 0.75} if done > 3 else {}, every=3)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"step 0  loss {run.losses[0]:.4g}  bias ")
    assert last == "step 6  IoU 0.75"
