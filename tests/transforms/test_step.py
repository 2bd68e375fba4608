"""What the steps say of themselves for `dataset.json`: the checkpoints that they load, and their other inputs."""

import apache_beam as beam
import pytest

from schemas.example import Example
from tests.beam import apply
from tests.examples import make_example
from transforms.batch import Batch, each
from transforms.matting.backgrounds import Background, Backgrounds
from transforms.matting.composite import Composition, LayOnBackgrounds
from transforms.matting.cutout import DrawTrimaps, SolveMattes, TrimapBounds
from transforms.models.settings import Everything, Wording
from transforms.regions.gates import ApplyGates, Gates
from transforms.regions.ground import GroundPhrases, TakeMatches
from transforms.regions.heatmaps import FindHeatmaps
from transforms.regions.match import MatchPhrases
from transforms.regions.segment import SegmentEverything, SegmentPictures
from transforms.regions.similarity import ScoreSimilarity
from transforms.regions.subject import ChooseSubject, DropSmallPictures, Filters
from transforms.selection.phash import HashPictures
from transforms.selection.quality import EmbedObjects
from transforms.step import Step, map_batches
from transforms.text.captions import WriteCaptions
from transforms.text.phrases import ExtractPhrases

WORDING, EVERYTHING = Wording(), Everything()


@pytest.mark.parametrize(
    ("step", "checkpoints"),
    [
        (WriteCaptions("a", WORDING), {"captioner": "a"}),
        (WriteCaptions(None, WORDING), {}),
        (ExtractPhrases("a"), {"parser": "a"}),
        (SegmentPictures("a"), {"segmenter": "a"}),
        (SegmentPictures(None), {}),
        (SegmentEverything("a", EVERYTHING), {"sam": "a"}),
        (ScoreSimilarity("clip", "a"), {"clip": "a"}),
        (ScoreSimilarity("clip-label", "a"), {"clip": "a"}),
        (ScoreSimilarity("label", "a"), {}),
        (GroundPhrases("a", "b", 0.3), {"detector": "a", "sam": "b"}),
        (GroundPhrases("a", None, 0.3), {"detector": "a"}),
        (FindHeatmaps("a"), {"clipseg": "a"}),
        (EmbedObjects("a"), {"clip": "a"}),
    ],
)
def test_a_step_names_the_checkpoints_that_it_loads(step: Step, checkpoints: dict[str, str]) -> None:
    assert step.checkpoints() == checkpoints
    assert step.stamp() == ""


@pytest.mark.parametrize(
    "step",
    [
        MatchPhrases(0.5),
        TakeMatches(),
        ApplyGates(Gates()),
        DropSmallPictures(64),
        ChooseSubject(Filters()),
        DrawTrimaps(TrimapBounds(0.1, 0.9), 3),
        SolveMattes(),
        LayOnBackgrounds(Backgrounds(), Composition(), 0),
        HashPictures(),
    ],
)
def test_steps_without_a_model_load_nothing(step: Step) -> None:
    assert step.checkpoints() == {}


def test_backgrounds_are_an_input_of_their_own() -> None:
    backgrounds = Backgrounds((Background("sky.jpg", "/sky.jpg"),), "fingerprint")
    assert LayOnBackgrounds(backgrounds, Composition(), 0).stamp() == "fingerprint"


def refuse(example: Example) -> Example:
    if example.key == "bad":
        raise ValueError("no")
    return example


class Refuse(Step):
    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return map_batches(batches, "refuse", each(refuse))


def test_a_mapped_step_advances_batches_and_names_its_stage() -> None:
    good = make_example("good")
    (batch,) = apply(Refuse(), [Batch(0, (make_example("bad"), good))])
    rejected, kept = batch.records
    assert kept == good
    assert (rejected.key, rejected.stage) == ("bad", "refuse")
    assert [stage for stage, _ in batch.seconds] == ["refuse"]
