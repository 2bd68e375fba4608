"""Subjects in photographs, found by the steps of a recipe's build: what people give `subjectloom generate`."""

import math
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
from rich.console import Console

from jobs.build import compile_code
from jobs.drawing import Reference
from jobs.engines import beam_options
from jobs.likeness import look_like_photographs
from jobs.run import run
from pipelines import RECIPES
from schemas.errors import InputError, RecordError, SubjectloomError
from schemas.example import Example, Segment, Source
from schemas.images import decode_image
from schemas.keys import clean_key
from schemas.masks import Mask
from schemas.rejects import Reject
from transforms.batch import Batch
from transforms.listing import Listing
from transforms.models.presets import check_downloads, resolve
from transforms.sources.records import to_example
from transforms.step import Step


def read_photograph(phrase: str, photograph: Path, mask: Path | None) -> Example:
    """Read a photograph, with the phrase as its caption and the mask, if there is one, as its segment.

    Raises:
        InputError: a file is missing or no picture, or the mask has another size or is empty.
    """
    data = read(photograph)
    try:
        example = to_example(clean_key(photograph.stem), data, phrase, Source(str(photograph)))
    except RecordError as error:
        raise InputError(f"{photograph}: {error.detail}") from error
    if mask is None:
        return example
    try:
        white = decode_image(read(mask)).mean(axis=2) >= 128
    except RecordError as error:
        raise InputError(f"{mask}: {error.detail}") from error
    if white.shape != (example.height, example.width):
        sizes = f"{white.shape[1]} x {white.shape[0]} pixels, {photograph} has {example.width} x {example.height}"
        raise InputError(f"the mask {mask} has {sizes}: give one of the same size")
    if not white.any():
        raise InputError(f"the mask {mask} is black everywhere: white is where {phrase!r} is in {photograph}")
    return replace(example, segments=(Segment("", 1.0, Mask.from_array(white)),))


def read(path: Path) -> bytes:
    """Read a file.

    Raises:
        InputError: that failed.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def find_subjects(
    recipe: str,
    references: Sequence[Reference],
    preset: str,
    console: Console,
    *,
    doubts_preset: bool = False,
    skips_missing: bool = False,
) -> list[list[Example]]:
    """Find the subject of each reference in each of its photographs.

    Args:
        recipe: whose steps find them.
        references: the subjects.
        preset: its models run, for photographs without a mask.
        console: where is said what takes long.
        doubts_preset: refuse the small models of the preset `sample` for what looks like photographs.
        skips_missing: leave out photographs in which the subject is not found, with a line to the console.

    Returns:
        For each reference, an example for each of its photographs.

    Raises:
        InputError: a file cannot be used, or a subject is not found, with `skips_missing` in none of its photographs.
    """
    groups = [
        [
            read_photograph(reference.phrase, *files)
            for files in zip(reference.photographs, reference.masks, strict=True)
        ]
        for reference in references
    ]
    examples = [example for group in groups for example in group]
    unmasked = [example.pixels() for example in examples if not example.segments]
    if doubts_preset and preset == "sample" and unmasked and look_like_photographs(unmasked):
        raise SubjectloomError(
            "the references look like photographs, and the models of the preset sample know sample scenes only: give "
            "--find-with hub, or masks, as in --reference 'a ball=photo.jpg:mask.png'; --find-with sample takes the "
            "small models all the same"
        )
    found: dict[int, Example | Reject] = dict(enumerate(examples))
    for masked in (True, False):
        numbers = [number for number, example in enumerate(examples) if bool(example.segments) == masked]
        if numbers:
            steps = steps_of(recipe, preset, masked=masked)
            compile_code(steps, console)
            found |= dict(zip(numbers, run_steps(steps, [examples[number] for number in numbers]), strict=True))
    ordered = iter(zip(examples, (found[number] for number in range(len(examples))), strict=True))
    return [choose_found([next(ordered) for _ in group], console, skips_missing) for group in groups]


def choose_found(
    pairs: Sequence[tuple[Example, Example | Reject]], console: Console, skips_missing: bool
) -> list[Example]:
    """Keep what the steps found of a subject; of each photograph, as it was read and what became of it.

    Raises:
        InputError: it is not found in one; with `skips_missing`, in none.
    """
    kept: list[Example] = []
    problems: list[str] = []
    for example, record in pairs:
        if isinstance(record, Reject):
            problems.append(
                f"{example.caption!r} is not found in {record.source}: {record.detail} ({record.stage}: "
                f"{record.reason}); --reference '{example.caption}={record.source}:MASK' takes a mask of yours"
            )
        elif not (record.matches or record.objects or record.composite):
            problems.append(f"{example.caption!r} is not found in {example.source.uri}: nothing there is like it")
        else:
            kept.append(record)
    if problems and not (skips_missing and kept):
        raise InputError(problems[0])
    for problem in problems:
        console.print(f"left out: {problem.partition('; --reference')[0]}", soft_wrap=True, markup=False)
    return kept


def steps_of(recipe: str, preset: str, *, masked: bool) -> Sequence[Step]:
    """The steps that find the subject of a photograph, with the config's defaults.

    Raises:
        ModelError: offline, and a model was never downloaded.
    """
    models, described = resolve(preset, {}), RECIPES[recipe]
    assert described.find is not None
    steps = described.find(described.settle(described.config(), models, Listing("folder", ())), models, masked)
    check_downloads({kind: checkpoint for step in steps for kind, checkpoint in step.checkpoints().items()})
    return steps


def run_steps(steps: Sequence[Step], examples: Sequence[Example]) -> list[Example | Reject]:
    """Run steps on examples, each by itself, with every model loaded once; return what becomes of each."""
    with tempfile.TemporaryDirectory() as folder:
        run(RunSteps(steps, examples, folder), beam_options(()))
        return [pickle.loads(Path(folder, str(i)).read_bytes()) for i in range(len(examples))]  # noqa: S301 - ours


@dataclass(eq=False)
class RunSteps(beam.PTransform):
    """Put examples through steps and write what becomes of each to a file in `folder`, named by its number."""

    steps: Sequence[Step]
    examples: Sequence[Example]
    folder: str

    def expand(self, root: beam.Pipeline) -> beam.PCollection[None]:
        """Chain the steps in their order."""
        batches = root | beam.Create([Batch(i, (e,)) for i, e in enumerate(self.examples)], reshuffle=False)
        for step in self.steps:
            batches |= step
        folder = self.folder
        return batches | "keep" >> beam.Map(lambda batch: _keep(batch, folder))


def _keep(batch: Batch, folder: str) -> None:
    Path(folder, str(batch.shard)).write_bytes(pickle.dumps(batch.records[0]))


def samples_of(found: Sequence[Sequence[Example]]) -> list[list[Example]]:
    """Choose the photographs of K samples, one for each subject, so that all photographs of a subject count equally.

    K is the least common multiple of the numbers of photographs.
    """
    count = math.lcm(*map(len, found))
    return [[group[number % len(group)] for group in found] for number in range(count)]
