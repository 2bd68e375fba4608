from pathlib import Path

import pytest
from rich.console import Console

import jobs.build
from jobs.build import Request
from jobs.plan import FEW, MACHINES, MANY, Machine, Measured, in_words, lines, measure, plan_for, read_machines
from pipelines.recipe import BuildConfig
from schemas.dataset import DatasetInfo
from schemas.errors import ConfigError, InputError
from tests.datasets import example, write_dataset
from transforms.models.presets import resolve

START, ROUND, PICTURE = 20.0, 5.0, 0.25


class Machinery:
    """A build that takes a known time on a clock of its own."""

    def __init__(self, available: int = 1000) -> None:
        self.now, self.runs, self.available = 0.0, 0, available

    def build(self, request: Request, _: Console) -> DatasetInfo:
        read = min(request.limit or 0, self.available)
        self.now += (ROUND if self.runs else START) + read * PICTURE
        self.runs += 1
        return write_dataset(Path(request.output), [[example(f"{n:03d}") for n in range(read)]])


def measured_by(machinery: Machinery, monkeypatch: pytest.MonkeyPatch) -> Measured:
    monkeypatch.setattr(jobs.build, "build", machinery.build)
    return measure(Request("captioned", "in", "", BuildConfig(), resolve("sample", {})), lambda: machinery.now)


def test_three_short_runs_tell_start_round_and_rate_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    machinery = Machinery()
    measured = measured_by(machinery, monkeypatch)
    assert machinery.runs == 3
    assert (measured.start, measured.round, measured.picture) == pytest.approx((START, ROUND, PICTURE))
    assert (measured.written, measured.memory > 10**7) == (1.0, True)
    assert 2000 < measured.bytes < 20_000


def test_fast_pictures_are_measured_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.jobs.test_plan.PICTURE", 0.05)
    machinery = Machinery(160)
    measured = measured_by(machinery, monkeypatch)
    assert (machinery.runs, measured.pictures) == (4, 160)
    assert measured.picture == pytest.approx(0.05)


def test_a_plan_has_the_time_of_all_rounds() -> None:
    planned = plan_for(Measured(44, START, ROUND, PICTURE, 1000, 0.5, 10**9), 9500, 1000, 4)
    assert (planned.shards, planned.samples, planned.bytes) == (10, 4750, 9_500_000)
    assert planned.seconds == pytest.approx(START + 2 * ROUND + 9500 * PICTURE)  # three rounds


def test_too_few_pictures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=f"holds {FEW} pictures: a plan needs more"):
        measured_by(Machinery(FEW), monkeypatch)


def test_machines_have_prices_of_the_user(tmp_path: Path) -> None:
    assert len(read_machines(MACHINES)) >= 3
    (tmp_path / "m.yaml").write_text("- {name: mine, dollars_per_hour: 2, processes: 4, speed: 0.5}")
    (machine,) = read_machines(tmp_path / "m.yaml")
    measured = Measured(44, START, ROUND, PICTURE, 1000, 1.0, 10**9)
    text = "\n".join(lines(measured, plan_for(measured, 28_800, 1000, 4), 28_800, [machine]))
    assert f"measured  {MANY} pictures: 0.250 s each" in text
    assert "time      2.0 hours for 28,800 pictures" in text
    assert "mine: 1.0 machine hours, 2.00 dollars" in text  # 28,800 x 0.25 s at half the speed on four processes
    (tmp_path / "m.yaml").write_text("- {name: mine, dollars_per_hour: -2}")
    with pytest.raises(ConfigError, match="no list of machines"):
        read_machines(tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("seconds", "words"), [(59, "59.0 seconds"), (300, "5.0 minutes"), (9000, "2.5 hours"), (10**6, "11.6 days")]
)
def test_a_time_is_told_in_its_unit(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_machine_has_at_least_one_process() -> None:
    with pytest.raises(ValueError, match="processes"):
        Machine(name="m", dollars_per_hour=1, processes=0, speed=1)
