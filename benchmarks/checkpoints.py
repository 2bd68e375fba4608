"""Checkpoints: their size for published models, and how long training waits for one.

    python -m benchmarks.checkpoints

Sizes are those of the preset `hub`, counted on models without memory for their weights, in the layout of Stable
Diffusion 1.5: nothing is downloaded. The wait is measured with the preset `sample` of FastComposer, on this machine's
disk: for a checkpoint that is written before the next step, and for one that is written while training goes on.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers import UNet2DConditionModel
from torch.nn import Module
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.tables import Row, Write, report
from tests.training.models import CAPTIONS
from training.adapter import Adapter, ImageProjection
from training.checkpoint import CheckpointWriter, optimizer_tensors, save_checkpoint
from training.configs.fastcomposer import Config
from training.lora import add_lora
from training.recipes.fastcomposer import Fuser, Model, small
from transforms.models.places import SAMPLE

REPEATS = 9


def published_unet() -> UNet2DConditionModel:
    """Build the U-Net of Stable Diffusion 1.5, on torch's meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def trained_by_fastcomposer() -> list[Module]:
    """What the published run trains: U-Net, fuser and the last two blocks of CLIP's image encoder."""
    with torch.device("meta"):
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, patch_size=14
        )
        blocks = CLIPVisionModelWithProjection(vision).vision_model.encoder.layers
        return [published_unet(), Fuser(768, 768), blocks]


def gigabytes(modules: Sequence[Module]) -> float:
    """Size of the trained parameters in GB (10^9 bytes)."""
    parameters = (parameter for module in modules for parameter in module.parameters() if parameter.requires_grad)
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e9


def sizes() -> list[Row]:
    """Sizes of checkpoints with moments and without, with moving average and without."""
    lora, adapter = published_unet(), Adapter(published_unet().to_empty(device="meta"), ImageProjection(1024, 768))
    add_lora(lora, 16, ("to_q", "to_k", "to_v", "to_out.0"), seed=0)
    adapter.image_proj.requires_grad_(False)
    rows = []
    for name, modules in (
        ("FastComposer", trained_by_fastcomposer()),
        ("MIP-Adapter on 1.5", [adapter.ip_adapter]),
        ("a LoRA of rank 16", [lora]),
    ):
        size = gigabytes(modules)
        rows.append(Row(f"{name}: all, GB", f"{4 * size:.3f}", "weights, average and AdamW's two moments"))
        rows.append(Row(f"{name}: without moments, GB", f"{2 * size:.3f}", "weights and average"))
        rows.append(Row(f"{name}: without moments and average, GB", f"{size:.3f}"))
    return rows


def sample_tensors() -> dict[str, dict[str, Any]]:
    """What a checkpoint of the sample FastComposer holds after a step."""
    model = Model(small(SAMPLE / "autoencoder", CAPTIONS, seed=0), Config(train_encoders=True))
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(list(names))
    for parameter in names:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = {name: parameter for parameter, name in names.items()}
    return {"weights": weights, "average": weights, "optimizer": optimizer_tensors(optimizer, names)}


def waits() -> list[Row]:
    """Median milliseconds that training waits for a checkpoint."""
    tensors = sample_tensors()
    size = sum(value.numel() * value.element_size() for values in tensors.values() for value in values.values())
    before, after, written = [], [], []
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(Path(folder), keep=1) as writer:
        for step in range(REPEATS):
            began = time.perf_counter()
            save_checkpoint(Path(folder) / "before", step, tensors, {})
            before.append(time.perf_counter() - began)
            began = time.perf_counter()
            writer.save(step, tensors, {})
            after.append(time.perf_counter() - began)
            writer.wait()
            written.append(time.perf_counter() - began)
    middle = [f"{1000 * statistics.median(times):.0f}" for times in (before, after, written)]
    note = f"{size / 1e6:.0f} MB"
    return [
        Row("wait for a checkpoint that is written at once, ms", middle[0], note),
        Row("wait for one that is written meanwhile, ms", middle[1], f"{note}; written after {middle[2]} ms"),
    ]


def main(write: Write = False) -> None:
    """Count and measure."""
    report("checkpoints", __doc__ or "", [*sizes(), *waits()], write=write)


if __name__ == "__main__":
    typer.run(main)
