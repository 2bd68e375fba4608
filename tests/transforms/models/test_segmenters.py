"""The segmenter's adapter with each type of model that it serves: small untrained ones, and outputs written by hand."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    DetrConfig,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    PreTrainedModel,
    ResNetConfig,
)

from jobs.scenes import scene_of
from schemas.errors import ModelError
from schemas.machine import DEVICE
from schemas.masks import intersection_over_union
from tests.beam import apply
from tests.examples import make_example
from transforms.batch import Batch
from transforms.models.places import SAMPLE
from transforms.models.segmenter import (
    SCORE_THRESHOLDS,
    Segmenter,
    claimed_pixels,
    fused,
    load_segmenter,
    segment_images,
)
from transforms.regions.segment import SegmentPictures

SIDES = {"shortest_edge": 64, "longest_edge": 128}
PERSON, DOG, SKY, NOTHING = 0, 16, 119, 133
"""Class ids of COCO panoptic in published checkpoints; the one after the last is "no object"."""


def resnet() -> ResNetConfig:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )


def eomt() -> PreTrainedModel:
    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        num_blocks=1,
        num_queries=6,
        num_labels=4,
        num_upscale_blocks=1,
    )
    return EomtForUniversalSegmentation(config)


def mask2former() -> PreTrainedModel:
    config = Mask2FormerConfig(
        backbone_config=resnet(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        num_labels=4,
    )
    return Mask2FormerForUniversalSegmentation(config)


def maskformer() -> PreTrainedModel:
    decoder = DetrConfig(
        backbone_config=resnet(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=1,  # untrained, they are all alike
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
    )
    config = MaskFormerConfig(
        backbone_config=resnet(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=4
    )
    return MaskFormerForInstanceSegmentation(config)


KINDS = {
    "eomt": (eomt, EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)),
    "mask2former": (mask2former, Mask2FormerImageProcessor(size=SIDES)),
    "maskformer": (maskformer, MaskFormerImageProcessor(size=SIDES)),
}


def save(kind: str, folder: Path) -> str:
    """Write an untrained model of `kind` that is sure of some class in most of its queries."""
    make, processor = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        model.class_predictor.weight.mul_(300)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def pictures() -> list[np.ndarray]:
    """Four pictures of three sizes, so that batches are mixed."""
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (60, 80), (33, 51)]
    return [np.kron(rng.integers(0, 255, (3, 3, 3)), np.ones((27, 27, 1)))[:h, :w].astype(np.uint8) for h, w in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_gives_disjoint_masks_of_the_pictures_size_whatever_else_is_in_the_batch(
    kind: str, tmp_path: Path
) -> None:
    segmenter = load_segmenter(save(kind, tmp_path))
    images = pictures()
    together = segment_images(segmenter, images)
    assert any(together)
    for image, segments in zip(images, together, strict=True):
        assert {segment.mask.size for segment in segments} <= {image.shape[:2]}
        masks = [segment.mask.to_array() for segment in segments]
        assert np.sum(masks, axis=0, initial=0).max() <= 1
        (alone,) = segment_images(segmenter, [image])
        assert [segment.label for segment in alone] == [segment.label for segment in segments]
        for segment, other in zip(alone, segments, strict=True):
            # Batched arithmetic may round the last bit in another way: a pixel on an edge, no more.
            assert np.mean(segment.mask.to_array() != other.mask.to_array()) < 0.01


class Answering(SimpleNamespace):
    """A model that gives the same outputs for all pictures."""

    def __init__(self, config: object, classes: torch.Tensor, masks: torch.Tensor) -> None:
        super().__init__(config=config, dtype=torch.float32, classes=classes, masks=masks)

    def __call__(self, pixel_values: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        rows = torch.zeros(len(pixel_values), dtype=torch.int64)
        return SimpleNamespace(class_queries_logits=self.classes[rows], masks_queries_logits=self.masks[rows])


@pytest.mark.parametrize(
    ("kind", "queries"), [("eomt", 12), ("mask2former", 12), ("maskformer", 12), ("maskformer", 264)]
)
def test_pixels_are_assigned_as_the_processor_does(kind: str, queries: int) -> None:
    processor = KINDS[kind][1]
    rng = np.random.default_rng(queries)
    # Twelve queries name a class. Each has one or two cells of a grid, and some have the same.
    classes = torch.from_numpy(rng.normal(0, 3, (1, queries, 5)).astype(np.float32))
    classes[0, np.arange(queries), rng.integers(0, 4, queries)] += 4
    classes[0, np.arange(queries) % (queries // 12) != 0, 4] = 30
    masks = torch.from_numpy(rng.normal(-5, 1, (1, queries, 20)).astype(np.float32))
    for cell in rng.integers(0, 12, (2, queries)):
        masks[0, np.arange(queries), cell] += 10
    masks = masks.unflatten(2, (4, 5))
    config = SimpleNamespace(model_type=kind, id2label={i: f"class {i}" for i in range(4)})
    segmenter = Segmenter(Answering(config, classes, masks), processor, "cpu", frozenset())
    images = pictures()
    outputs = SimpleNamespace(
        class_queries_logits=classes.expand(4, -1, -1), masks_queries_logits=masks.expand(4, -1, -1, -1)
    )
    threshold = SCORE_THRESHOLDS[kind]
    sizes = [image.shape[:2] for image in images]
    expected = processor.post_process_panoptic_segmentation(outputs, threshold=threshold, target_sizes=sizes)
    scores, labels = classes[0].softmax(-1).max(-1)
    is_sure = (labels != 4) & (scores > threshold)
    dropped = 0
    for segments, peer, size in zip(segment_images(segmenter, images), expected, sizes, strict=True):
        is_claimed = torch.ones(size, dtype=torch.bool)
        if kind != "eomt":
            is_claimed = claimed_pixels(masks[0, is_sure], scores[is_sure], size)
        theirs = [
            (f"class {info['label_id']}", round(info["score"], 4), ((peer["segmentation"] == info["id"]) & is_claimed))
            for info in peer["segments_info"]
        ]
        ours = [(segment.label, segment.score, segment.mask.to_array()) for segment in segments]
        theirs = [their for their in theirs if their[2].any()]
        assert [own[:2] for own in ours] == [their[:2] for their in theirs]
        for own, their in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(own[2], their[2].numpy())
        assert len(ours) > 1
        dropped += int(is_sure.sum()) - len(ours)
    assert dropped > 0


def test_threads_share_a_segmenter(tmp_path: Path) -> None:
    segmenter = load_segmenter(save("mask2former", tmp_path))
    images = pictures()
    expected = segment_images(segmenter, images)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: segment_images(segmenter, images), range(8))) == [expected] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_computes_in_bf16(kind: str, tmp_path: Path) -> None:
    checkpoint = save(kind, tmp_path)
    full, half = load_segmenter(checkpoint), load_segmenter(checkpoint, "bf16")
    assert half.model.dtype == torch.bfloat16
    images = pictures()
    for image, segments in zip(images, segment_images(half, images), strict=True):
        assert {segment.mask.size for segment in segments} <= {image.shape[:2]}
    assert any(segment_images(full, images))


@pytest.mark.gpu
def test_on_cuda_the_segments_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [scene_of(5, i).image for i in range(4)]
    found = segment_images(load_segmenter(SAMPLE / "segmenter", "bf16"), images)
    monkeypatch.setenv(DEVICE, "cpu")
    for own, expected in zip(found, segment_images(load_segmenter(SAMPLE / "segmenter"), images), strict=True):
        assert sorted(segment.label for segment in own) == sorted(segment.label for segment in expected)
        for segment in expected:
            same = [other.mask for other in own if other.label == segment.label]
            assert max(intersection_over_union(segment.mask, mask) for mask in same) > 0.9


def with_queries(queries: list[tuple[int, slice]], size: tuple[int, int] = (48, 96)) -> Segmenter:
    """A Mask2Former whose queries say: class id, columns of a picture of `size` (height, width)."""
    classes = torch.full((1, len(queries), NOTHING + 1), -9.0)
    masks = torch.full((1, len(queries), *size), -9.0)
    for query, (label, columns) in enumerate(queries):
        classes[0, query, label] = 9.0
        masks[0, query, :, columns] = 9.0
    labels = {i: f"class {i}" for i in range(NOTHING)}
    config = SimpleNamespace(model_type="mask2former", id2label=labels)

    return Segmenter(
        Answering(config, classes, masks), Mask2FormerImageProcessor(), "cpu", frozenset(range(80, NOTHING))
    )


def columns_of(segmenter: Segmenter) -> dict[str, list[int]]:
    """Every segment's label, with the first of each eight columns that it covers in all rows."""
    (segments,) = segment_images(segmenter, [np.zeros((48, 96, 3), np.uint8)])
    assert len({segment.label for segment in segments}) == len(segments)
    return {segment.label: np.flatnonzero(segment.mask.to_array().all(axis=0))[4::8].tolist() for segment in segments}


def test_stuff_is_one_segment_and_what_follows_it_keeps_its_own_mask() -> None:
    # Fusing inside the processor would give the dog the person's id, and both one mask.
    queries = [(SKY, slice(0, 16)), (PERSON, slice(16, 32)), (SKY, slice(32, 64)), (DOG, slice(64, 80))]
    assert columns_of(with_queries([*queries, (NOTHING, slice(0, 96))])) == {
        f"class {SKY}": [4, 12, 36, 44, 52, 60],
        f"class {PERSON}": [20, 28],
        f"class {DOG}": [68, 76],
    }


def test_things_of_one_class_stay_apart() -> None:
    segmenter = with_queries([(PERSON, slice(0, 40)), (PERSON, slice(40, 96))])
    (segments,) = segment_images(segmenter, [np.zeros((48, 96, 3), np.uint8)])
    assert [(segment.label, segment.is_thing) for segment in segments] == [(f"class {PERSON}", True)] * 2
    assert [segment.bbox for segment in segments] == [(0, 0, 40, 48), (40, 0, 56, 48)]
    (sky,) = segment_images(with_queries([(SKY, slice(0, 96))]), [np.zeros((48, 96, 3), np.uint8)])[0]
    assert not sky.is_thing


def test_regions_are_joined_where_the_first_of_a_class_of_stuff_stands() -> None:
    regions = [(7, 0.6, 1), (2, 0.9, 2), (7, 0.8, 3), (2, 0.7, 4), (7, 0.5, 5)]
    assert fused(regions, frozenset({7})) == [(7, 0.8, [1, 3, 5]), (2, 0.9, [2]), (2, 0.7, [4])]


def test_stuff_is_known_of_the_classes_of_coco_alone(tmp_path: Path) -> None:
    assert load_segmenter(save("eomt", tmp_path)).stuff == frozenset()
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(i): f"class {i}" for i in range(NOTHING)}
    model = EomtForUniversalSegmentation(EomtConfig.from_dict(config))
    model.save_pretrained(tmp_path)
    assert load_segmenter(tmp_path).stuff == frozenset(range(80, 133))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(ModelError, match=r"is a model of type detr: give --model segmenter=.* of type mask2former"):
        load_segmenter(tmp_path)


def test_broken_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = Path(save("eomt", tmp_path / "model"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "empty").mkdir()
    for broken in (folder, tmp_path / "empty"):
        with pytest.raises(ModelError, match=r"^the folder .* is no segmenter that can be loaded") as caught:
            load_segmenter(broken)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    config = json.loads((Path(save("eomt", tmp_path)) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks \d+ of its weights, such as layers\.2"):
        load_segmenter(tmp_path)


def test_the_transform_refuses_a_missing_checkpoint_as_ours(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no segmenter"):
        apply(SegmentPictures(str(tmp_path / "nowhere")), [Batch(0, (make_example(),))])
