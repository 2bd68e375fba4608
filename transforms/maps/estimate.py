"""The steps that make maps with a model: depth, soft edges, and the key points of people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.example import Example
from schemas.maps import Map, make_map, to_pixels
from schemas.rejects import Reason
from transforms.batch import Batch
from transforms.models.presets import name_of
from transforms.models.settings import HOSTING, Hosting, Precision
from transforms.step import Step, run_model

if TYPE_CHECKING:
    from transforms.models.depth import DepthModel
    from transforms.models.pose import PoseModel
    from transforms.models.soft_edges import EdgeModel


def depth_map(nearness: NDArray[np.float32], name: str) -> Map:
    """Make a depth map of what the model `name` estimated, [H, W] float32.

    Raises:
        RecordError: INVALID_MAP, it holds NaN or infinity.
    """
    _check_finite("depth", nearness, name)
    bounds = float(nearness.min()), float(nearness.max())
    return make_map("depth", to_pixels("depth", nearness, bounds), "depth model", name, {"stretch": "min-max"}, bounds)


def edge_map(probability: NDArray[np.float32], name: str) -> Map:
    """Make an edge map of what the model `name` found, [H, W] float32 in [0, 1].

    Raises:
        RecordError: INVALID_MAP, it holds NaN or infinity.
    """
    _check_finite("edges", probability, name)
    return make_map("edges", to_pixels("edges", probability), "edge network", name, {"sides": "mean"})


def _check_finite(kind: str, values: NDArray[np.float32], name: str) -> None:
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise RecordError(Reason.INVALID_MAP, f"{name} gave a {kind} map with {count:,} pixels of NaN or infinity")


def add_depth(model: "DepthModel", examples: Sequence[Example], name: str) -> list[Example]:
    """Estimate the depth of the examples whose source gives none, in one batch."""
    from transforms.models.depth import estimate_depth

    return _add("depth", examples, partial(estimate_depth, model), partial(depth_map, name=name))


def add_edges(model: "EdgeModel", examples: Sequence[Example], name: str) -> list[Example]:
    """Find the edges of the examples whose source gives none."""
    from transforms.models.soft_edges import find_edges

    return _add("edges", examples, partial(find_edges, model), partial(edge_map, name=name))


def _add(
    kind: str,
    examples: Sequence[Example],
    run: Callable[[Sequence[NDArray[np.uint8]]], Sequence[NDArray[np.float32]]],
    finish: Callable[[NDArray[np.float32]], Map],
) -> list[Example]:
    bare = [example for example in examples if kind not in example.given]
    found = iter(run([example.pixels() for example in bare]) if bare else ())
    return [
        example if kind in example.given else replace(example, maps={**example.maps, kind: finish(next(found))})
        for example in examples
    ]


def add_people(model: "PoseModel", examples: Sequence[Example]) -> list[Example]:
    """Find the key points of the people among the segments of each example."""
    from transforms.models.pose import find_people

    boxes = [[s.bbox for s in example.segments if s.label == "person" and s.is_thing] for example in examples]
    found = find_people(model, [example.pixels() for example in examples], boxes)
    return [replace(example, people=tuple(people)) for example, people in zip(examples, found, strict=True)]


def _load_depth(checkpoint: str, precision: Precision) -> "DepthModel":
    from transforms.models.depth import load_depth

    return load_depth(checkpoint, precision)


def _load_edges(checkpoint: str, precision: Precision) -> "EdgeModel":
    from transforms.models.soft_edges import load_edges

    return load_edges(checkpoint, precision)


def _load_pose(checkpoint: str, precision: Precision) -> "PoseModel":
    from transforms.models.pose import load_pose

    return load_pose(checkpoint, precision)


@dataclass(eq=False)
class EstimateDepth(Step):
    """Make depth maps; `checkpoint` names the depth model."""

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The depth model."""
        return {"depth": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run it over the batches."""
        step = partial(add_depth, name=name_of(self.checkpoint))
        load = partial(_load_depth, self.checkpoint, self.hosting.precision)
        return run_model(batches, "depth", load, step, self.hosting)


@dataclass(eq=False)
class FindEdges(Step):
    """Make maps of soft edges; `checkpoint` names the edge network."""

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The edge network."""
        return {"edges": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run it over the batches."""
        step = partial(add_edges, name=name_of(self.checkpoint))
        load = partial(_load_edges, self.checkpoint, self.hosting.precision)
        return run_model(batches, "edges", load, step, self.hosting)


@dataclass(eq=False)
class FindPeople(Step):
    """Fill `people` with the key points of the segments that are people; `checkpoint` names the pose model."""

    checkpoint: str
    hosting: Hosting = HOSTING

    def checkpoints(self) -> Mapping[str, str]:
        """The pose model."""
        return {"pose": self.checkpoint}

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Run it over the batches."""
        load = partial(_load_pose, self.checkpoint, self.hosting.precision)
        return run_model(batches, "people", load, add_people, self.hosting)
