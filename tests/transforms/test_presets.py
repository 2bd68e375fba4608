import hashlib
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from transforms.models.presets import PRESETS, resolve, revision_of


def test_one_model_is_replaced_alone() -> None:
    models = resolve("hub", {"clip": "my/clip"})
    assert models.clip == "my/clip"
    assert models.parser == PRESETS["hub"].parser
    assert models.segmenter == PRESETS["hub"].segmenter


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="there is no preset 'hubb': choose of sample, hub"):
        resolve("hubb", {})
    with pytest.raises(ConfigError, match="there is no model 'segmentr' to replace, did you mean 'segmenter'"):
        resolve("sample", {"segmentr": "x"})


def test_the_revision_of_a_folder_is_a_hash_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one!")
    assert revision_of(str(tmp_path)) == "sha256:" + hashlib.sha256(b"a\x004\x00one!b\x003\x00two").hexdigest()
    before = revision_of(str(tmp_path))
    (tmp_path / "a").write_bytes(b"one?")
    assert revision_of(str(tmp_path)) != before


def test_nothing_is_invented_for_what_was_never_downloaded() -> None:
    assert revision_of("nobody/never-downloaded-this") == ""
