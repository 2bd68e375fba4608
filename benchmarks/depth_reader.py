"""A small network that estimates the depth of sample scenes of 64 pixels, to take depth maps from drawn pictures."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH, STEPS, PEAK = 16, 400, 2e-3


class DepthReader(nn.Module):
    """Estimates nearness in [0, 1], where 0 and 1 are the farthest and the nearest point of a picture."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96)
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in pairwise(widths))
        self.middle = _block(96, 96, 1)
        self.up = nn.ModuleList((_block(96 + 48, 48, 1), _block(48 + 24, 24, 1), _block(24 + 3, 24, 1)))
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Estimate the nearness of pictures [N, 3, H, W] float32 in [0, 1]: [N, H, W] float32."""
        levels = [pictures]
        for block in self.down:
            levels.append(block(levels[-1]))
        value = self.middle(levels.pop())
        for block in self.up:
            value = nn.functional.interpolate(value, scale_factor=2.0)
            value = block(torch.cat([value, levels.pop()], dim=1))
        nearness: Tensor = self.out(value)[:, 0]
        return nearness

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Estimate the nearness of pictures [N, H, W, 3] uint8: [N, H, W] float32 in [0, 1]."""
        parts = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).split(BATCH)
        nearness = torch.cat([self(part) for part in parts]).numpy()
        return np.asarray(nearness.clip(0, 1), np.float32)


def _block(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
        nn.GroupNorm(8, outer),
        nn.SiLU(),
        nn.Conv2d(outer, outer, 3, padding=1),
        nn.SiLU(),
    )


def train_depth_reader(pictures: NDArray[np.uint8], depths: Sequence[NDArray[np.uint16]]) -> DepthReader:
    """Train on pictures [N, H, W, 3] uint8 and their depth maps [H, W] uint16, each stretched to [0, 1]."""
    true = np.stack(depths).astype(np.float32)
    low, high = true.min((1, 2), keepdims=True), true.max((1, 2), keepdims=True)
    targets = torch.from_numpy((true - low) / (high - low))
    torch.manual_seed(0)
    reader, rng = DepthReader(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(reader.parameters(), PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = rng.integers(0, len(pictures), BATCH)
        shown = torch.from_numpy(pictures[chosen]).permute(0, 3, 1, 2).float() / 255
        loss = (reader(shown) - targets[chosen]).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return reader.eval()
