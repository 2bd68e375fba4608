"""The Beam pipeline of every recipe: read a source, run the recipe's steps, write the shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import apache_beam as beam

from pipelines.recipe import BuildConfig
from schemas.dataset import Part
from schemas.samples.base import SampleFormat
from transforms.batch import Batch
from transforms.progress import CountRecords
from transforms.read import ReadBatches, Reading
from transforms.sources.records import Chunk
from transforms.step import Step
from transforms.work import Death
from transforms.worker import CheckWorker, Needs
from transforms.write import WriteDataset, settle


@dataclass(eq=False)
class BuildDataset(beam.PTransform):
    """Make the shards of a dataset: Pipeline -> PCollection[Part], a part per shard.

    Attributes:
        format: what the recipe's samples are.
        config: the recipe's, settled.
        steps: the recipe's steps for that config.
        chunks: what is read, a chunk per shard.
        output: the dataset's folder, made ready by `transforms.dataset.prepare_output`.
        fingerprints: of each shard, by its number.
        needs_captions: reject pictures without a caption.
        progress: a local file that `CountRecords` appends to; "" for none.
        deadly: records that are rejected, as they killed the process that worked on them, by their keys.
        needs: what each worker is checked for before it begins; None for no check.
        accelerator: what the machines of steps with a model have, as Beam's resource hints say it; "" for no hint.
    """

    format: SampleFormat
    config: BuildConfig
    steps: Sequence[Step]
    chunks: Sequence[Chunk]
    output: str
    fingerprints: Mapping[int, str]
    needs_captions: bool = True
    progress: str = ""
    deadly: Mapping[str, Death] = field(default_factory=dict)
    needs: Needs | None = None
    accelerator: str = ""

    def of(self, chunks: Sequence[Chunk]) -> "BuildDataset":
        """The build of some of the chunks."""
        return replace(
            self, chunks=chunks, fingerprints={chunk.shard: self.fingerprints[chunk.shard] for chunk in chunks}
        )

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps in their order, and write what comes out of them."""
        expected = {chunk.shard: chunk.expected for chunk in self.chunks if chunk.expected is not None}
        return (
            self.through_steps(root, self.config.batch_size)
            | CountRecords(self.progress)
            | WriteDataset(self.output, self.format, self.fingerprints, expected, self.config.unread == "leave-out")
        )

    def through_steps(self, root: beam.Pipeline, batch_size: int) -> beam.PCollection[Batch]:
        """Read the records and put them through the recipe's steps."""
        attempts, failures = self.config.read_attempts, self.config.read_failures
        reading = Reading(batch_size, self.needs_captions, self.deadly, attempts, failures)
        batches = root | ReadBatches(self.chunks, reading)
        if self.needs:
            batches |= "check worker" >> beam.ParDo(CheckWorker(self.needs))
        for step in self.steps:
            needs_gpu = step.checkpoints().keys() - {"parser"}
            batches |= (
                step.with_resource_hints(accelerator=self.accelerator) if self.accelerator and needs_gpu else step
            )
        return batches


@dataclass(eq=False)
class TryRecords(beam.PTransform):
    """Do all the work of `build` on each record by itself, and write nothing."""

    build: BuildDataset

    def expand(self, root: beam.Pipeline) -> beam.PCollection[object]:
        """Chain the steps in their order, and make the samples."""
        return self.build.through_steps(root, 1) | "settle" >> beam.Map(settle, self.build.format)
