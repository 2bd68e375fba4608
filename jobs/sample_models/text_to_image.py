"""Train the sample text-to-image model: a small Stable Diffusion of the sample scenes, on a CPU or a GPU.

    python -m jobs.sample_models.text_to_image --output transforms/models/sample/text_to_image \
        --checkpoint FILE --pool FILE.npz

Text encoder, U-Net, autoencoder and scheduler have the published classes and layout. Pictures have 64 pixels a side and
latents 16, those of the sample autoencoder. The U-Net predicts the velocity (Salimans and Ho 2022, "Progressive
Distillation for Fast Sampling of Diffusion Models", section 4): where nearly all is noise, that is nearly the picture,
so that few steps teach it the colours and shapes that a caption names.

The first steps show close-ups of scenes with a single object, a quarter of their latents: they take less than half the
time, and none of it goes into backgrounds.

A run with the same checkpoint goes on where it stopped. `--start FOLDER` goes on from saved weights instead.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from jobs.sample_models.fit import Batch, Checkpoint, Output, Peak, Scenes, Seed, Settings, Steps, fit
from jobs.sample_models.pools import map_scenes
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.small import SIDE, WIDTH, seeded, small_scheduler, small_text_encoder
from training.tokenizer import small_tokenizer, tokenize
from transforms.models.places import SAMPLE
from transforms.scenes import Scene, make_scene
from transforms.scenes.grammar import JOINS, NUMBERS

AUTOENCODER = SAMPLE / "autoencoder"
STREAM = 7
"""Stream of the scenes that this model is trained on."""
HELD_OUT = 128
"""Scenes of the pool, its first ones, that are not trained on."""
DROPPED = 0.1
"""Probability that a caption is replaced by an empty one, for classifier-free guidance."""
DECAY = 0.999
"""Decay of the moving average of the weights, which is what is saved."""
EVERY = 250
"""Steps from one evaluation, checkpoint and saved folder to the next."""
CLOSE_UP = 8
"""Side of a close-up in latents."""
SEVERAL = (",", "left of", "right of", "above", "below", *NUMBERS.values(), *JOINS)
"""What only captions of several objects contain, in lower case."""
ENCODED = 50
"""Pictures that the autoencoder encodes at a time."""


@dataclass(frozen=True)
class Pool:
    """N scenes, the first `HELD_OUT` of which are not trained on.

    Attributes:
        latents: encoded pictures, scaled to unit variance, [N, 4, 16, 16] float16.
        captions: N texts.
    """

    latents: NDArray[np.float16]
    captions: list[str]


@dataclass(frozen=True)
class Draws:
    """What is random in a step of B samples.

    Attributes:
        noise: standard normal, [B, 4, h, w] float32.
        timesteps: of the noise schedule, [B] int64.
        dropped: samples whose captions are replaced by an empty one, [B] bool.
    """

    noise: Tensor
    timesteps: Tensor
    dropped: Tensor

    def to(self, device: torch.device) -> "Draws":
        """Move the tensors to `device`."""
        return Draws(self.noise.to(device), self.timesteps.to(device), self.dropped.to(device))


class Weights(nn.Module):
    """A U-Net and its text encoder, which are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Predict the velocity of `noisy` [B, 4, h, w] from the captions' tokens [B, L] int64."""
        text = self.text_encoder(ids).last_hidden_state
        velocity: Tensor = self.unet(noisy, timesteps, text).sample
        return velocity


class Trained(nn.Module):
    """Weights and their moving average, which gets no gradients."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.average = deepcopy(weights).requires_grad_(False)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the weights after `step` steps, further in the first ones."""
        decay = min(DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.weights.parameters()), 1 - decay)


def new_unet(channels: int) -> UNet2DConditionModel:
    """Build the untrained U-Net: 6.8 million parameters, cross-attention at 16, 8 and 4 latents a side.

    Most parameters are at the two coarse levels, where they cost little time. Heads are 32 wide: narrower ones take a
    CPU several times as long.
    """
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 96, 160),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(1, 3, 5),  # diffusers' name for the number of heads
        cross_attention_dim=WIDTH,
    )


def new_parts(captions: Sequence[str], seed: int) -> Parts:
    """Build the untrained Stable Diffusion, with the vocabulary of `captions` and the sample autoencoder."""
    tokenizer, vae = small_tokenizer(captions), AutoencoderKL.from_pretrained(AUTOENCODER)
    schedule = DDPMScheduler.from_config(small_scheduler().config, prediction_type="v_prediction")
    with seeded(seed):
        encoder, unet = small_text_encoder(tokenizer), new_unet(vae.config.latent_channels)
    return Parts(tokenizer=tokenizer, text_encoder=encoder, unet=unet, vae=vae, scheduler=schedule)


def training_scene(index: int) -> Scene:
    """Render training scene `index` at 2 x SIDE pixels.

    Of five scenes, three show one or two kinds of objects and one up to three; these are large and their captions name
    all of them. One is like any other sample scene.
    """
    rng = np.random.default_rng([STREAM, index])
    if _is_common(index):
        return make_scene(rng, 2 * SIDE)
    return make_scene(rng, 2 * SIDE, (1, 2) if index % 5 < 3 else (1, 3), omitted=0)


def _is_common(index: int) -> bool:
    return index % 5 == 4


def render(index: int) -> tuple[NDArray[np.uint8], str]:
    """Render training scene `index`: its picture, [SIDE, SIDE, 3] uint8, and its caption."""
    scene = training_scene(index)
    return halve(scene.image), scene.caption


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average squares of 2 x 2 pixels: [2 h, 2 w, 3] to [h, w, 3] uint8."""
    height, width, _ = image.shape
    squares = image.reshape(height // 2, 2, width // 2, 2, 3).astype(np.uint16)
    halved: NDArray[np.uint8] = ((squares.sum((1, 3)) + 2) // 4).astype(np.uint8)
    return halved


@torch.no_grad()
def encode(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Encode pictures [N, SIDE, SIDE, 3] uint8 as latents [N, 4, 16, 16] of about unit variance."""
    network = deepcopy(vae).to(torch.bfloat16, memory_format=torch.channels_last)
    latents = []
    for first in range(0, len(images), ENCODED):
        pictures = torch.from_numpy(images[first : first + ENCODED]).permute(0, 3, 1, 2).to(vae.device) / 127.5 - 1
        mean = network.encode(pictures.bfloat16()).latent_dist.mean.float()
        latents.append((mean * vae.config.scaling_factor).half().contiguous().cpu().numpy())
    return np.concatenate(latents)


def make_pool(scenes: int, vae: AutoencoderKL) -> Pool:
    """Render and encode the first `scenes` training scenes."""
    images, captions = zip(*map_scenes(render, scenes), strict=True)
    return Pool(encode(vae, np.stack(images)), list(captions))


def load_pool(path: Path) -> Pool:
    """Load what `save_pool` wrote."""
    with np.load(path) as arrays:
        return Pool(arrays["latents"], arrays["captions"].tolist())


def save_pool(path: Path, pool: Pool) -> None:
    """Write a pool to a .npz file."""
    np.savez(path, latents=pool.latents, captions=np.array(pool.captions))


def close_ups(pool: Pool) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Cut the object out of every training scene with a single one.

    Backgrounds are dull: the window is centred where latents differ most from the picture's median.

    Returns:
        M windows, [M, 4, CLOSE_UP, CLOSE_UP], and the indices of their scenes, [M].
    """
    single = [
        i
        for i in range(HELD_OUT, len(pool.captions))
        if not _is_common(i) and not any(words in pool.captions[i].lower() for words in SEVERAL)
    ]
    latents = pool.latents[single].astype(np.float32)
    side = latents.shape[-1]
    difference = ((latents - np.median(latents, axis=(2, 3), keepdims=True)) ** 2).sum(1)
    weight = difference / difference.sum((1, 2), keepdims=True)
    places = np.arange(side)
    centers = np.stack([weight.sum(2) @ places, weight.sum(1) @ places], axis=1)
    corners = np.clip(np.rint(centers - (CLOSE_UP - 1) / 2), 0, side - CLOSE_UP).astype(int)
    windows = [
        z[:, y : y + CLOSE_UP, x : x + CLOSE_UP] for z, (y, x) in zip(pool.latents[single], corners, strict=True)
    ]
    return np.stack(windows), np.array(single)


def draw(rng: np.random.Generator, latents: Tensor, timesteps: int) -> Draws:
    """Draw what is random in a step on `latents`; timesteps are evenly spread, moved by a common random offset."""
    count = len(latents)
    noise = rng.standard_normal(latents.shape, np.float32)
    even = (rng.random() + np.arange(count)) / count % 1
    times = (even * timesteps).astype(np.int64)
    return Draws(torch.from_numpy(noise), torch.from_numpy(times), torch.from_numpy(rng.random(count) < DROPPED))


def velocity_loss(
    weights: Weights, schedule: DDPMScheduler, latents: Tensor, ids: Tensor, empty: Tensor, draws: Draws
) -> Tensor:
    """Mean squared error of the predicted velocity, computed in bfloat16 with weights in float32.

    Args:
        weights: the networks.
        schedule: adds the noise.
        latents: [B, 4, h, w] float32.
        ids: the captions' tokens, [B, L] int64.
        empty: those of an empty caption, [L].
        draws: what is random.
    """
    draws = draws.to(latents.device)
    noisy = schedule.add_noise(latents, draws.noise, draws.timesteps)
    target = schedule.get_velocity(latents, draws.noise, draws.timesteps)
    ids = torch.where(draws.dropped[:, None], empty, ids)
    # Autocast would convert activations back and forth at each normalization, which takes a CPU longer than it saves.
    halved = {name: value.bfloat16() for name, value in weights.named_parameters()}
    inputs = (noisy.to(torch.bfloat16, memory_format=torch.channels_last), draws.timesteps, ids)
    return F.mse_loss(functional_call(weights, halved, inputs).float(), target)


def save(parts: Parts, trained: Trained, folder: Path) -> None:
    """Write the averaged model in half precision, in the layout of Stable Diffusion."""
    average = deepcopy(trained.average).cpu().half()
    halved = replace(parts, unet=average.unet, text_encoder=average.text_encoder, vae=deepcopy(parts.vae).cpu().half())
    LatentDiffusion(halved).save(folder)
    for config in folder.glob("*/config.json"):  # diffusers notes where a network was loaded from
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields.pop("_name_or_path", None)
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train(
    output: Output,
    steps: Steps = 6000,
    close: Annotated[int, typer.Option(help="Steps on close-ups, the first ones, of twice as many examples.")] = 2000,
    scenes: Scenes = 24000,
    batch: Batch = 16,
    peak: Peak = 1e-3,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    pool: Annotated[Path | None, typer.Option(help="File with the encoded scenes, written if it is not there.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a model to start from, such as one saved before.")
    ] = None,
) -> None:
    """Train a small Stable Diffusion on sample scenes, on the GPU if there is one; save the moving average."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = AutoencoderKL.from_pretrained(start / "vae" if start else AUTOENCODER).to(device)
    data = load_pool(pool) if pool and pool.exists() else make_pool(scenes, vae)
    if pool and not pool.exists():
        save_pool(pool, data)
    parts = Parts(**load_stable_diffusion(start)) if start else new_parts(data.captions, seed)
    model = Trained(Weights(parts.unet, parts.text_encoder)).to(device).train()
    model.to(memory_format=torch.channels_last)
    if device.type == "cpu":  # faster there than scaled_dot_product_attention
        model.weights.unet.set_attn_processor(AttnProcessor())
    compute = torch.compile(velocity_loss) if device.type == "cuda" else velocity_loss
    latents = torch.from_numpy(data.latents).to(device)
    windows, shown = (torch.from_numpy(array).to(device) for array in close_ups(data))
    tokens = tokenize([*data.captions, ""], [parts.tokenizer])
    timesteps = parts.scheduler.config.num_train_timesteps
    ids, empty = tokens[:-1].to(device), tokens[-1].to(device)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        model.follow(step)
        if step < close:
            chosen = torch.from_numpy(rng.integers(0, len(windows), 2 * batch)).to(device)
            pictures, texts = windows[chosen].float(), ids[shown[chosen]]
        else:
            chosen = torch.from_numpy(rng.integers(HELD_OUT, len(latents), batch)).to(device)
            pictures, texts = latents[chosen].float(), ids[chosen]
        draws = draw(rng, pictures, timesteps)
        return compute(model.weights, parts.scheduler, pictures, texts, empty, draws), {}

    def evaluate(_: int) -> dict[str, float]:
        draws = draw(np.random.default_rng(0), latents[:HELD_OUT], timesteps)
        draws = replace(draws, dropped=torch.zeros(HELD_OUT, dtype=torch.bool))
        with torch.no_grad():
            held_out = velocity_loss(
                model.average, parts.scheduler, latents[:HELD_OUT].float(), ids[:HELD_OUT], empty, draws
            )
        save(parts, model, output)
        return {"held-out loss": held_out.item()}

    settings = Settings(steps, peak, warmup=100, weight_decay=0.01, max_norm=1.0, seed=seed)
    fit(model, loss, settings, evaluate=evaluate, every=EVERY, checkpoint=checkpoint)
    evaluate(steps)


if __name__ == "__main__":
    typer.run(train)
