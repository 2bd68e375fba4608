from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.transforms.models.test_presets import cache
from transforms.models.pth import find_file, read_weights


def test_a_file_is_found_here_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "own.pth").touch()
    assert find_file(str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    commit = "1" * 40
    cache(tmp_path, "lab/models", "deep/down/one.pth", commit)
    found = find_file("lab/models/deep/down/one.pth")
    assert (found.name, found.parents[2].name) == ("one.pth", commit)


@pytest.mark.parametrize("name", ["none.pth", "folder/none.pth", "/folder/within/none.pth"])
def test_what_cannot_be_on_the_hub_is_not_looked_for_there(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no file {name}"):
        find_file(name)


def test_an_empty_file_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="it is empty"):
        read_weights(tmp_path / "empty.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "full.pth")
    assert read_weights(tmp_path / "full.pth")["a"].tolist() == [1, 1]
