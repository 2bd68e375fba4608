"""FastComposer datasets: captioned pictures whose phrases are tied to the subjects they name.

Xiao et al. 2023, "FastComposer: Tuning-Free Multi-Subject Image Generation with Localized Attention", section 5.1:
a dependency parser chunks the caption into noun phrases, a panoptic model segments the picture, and a greedy
algorithm pairs the two by the similarity of phrase and segment.

    subjectloom build fastcomposer --input PICTURES --output OUT

64 sample scenes become 64 samples within half a minute on two cores, the loading of the models included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import apache_beam as beam
from pydantic import Field

from schemas.dataset import Part, StrictModel
from schemas.samples.fastcomposer import LAYOUT
from transforms.models.presets import Models
from transforms.progress import CountRecords
from transforms.read import ReadBatches
from transforms.regions.match import MatchPhrases
from transforms.regions.segment import SegmentEverything, SegmentPictures
from transforms.regions.similarity import ScoreSimilarity
from transforms.sources.records import Chunk
from transforms.text.phrases import ExtractPhrases
from transforms.write import WriteDataset


class FastComposerConfig(StrictModel):
    """What can be chosen about a FastComposer dataset; the defaults follow the paper where it says."""

    expand_plurals: bool = Field(default=True, description='rewrite "two women" as "a woman and a woman" (section 5.1)')
    similarity: Literal["clip", "clip-label", "label"] = Field(
        default="clip",
        description="of a phrase and a segment: clip (phrase and crop), clip-label (the paper's product of that and "
        "of phrase and class name), label (head noun and class name, no model)",
    )
    segmenter: Literal["panoptic", "sam"] = Field(
        default="panoptic",
        description="what finds the segments: a panoptic model (section 5.1), or SAM's automatic masks, which have no "
        "class names",
    )
    threshold: float | None = Field(
        default=None, description="lowest similarity of a match, -1 to 1; none: the preset's (the paper does not say)"
    )
    min_area: float = Field(default=0.002, ge=0, le=1, description="smallest segment, as a share of the picture's area")
    samples_per_shard: int = Field(default=1000, ge=1, description="records read into one shard")
    batch_size: int = Field(default=8, ge=1, description="pictures that go through a model together")
    seed: int = Field(default=0, ge=0, description="seed of everything random; this recipe draws nothing at random")


@dataclass(eq=False)
class BuildFastComposer(beam.PTransform):
    """The recipe: from the chunks of a source to the shards in `output`, each with its part.

    `fingerprints` names every shard by its number; `progress` is a local file that `CountRecords` appends to.
    """

    chunks: Sequence[Chunk]
    config: FastComposerConfig
    models: Models
    output: str
    fingerprints: Mapping[int, str]
    progress: str = ""

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Chain the steps in the order in which the paper tells them."""
        config, models = self.config, self.models
        expected = {chunk.shard: chunk.expected for chunk in self.chunks if chunk.expected is not None}
        if config.segmenter == "sam" and models.segmenter is not None:
            segment: beam.PTransform = SegmentEverything(models.sam, models.everything, config.min_area)
        else:
            segment = SegmentPictures(models.segmenter, config.min_area)
        return (
            root
            | "read" >> ReadBatches(self.chunks, config.batch_size)
            | "phrases" >> ExtractPhrases(models.parser, config.expand_plurals)
            | "segments" >> segment
            | "similarity" >> ScoreSimilarity(config.similarity, models.clip)
            | "matches" >> MatchPhrases(threshold_of(config, models))
            | "count" >> CountRecords(self.progress)
            | "write" >> WriteDataset(self.output, LAYOUT, self.fingerprints, expected)
        )


def threshold_of(config: FastComposerConfig, models: Models) -> float:
    """Return the lowest similarity of a match: the config's, or the preset's for this kind of similarity."""
    return models.thresholds[config.similarity] if config.threshold is None else config.threshold
