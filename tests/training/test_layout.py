"""What a saved folder holds for older versions of the libraries, and the scheduler it came with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from schemas.errors import ModelError
from tests.training.models import CAPTIONS, tiny_parts, tiny_xl_parts
from training.diffusion import LatentDiffusion, load_stable_diffusion
from training.recipes.blip_diffusion import Model as BlipDiffusion
from training.recipes.blip_diffusion import small as small_blip_diffusion

STABLE_DIFFUSION_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""The published Stable Diffusion 1.5's; `clip_sample` is none of PNDM's fields."""


def names_of(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def folder_with(scheduler: Mapping[str, Any], vae: Path, folder: Path) -> Path:
    LatentDiffusion(tiny_parts(vae)).save(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_a_folder_keeps_the_scheduler_it_came_with(vae: Path, tmp_path: Path) -> None:
    folder = folder_with(STABLE_DIFFUSION_SCHEDULER, vae, tmp_path / "published")
    parts = replace(tiny_parts(vae), **load_stable_diffusion(folder))
    model = LatentDiffusion(parts)
    model.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "scheduler" / "scheduler_config.json").read_text())
    assert STABLE_DIFFUSION_SCHEDULER.items() <= saved.items()
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"]
    # Training has the noise of the same schedule: betas are squares of equal steps between their roots.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(model.scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-7)
    assert not model.scheduler.config.clip_sample


@pytest.mark.parametrize(
    ("name", "message"),
    [("NoScheduler", "diffusers has no scheduler NoScheduler"), ("FlowMatchEulerDiscreteScheduler", "another rule")],
)
def test_a_scheduler_that_cannot_be_trained_with_is_reported(
    vae: Path, tmp_path: Path, name: str, message: str
) -> None:
    folder = folder_with({"_class_name": name}, vae, tmp_path / "saved")
    with pytest.raises(ModelError, match=message):
        load_stable_diffusion(folder)


def test_saved_tokenizers_and_encoders_have_the_files_and_names_of_transformers_4(vae: Path, tmp_path: Path) -> None:
    parts = tiny_xl_parts(vae)
    LatentDiffusion(parts).save(tmp_path / "xl")
    for name, tokenizer in (("tokenizer", parts.tokenizer), ("tokenizer_2", parts.tokenizer_2)):
        assert tokenizer is not None
        vocabulary = json.loads((tmp_path / "xl" / name / "vocab.json").read_text())
        assert vocabulary == tokenizer.get_vocab()
        version, *merges = (tmp_path / "xl" / name / "merges.txt").read_text().splitlines()
        assert version.startswith("#version")  # a line that version 4 skips
        assert len(merges) == len(vocabulary) - 512 - 2  # tokens that are neither single bytes nor start and end
    for name in ("text_encoder", "text_encoder_2"):
        names = names_of(tmp_path / "xl" / name / "model.safetensors")
        assert "text_model.embeddings.token_embedding.weight" in names
        assert all(weight.startswith(("text_model.", "text_projection.")) for weight in names)


def test_the_image_encoder_of_blip_diffusion_has_the_names_of_transformers_4(vae: Path, tmp_path: Path) -> None:
    BlipDiffusion(small_blip_diffusion(vae, CAPTIONS, 0)).save(tmp_path / "saved")
    names = names_of(tmp_path / "saved" / "image_encoder" / "model.safetensors")
    assert all(name.startswith("vision_model.") for name in names)
