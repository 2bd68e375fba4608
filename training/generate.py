"""Draw pictures with a trained model, from samples of its recipe: what `subjectloom generate` does, without files.

A sample is composed of a prompt and references; the recipe's own view makes its values, as in training, with nothing
at random. The noise of a picture is a function of (seed, number): a picture does not depend on how many are drawn, nor
on how many at a time, but for the rounding of the last bits, which differs with the size of a batch.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import ConfigError
from schemas.keys import rng_of
from training.config import LoadConfig
from training.diffusion import LatentDiffusion
from training.drawing import Drawing
from training.guidance import Guide, follow
from training.latent_space import downsampling
from training.recipe import Training
from training.setup import HALF
from training.shards import Batch, Raw, make_batch, to_device

SAMPLERS: Mapping[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}
"""Classes of diffusers' schedulers by name; none of them draws fresh noise."""
SHOWN = ("subject_mask", "object_mask")
"""Entries of a batch that say which references its samples have, [B, M] bool."""


def set_drawing(model: LatentDiffusion, drawing: Drawing, device: torch.device) -> Drawing:
    """Set a model up for drawing on `device`; return the settings with the model's own in place of None.

    Raises:
        ConfigError: the device cannot compute in that precision, or the model cannot draw pictures of that size.
    """
    if drawing.precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU: choose bf16, or no")
    model.to(device)
    model.sampler = SAMPLERS[drawing.scheduler]
    if drawing.negative_prompt is not None:
        model.negative_prompt = drawing.negative_prompt
    own = {
        "size": model.unet.config.sample_size * downsampling(model.vae),
        "steps": model.sampling_steps,
        "guidance": model.guidance,
        "negative_prompt": model.negative_prompt,
    }
    settled = drawing.model_copy(update={name: value for name, value in own.items() if getattr(drawing, name) is None})
    # The U-Net halves the latents between its blocks.
    smallest = downsampling(model.vae) * 2 ** (len(model.unet.config.block_out_channels) - 1)
    if settled.size % smallest:
        raise ConfigError(f"size {settled.size}: this model draws pictures whose side is a multiple of {smallest}")
    return settled


def batch_of(training: Training, samples: Sequence[Raw], model: Any, config: LoadConfig) -> Batch:  # noqa: ANN401
    """Make the batch of the samples of one prompt, on the model's device.

    Args:
        training: the recipe's.
        samples: one, or several that differ in the photographs of their subjects.
        model: the recipe's model.
        config: the recipe's; what is random in it is switched off.

    Raises:
        ConfigError: a sample cannot be used, or the text leaves no place for a reference.
    """
    batch = make_batch([(0, sample) for sample in samples], training.view, model.tools, config.plain())
    if batch["skipped"]:
        raise ConfigError(f"the prompt cannot be drawn: {batch['skipped'][0]}")
    for name in SHOWN:
        if name in batch and not batch[name].all():
            raise ConfigError(
                "the prompt has no place for one of the references: it is too long, or two of them end in one word"
            )
    return to_device(batch, model.unet.device)


def join_samples(model: Any, batch: Batch) -> Batch:  # noqa: ANN401 - a recipe's model
    """One sample for the samples of a batch: the first one, with each subject's embeddings averaged over all."""
    joined: Batch = model.average_references(batch) if len(batch["keys"]) > 1 else batch
    return joined


def draw_pictures(model: LatentDiffusion, batch: Batch, drawing: Drawing, guide: Guide = follow) -> Iterator[Tensor]:
    """Yield the pictures of a batch of one sample in the order of their numbers, [3, H, W] float32 in [0, 1] each.

    Args:
        model: set up by `set_drawing`.
        batch: as `join_samples` returns it.
        drawing: as `set_drawing` returns it.
        guide: may change each step.
    """
    device = model.unet.device
    side = (drawing.size or 0) // downsampling(model.vae)
    shape = (model.vae.config.latent_channels, side, side)
    half = drawing.precision != "no"
    for start in range(0, drawing.count, drawing.batch):
        numbers = range(start, min(start + drawing.batch, drawing.count))
        noise = torch.from_numpy(np.stack([draw_noise(drawing.seed, number, shape) for number in numbers]))
        with torch.autocast(device.type, HALF[drawing.precision]) if half else contextlib.nullcontext():
            drawn = model.sample(
                repeat(batch, len(numbers)),
                noise.to(device),
                steps=drawing.steps,
                guidance=drawing.guidance,
                guide=guide,
            )
        yield from drawn.cpu()


def draw_noise(seed: int, number: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw the noise that picture `number` starts from, of `shape` (C, h, w): standard normal float32."""
    return rng_of(seed, "generate", str(number)).standard_normal(shape, np.float32)


def repeat(batch: Batch, count: int) -> Batch:
    """Repeat the one sample of a batch."""
    return {
        name: value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) else value * count
        for name, value in batch.items()
    }
