import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import spacy
from huggingface_hub import constants

from pipelines import RECIPES
from schemas.errors import ConfigError, ModelError
from transforms.listing import Listing
from transforms.models.places import SAMPLE, located
from transforms.models.presets import PRESETS, check_downloads, host, name_of, resolve, revision_of
from transforms.models.settings import Hosting


def test_one_model_is_replaced_alone() -> None:
    models = resolve("hub", {"clip": "my/clip"})
    assert models.clip == "my/clip"
    assert models.parser == PRESETS["hub"].parser
    assert models.segmenter == PRESETS["hub"].segmenter


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"there is no preset 'hubb', did you mean 'hub'\? Choose from sample, hub"):
        resolve("hubb", {})
    with pytest.raises(ConfigError, match="there is no model 'segmentr' to replace, did you mean 'segmenter'"):
        resolve("sample", {"segmentr": "x"})


def test_the_revision_of_a_folder_is_a_hash_of_its_files_and_of_a_file_its_own(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one!")
    assert revision_of(str(tmp_path)) == "sha256:" + hashlib.sha256(b"a\x004\x00one!b\x003\x00two").hexdigest()
    before = revision_of(str(tmp_path))
    (tmp_path / "a").write_bytes(b"one?")
    assert revision_of(str(tmp_path)) != before
    assert revision_of(str(tmp_path / "b")) == "sha256:" + hashlib.sha256(b"two").hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cache(hub: Path, repository: str, file: str, commit: str, ref: str = "main") -> None:
    """Make the cache look as if `file` of `repository` had been downloaded at `commit`, where `ref` stood."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    (folder / "snapshots" / commit / file).parent.mkdir(parents=True)
    (folder / "snapshots" / commit / file).write_text("{}")


def test_nothing_is_invented_for_what_was_never_downloaded(hub: Path) -> None:
    assert list(hub.iterdir()) == []
    for name in ("nobody/never-downloaded-this", "ViT-L-14/openai", "no/such/shape", "hf-hub:a/b", "no_such_package"):
        assert revision_of(name) == ""


def test_the_revision_of_a_segmenter_on_the_hub_is_the_commit_of_its_main_branch_or_of_the_one_asked_for(
    hub: Path,
) -> None:
    first, second = "1" * 40, "2" * 40
    cache(hub, "lab/segmenter", "config.json", first)
    cache(hub, "lab/segmenter", "config.json", second, ref="v2")
    assert revision_of("lab/segmenter") == first
    assert revision_of("lab/segmenter@v2") == second
    assert revision_of(f"lab/segmenter@{second}") == second


def test_the_revision_of_a_clip_is_that_of_the_repository_that_open_clip_takes_it_from(hub: Path) -> None:
    commit = "3" * 40
    cache(hub, "timm/vit_large_patch14_clip_224.openai", "open_clip_config.json", commit)
    cache(hub, "lab/clip", "open_clip_config.json", "4" * 40)
    assert revision_of(PRESETS["hub"].clip) == commit
    assert revision_of("hf-hub:lab/clip") == "4" * 40


def test_the_revision_of_a_package_is_its_version() -> None:
    assert revision_of("spacy") == spacy.__version__


def test_a_clip_brings_the_lowest_similarities_of_a_match_with_it() -> None:
    sample, hub = PRESETS["sample"], PRESETS["hub"]
    assert resolve("sample", {"clip": hub.clip}).thresholds == hub.thresholds
    assert resolve("sample", {"clip": "my/clip"}).thresholds == hub.thresholds
    assert resolve("hub", {"clip": sample.clip}).thresholds == sample.thresholds
    assert resolve("sample", {"parser": hub.parser}).thresholds == sample.thresholds


def test_the_sample_models_are_named_apart_from_where_they_are_installed() -> None:
    assert name_of(PRESETS["sample"].parser) == "sample/parser"
    assert name_of("my/own/parser") == "my/own/parser"


def test_offline_all_models_that_are_missing_are_named_at_once(hub: Path) -> None:
    cache(hub, "lab/segmenter", "config.json", "1" * 40)
    here = {"parser": str(PRESETS["sample"].parser), "segmenter": "lab/segmenter", "sam": "/a/path/of/the/user.pth"}
    check_downloads(here)
    with pytest.raises(ModelError) as caught:
        check_downloads({**here, "parser": "no_such_package", "clip": "ViT-L-14/openai", "sam": PRESETS["hub"].sam})
    names = f"parser no_such_package, sam {PRESETS['hub'].sam}, clip ViT-L-14/openai."
    assert f"these models are not on this machine: {names}" in str(caught.value)
    cache(hub, "ybelkada/segment-anything", "checkpoints/sam_vit_h_4b8939.pth", "2" * 40)
    check_downloads({"sam": PRESETS["hub"].sam})


def test_a_job_names_sample_models_so_that_each_machine_finds_its_own() -> None:
    models, recipe, listing = resolve("sample", {}), RECIPES["fastcomposer"], Listing("folder", ())
    config = recipe.settle(recipe.config(), models, listing)
    steps = pickle.dumps(recipe.steps(config, models, listing))
    assert str(SAMPLE).encode() not in steps
    assert b"sample/segmenter" in steps
    assert located(models.clip) == str(SAMPLE / "clip")
    for other in ("sample/none", "owner/name", "/a/path"):
        assert located(other) == other


def test_the_hosting_of_models_is_the_preset_s_but_for_what_is_given() -> None:
    models = resolve("sample", {})
    assert models.hosting == Hosting("auto", None, False)
    assert host(models, "bf16", 2, large=True).hosting == Hosting("bf16", 2, True)
    kept = host(replace(models, hosting=Hosting("auto", 3, True)), "fp32")
    assert kept.hosting == Hosting("fp32", 3, True)
    with pytest.raises(ConfigError, match="--precision fp23: there is no such precision, did you mean 'fp32'"):
        host(models, "fp23")


def test_batches_of_published_models_fill_a_gpu() -> None:
    assert PRESETS["sample"].batch_size == 8
    assert 32 <= PRESETS["hub"].batch_size <= 64
