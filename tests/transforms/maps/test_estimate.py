"""Maps by models: what the models return, what becomes of it, and what happens to bad values."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from schemas.errors import ModelError, RecordError
from schemas.maps import decode_map, to_values
from schemas.rejects import Reason
from tests.mapped import bare, box_segment
from transforms.maps import estimate
from transforms.models import depth as depth_module
from transforms.models.depth import DepthModel, estimate_depth, load_depth
from transforms.models.pose import find_people, load_pose
from transforms.models.soft_edges import EdgeModel, EdgeNetwork, find_edges, load_edges


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Depth Anything."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "depth"
    DepthAnythingForDepthEstimation(config).save_pretrained(path)
    processor = DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14, do_pad=False
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pose_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ViTPose of COCO's 17 points."""
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        image_size=[32, 32], patch_size=[8, 8], hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, out_indices=[1],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "pose"
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17, scale_factor=4)).save_pretrained(
        path
    )
    VitPoseImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def picture(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_depth_is_that_of_transformers_own_steps(depth_folder: Path) -> None:
    model = load_depth(depth_folder)
    pictures = [picture(0), picture(1, 30, 30), picture(2)]
    found = estimate_depth(model, pictures)
    assert [depth.shape for depth in found] == [(40, 56), (30, 30), (40, 56)]
    for depth, pixels in zip(found, pictures, strict=True):
        inputs = model.processor(images=pixels, input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            outputs = model.model(**inputs)
        expected = model.processor.post_process_depth_estimation(outputs, target_sizes=[pixels.shape[:2]])
        np.testing.assert_allclose(depth, expected[0]["predicted_depth"].numpy(), atol=1e-4)
        assert np.ptp(depth) > 0


def test_a_model_of_another_kind_is_refused(pose_folder: Path, depth_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of type vitpose"):
        load_depth(pose_folder)
    with pytest.raises(ModelError, match="of type depth_anything"):
        load_pose(depth_folder)
    with pytest.raises(ModelError, match="no edge network"):
        load_edges(tmp_path / "edges.pth")
    torch.save({"block1.convs.0.weight": torch.zeros(1)}, tmp_path / "edges.pth")
    with pytest.raises(ModelError, match="Give --model edges=PATH"):
        load_edges(tmp_path / "edges.pth")


def test_only_examples_without_a_depth_map_go_through_the_model(
    depth_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counting(model: DepthModel, images: Any) -> Any:  # noqa: ANN401
        counts.append(len(images))
        return estimate_depth(model, images)

    monkeypatch.setattr(depth_module, "estimate_depth", counting)
    found = estimate.add_depth(load_depth(depth_folder), [bare("a"), replace(bare("b"), given={})], "small")
    assert counts == [1]
    assert "depth" not in found[0].maps
    made = found[1].maps["depth"]
    assert (made.operator, made.version) == ("depth model", "small")
    values = to_values("depth", decode_map("depth", made.png), made.range)
    assert (float(values.min()), float(values.max())) == pytest.approx(made.range, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_returns_no_number_costs_that_picture(bad: float) -> None:
    values = np.ones((4, 4), np.float32)
    values[1, 2] = bad
    for make in (estimate.depth_map, estimate.edge_map):
        with pytest.raises(RecordError, match="1 pixels of NaN or infinity") as caught:
            make(values, "small")
        assert caught.value.reason is Reason.INVALID_MAP


def test_depth_of_one_value_is_flat() -> None:
    found = estimate.depth_map(np.full((4, 4), 3.0, np.float32), "small")
    assert found.is_flat
    assert found.range == (3.0, 3.0)


def test_people_are_found_in_their_boxes(pose_folder: Path) -> None:
    model = load_pose(pose_folder)
    pixels = picture(3)
    boxes = [(4, 2, 20, 30), (30, 5, 15, 30)]
    found = find_people(model, [pixels, picture(4)], [boxes, []])
    assert [len(people) for people in found] == [2, 0]
    frames = [[list(map(float, box)) for box in boxes]]
    inputs = model.processor(images=[pixels], boxes=frames, input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        outputs = model.model(**inputs)
    expected = model.processor.post_process_pose_estimation(outputs, boxes=frames)[0]
    for person, result in zip(found[0], expected, strict=True):
        points = np.array(person.points)
        np.testing.assert_allclose(points[:, :2], result["keypoints"].numpy(), atol=0.01)
        assert points[:, 2].min() >= 0
    example = replace(bare(), segments=(box_segment("person", (4, 2, 20, 30)), box_segment("dog", (30, 5, 15, 30))))
    (advanced,) = estimate.add_people(model, [example])
    assert len(advanced.people or ()) == 1


def test_the_edge_network_averages_its_side_outputs(tmp_path: Path) -> None:
    """With weights under which each stage repeats its input's first channel, the answer is known."""
    network = EdgeNetwork()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for number in range(1, 6):
            stage: Any = network.get_submodule(f"block{number}")
            for convolution in stage.convs:
                convolution.weight[0, 0, 1, 1] = 1
            stage.projection.weight[0, 0] = 0.01 * number
    torch.save(network.state_dict(), tmp_path / "edges.pth")
    model = load_edges(tmp_path / "edges.pth")
    assert isinstance(model, EdgeModel)
    (found,) = find_edges(model, [np.full((20, 27, 3), 100, np.uint8)])
    assert found.shape == (20, 27)
    # The mean of 1, 2, 3, 4 and 5 per cent of 100 is 3.
    assert found == pytest.approx(np.full((20, 27), 1 / (1 + np.exp(-3))), abs=1e-6)
    made = estimate.add_edges(model, [replace(bare(), given={})], "hed")[0].maps["edges"]
    assert made.version == "hed"
    names = set(network.state_dict())
    assert {"norm", "block1.convs.0.weight", "block3.convs.2.bias", "block5.projection.weight"} <= names
    assert len(names) == 1 + 2 * (13 + 5)
