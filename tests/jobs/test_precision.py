"""The precision of a build: settled before it starts, recorded, and a part of what makes a shard up to date."""

from collections.abc import Sequence

import pytest

from jobs.describe import describe_job, settle_precision
from pipelines.fastcomposer import RECIPE, FastComposerConfig
from schemas.dataset import Job, shard_fingerprint
from tests.datasets import JOB
from transforms.models.settings import Precision
from transforms.regions.segment import SegmentPictures
from transforms.regions.similarity import ScoreSimilarity
from transforms.step import Step
from transforms.text.phrases import ExtractPhrases


@pytest.mark.parametrize(
    ("steps", "asked", "settled"),
    [
        ([ExtractPhrases("a"), ScoreSimilarity("clip", "b")], "bf16", "bf16"),
        ([ExtractPhrases("a"), ScoreSimilarity("clip", "b")], "fp32", "fp32"),
        # No model computes in it: a build on a GPU is that of a laptop.
        ([ExtractPhrases("a"), SegmentPictures(None), ScoreSimilarity("label", "b")], "bf16", "fp32"),
        ([], "auto", "fp32"),
    ],
)
def test_a_build_has_the_precision_of_its_models(steps: Sequence[Step], asked: Precision, settled: Precision) -> None:
    assert settle_precision(asked, steps) == settled


def test_auto_is_settled_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: not including_emulation)
    assert settle_precision("auto", [ScoreSimilarity("clip", "b")]) == "bf16"


def test_it_is_recorded_and_shards_of_another_precision_are_out_of_date() -> None:
    jobs = [describe_job(RECIPE.name, FastComposerConfig(), [], precision) for precision in ("fp32", "bf16")]
    assert [job.precision for job in jobs] == ["fp32", "bf16"]
    assert len({shard_fingerprint("chunk", job) for job in jobs}) == 2


def test_datasets_that_do_not_state_it_were_made_with_fp32() -> None:
    older = JOB.model_dump()
    older.pop("precision")
    assert Job.model_validate(older).precision == "fp32"
