import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import ModelError
from schemas.example import Example
from tests.beam import apply
from tests.examples import make_example, phrase
from tests.grounding import FIXED, write_detector, write_original
from tests.transforms.models.test_sam import SHAPE
from transforms.batch import Batch
from transforms.models.detector import Detections, Detector, detect_phrases, load_detector
from transforms.models.groundingdino import ImageProcessor, find_config, read_config
from transforms.models.sam import new_sam, save_sam
from transforms.regions.ground import GroundPhrases

INSTALLED = importlib.util.find_spec("groundingdino") is not None
with_package = pytest.mark.skipif(not INSTALLED, reason="groundingdino-py is not installed here: make groundingdino")
without_package = pytest.mark.skipif(INSTALLED, reason="groundingdino-py is installed here")
# The package is older than its libraries.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:torch.meshgrid:UserWarning", "ignore:invalid escape sequence"
)


@without_package
def test_without_the_package_it_is_said_how_to_get_it() -> None:
    with pytest.raises(ModelError, match=r"swint_ogc\.pth .*not installed\. Run in \.venv-groundingdino, .*`make g"):
        load_detector("groundingdino_swint_ogc.pth")


@without_package
def test_the_package_beside_too_new_a_transformers_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groundingdino").mkdir()
    (tmp_path / "groundingdino" / "__init__.py").write_text("raise SystemExit('never')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"needs transformers < 5, and 5[.0-9]+ is installed\. Run in \.venv-g"):
        load_detector("groundingdino_swint_ogc.pth")


def test_a_config_is_read_and_nothing_of_it_executed(tmp_path: Path) -> None:
    source = (
        'backbone = "swin_T_224_1k"\nreturn_interm_indices = [1, 2, 3]\npre_norm = False\n\n# why\ndropout = -0.5\n'
    )
    config = {"backbone": "swin_T_224_1k", "return_interm_indices": [1, 2, 3], "pre_norm": False, "dropout": -0.5}
    assert read_config(source) == config
    (tmp_path / "mine.py").write_text(source)
    assert find_config(str(tmp_path / "mine.pth")) == config
    for code in (
        "a = open('x')",
        "import os",
        "a = b = 1",
        "a.b = 1",
        "a: int = 1",
        "a = [x for x in (1, 2)]",
        "print()",
    ):
        with pytest.raises(ValueError, match=r"line 2 of its config is not NAME = LITERAL, and no code of it is exec"):
            read_config(f"ok = 1\n{code}\n")


@with_package
@pytest.mark.parametrize(
    ("name", "backbone"),
    [("groundingdino_swint_ogc.pth", "swin_T_224_1k"), ("a/b/groundingdino_swinb_cogcoor.pth", "swin_B_384_22k")],
)
def test_a_published_name_tells_the_config(name: str, backbone: str) -> None:
    config = find_config(name)
    assert (config["backbone"], config["enc_layers"], config["num_queries"]) == (backbone, 6, 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the same random model twice: `theirs`, of transformers, and `original.pth`."""
    path = tmp_path_factory.mktemp("models")
    write_detector(path / "theirs", FIXED, 800, 1333)
    write_original(path / "theirs", path / "original.pth")
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Detector:
    return load_detector(folder / "theirs")


@pytest.fixture(scope="module")
def original(folder: Path) -> Detector:
    return load_detector(folder / "original.pth")


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draw soft blots: in noise one place is like another, and the order of the best is chance."""
    blots = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(blots).resize((width, height), Image.Resampling.BILINEAR))


def smaller(detector: Detector) -> Detector:
    return replace(detector, processor=ImageProcessor(size={"shortest_edge": 160, "longest_edge": 256}))


def assert_alike(detected: Detections, other: Detections) -> None:
    assert np.abs(detected.corners - other.corners).max() < 1
    assert np.abs(detected.scores - other.scores).max() < 1e-3


IMAGES = [picture(1, 48, 72), picture(2, 60, 60), picture(3, 90, 50), picture(4, 40, 160)]
PHRASES = [["a red ball", "the cup"], ["the doggy"], ["a tall cup", "two dog", "a blue ball"], ["ball", "a red ball"]]


@with_package
def test_both_find_the_same_in_pictures_of_any_sizes_and_texts_of_any_lengths(
    theirs: Detector, original: Detector
) -> None:
    found = detect_phrases(smaller(original), IMAGES, PHRASES)
    for detected, other in zip(found, detect_phrases(smaller(theirs), IMAGES, PHRASES), strict=True):
        assert_alike(detected, other)
    # The test can tell: boxes lie apart, and another phrase's tokens would give other scores.
    for detected in found:
        assert np.ptp(detected.corners, axis=0).max() > 10
        assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(detected.scores) for b in detected.scores[:i])


@with_package
def test_both_cut_long_texts_at_the_same_token(theirs: Detector, original: Detector) -> None:
    long = [["a red ball", "the cup"] * 45]
    (detected,), (other,) = (detect_phrases(smaller(each), IMAGES[:1], long) for each in (original, theirs))
    assert_alike(detected, other)
    assert (detected.scores[-1] == 0).all()
    assert (detected.scores[0] > 0).all()


@with_package
def test_what_is_found_in_a_picture_does_not_depend_on_the_texts_of_others(original: Detector) -> None:
    images = [picture(5, 48, 72), picture(6, 48, 72)]
    together = detect_phrases(smaller(original), images, PHRASES[1:3])
    for image, own, found in zip(images, PHRASES[1:3], together, strict=True):
        (alone,) = detect_phrases(smaller(original), [image], [own])
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.corners, alone.corners, atol=1e-2)


@with_package
def test_one_handler_runs_both_at_the_size_that_they_were_made_for(folder: Path) -> None:
    save_sam(new_sam(SHAPE), SHAPE, folder / "sam")
    stream = io.BytesIO()
    Image.fromarray(picture(7, 48, 64)).save(stream, "PNG")
    phrases = (phrase("a red ball"), phrase("the cup", start=18))
    example = replace(
        make_example("k", "a red ball beside the cup", (64, 48)), image=stream.getvalue(), phrases=phrases
    )
    objects = []
    for checkpoint in ("theirs", "original.pth"):
        (batch,) = apply(GroundPhrases(str(folder / checkpoint), str(folder / "sam"), 0.0), [Batch(0, (example,))])
        (grounded,) = batch.records
        assert isinstance(grounded, Example)
        objects.append(grounded.objects)
    assert [detected.phrase for detected in objects[0]] == [detected.phrase for detected in objects[1]] == [0, 1]
    for detected, other in zip(*objects, strict=True):
        assert np.abs(np.subtract(detected.bbox, other.bbox)).max() <= 1
        assert detected.score == pytest.approx(other.score, abs=1e-3)


class Spy:
    """Would leave a trace if it were unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@with_package
def test_what_is_no_original_checkpoint_is_refused_with_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no Grounding DINO .*none\.pth: .*FileNotFound.*--model detector=PATH"):
        load_detector(tmp_path / "none.pth")
    copied = tmp_path / "copied.pth"
    weights = torch.load(folder / "original.pth", weights_only=True)["model"]
    torch.save({"model": weights}, copied)
    with pytest.raises(ModelError, match=r"no file .*copied\.py"):
        load_detector(copied)
    config = (folder / "original.py").read_text()
    copied.with_suffix(".py").write_text(f"{config}enc_layers = open('x')\n")
    with pytest.raises(ModelError, match=r"is not NAME = LITERAL"):
        load_detector(copied)
    copied.with_suffix(".py").write_text(config.replace("enc_layers", "layers"))
    with pytest.raises(ModelError, match=r"AttributeError: .*enc_layers"):
        load_detector(copied)
    copied.with_suffix(".py").write_text(config)
    torch.save({"model": Spy(tmp_path / "trace")}, copied)
    with pytest.raises(ModelError, match=r"other things than weights, and these are never loaded"):
        load_detector(copied)
    assert not (tmp_path / "trace").exists()
    weights.pop("feat_map.weight")
    # Published files were saved within another module.
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, copied)
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as feat_map\.weight: it is incomplete"):
        load_detector(copied)
