"""Latents kept on disk: the same losses without encoding again, and what makes a kept one unusable."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL

from tests.datasets import example, write_dataset
from tests.training.models import tiny_parts
from tests.training.runs import new_model
from training.configs.fastcomposer import Config
from training.latent_space import draw_latents
from training.latents import LatentCache, complete, fingerprint, name_of, open_cache
from training.loop import train
from training.recipes.fastcomposer import texts, view
from training.shards import batches, find_shards, read_texts
from training.small import SIDE

SUBJECTS = (("a red dog", (4, 6, 20, 16)), ("a cat", (30, 10, 20, 30)))
CONFIG = Config(steps=4, batch=3, workers=0, resolution=SIDE, reference=SIDE, average=0.0, warmup=0, learning_rate=1e-3)


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(tmp_path / "cache", 1e6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pictures in each call of an autoencoder's encoder."""
    encode, counts = AutoencoderKL.encode, []

    def counting(self: AutoencoderKL, pixels: torch.Tensor, *options: Any) -> Any:  # noqa: ANN401
        counts.append(len(pixels))
        return encode(self, pixels, *options)

    monkeypatch.setattr(AutoencoderKL, "encode", counting)
    return counts


def losses_of(data: Path, vae: Path, output: Path, cache: LatentCache | None, config: Config = CONFIG) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    shards, model = find_shards(str(data), "fastcomposer"), new_model(vae)
    tokenizer = tiny_parts(vae).tokenizer
    assert read_texts(shards, texts)

    def read(start: int) -> Any:  # noqa: ANN401
        return batches(shards, view, tokenizer, config, start, latents=cache)

    return [metrics["loss"] for metrics in train(model, read, config, output, latents=cache)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_kept_latents_give_the_losses_of_pictures_that_are_encoded(
    vae: Path, tmp_path: Path, counted: list[int], precision: str
) -> None:
    """Three pictures, each shown as it is and mirrored: 12 views in 4 steps, of which no two equal ones are encoded."""
    write_dataset(tmp_path / "data", [[example(f"key{i}", SUBJECTS) for i in range(3)]])
    config = CONFIG.model_copy(update={"precision": precision})
    expected = losses_of(tmp_path / "data", vae, tmp_path / "plain", None, config)
    assert sum(counted) == 12
    counted.clear()
    cache = open_cache(tmp_path / "cache", AutoencoderKL.from_pretrained(vae), precision, 1.0)
    first = losses_of(tmp_path / "data", vae, tmp_path / "first", cache, config)
    kept = len(list((tmp_path / "cache").glob("*/*/*.latent")))
    assert sum(counted) == kept <= 6
    counted.clear()
    second = losses_of(tmp_path / "data", vae, tmp_path / "second", cache, config)
    assert counted == []
    tolerance = 1e-5 if precision == "no" else 1e-2
    assert first == pytest.approx(expected, rel=tolerance)
    assert second == pytest.approx(expected, rel=tolerance)


def test_the_posterior_is_kept_so_that_each_step_draws_other_latents(vae: Path, cache: LatentCache) -> None:
    model = AutoencoderKL.from_pretrained(vae)
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
    cache.write("aa", posterior.parameters[0].bfloat16())
    kept = cache.read("aa")
    assert kept is not None
    assert torch.equal(kept, posterior.parameters[0].bfloat16())
    cache.write("ab", posterior.parameters[0])
    kept = cache.read("ab")
    assert kept is not None
    noise = torch.randn(posterior.mean.shape)
    assert torch.equal(draw_latents(kept[None], noise), posterior.mean + posterior.std * noise)


def test_a_picture_is_known_by_its_pixels_and_their_size() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 6), np.uint8))
    changed = pixels.clone()
    changed[0, 0, 0] ^= 1
    names = [name_of(p) for p in (pixels, pixels.flip(-1), pixels.reshape(3, 6, 4), changed, pixels[:, :, 1:])]
    assert len(set(names)) == 5
    assert name_of(pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == names[0]


def test_another_autoencoder_or_precision_has_latents_of_its_own(vae: Path) -> None:
    model, other = AutoencoderKL.from_pretrained(vae), AutoencoderKL.from_pretrained(vae)
    plain = fingerprint(model, "no")
    assert fingerprint(other, "no") == plain
    assert fingerprint(model, "bf16") != plain
    with torch.no_grad():
        next(other.parameters()).flatten()[0].add_(1e-4)
    assert fingerprint(other, "no") != plain
    model.register_to_config(force_upcast=not model.config.force_upcast)
    assert fingerprint(model, "no") != plain


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "none"])
def test_a_damaged_file_is_computed_again(cache: LatentCache, damage: str) -> None:
    posterior = torch.arange(32.0).reshape(8, 2, 2)
    cache.write("abc", posterior)
    (path,) = cache.folder.glob("*/*.latent")
    content = bytearray(path.read_bytes())
    content[-1] ^= damage == "changed"
    path.write_bytes(bytes({"cut": content[:-1], "empty": b""}.get(damage, content)))
    assert (cache.read("abc") is None) == (damage != "none")
    batch = {"pixel_values": torch.ones(1, 3, 2, 2), "latent_names": ["abc"], "posteriors": [cache.read("abc")]}
    assert torch.equal(complete(cache, batch, lambda _: posterior[None])["posterior"][0], posterior)
    kept = cache.read("abc")
    assert kept is not None
    assert torch.equal(kept, posterior)
    assert [path.suffix for path in cache.folder.rglob("*") if path.is_file()] == [".latent"]


def test_nothing_is_added_beyond_the_limit_nor_where_nothing_can_be_written(vae: Path, tmp_path: Path) -> None:
    model, lines = AutoencoderKL.from_pretrained(vae), list[str]()
    posterior = torch.zeros(8, 16, 16)
    limit = 20_000 / 1e9
    cache = open_cache(tmp_path / "cache", model, "no", limit, processes=2, report=lines.append)
    for name in ("aa", "bb", "cc", "dd"):
        cache.write(name, posterior)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*.latent")]
    assert len(sizes) == 2  # of 8.3 kB each: the second is begun below this process's 10 kB
    assert cache.read("cc") is None
    again = open_cache(tmp_path / "cache", model, "bf16", limit)
    assert again.room == pytest.approx(20_000 - sum(sizes))
    assert lines == []
    (tmp_path / "file").touch()
    blocked = LatentCache(tmp_path / "file", 1e6, lines.append)
    for name in ("aa", "bb"):
        blocked.write(name, posterior)
    assert len(lines) == 1
    assert "latents are no longer kept" in lines[0]
