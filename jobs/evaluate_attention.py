"""Where the tokens of subjects attend: how much of it within their own masks, and how much within those of others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.latent_space import encode_pictures
from training.localization import Subjects
from training.shards import Batch

TIMES = (100, 300, 500, 700)
"""Steps of the noise schedule, of 1,000, at which attention is measured."""


def attention_shares(
    model: Any,  # noqa: ANN401 - a FastComposer model
    batch: Batch,
    seed: int,
    at_once: int,
) -> Mapping[str, dict[str, NDArray[np.float64]]]:
    """Measure the attention of a FastComposer model on the noised pictures of a batch of B samples.

    Args:
        model: the model.
        batch: the samples.
        seed: of the noise, together with a sample's key.
        at_once: samples that go through the U-Net together.

    Returns:
        "attention-own" and "attention-others" [B], means over subjects, layers, heads and noise levels, under
        "drawn"; and what they would be if attention were even, the share of the picture that the masks cover, under
        "chance". NaN for a sample without subjects; the second also for one with a single subject.
    """
    parts = [
        {name: value[first : first + at_once] for name, value in batch.items()}
        for first in range(0, len(batch["keys"]), at_once)
    ]
    own, others, own_by_chance, others_by_chance = torch.cat([_shares(model, part, seed) for part in parts]).T.numpy()
    return {
        "chance": {"attention-own": own_by_chance, "attention-others": others_by_chance},
        "drawn": {"attention-own": own, "attention-others": others},
    }


def _shares(model: Any, batch: Batch, seed: int) -> Tensor:  # noqa: ANN401 - a FastComposer model
    """Means of `shares_of` over layers, noise levels and subjects: [B, 4]."""
    masks, valid = batch["subject_segmentation"].cpu(), batch["subject_mask"].cpu()
    measured = torch.stack(
        [
            shares_of(attention.cpu(), masks, valid)
            for time in TIMES
            for attention in attention_of(model, batch, time, seed).maps.values()
        ]
    ).mean(0)
    of_samples = measured.nan_to_num().sum(1) / valid.sum(1, keepdim=True)  # NaN without subjects
    of_samples[valid.sum(1) < 2, 1::2] = torch.nan
    return of_samples


@torch.no_grad()
def attention_of(model: Any, batch: Batch, time: int, seed: int) -> Subjects:  # noqa: ANN401 - a FastComposer model
    """Record the subjects' attention in a batch whose latents have the noise of step `time`."""
    fixed = model.fixed_draws(batch, seed).to(model.unet.device)
    draws = replace(fixed, timesteps=torch.full_like(fixed.timesteps, time))
    latents = encode_pictures(model.vae, batch["pixel_values"], draws.latent_noise)
    conditions = model.conditions(batch)
    model.unet(model.scheduler.add_noise(latents, draws.noise, draws.timesteps), draws.timesteps, **conditions)
    subjects: Subjects = conditions["cross_attention_kwargs"]["subjects"]
    return subjects


def shares_of(attention: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Measure a layer: [B, M, 4] float64, NaN where there is no subject.

    The four are the shares of a token's attention, summed over the picture to 1 and averaged over the heads, that fall
    within its own subject's mask and within the other subjects' masks; and the shares of the picture that these cover.

    Args:
        attention: [B, heads, h*w, M].
        masks: [B, M, H, W] in [0, 1]; objects do not overlap.
        valid: [B, M] bool.
    """
    side = int(attention.shape[2] ** 0.5)
    own = F.interpolate(masks, (side, side), mode="area").flatten(2).double() * valid[..., None]  # [B, M, hw]
    others = own.sum(1, keepdim=True) - own
    given = attention.double().permute(0, 3, 1, 2)  # [B, M, heads, hw]
    given = given / given.sum(-1, keepdim=True)
    shares = [(given * region[:, :, None]).sum(-1).mean(-1) for region in (own, others)]
    shares += [region.mean(-1) for region in (own, others)]
    return torch.stack(shares, dim=-1).masked_fill(~valid[..., None], torch.nan)
