"""One step of a sampler, and the hook by which guides change it.

A guide is called in place of the U-Net: it returns the prediction of a step, and the latents that it belongs to, which
it may have moved. `follow`, the default, does nothing but run the U-Net. `training.layout_guidance` is another one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Conditions = dict[str, Any]
"""Keyword arguments of the U-Net: `encoder_hidden_states` [B, L, D], and others."""
Predict = Callable[[Tensor, Tensor, Conditions], Tensor]
"""Called with latents [B, C, h, w], a time and conditions; returns the prediction, [B, C, h, w]."""


@dataclass(frozen=True)
class SamplingStep:
    """A step of a sampler.

    Attributes:
        number: from 0.
        total: number of steps.
        time: of the noise schedule, a scalar.
        schedule: diffusers' scheduler, set to `total` steps.
        run: runs the network, as `LatentDiffusion.predict` does.
        conditions: of the unconditional batch followed by those of the batch, [2 B, ...].
        guidance: weight of classifier-free guidance; 1 is none.
    """

    number: int
    total: int
    time: Tensor
    schedule: Any
    run: Predict
    conditions: Conditions
    guidance: float

    def predict(self, latents: Tensor, **attention: Any) -> Tensor:  # noqa: ANN401 - as the processors take it
        """Predict with classifier-free guidance, [B, C, h, w]; `attention` goes to the attention processors.

        They see the unconditional half of the batch first.
        """
        scaled = self.schedule.scale_model_input(torch.cat([latents] * 2), self.time)
        without, conditional = self.run(scaled, self.time, _attending(self.conditions, attention)).chunk(2)
        return without + self.guidance * (conditional - without)

    def predict_conditional(self, latents: Tensor, **attention: Any) -> Tensor:  # noqa: ANN401
        """Predict from the conditions alone, without the unconditional half: [B, C, h, w]."""
        scaled = self.schedule.scale_model_input(latents, self.time)
        conditions = {name: _second_half(value) for name, value in self.conditions.items()}
        return self.run(scaled, self.time, _attending(conditions, attention))

    @property
    def alpha_bar(self) -> float:
        """Share of the picture in the variance of the noisy latents, in (0, 1]."""
        cumulated = self.schedule.alphas_cumprod
        return float(cumulated[min(max(round(float(self.time)), 0), len(cumulated) - 1)])

    @property
    def is_scaled(self) -> bool:
        """Whether the sampler keeps latents of unit variance, as DDIM does; Euler's grow with the noise."""
        return float(self.schedule.init_noise_sigma) == 1


Guide = Callable[[SamplingStep, Tensor], tuple[Tensor, Tensor]]
"""Called with a step and latents [B, C, h, w]; returns latents, moved or not, and the prediction for them."""


def follow(step: SamplingStep, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Leave the latents where they are, and predict with classifier-free guidance."""
    return latents, step.predict(latents)


def denoise(
    latents: Tensor,
    schedule: Any,  # noqa: ANN401 - of diffusers
    conditions: Sequence[Conditions],
    run: Predict,
    guidance: float,
    guide: Guide,
) -> Tensor:
    """Take all steps of a sampler from `latents` [B, C, h, w]; see `SamplingStep` for the arguments."""
    for number, (time, own) in enumerate(zip(schedule.timesteps, conditions, strict=True)):
        step = SamplingStep(number, len(conditions), time, schedule, run, own, guidance)
        latents, prediction = guide(step, latents)
        latents = schedule.step(prediction, time, latents).prev_sample
    return latents


def _attending(conditions: Conditions, attention: Mapping[str, Any]) -> Conditions:
    if not attention:
        return conditions
    return {**conditions, "cross_attention_kwargs": {**conditions.get("cross_attention_kwargs", {}), **attention}}


def _second_half(value: Any) -> Any:  # noqa: ANN401 - a tensor [2 B, ...], or a dictionary of such
    if isinstance(value, Mapping):
        return {name: _second_half(inner) for name, inner in value.items()}
    return value.chunk(2)[1]
