"""What a build of many pictures takes: time, shards, bytes, memory and cost, from a few dozen of them.

The first pictures are built into a temporary folder, three times: the first run also loads libraries and models, the
second shows what a round of shards takes before its first picture, the third has more pictures and so shows the rate.
If that run is short, longer ones follow.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console

from jobs.arguments import recipe_names
from schemas.errors import ConfigError, InputError
from schemas.strict import StrictModel

if TYPE_CHECKING:
    from jobs.build import Request
    from schemas.dataset import DatasetInfo

FEW, MANY, MOST = 4, 44, 2000
"""Pictures of the short runs, of the first long one, and about the most of a long one."""

LONG = 5.0
"""Seconds that a long run takes more than a short one, if there are pictures enough."""

MACHINES = Path(__file__).with_name("machines.yaml")


class Machine(StrictModel):
    """A machine that can be rented; `speed` is that of one of its processes, relative to one here."""

    name: str
    dollars_per_hour: float = Field(ge=0)
    processes: int = Field(ge=1)
    speed: float = Field(gt=0)


@dataclass(frozen=True)
class Measured:
    """What one process on this machine takes.

    Attributes:
        pictures: how many were built in the longest run.
        start: seconds before the first picture of a run.
        round: seconds before the first picture of each further round.
        picture: seconds for each picture.
        bytes: of the shards, for each picture that was read.
        written: samples for each picture that was read.
        memory: peak of the process, in bytes.
    """

    pictures: int
    start: float
    round: float
    picture: float
    bytes: float
    written: float
    memory: int


@dataclass(frozen=True)
class Plan:
    """What a build on one process of this machine comes to."""

    seconds: float
    samples: int
    shards: int
    bytes: int


def measure(request: "Request", clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Build a few pictures of a request, into a temporary folder.

    Raises:
        InputError: the source holds too few pictures.
    """
    from jobs.build import build

    quiet = Console(quiet=True)

    def spend(limit: int) -> tuple[float, "DatasetInfo", int]:
        with tempfile.TemporaryDirectory(prefix="subjectloom-") as folder:
            began = clock()
            info = build(replace(request, output=f"{folder}/out", limit=limit), quiet)
            size = sum(path.stat().st_size for path in Path(folder, "out").glob("*.tar"))
            return clock() - began, info, size

    first, second, limit = spend(FEW)[0], spend(FEW)[0], MANY
    spent, info, size = spend(limit)
    # A rate from a fraction of a second would be noise.
    while spent - second < LONG and info.counts.read == limit and limit < MOST:
        limit *= 4
        spent, info, size = spend(limit)
    read = info.counts.read
    if read <= FEW:
        raise InputError(f"{request.source} holds {read} pictures: a plan needs more than {FEW} to measure a rate")
    picture = max(spent - second, 0.0) / (read - FEW)
    return Measured(
        pictures=read,
        start=max(first - FEW * picture, 0.0),
        round=max(second - FEW * picture, 0.0),
        picture=picture,
        bytes=size / read,
        written=info.counts.written / read,
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def plan_for(measured: Measured, pictures: int, samples_per_shard: int, shards_per_round: int) -> Plan:
    """Extrapolate to a number of pictures."""
    shards = -(-pictures // samples_per_shard)
    rounds = -(-shards // shards_per_round)
    seconds = measured.start + (rounds - 1) * measured.round + pictures * measured.picture
    return Plan(seconds, round(pictures * measured.written), shards, round(pictures * measured.bytes))


def read_machines(path: Path) -> list[Machine]:
    """Read a YAML list of machines.

    Raises:
        ConfigError: it cannot be read, or a field is wrong.
    """
    try:
        return TypeAdapter(list[Machine]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: no list of machines: {' '.join(str(error).split())[:300]}") from error


def lines(measured: Measured, planned: Plan, pictures: int, machines: Sequence[Machine]) -> Iterator[str]:
    """Yield the lines that are printed."""
    start = f"{measured.start:.1f} s to start, one process"
    yield f"measured  {measured.pictures} pictures: {measured.picture:.3f} s each, {start}"
    yield f"time      {in_words(planned.seconds)} for {pictures:,} pictures on one process of this machine"
    yield f"shards    {planned.shards:,}, {planned.bytes / 1e9:,.2f} GB, about {planned.samples:,} samples"
    yield f"memory    {measured.memory / 1e9:.1f} GB for each process; as much disk as 4 shards for each, meanwhile"
    for machine in machines:
        hours = pictures * measured.picture / machine.speed / machine.processes / 3600
        cost = hours * machine.dollars_per_hour
        yield f"cost      {machine.name}: {hours:,.1f} machine hours, {cost:,.2f} dollars"


def in_words(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def since_start() -> float:
    """Seconds since this process was started, by Linux' /proc; 0 elsewhere."""
    status = Path("/proc/self/stat")
    if not status.exists():
        return 0.0
    ticks = int(status.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def plan(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Pictures with captions, as for build.")],
    recipe: Annotated[str, typer.Argument(help="The recipe.", autocompletion=recipe_names)],
    pictures: Annotated[int, typer.Option(help="Pictures of the whole build.", min=1)],
    preset: Annotated[str, typer.Option(help="Models: sample or hub.")] = "sample",
    config: Annotated[Path | None, typer.Option(help="YAML file with the recipe's fields.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field.")] = None,
    machines: Annotated[Path, typer.Option(help="YAML file with machines and their prices.")] = MACHINES,
) -> None:
    """Say what a build takes in time, memory, disk and money, from a few dozen pictures of INPUT."""
    from jobs.arguments import check_recipe, check_source
    from jobs.console import out, print_lines
    from jobs.settings import read_config
    from pipelines import RECIPES
    from schemas.machine import use_machine
    from transforms.models.presets import resolve

    check_recipe(recipe)
    check_source(source)
    before = since_start()
    rented = read_machines(machines)
    fields = read_config(RECIPES[recipe].config, config, settings or [])
    use_machine(None, None, os.cpu_count() or 1, small_models=preset != "hub")
    with out.status(f"building {MANY} pictures"):
        from jobs.build import SHARDS_PER_ROUND, Request

        measured = measure(Request(recipe, source, "", fields, resolve(preset, {})))
    measured = replace(measured, start=measured.start + before)
    planned = plan_for(measured, pictures, fields.samples_per_shard, SHARDS_PER_ROUND)
    print_lines(*lines(measured, planned, pictures, rented))
