"""The sample text-to-image model: its scenes, its loss by hand, a tiny training, and the weights in the repository."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from jobs.sample_models import text_to_image
from jobs.sample_models.text_to_image import (
    CLOSE_UP,
    Draws,
    Pool,
    close_ups,
    draw,
    encode,
    halve,
    load_pool,
    new_parts,
    new_unet,
    render,
    save_pool,
    train,
    training_scene,
    velocity_loss,
)
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.small import WIDTH, small_scheduler
from transforms.models.places import SAMPLE

SHIPPED = SAMPLE / "text_to_image"
MEGABYTE = 1e6
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def tiny_unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=1,
        cross_attention_dim=WIDTH,
    )


@pytest.fixture
def pool_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen scenes without a picture, all of which are trained on but the first four; the U-Net is made tiny."""
    monkeypatch.setattr(text_to_image, "HELD_OUT", 4)
    monkeypatch.setattr(text_to_image, "EVERY", 4)
    monkeypatch.setattr(text_to_image, "new_unet", tiny_unet)
    captions = [f"a {color} ball" for color in ("red", "green", "blue", "white")] * 4
    levels = np.tile([-1.0, -0.3, 0.3, 1.0], 4)[:, None, None, None]
    latents = (levels + np.random.default_rng(0).normal(0, 0.1, (16, 4, 16, 16))).astype(np.float16)
    save_pool(tmp_path / "pool.npz", Pool(latents, captions))
    return tmp_path / "pool.npz"


def run(folder: Path, pool: Path, steps: int, checkpoint: Path | None = None, start: Path | None = None) -> None:
    train(folder, steps=steps, close=4, batch=4, peak=1e-2, pool=pool, checkpoint=checkpoint, start=start)


def stop_at(times: int) -> Callable[..., None]:
    calls: list[int] = []

    def interrupt(*_: object) -> None:
        calls.append(0)
        if len(calls) == times:
            raise KeyboardInterrupt

    return interrupt


def weights_of(folder: Path) -> bytes:
    return b"".join((folder / place).read_bytes() for place in WEIGHTS)


def test_a_training_lowers_the_loss_resumes_and_starts_from_a_folder(
    pool_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "whole", pool_file, 16)
    losses = [float(value) for value in re.findall(r"held-out loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 4
    assert losses[-1] < 0.95 * losses[0]

    with pytest.MonkeyPatch.context() as patch:  # stopped at a checkpoint, then resumed
        patch.setattr(text_to_image, "save", stop_at(2))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", pool_file, 16, tmp_path / "run.pt")
    run(tmp_path / "resumed", pool_file, 16, tmp_path / "run.pt")
    assert weights_of(tmp_path / "resumed") == weights_of(tmp_path / "whole")

    run(tmp_path / "started", pool_file, 0, start=tmp_path / "whole")
    assert weights_of(tmp_path / "started") == weights_of(tmp_path / "whole")


def test_the_loss_is_that_of_the_velocity() -> None:
    inputs: dict[str, Tensor] = {}

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
            inputs.update(noisy=noisy, timesteps=timesteps, ids=ids)
            return noisy * self.scale

    schedule = DDPMScheduler.from_config(small_scheduler().config, prediction_type="v_prediction")
    latents, noise = torch.full((2, 4, 8, 8), 2.0), torch.full((2, 4, 8, 8), -1.0)
    draws = Draws(noise, torch.tensor([100, 900]), torch.tensor([True, False]))
    ids, empty = torch.tensor([[5, 6], [7, 8]]), torch.tensor([1, 1])
    loss = velocity_loss(Zero(), schedule, latents, ids, empty, draws)  # type: ignore[arg-type]
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[[100, 900]]
    velocities = np.sqrt(signal) * -1 - np.sqrt(1 - signal) * 2
    assert loss.item() == pytest.approx((velocities**2).mean(), rel=1e-4)
    assert inputs["ids"].tolist() == [[1, 1], [7, 8]]  # the first caption is dropped
    assert inputs["noisy"].dtype == torch.bfloat16


def test_timesteps_of_a_step_are_evenly_spread_and_a_tenth_of_captions_dropped() -> None:
    latents = torch.zeros(50, 4, 8, 8)
    draws = [draw(np.random.default_rng(seed), latents, 1000) for seed in range(60)]
    for drawn in draws:
        assert set(np.diff(sorted(drawn.timesteps.tolist()))) <= {19, 20, 21}
        assert drawn.noise.shape == latents.shape
    first = [int(drawn.timesteps.min()) for drawn in draws]
    assert min(first) < 3  # of 20, moved by a common offset
    assert max(first) > 16
    assert 0.07 < np.mean([drawn.dropped.float().mean() for drawn in draws]) < 0.13


def test_close_ups_show_the_object_of_scenes_with_one() -> None:
    captions = [
        "a red ball",
        "A blue cup on a sunny day.",
        "Two red cups.",
        "a cup and a ball",
        "a large dotted cup",
        "a cup above a ball",
        "a cup, a ball and a key",
        "a cup to the left of a ball",
    ]
    latents = np.zeros((8, 4, 16, 16), np.float16)
    latents[:, 1, 9:13, 2:6] = 1  # its centre is row 10.5, column 3.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_to_image, "HELD_OUT", 0)
        windows, indices = close_ups(Pool(latents, captions))
    assert indices.tolist() == [0, 1]  # the fifth scene is like any other: its caption may leave objects out
    assert windows.shape == (2, 4, CLOSE_UP, CLOSE_UP)
    ys, xs = np.nonzero(windows[0, 1])
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (2, 5, 2, 5)


def test_scenes_are_large_and_all_named_but_for_a_fifth() -> None:
    scenes = [training_scene(index) for index in range(40)]
    assert max(len(scene.objects) for i, scene in enumerate(scenes) if i % 5 < 3) == 2
    assert max(len(scene.objects) for i, scene in enumerate(scenes) if i % 5 == 3) == 3
    assert max(len(scene.objects) for scene in scenes[4::5]) > 3
    assert all(thing.phrase for i, scene in enumerate(scenes) if i % 5 < 4 for thing in scene.objects)


def test_pictures_are_averaged_and_encoded_with_unit_variance(tmp_path: Path) -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[0, 0] = (255, 10, 0)
    image[:, 2:] = 7
    assert halve(image).tolist() == [[[64, 3, 0], [7, 7, 7]]]
    pictures = np.stack([render(index)[0] for index in range(8)])
    parts = new_parts(["a red ball"], seed=0)
    latents = encode(parts.vae, pictures)
    with torch.no_grad():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        exact = parts.vae.encode(pixels).latent_dist.mean * parts.vae.config.scaling_factor
    assert (torch.from_numpy(latents).float() - exact).std() < 0.02  # encoded in bfloat16
    assert 0.7 < latents.astype(np.float32).std() < 1.3
    save_pool(tmp_path / "pool.npz", Pool(latents, ["é"] * 8))
    assert load_pool(tmp_path / "pool.npz").captions == ["é"] * 8
    assert np.array_equal(load_pool(tmp_path / "pool.npz").latents, latents)


def test_the_u_net_attends_to_text_at_three_sizes() -> None:
    unet = new_unet(4)
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(6.8e6, rel=0.02)
    sides = set()
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(lambda _, inputs: sides.add(int(inputs[0].shape[1] ** 0.5)))
    with torch.no_grad():
        unet(torch.zeros(1, 4, 16, 16), 0, torch.zeros(1, 77, WIDTH))
    assert sides == {16, 8, 4}


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MEGABYTE


def test_the_weights_in_the_repository_are_small_and_diffusers_draws_with_them() -> None:
    assert size_of(SHIPPED) <= 24
    assert size_of(SAMPLE) <= 60
    pipeline = StableDiffusionPipeline.from_pretrained(str(SHIPPED), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = LatentDiffusion(Parts(**load_stable_diffusion(SHIPPED)))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32))
    ours = model.sample({"input_ids": model.tokenize(["a red ball"])}, noise, steps=4, guidance=3)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline("a red ball", latents=noise, num_inference_steps=4, guidance_scale=3, output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    # A red ball on a dull background: red exceeds the other colours somewhere.
    assert (ours[0, 0] - ours[0, 1:].max(0).values).max() > 0.3
