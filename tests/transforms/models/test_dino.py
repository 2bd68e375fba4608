"""DINO's embeddings against torchvision's own preparation and transformers' own model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import ViTConfig, ViTModel

from schemas.errors import ModelError
from transforms.models.dino import embed_pictures, load_dino


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    place = tmp_path_factory.mktemp("dino")
    ViTModel(config, add_pooling_layer=False).save_pretrained(place)
    return place


@pytest.mark.parametrize("size", [(80, 120), (120, 80), (40, 40)])
def test_embeddings_are_those_of_the_published_preparation(folder: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prepare = v2.Compose(
        [
            v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(56),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model(prepare(Image.fromarray(picture))[None]).last_hidden_state[0, 0]
    (found,) = embed_pictures(load_dino(str(folder)), [picture])
    assert found @ (expected / expected.norm()).numpy() == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(found) == pytest.approx(1)


def test_what_is_no_dino_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no DINO .*: looked for .* Give --dino FOLDER, or go online once"):
        load_dino(str(tmp_path))
