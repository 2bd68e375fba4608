"""FSDP: the weights that are trained are divided among the processes, and with them gradients, moments and average.

A part of the weights is whole only while it is used: the U-Net block by block, the rest of the model at once. Weights
that are not trained stay whole in every process. The functions here are called in all processes at the same time.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: Any, device: torch.device, processes: int) -> None:  # noqa: ANN401 - a Trainable
    """Divide a model's trained weights among the processes, in place; it is on its device already."""
    mesh = init_device_mesh(device.type, (processes,))
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    unet = model.unet
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    fully_shard(model, mesh=mesh, ignored_params=frozen)


def whole(tensor: Tensor) -> Tensor:
    """Gather a divided tensor, on the CPU; any other one is returned as it is."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def own_part(parameter: Tensor) -> Tensor:
    """Return this process's part of a divided parameter, which shares its memory; any other one as it is."""
    if not isinstance(parameter, DTensor):
        return parameter
    part: Tensor = parameter.to_local().detach()
    return part.requires_grad_(parameter.requires_grad)


def joined_like(part: Tensor, pattern: Tensor) -> Tensor:
    """Gather a tensor of which each process has the part that it has of `pattern`, on the CPU."""
    if not isinstance(pattern, DTensor):
        return part
    shape, stride = pattern.shape, pattern.stride()
    mesh, placements = pattern.device_mesh, pattern.placements
    return whole(DTensor.from_local(part.detach(), mesh, placements, run_check=False, shape=shape, stride=stride))


def divided_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Divide a tensor that all processes have as `pattern` is; one of another shape stays whole."""
    if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
        return tensor
    moved = tensor.to(pattern.device)
    return distribute_tensor(moved, pattern.device_mesh, pattern.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(model: Any) -> Iterator[None]:  # noqa: ANN401
    """For the duration of the block keep all weights whole: each process may use any part of the model, or none."""
    parts = [part for part in _modules(model) if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


@contextlib.contextmanager
def whole_weights(model: Any) -> Iterator[None]:  # noqa: ANN401
    """For the duration of the block, in which the model is not called, its `state_dict` holds whole tensors."""
    divided = [
        (module, name, parameter)
        for module in _modules(model)
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in divided:
        setattr(module, name, nn.Parameter(whole(parameter.detach()), parameter.requires_grad))
    try:
        yield
    finally:
        for module, name, parameter in divided:
            setattr(module, name, parameter)


def _modules(model: Any) -> list[nn.Module]:  # noqa: ANN401
    return list(model.modules()) if isinstance(model, nn.Module) else []
