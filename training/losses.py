"""The noise loss, and weights of the samples in it."""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor


def noise_loss(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, sample_weights: Tensor | None = None
) -> Tensor:
    """Mean squared error of [B, C, h, w].

    The mean runs over all latents, those of weight 0 included, as in FastComposer's published trainer.

    Args:
        prediction: of the U-Net.
        target: what it should be.
        weight: multiplies both sides first, [B, 1, h, w] in [0, 1].
        sample_weights: multiply each sample's mean error, [B].
    """
    if weight is not None:
        prediction, target = prediction * weight, target * weight
    if sample_weights is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
    return (errors * sample_weights).mean()


def min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights of the samples' noise losses at `timesteps` [B]: [B] float32 in [0, 1].

    With the signal-to-noise ratio SNR, min(SNR, gamma) / SNR for a U-Net that predicts the noise, and
    min(SNR, gamma) / (SNR + 1) for the velocity. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting
    Strategy" (2023).
    """
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    noise = 1 - signal
    # Both sides times the noise: at the last timestep of a schedule that ends in noise alone, SNR is 0.
    least = torch.minimum(signal, gamma * noise)
    if scheduler.config.prediction_type == "v_prediction":
        return least
    return torch.where(signal > 0, least / signal, torch.ones_like(signal))
