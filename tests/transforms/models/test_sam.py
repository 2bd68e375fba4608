import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from jobs.scenes import scene_of
from schemas.boxes import BBox, to_corners
from schemas.errors import ModelError
from schemas.machine import DEVICE
from schemas.masks import Mask, intersection_over_union
from transforms.models import sam as sams
from transforms.models.presets import PRESETS
from transforms.models.sam import SamShape, load_sam, new_sam, save_sam, segment_boxes, segment_everything
from transforms.models.settings import Everything
from transforms.models.tensors import resize

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


def picture(seed: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


# One is as large as the model's input, one is scaled down, one up.
PICTURES = [picture(0), picture(1, 64, 64), picture(2, 97, 70)]
BOXES: list[list[BBox]] = [[(3, 4, 20, 30), (0, 0, 60, 40), (50, 30, 10, 10)], [], [(5, 5, 50, 60)]]


def test_masks_of_boxes_are_the_predictors_one_by_one(sam: Sam) -> None:
    found = segment_boxes(sam, PICTURES, BOXES)
    assert [len(masks) for masks in found] == [3, 0, 1]
    predictor = SamPredictor(sam)
    for image, boxes, masks in zip(PICTURES, BOXES, found, strict=True):
        predictor.set_image(image)
        for box, mask in zip(boxes, masks, strict=True):
            expected, _, _ = predictor.predict(box=np.array(to_corners(box)), multimask_output=False)
            assert mask.size == image.shape[:2]
            # Many boxes at once round otherwise where a logit is nearly 0, and torch resizes otherwise than Pillow.
            assert (mask.to_array() != expected[0]).mean() < 0.002
    assert segment_boxes(sam, [], []) == []


def by_generator(sam: Sam, image: NDArray[np.uint8], settings: Everything) -> list[tuple[Mask, float]]:
    """The masks of segment-anything's own generator, as `segment_everything` returns them."""
    side = sam.image_encoder.img_size
    size = ResizeLongestSide.get_preprocess_shape(*image.shape[:2], side)
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points,
        pred_iou_thresh=settings.predicted_iou,
        stability_score_thresh=settings.stability,
        points_per_batch=sams.DECODED_AT_ONCE,
    )
    # The same pixels for both: torch and Pillow differ by a grey level here and there.
    resized = resize(torch.from_numpy(image).permute(2, 0, 1)[None], size, "bilinear")[0].permute(1, 2, 0).numpy()
    generator.predictor.transform.apply_image = lambda _: resized
    found = sorted(generator.generate(image), key=lambda mask: (-mask["area"], mask["bbox"]))
    return [(Mask.from_array(f["segmentation"]), min(1.0, f["predicted_iou"])) for f in found if f["area"]]


class Discs(torch.nn.Module):
    """A decoder that draws three soft discs for each prompt: an untrained one draws nearly the same for all of them."""

    def forward(self, sparse_prompt_embeddings: torch.Tensor, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.randn(SHAPE.prompt_width, 15, generator=torch.Generator().manual_seed(0))
        numbers = (sparse_prompt_embeddings[:, 0] @ weights).sin().unflatten(1, (3, 5, 1))
        x, y, radius, sharpness, iou = numbers.unbind(2)
        line = torch.linspace(-1, 1, 16)
        distance = ((line[None, None, :, None] - y[..., None]) ** 2 + (line - x[..., None]) ** 2).sqrt()
        return (10 + 9 * sharpness[..., None]) * (radius[..., None] - distance), iou[..., 0]


def test_automatic_masks_are_those_of_the_generator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few at a time, so that there are several parts.
    monkeypatch.setattr(sams, "CPU_UPSAMPLED_PIXELS", 2**15)
    monkeypatch.setattr(sams, "DECODED_AT_ONCE", 8)
    untrained = load_sam(folder)
    drawn = load_sam(folder)
    drawn.mask_decoder = Discs()
    counts = []
    for settings in (
        Everything(points=5, predicted_iou=-10, stability=0),
        Everything(points=5, predicted_iou=0.5, stability=0),
        Everything(points=5, predicted_iou=-10, stability=0.85),
        Everything(points=5, predicted_iou=0.2, stability=0.5),
        Everything(points=5, predicted_iou=1),
    ):
        for sam in (drawn, untrained):
            found = segment_everything(sam, PICTURES, settings)
            assert found == [by_generator(sam, image, settings) for image in PICTURES]
        counts.append(sum(map(len, segment_everything(drawn, PICTURES, settings))))
    # Every filter leaves something out, and so does that of duplicates.
    assert len({*counts, 3 * 25 * 3}) == 6
    assert counts[4] == 0


@pytest.mark.slow
def test_automatic_masks_of_the_sample_sam_are_those_of_the_generator() -> None:
    sample = load_sam(PRESETS["sample"].sam)
    scene = scene_of(4, 1).image
    settings = Everything(points=5, predicted_iou=0.4, stability=0.5)
    (found,) = segment_everything(sample, [scene], settings)
    assert found == by_generator(sample, scene, settings)
    assert len(found) > 3


def test_everything_comes_with_the_largest_first(sam: Sam) -> None:
    for found in segment_everything(sam, PICTURES, Everything(points=4, predicted_iou=-10, stability=0)):
        areas = [mask.area for mask, _ in found]
        assert len(areas) > 1
        assert areas == sorted(areas, reverse=True)
        assert all(score <= 1 for _, score in found)


def test_pictures_embedded_together_give_what_each_gives(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sams, "CPU_EMBEDDED_AT_ONCE", 2)
    together = segment_boxes(sam, PICTURES, BOXES)
    for image, boxes, masks in zip(PICTURES, BOXES, together, strict=True):
        (alone,) = segment_boxes(sam, [image], [boxes])
        for mask, other in zip(masks, alone, strict=True):
            assert (mask.to_array() != other.to_array()).mean() < 0.001


def test_threads_share_a_sam(sam: Sam) -> None:
    every = Everything(points=3, predicted_iou=-10, stability=0)
    expected = [(segment_boxes(sam, PICTURES, BOXES), segment_everything(sam, PICTURES, every))] * 8
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(lambda: (segment_boxes(sam, PICTURES, BOXES), segment_everything(sam, PICTURES, every)))
            for _ in expected
        ]
        assert [call.result() for call in calls] == expected


def test_in_bf16_the_masks_stay_and_coordinates_are_not_rounded(folder: Path, sam: Sam) -> None:
    half = load_sam(folder, "bf16")
    assert half.image_encoder.patch_embed.proj.weight.dtype == torch.bfloat16
    assert half.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.dtype == torch.float32
    for masks, others in zip(segment_boxes(sam, PICTURES, BOXES), segment_boxes(half, PICTURES, BOXES), strict=True):
        for mask, other in zip(masks, others, strict=True):
            assert (mask.to_array() != other.to_array()).mean() < 0.05


@pytest.mark.gpu
def test_on_cuda_the_masks_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [scene_of(4, i) for i in range(3)]
    boxes = [[Mask.from_array(thing.mask).bbox for thing in scene.objects] for scene in scenes]
    images = [scene.image for scene in scenes]
    on_cuda = load_sam(PRESETS["sample"].sam, "bf16")
    monkeypatch.setenv(DEVICE, "cpu")
    on_cpu = load_sam(PRESETS["sample"].sam)
    for found, expected in zip(
        segment_boxes(on_cuda, images, boxes), segment_boxes(on_cpu, images, boxes), strict=True
    ):
        for mask, other in zip(found, expected, strict=True):
            assert intersection_over_union(mask, other) > 0.95
    settings = Everything(points=5, predicted_iou=0.4, stability=0)
    found_on_cuda = segment_everything(on_cuda, images, settings)
    for masks, others in zip(segment_everything(on_cpu, images, settings), found_on_cuda, strict=True):
        for mask, _ in masks[:3]:
            assert max(intersection_over_union(mask, other) for other, _ in others) > 0.9


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
    with pytest.raises(ModelError, match="a model of type sam, not segment-anything"):
        load_sam(tmp_path)
