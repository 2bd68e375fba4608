"""The Beam pipeline of every recipe: read a source, run the recipe's steps, write the shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam

from pipelines.recipe import BuildConfig
from schemas.dataset import Part
from schemas.samples.base import SampleFormat
from transforms.progress import CountRecords
from transforms.read import ReadBatches
from transforms.sources.records import Chunk
from transforms.step import Step
from transforms.write import WriteDataset


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
    """

    format: SampleFormat
    config: BuildConfig
    steps: Sequence[Step]
    chunks: Sequence[Chunk]
    output: str
    fingerprints: Mapping[int, str]
    needs_captions: bool = True
    progress: str = ""

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps in their order."""
        expected = {chunk.shard: chunk.expected for chunk in self.chunks if chunk.expected is not None}
        batches = root | ReadBatches(self.chunks, self.config.batch_size, self.needs_captions)
        for step in self.steps:
            batches |= step
        return (
            batches
            | CountRecords(self.progress)
            | WriteDataset(self.output, self.format, self.fingerprints, expected)
        )  # fmt: skip
