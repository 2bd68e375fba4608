"""Exports with boxes, masks and texts of the subjects: SimpleTuner and InstanceDiffusion."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import CLIPConfig, CLIPModel

from jobs.exports import instancediffusion, simpletuner
from jobs.exports.instancediffusion import export_instancediffusion
from jobs.exports.simpletuner import export_simpletuner
from schemas.errors import InputError, ModelError
from schemas.samples import blip_diffusion, captioned
from tests.datasets import box_mask, example, on_another_background, write_dataset
from training.tokenizer import small_tokenizer
from transforms.models.text_encoder import embed_pooled, load_text_encoder

TWO = example("two", [("a dög", (4, 6, 20, 16)), ("a black cat", (32, 0, 32, 48))])
ONE = example("one", [("a dög", (10, 10, 12, 9))], size=(48, 64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("boxes") / "data"
    write_dataset(folder, [[TWO, ONE]])
    return str(folder)


def save_clip(folder: Path, size: int) -> str:
    """Write an untrained CLIP whose text tower has one layer of `size` numbers."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer(["a dog and a black cat"])
    text = {
        "hidden_size": size, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
        "vocab_size": len(tokenizer), "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"), 768)


def test_simpletuner_gets_boxes_in_shares_of_the_picture_with_masks_outside_its_folder(
    data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    exported = export_simpletuner(data, out)
    assert (exported.written, exported.subjects, exported.most) == (2, 3, 2)
    assert "--max_grounding_entities 2" in exported.lines(out)[1]
    assert json.loads((out / "images" / "two.bbox").read_text("utf-8")) == [
        {"label": "a dög", "bbox": [4 / 64, 6 / 48, 24 / 64, 22 / 48], "mask": "../masks/two_0.png"},
        {"label": "a black cat", "bbox": [0.5, 0.0, 1.0, 1.0], "mask": "../masks/two_1.png"},
    ]
    mask = np.asarray(Image.open(out / "images" / "../masks/two_0.png"))
    np.testing.assert_array_equal(mask, box_mask(64, 48, (4, 6, 20, 16)) * 255)
    assert sorted(path.suffix for path in (out / "images").iterdir()) == [
        ".bbox",
        ".bbox",
        ".jpg",
        ".jpg",
        ".txt",
        ".txt",
    ]
    one, two = pq.read_table(out / "metadata.parquet").to_pylist()
    assert (one["filename"], one["width"], one["height"], two["caption"]) == (
        "one.jpg",
        48,
        64,
        "a dög and a black cat",
    )
    assert two["bboxes"] == (out / "images" / "two.bbox").read_text("utf-8")
    config = json.loads((out / "multidatabackend.json").read_text("ascii"))
    columns = {value for name, value in config[0]["parquet"].items() if name.endswith("_column")}
    assert columns == {"filename", "caption", "width", "height", "bboxes"}


def test_the_check_for_simpletuner_names_each_fault(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_simpletuner(data, out)
    assert list(simpletuner.find_faults(out, 2)) == []
    (out / "masks" / "two_1.png").unlink()
    Image.new("L", (10, 10)).save(out / "masks" / "two_0.png")
    (out / "images" / "one.bbox").write_text('[{"label": "a", "bbox": [0.5, 0, 0.5, 1], "mask": "../masks/one_0.png"}]')
    (out / "images" / "two.txt").write_text(" ")
    assert list(simpletuner.find_faults(out, 2)) == [
        "images/one.jpg: one.bbox and its row of metadata.parquet differ",
        "images/one.jpg: one.bbox: the box [0.5, 0.0, 0.5, 1.0] is empty or reaches beyond the picture",
        "images/two.jpg: has no caption",
        "images/two.jpg: masks/two_0.png is 10 x 10 pixels, the picture 64 x 48",
        "images/two.jpg: masks/two_1.png is not there",
    ]
    (out / "images" / "two.bbox").write_text("0 0.3 0.5 0.4 0.6")
    assert "images/two.jpg: two.bbox is no list of boxes with masks" in list(simpletuner.find_faults(out, 2))
    (out / "images" / "one.jpg").unlink()
    assert next(simpletuner.find_faults(out, 2)).endswith("1 pictures, 2 rows of metadata.parquet, 2 were written")


def test_the_text_tower_is_that_of_transformers(clip: str) -> None:
    encoder = load_text_encoder(clip)
    texts = ["a dog", "a black cat and a dog"]
    found = embed_pooled(encoder, texts)
    model = CLIPModel.from_pretrained(clip).eval()
    for text, embedding in zip(texts, found, strict=True):
        with torch.inference_mode():
            tokens = encoder.tokenizer(text, return_tensors="pt")
            expected = model.text_model(**tokens).pooler_output[0]
        np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert embed_pooled(encoder, []).shape == (0, 768)


def annotations(out: Path, key: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((out / "jsons" / f"{key}.json").read_text("ascii"))


def test_instancediffusion_gets_boxes_masks_words_and_embeddings(data: str, clip: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = export_instancediffusion(data, out, text_encoder=clip)
    assert (exported.written, exported.subjects, exported.boxes_alone) == (2, 3, 1)
    assert (out / "train.txt").read_text() == "jsons/one.json\njsons/two.json\n"
    two = annotations(out, "two")
    assert base64.b64decode(two["image"]) == TWO.image
    assert (two["caption"], two["is_det"]) == ("a dög and a black cat", 1)
    dog, cat = two["annos"]
    assert (dog["bbox"], dog["caption"], dog["category_name"]) == ([4, 6, 20, 16], "a dög", "dög")
    np.testing.assert_array_equal(coco.decode(cat["mask"]), box_mask(64, 48, (32, 0, 32, 48)))
    embedding = np.frombuffer(base64.b64decode(cat["text_embedding_before"]), "float32")
    np.testing.assert_allclose(embedding, embed_pooled(load_text_encoder(clip), ["cat"])[0], atol=1e-5)
    assert cat["blip_clip_embeddings"] != cat["text_embedding_before"]
    (alone,) = annotations(out, "one")["annos"]
    assert "mask" not in alone, "its loader cannot load a single one"


def test_the_check_for_instancediffusion_names_each_fault(data: str, clip: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_instancediffusion(data, out, text_encoder=clip)
    assert list(instancediffusion.find_faults(out, 2)) == []
    two = annotations(out, "two")
    two["annos"][0] |= {"bbox": [60, 0, 20, 10], "text_embedding_before": "AAAA"}
    del two["annos"][1]["mask"]
    (out / "jsons" / "two.json").write_text(json.dumps(two))
    (out / "jsons" / "one.json").unlink()
    assert list(instancediffusion.find_faults(out, 3)) == [
        "train.txt: 2 names, 3 pictures were written",
        "jsons/one.json: is not there",
        "jsons/two.json: 1 of 2 subjects have a mask: it takes all or none",
        "jsons/two.json: has a single mask, which it cannot load",
        "jsons/two.json: annos[0]: the box [60, 0, 20, 10] is empty or reaches beyond the picture",
        "jsons/two.json: annos[0]: text_embedding_before is not of 768 numbers",
    ]
    (out / "jsons" / "two.json").write_text("{}")
    assert any("two.json: is not what its loader takes" in fault for fault in instancediffusion.find_faults(out, 2))


def test_blip_diffusion_has_one_subject_with_the_pixels_of_its_matte(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[on_another_background("k")]], sample_format=blip_diffusion.FORMAT)
    export_simpletuner(str(tmp_path / "data"), tmp_path / "out")
    (box,) = json.loads((tmp_path / "out" / "images" / "k.bbox").read_text("utf-8"))
    assert (box["label"], box["bbox"]) == ("a dog", [4 / 64, 6 / 48, 25 / 64, 22 / 48])


def test_what_is_missing_is_named(data: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "plain", [[ONE]], sample_format=captioned.FORMAT)
    with pytest.raises(InputError, match="captioned dataset, whose samples have no boxes"):
        export_simpletuner(str(tmp_path / "plain"), tmp_path / "out")
    with pytest.raises(ModelError, match=r"nowhere.*Give --text-encoder FOLDER"):
        export_instancediffusion(data, tmp_path / "out", text_encoder="./nowhere")
    with pytest.raises(ModelError, match=r"embeds texts in 8 numbers, InstanceDiffusion takes 768"):
        export_instancediffusion(data, tmp_path / "out", text_encoder=save_clip(tmp_path / "small", 8))
    assert not (tmp_path / "out").exists()
