"""Learning rates beside those of diffusers' schedules, and the optimizers."""

import sys

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch.nn import Parameter

from schemas.errors import ConfigError
from training.config import RunConfig
from training.optimize import decay_groups, learning_rates, new_optimizer

CONFIG = RunConfig(steps=20, warmup=4, learning_rate=0.5)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"schedule": "constant"}, "constant_with_warmup"),
        ({"schedule": "linear"}, "linear"),
        ({"schedule": "cosine"}, "cosine"),
        ({"schedule": "cosine_with_restarts", "restarts": 3}, "cosine_with_restarts"),
        ({"schedule": "polynomial", "power": 2.0}, "polynomial"),
    ],
)
def test_after_the_warmup_rates_are_those_of_diffusers(fields: dict[str, object], name: str) -> None:
    """diffusers' schedule is driven as its training scripts do: a step of it after each of the optimizer's."""
    config = CONFIG.model_copy(update=fields)
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=4,
        num_training_steps=20,
        num_cycles=config.restarts,
        power=config.power,
    )
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rate = learning_rates(config)
    assert [rate(step) for step in range(4)] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert [rate(step) for step in range(4, 20)] == pytest.approx(expected[4:])
    assert [rate(step) for step in range(3)] == pytest.approx(expected[1:4])  # diffusers' warmup is a step late


def test_rates_by_hand() -> None:
    linear = learning_rates(RunConfig(steps=4, warmup=0, learning_rate=1.0, schedule="linear"))
    assert [linear(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = learning_rates(RunConfig(steps=4, warmup=0, learning_rate=1.0, schedule="cosine"))
    assert [cosine(step) for step in range(4)] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


def test_rates_that_a_schedule_cannot_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule polynomial: .*must be smaller than initial lr"):
        learning_rates(RunConfig(schedule="polynomial", learning_rate=1e-8))


def weights() -> list[Parameter]:
    return [Parameter(torch.ones(2, 2)), Parameter(torch.ones(2))]


def test_norms_and_biases_decay_unless_told_otherwise() -> None:
    matrix, bias = weights()
    (group,) = decay_groups([matrix, bias], CONFIG)
    assert group == {"params": [matrix, bias], "weight_decay": 0.01}
    groups = decay_groups([bias, matrix, bias], CONFIG.model_copy(update={"decay_all": False}))
    assert groups == [{"params": [bias, bias], "weight_decay": 0.0}, {"params": [matrix], "weight_decay": 0.01}]


def test_fused_adamw_takes_the_same_steps() -> None:
    def stepped(name: str) -> list[torch.Tensor]:
        parameters = weights()
        optimizer = new_optimizer(parameters, CONFIG.model_copy(update={"optimizer": name}))
        assert optimizer.param_groups[0]["fused"] is (True if name == "adamw_fused" else None)
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.3)
        optimizer.step()
        return [parameter.detach() for parameter in parameters]

    for plain, fused in zip(stepped("adamw"), stepped("adamw_fused"), strict=True):
        torch.testing.assert_close(plain, fused)
        assert plain.flatten()[0].item() == pytest.approx(1 - 0.5 * 0.01 - 0.5)


def test_an_optimizer_whose_library_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="optimizer adamw_8bit: bitsandbytes is not installed; pip install"):
        new_optimizer(weights(), CONFIG.model_copy(update={"optimizer": "adamw_8bit"}))
