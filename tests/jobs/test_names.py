"""Names of classes in a config that no class has."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.names import dataset_classes, model_classes, unknown_names
from schemas.dataset import Job
from transforms.models.places import SAMPLE


def lines(labels: list[str], **config: object) -> list[str]:
    return list(unknown_names(Job(recipe="fastcomposer", config=config, models={}, seed=0), labels, "of the model"))


def test_a_name_of_no_class_is_told_with_near_ones() -> None:
    labels = ["dog", "mountain, mount", "tree-merged"]
    assert lines(labels, only=("dgo", "dog", "mount", "tree", "tree-merged", "things"), never=("zebra",)) == [
        "--only dgo: no class of the model has this name (near: dog), it only counts as the head noun of a phrase",
        "--never zebra: no class of the model has this name, it only counts as the head noun of a phrase",
    ]
    assert lines(labels, batch_size=4) == []
    assert len(lines([], only=("dgo",))) == 1  # nothing was written


@pytest.mark.parametrize("checkpoint", ["/no/where", "no/where@main", "nowhere"])
def test_classes_of_a_model_that_is_not_here_are_not_known(checkpoint: str) -> None:
    assert model_classes(checkpoint) == []


def test_classes_come_from_a_folder_or_a_dataset(tmp_path: Path) -> None:
    assert {"star", "umbrella"} <= set(model_classes(str(SAMPLE / "segmenter")))
    assert model_classes(str(SAMPLE / "parser")) == []
    pq.write_table(pa.table({"labels": [["dog", "cat"], [], ["dog"]]}), tmp_path / "index.parquet")
    assert dataset_classes(str(tmp_path)) == ["cat", "dog"]
