import json
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from schemas.errors import ModelError
from transforms.models.sam import SamShape, load_sam, new_sam, save_sam, segment_boxes, segment_everything
from transforms.models.settings import Everything

SHAPE = SamShape(side=64, patch=16, width=16, depth=1, heads=2, prompt_width=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "sam"
    save_sam(new_sam(SHAPE), SHAPE, path)
    return path


@pytest.fixture(scope="module")
def sam(folder: Path) -> Sam:
    return load_sam(folder)


def test_masks_of_boxes_are_the_predictors_one_by_one(sam: Sam) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    boxes = [(3, 4, 20, 30), (0, 0, 60, 40), (50, 30, 10, 10)]
    masks = segment_boxes(sam, image, boxes)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    for (x, y, w, h), mask in zip(boxes, masks, strict=True):
        expected, _, _ = predictor.predict(box=np.array([x, y, x + w, y + h]), multimask_output=False)
        assert mask.shape == (40, 60)
        assert mask.dtype == bool
        # Many boxes at once round otherwise where a logit is nearly 0.
        assert (mask != expected[0]).mean() < 0.001
    assert segment_boxes(sam, image, []) == []


def test_everything_comes_with_the_largest_first(sam: Sam) -> None:
    image = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    found = segment_everything(sam, image, Everything(points=4, predicted_iou=-10, stability=0))
    areas = [int(mask.sum()) for mask, _ in found]
    assert len(areas) > 1
    assert areas == sorted(areas, reverse=True)
    assert all(mask.shape == (40, 60) and score <= 1 for mask, score in found)
    assert segment_everything(sam, image, Everything(points=4, predicted_iou=10)) == []


def test_a_published_checkpoint_is_loaded_by_the_size_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    published = new_sam(SHAPE)
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(published.state_dict(), path)
    # The real ones are too large for a test.
    monkeypatch.setitem(sam_model_registry, "vit_b", lambda: new_sam(SHAPE))
    loaded = load_sam(path)
    for name, weight in published.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight)
    assert not loaded.training


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("owned"),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, tmp_path / "sam_vit_b_bad.pth")
    with pytest.raises(ModelError, match="other things than weights"):
        load_sam(tmp_path / "sam_vit_b_bad.pth")
    assert not (tmp_path / "owned").exists()


def test_what_is_no_sam_is_refused_with_what_was_looked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its name has no size.*--model sam=PATH"):
        load_sam("nowhere.pth")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_sam(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "sam"}))
    with pytest.raises(ModelError, match="not a SAM's"):
        load_sam(tmp_path)
