"""How pleasing a picture is to people: LAION's aesthetic predictor, a small network over CLIP's embedding of it.

github.com/christophschuhmann/improved-aesthetic-predictor ("sac+logos+ava1-l14-linearMSE"): five linear layers on the
unit-length image embedding of OpenAI's ViT-L/14. It was trained to predict ratings from 1 to 10. No activation stands
between the layers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.errors import ModelError
from transforms.models.checkpoints import check_weights, explaining
from transforms.models.pth import find_file, read_weights

if TYPE_CHECKING:
    from transforms.models.clip import Clip

WIDTHS = (1024, 128, 64, 16, 1)
"""Outputs of the layers."""

_PLACES = (0, 2, 4, 6, 7)
"""Their places in the published `layers`; dropouts stand between them."""


@dataclass(eq=False)
class Aesthetic:
    """The predictor with the CLIP whose embeddings it takes."""

    clip: "Clip"
    head: torch.nn.Sequential

    def rate(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Rate pictures by their embeddings, [N, D] unit rows: [N] float64, rounded to four decimals."""
        if not len(embeddings):
            return np.zeros(0)
        with torch.inference_mode():
            ratings = self.head(torch.from_numpy(embeddings))[:, 0]
        return ratings.double().numpy().round(4)


def new_head(size: int) -> torch.nn.Sequential:
    """Build an untrained predictor on embeddings of `size` numbers."""
    inputs = (size, *WIDTHS[:-1])
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(inputs, WIDTHS, strict=True)))


def save_head(head: torch.nn.Sequential, path: Path) -> None:
    """Write a predictor as `load_aesthetic` reads it, under the published names."""
    torch.save(
        {f"layers.{_PLACES[int(n.split('.')[0])]}.{n.split('.')[1]}": w for n, w in head.state_dict().items()}, path
    )


def load_aesthetic(checkpoint: str, clip: "Clip") -> Aesthetic:
    """Load the predictor from a .pth file, local or on the Hugging Face hub as OWNER/REPOSITORY/PATH.

    Raises:
        ModelError: there is no such file, it holds something else, or it belongs to another CLIP.
    """
    with explaining(
        f"no aesthetic predictor {checkpoint}: looked for a file of that name and on the Hugging Face hub",
        "Give --model aesthetic=FILE, or go online once so that it is downloaded",
    ):
        weights = read_weights(find_file(checkpoint))
        names = {
            f"layers.{place}.{kind}": f"{i}.{kind}" for i, place in enumerate(_PLACES) for kind in ("weight", "bias")
        }
        check_weights("aesthetic predictor", checkpoint, names.keys() - weights.keys())
        head = new_head(weights["layers.0.weight"].shape[1])
        head.load_state_dict({ours: weights[theirs].float() for theirs, ours in names.items()})
    size = int(clip.model.text_projection.shape[-1]) if hasattr(clip.model, "text_projection") else None
    if size is not None and size != head[0].in_features:
        raise ModelError(
            f"the aesthetic predictor {checkpoint} takes embeddings of {head[0].in_features} numbers, the CLIP gives "
            f"{size}: give --model clip=ViT-L-14/openai, or another predictor with --model aesthetic=FILE"
        )
    return Aesthetic(clip, head.eval())
