"""The table for GLIGEN's published trainer, read by a reimplementation of its loader."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.exports.gligen import export_gligen
from schemas.dataset import ModelName
from schemas.errors import InputError
from schemas.samples.gligen import FORMAT
from tests.datasets import JOB, write_dataset
from tests.gligen import grounded_example
from training.configs.gligen import Config
from training.recipes.gligen import view
from training.shards import find_shards, make_batch, read_samples, to_floats
from training.tokenizer import small_tokenizer

SIDE = 32
EXAMPLES = [
    grounded_example("wide"),
    grounded_example(
        "tall", [("a dog", (4, 26, 20, 16)), ("a tiny cat", (0, 30, 3, 3)), ("a sky", (0, 0, 48, 40))], (48, 80)
    ),
    grounded_example("classes", [("dog", (30, 6, 30, 40)), ("cat", (10, 0, 30, 20))], (100, 60), detection=True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gligen")
    job = JOB.model_copy(update={"models": {"clip": ModelName(name="sample/clip", revision="")}})
    write_dataset(place / "dataset", [EXAMPLES], sample_format=FORMAT, job=job)
    export_gligen(str(place / "dataset"), place / "export")
    return place


def published_rows(root: Path) -> Iterator[dict[str, Any]]:
    """Seek each line of the table as the published reader does, and decode it."""
    with (root / "train.tsv").open() as table:
        for position in (root / "train.lineidx").read_text().splitlines():
            table.seek(int(position))
            number, text = (column.strip() for column in table.readline().split("\t"))
            row = json.loads(text)
            assert str(row["data_id"]) == number
            row["image"] = Image.open(BytesIO(base64.b64decode(row["image"]))).convert("RGB")
            for anno in row["annos"]:
                for name in list(anno):
                    if "embedding" in name:
                        anno[name] = np.frombuffer(base64.b64decode(anno[name]), np.float32)
            yield row


def published_sample(row: dict[str, Any], projection: torch.Tensor, side: int, most: int = 30) -> dict[str, Any]:
    """What the published loader makes of a row, without the flip."""
    width, height = row["image"].size
    scale = side / min(width, height)
    left, top = (round(width * scale) - side) // 2, (round(height * scale) - side) // 2
    kept = []
    for anno in row["annos"]:
        x, y, w, h = anno["bbox"]
        corners = np.array([x * scale - left, y * scale - top, (x + w) * scale - left, (y + h) * scale - top])
        corners = corners.clip(0, side)
        area = (corners[2] - corners[0]) * (corners[3] - corners[1])
        if area / side**2 >= 0.01:
            image = torch.from_numpy(anno["image_embedding_after"].copy()) @ projection
            kept.append((area, corners / side, anno["text_embedding_before"], image / image.norm() * 28.7, anno))
    kept.sort(key=lambda item: -item[0])
    kept = kept[:most]
    caption = ", ".join(anno["category_name"] for *_, anno in kept) if row["is_det"] else row["caption"]
    return {
        "boxes": np.array([corners for _, corners, *_ in kept]),
        "text_embeddings": np.array([text for _, _, text, *_ in kept]),
        "image_embeddings": np.array([image.numpy() for *_, image, _ in kept]),
        "caption": caption,
    }


def test_the_published_loader_makes_the_same_samples_as_the_view(folder: Path) -> None:
    tokenizer = small_tokenizer(["a dog and a tiny cat and a sky, dog, cat"])
    tokenizer.model_max_length = 24
    raws = list(read_samples(find_shards(str(folder / "dataset"), "gligen")))
    rows = list(published_rows(folder / "export"))
    assert len(rows) == len(raws) == 3
    # A projection of the fixture's width: what the export wrote is the sample CLIP's.
    projection = torch.eye(8)
    for raw, row in zip(raws, rows, strict=True):
        ours = to_floats(make_batch([(0, raw)], view, [tokenizer], Config(resolution=SIDE, reference=SIDE).plain()))
        theirs = published_sample(row, projection, SIDE)
        count = len(theirs["boxes"])
        assert ours["masks"][0].tolist() == [1.0] * count + [0.0] * (30 - count)
        # Their crop starts at a whole pixel of the scaled picture.
        np.testing.assert_allclose(ours["boxes"][0, :count], theirs["boxes"], atol=1 / SIDE)
        np.testing.assert_array_equal(ours["text_embeddings"][0, :count], theirs["text_embeddings"])
        reprojected = theirs["image_embeddings"] * (2.0 / 28.7)  # the fixture's norm
        np.testing.assert_allclose(ours["image_embeddings"][0, :count], reprojected, atol=1e-5)
        assert tokenizer.decode(ours["input_ids"][0], skip_special_tokens=True).strip() == theirs["caption"].replace(
            ",", " ,"
        )
        assert row["image"].size == (json.loads(raw["json"])["width"], json.loads(raw["json"])["height"])


def test_spans_stand_in_the_table_and_the_projection_beside_it(folder: Path) -> None:
    first, *_ = (row for row in published_rows(folder / "export") if row["file_name"] == "wide.jpg")
    assert [anno["tokens_positive"] for anno in first["annos"]] == [[[0, 5]], [[10, 15]]]
    assert first["caption"][10:15] == "a cat"
    matrix = torch.load(folder / "export" / "projection_matrix")
    assert matrix.shape == (64, 64)
    with pytest.raises(InputError, match="exists already"):
        export_gligen(str(folder / "dataset"), folder / "export")
