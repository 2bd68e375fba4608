"""A small untrained CLIP, for tests whose results do not depend on its weights."""

from pathlib import Path

import open_clip
import torch

from jobs.sample_models.clip import CONFIG
from jobs.sample_models.clip import save as save_clip


def save_random_clip(folder: Path) -> str:
    """Write an untrained CLIP and return its folder as a string."""
    torch.manual_seed(0)
    save_clip(open_clip.CLIP(**CONFIG), folder)
    return str(folder)
