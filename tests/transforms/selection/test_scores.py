"""Scores on named axes and the rules that cut by them: hand-worked numbers, every reason, and OpenS2V's file."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console

from jobs.build import Request, build
from jobs.inspect import inspect
from jobs.report.page import write_report
from jobs.settings import read_config
from pipelines import RECIPES
from pipelines.recipe import AXES, BuildConfig, scoring
from schemas.errors import ConfigError, ModelError, RecordError
from schemas.images import encode_jpeg
from schemas.masks import Mask
from schemas.rejects import Reason
from schemas.samples import captioned, fastcomposer, mip_adapter
from tests.clip import save_random_clip
from tests.datasets import box_mask, example, on_another_background, scored
from tests.paths import ROOT
from transforms.models.aesthetic import load_aesthetic, new_head, save_head
from transforms.models.clip import embed_images, embed_segments, load_clip
from transforms.models.presets import resolve
from transforms.selection.scores import (
    Rules,
    apply_rules,
    choose_subjects,
    rate_all,
    refused,
    sharpness_of,
    subject_masks,
    wholeness_of,
)
from transforms.sources.records import stated_scores

TWO = example("two", [("a dog", (0, 0, 32, 24)), ("a cat", (40, 0, 8, 8))])


def mask_of(box: tuple[int, int, int, int]) -> Mask:
    return Mask.from_array(box_mask(64, 48, box))


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    spot = np.zeros((5, 5, 3), np.uint8)
    spot[2, 2] = 100
    # The kernel gives -400 at the spot and 100 at its four neighbours: mean 0, variance (160000 + 4 * 10000) / 25.
    assert sharpness_of(spot) == pytest.approx(8000)
    assert sharpness_of(np.full((4, 6, 3), 77, np.uint8)) == 0


@pytest.mark.parametrize(
    ("rows", "share"),
    [(["11..1"], 2 / 3), (["1.", ".1"], 1.0), (["...."], 0.0), (["111", "..."], 1.0), (["1.1", "1.1", "1.."], 3 / 5)],
)
def test_wholeness_is_the_share_of_the_largest_piece(rows: list[str], share: float) -> None:
    mask: NDArray[np.bool_] = np.array([[letter == "1" for letter in row] for row in rows])
    assert wholeness_of(mask) == pytest.approx(share)


def test_bounds_of_a_gate_pass_and_an_axis_without_a_score_does() -> None:
    gates = {"side": (480.0, None), "share": (None, 0.5)}
    assert refused({"side": 480, "share": 0.5}, gates) == ""
    assert refused({"side": 479}, gates) == "side 479 is below 480"
    assert refused({"side": 500, "share": 0.51}, gates) == "share 0.51 is above 0.5"
    assert refused({}, gates) == ""


def test_of_overlapping_masks_the_larger_stays_and_then_the_best() -> None:
    masks = [mask_of(box) for box in ((0, 0, 20, 20), (0, 0, 20, 22), (30, 0, 10, 10), (45, 0, 5, 5))]
    scores = [{"share": 0.1}, {"share": 0.1}, {"share": 0.1, "wholeness": 0.9}, {"share": 0.1, "wholeness": 1.0}]
    assert choose_subjects(masks, scores, Rules(max_iou=0.8)) == [1, 2, 3]
    assert choose_subjects(masks, scores, Rules(max_iou=0.95)) == [0, 1, 2, 3]  # 20 / 22 = 0.909
    assert choose_subjects(masks, scores, Rules(most=2)) == [0, 1]
    assert choose_subjects(masks, scores, Rules(most=1, best_by="wholeness")) == [3]
    # A gate comes first: a mask that it refuses takes nothing from another.
    low = [{"share": 0.1}, {"share": 0.01}, {}, {}]
    assert choose_subjects(masks, low, Rules(gates={"share": (0.05, None)}, max_iou=0.8)) == [0, 2, 3]


def test_what_passes_is_kept_with_its_scores_and_all_are_measured() -> None:
    rules = Rules(("side", "share", "wholeness", "nsfw"), {"share": (0.1, None)})
    found = apply_rules(replace(TWO, stated={"nsfw": 0.25, "pwatermark": 0.9}), rules, "matches")
    assert found.scores == {"side": 48.0, "nsfw": 0.25}
    assert [m.phrase for m in found.matches] == [0]
    assert found.subject_scores == ({"share": 0.25, "wholeness": 1.0},)
    assert found.measured == {"side": (48.0,), "nsfw": (0.25,), "share": (0.25, 0.0208), "wholeness": (1.0, 1.0)}
    sample, row = fastcomposer.FORMAT.pack(found)
    record = fastcomposer.Record.from_sample(sample)
    assert (record.scores, record.subjects[0].scores) == (found.scores, found.subject_scores[0])
    assert dict(row["axes"])["share"] == [0.25, 0.0208]


def test_without_axes_a_record_has_no_word_of_them() -> None:
    for form, matched in ((fastcomposer.FORMAT, TWO), (mip_adapter.FORMAT, scored(TWO, 0.5)), (captioned.FORMAT, TWO)):
        assert b"axes" not in form.pack(matched)[0].members["json"]
        assert b'"scores":{' not in form.pack(matched)[0].members["json"]


def test_objects_and_mattes_are_subjects_too() -> None:
    objects = apply_rules(scored(TWO, 0.5), Rules(("share",), {"share": (0.1, None)}), "objects")
    assert [thing.mask.area for thing in objects.objects] == [768]
    (thing,) = mip_adapter.Record.from_sample(mip_adapter.FORMAT.pack(objects)[0]).objects
    assert thing.scores == {"share": 0.25}
    matte = on_another_background("k")
    assert subject_masks(matte, "matte")[0].area == 21 * 16
    with pytest.raises(RecordError, match=r"gated-subjects: none of 1 subjects passes: share 0\.1094 is below 0\.2"):
        apply_rules(matte, Rules(("share",), {"share": (0.2, None)}), "matte")
    assert apply_rules(TWO, Rules(("side",)), "none").measured == {"side": (48.0,)}


def test_a_picture_that_a_gate_refuses_is_a_reject() -> None:
    with pytest.raises(RecordError, match="side 48 is below 480") as caught:
        apply_rules(TWO, Rules(("side",), {"side": (480, None)}), "matches")
    assert caught.value.reason is Reason.GATED_PICTURE


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"pwatermark": 0.5, "punsafe": 0.1}, {"pwatermark": 0.5, "nsfw": 0.1}),
        ({"pwatermark": "0.5", "nsfw": "UNLIKELY"}, {}),
        ({"pwatermark": 1.5, "punsafe": None, "nsfw": True}, {}),
        ({"punsafe": float("nan"), "nsfw_prob": 1}, {"nsfw": 1.0}),
    ],
)
def test_probabilities_of_the_source_are_read_where_they_are_numbers(
    fields: dict[str, object], stated: dict[str, float]
) -> None:
    assert stated_scores(fields) == stated


def reference_rating(state: dict[str, torch.Tensor], embedding: NDArray[np.float32]) -> float:
    """The published network: linear layers at 0, 2, 4, 6 and 7, dropouts between them."""
    sizes = (len(embedding), 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    drop = torch.nn.Dropout
    network = torch.nn.Sequential(layers[0], drop(0.2), layers[1], drop(0.2), layers[2], drop(0.1), *layers[3:])
    network.load_state_dict({name.removeprefix("layers."): weight for name, weight in state.items()})
    with torch.no_grad():
        return float(network.eval()(torch.from_numpy(embedding)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An untrained CLIP and an untrained predictor on its embeddings."""
    folder = tmp_path_factory.mktemp("aesthetic")
    clip = save_random_clip(folder / "clip")
    torch.manual_seed(1)
    size = embed_images(load_clip(clip), [np.zeros((8, 8, 3), np.uint8)]).shape[1]
    save_head(new_head(size), folder / "head.pth")
    return clip, str(folder / "head.pth")


def test_ratings_are_those_of_the_published_network_on_picture_and_crops(models: tuple[str, str]) -> None:
    clip, head = models
    aesthetic = load_aesthetic(head, load_clip(clip))
    rules = Rules(("aesthetic", "crop_aesthetic"))
    one = example("one", [("a cat", (5, 5, 20, 20))])
    two, single = rate_all(aesthetic, [TWO, one], rules, "matches")
    state = torch.load(head, weights_only=True)
    masks = subject_masks(TWO, "matches")
    crops = embed_segments(aesthetic.clip, [TWO.pixels()], [masks])
    assert two.ratings[0] == pytest.approx(
        reference_rating(state, embed_images(aesthetic.clip, [TWO.pixels()])[0]), abs=1e-3
    )
    assert two.ratings[1] == pytest.approx([reference_rating(state, crop) for crop in crops], abs=1e-3)
    assert len(single.ratings[1]) == 1
    found = apply_rules(two, rules, "matches", *two.ratings)
    assert found.scores == {"aesthetic": two.ratings[0]}
    assert [s["crop_aesthetic"] for s in found.subject_scores] == list(two.ratings[1])


def test_a_predictor_of_another_clip_or_of_nothing_is_one_line(models: tuple[str, str], tmp_path: Path) -> None:
    clip, _ = models
    save_head(new_head(7), tmp_path / "small.pth")
    with pytest.raises(ModelError, match=r"takes embeddings of 7 numbers, the CLIP gives \d+"):
        load_aesthetic(str(tmp_path / "small.pth"), load_clip(clip))
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="lacks 10 of its weights"):
        load_aesthetic(str(tmp_path / "other.pth"), load_clip(clip))
    with pytest.raises(ModelError, match=r"no aesthetic predictor \./nowhere\.pth.*--model aesthetic=FILE"):
        load_aesthetic("./nowhere.pth", load_clip(clip))


def test_wrong_axes_gates_and_missing_models_are_refused() -> None:
    for settings, message in (
        (["scores=aestetic"], "there is no axis 'aestetic', did you mean 'aesthetic'"),
        (["gates={side: [5, 1]}"], r"the gate side: 5\.0 must not be above 1\.0"),
        (["best_by=share"], "best_by chooses most_subjects"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_config(BuildConfig, None, settings)
    with pytest.raises(ConfigError, match="the axis aesthetic needs the aesthetic predictor"):
        scoring(BuildConfig(scores=("aesthetic",)), resolve("sample", {}), "matches")
    assert scoring(BuildConfig(), resolve("sample", {}), "matches") == []
    (step,) = scoring(BuildConfig(scores=("share",)), resolve("hub", {}), "matches")
    assert step.checkpoints() == {}
    (step,) = scoring(BuildConfig(scores=("crop_aesthetic",)), resolve("hub", {}), "matches")
    assert set(step.checkpoints()) == {"clip", "aesthetic"}
    assert len(AXES) == 8


def picture(folder: Path, name: str, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
    (folder / f"{name}.jpg").write_bytes(encode_jpeg(pixels))
    (folder / f"{name}.json").write_text(f'{{"caption": "a picture", "pwatermark": 0.{seed}}}')


def test_a_build_gates_pictures_and_its_report_draws_the_histogram_with_the_gate(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for seed, side in enumerate((64, 128, 128), start=1):
        picture(source, f"p{seed}", side, seed * 3)
    config = read_config(BuildConfig, None, ["gates={side: [100, null], pwatermark: [null, 0.7]}", "scores=sharpness"])
    out = str(tmp_path / "out")
    info = build(Request("captioned", str(source), out, config, resolve("sample", {})), Console(quiet=True))
    assert info.counts.rejects == {"scores": {"gated-picture": 2}}
    details = sorted(pq.read_table(f"{out}/rejects.parquet")["detail"].to_pylist())
    assert details == ["pwatermark 0.9 is above 0.7", "side 64 is below 100"]
    (axes,) = pq.read_table(f"{out}/index.parquet")["axes"].to_pylist()
    assert dict(axes)["side"] == [128.0]
    assert dict(axes)["pwatermark"] == [0.6]
    assert inspect(out).problems == ()
    write_report(out)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Scores by axis" in page
    assert "at least 100" in page
    assert "at most 0.7" in page


def test_opens2vs_rules_are_a_config_of_the_recipe() -> None:
    config = read_config(RECIPES["fastcomposer"].config, ROOT / "configs" / "opens2v.yaml", [])
    assert config.gates == {"side": (480, None), "crop_aesthetic": (4.5, None), "share": (1 / 32, None)}
    assert (config.max_iou, config.most_subjects, config.best_by) == (0.8, 6, "crop_aesthetic")
    assert yaml.safe_load((ROOT / "configs" / "opens2v.yaml").read_text("utf-8"))
