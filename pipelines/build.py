"""The Beam pipeline of every recipe: read a source, run the recipe's steps, write the shards."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import apache_beam as beam

from pipelines.recipe import BuildConfig
from schemas.dataset import Part
from schemas.errors import SubjectloomError
from schemas.samples.base import SampleFormat
from transforms.batch import Batch
from transforms.candidates import KeepCandidates, TakeCandidates
from transforms.finish import finish_noted
from transforms.progress import CountRecords
from transforms.read import ReadBatches, Reading
from transforms.settled import settle
from transforms.sources.records import Chunk
from transforms.spool import Shelved
from transforms.step import Step
from transforms.work import Death
from transforms.worker import CheckWorker, Needs
from transforms.write import WriteDataset


@dataclass(eq=False)
class BuildDataset(beam.PTransform):
    """Make the shards of a dataset: Pipeline -> PCollection[Part], a part per shard.

    Attributes:
        format: what the recipe's samples are.
        config: the recipe's, settled.
        steps: the recipe's steps for that config.
        chunks: what is read, a chunk per shard, with the shard's fingerprint.
        output: the dataset's folder, made ready by `transforms.dataset.prepare_output`.
        needs_captions: reject pictures without a caption.
        progress: a local file that `CountRecords` appends to; "" for none.
        groups: the chunks where remote workers find them (`transforms.read.publish`); none for local ones.
        deadly: records that are rejected, as they killed the process that worked on them, by their keys.
        needs: what each worker is checked for before it begins; None for no check.
        finishes: finish the dataset when all shards are made: what started the pipeline need not live until then.
        candidates: keep what comes out of so many steps, the first ones, beside the shards; 0: keep nothing.
        from_candidates: take that from there in place of running these steps.
        accelerator: what the machines of steps with a model have, as Beam's resource hints say it; "" for no hint.
    """

    format: SampleFormat
    config: BuildConfig
    steps: Sequence[Step]
    chunks: Sequence[Chunk]
    output: str
    needs_captions: bool = True
    progress: str = ""
    groups: Sequence[Shelved[Chunk]] = ()
    deadly: Mapping[str, Death] = field(default_factory=dict)
    needs: Needs | None = None
    finishes: bool = False
    accelerator: str = ""
    candidates: int = 0
    from_candidates: bool = False

    def of(self, chunks: Sequence[Chunk]) -> "BuildDataset":
        """The build of some of the chunks."""
        return replace(self, chunks=chunks, groups=())

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps in their order, and write what comes out of them."""
        parts = (
            self.through_steps(root, self.config.batch_size, self.output)
            | CountRecords(self.progress)
            | WriteDataset(self.output, self.format, self.groups or self.chunks, self.config.unread == "leave-out")
        )
        if self.finishes:
            _ = parts | "all shards" >> beam.combiners.Count.Globally() | "finish" >> beam.Map(_finish, self.output)
        return parts

    def through_steps(self, root: beam.Pipeline, batch_size: int, output: str = "") -> beam.PCollection[Batch]:
        """Read the records and put them through the recipe's steps, but those whose pieces are in `output` already."""
        attempts, failures = self.config.read_attempts, self.config.read_failures
        reading = Reading(batch_size, self.needs_captions, self.deadly, attempts, failures)
        batches = root | ReadBatches(self.groups or self.chunks, reading, output)
        if self.needs:
            batches |= "check worker" >> beam.ParDo(CheckWorker(self.needs))
        # Records that are tried one by one are in other batches than those that were kept.
        takes = self.from_candidates and bool(output)
        if takes:
            batches |= TakeCandidates(output)
        for number, step in enumerate(self.steps, start=1):
            if takes and number <= self.candidates:
                continue
            needs_gpu = step.checkpoints().keys() - {"parser"}
            batches |= (
                step.with_resource_hints(accelerator=self.accelerator) if self.accelerator and needs_gpu else step
            )
            if number == self.candidates and output and not takes:
                batches |= KeepCandidates(output)
        return batches


def _finish(_: int, output: str) -> None:
    with suppress(SubjectloomError):  # some shards are not made, which the job itself reports
        finish_noted(output)


@dataclass(eq=False)
class TryRecords(beam.PTransform):
    """Do all the work of `build` on each record by itself, and write nothing."""

    build: BuildDataset

    def expand(self, root: beam.Pipeline) -> beam.PCollection[object]:
        """Chain the steps in their order, and make the samples."""
        return self.build.through_steps(root, 1) | "settle" >> beam.Map(settle, self.build.format)
