"""Soft edges by holistically-nested edge detection (HED; Xie and Tu 2015), with the weights that ControlNet uses.

The published file, `lllyasviel/Annotators/ControlNetHED.pth`, is a retrained network under Apache-2.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from transforms.models.checkpoints import device, explaining
from transforms.models.pth import find_file, read_weights
from transforms.models.settings import Precision
from transforms.models.tensors import download, upload_pictures

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of the five stages: those of VGG-16."""


class Stage(nn.Module):
    """Convolutions of one scale, and the side output that sees edges of that scale."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * count]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, outputs, kernel_size=3, padding=1) for width, _ in zip(widths, range(count), strict=False)
        )
        self.projection = nn.Conv2d(outputs, 1, kernel_size=1)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the side output's logits, [B, 1, h, w]."""
        for convolution in self.convs:
            values = F.relu(convolution(values))
        return values, self.projection(values)


class EdgeNetwork(nn.Module):
    """HED: five stages, each half the size of the one before. Names are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        inputs = 3
        for number, (channels, count) in enumerate(STAGES, start=1):
            self.add_module(f"block{number}", Stage(inputs, channels, count))
            inputs = channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the probability of an edge, [B, H, W], for pictures [B, 3, H, W] in [0, 255].

        The side outputs are enlarged to the picture and averaged before the sigmoid, as in ControlNet's annotator.
        """
        size, values, sides = pictures.shape[2:], pictures - self.norm, []
        for number in range(1, len(STAGES) + 1):
            if number > 1:
                values = F.max_pool2d(values, 2, ceil_mode=True)
            values, side = self.get_submodule(f"block{number}")(values)
            sides.append(F.interpolate(side, size, mode="bilinear", align_corners=False))
        return torch.cat(sides, 1).mean(1).sigmoid()


@dataclass(eq=False)
class EdgeModel:
    """A loaded network and the device that it is on."""

    network: EdgeNetwork
    device: str


def load_edges(checkpoint: str | Path, precision: Precision = "fp32") -> EdgeModel:  # noqa: ARG001 - as all loaders
    """Load the published weights: a .pth file, local or on the Hugging Face hub as OWNER/REPOSITORY/PATH.

    The network always computes in single precision: it is small, and its logits are differences of large sums.

    Raises:
        ModelError: there is no such file, or it holds other weights.
    """
    problem = f"no edge network {checkpoint}: looked for a file with the weights of ControlNet's HED"
    network = EdgeNetwork()
    with explaining(problem, "Give --model edges=PATH"):
        network.load_state_dict(read_weights(find_file(str(checkpoint))))
    target = device()
    return EdgeModel(network.eval().to(target), target)


def find_edges(edges: EdgeModel, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Find the edges of pictures, each [H, W, 3] uint8 RGB: [H, W] float32 in [0, 1] each, one picture at a time."""
    with torch.inference_mode():
        return download([edges.network(picture[None].float())[0] for picture in upload_pictures(images, edges.device)])
