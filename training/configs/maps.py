"""What the configs of the recipes that learn from condition maps have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from schemas.errors import choices
from schemas.maps import MAPS
from training.config import SMALL_SIDE, RunConfig

FROM_PICTURE = ("color", "intensity", "tile", "shuffle")
"""Maps that are made of the picture when it is read; a dataset need not hold them."""
SAMPLE_MAPS_RUN: Mapping[str, Any] = {
    "resolution": SMALL_SIDE,
    "steps": 1000,
    "batch": 16,
    "learning_rate": 1e-3,
    "warmup": 50,
    "average": 0.99,
    "checkpoint_every": 100,
    "sample_every": 250,
}
"""Config fields of a preset `sample`: from the sample text-to-image model, a quarter of an hour on a CPU."""


class MapsConfig(RunConfig):
    """How to train a model that is conditioned by maps of its pictures."""

    warmup: int = Field(default=0, ge=0, description="steps in which the learning rate rises from 0 (published: 0)")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the weights' moving average (published: 0, none)"
    )
    mirror: bool = Field(
        default=False,
        description="mirror half of the pictures with their maps, but for captions that name a side or writing "
        "(published: no)",
    )
    canny_low: float = Field(default=100, ge=0, description="lower threshold of canny edges, as OpenCV counts")
    canny_high: float = Field(default=200, ge=0, description="upper threshold of canny edges, as OpenCV counts")
    canny_shift: float = Field(
        default=0, ge=0, description="both thresholds are moved at random, by this much at most (T2I-Adapter: 50)"
    )
    edge_threshold: tuple[float, float] | None = Field(
        default=None,
        description="sketch and edges are cut at a number drawn from this range (T2I-Adapter: 0.5, XL: 0.3 to 0.8); "
        "none: they are shown soft",
    )
    line_length: float = Field(
        default=0.0, ge=0, le=1, description="shortest straight line that is shown, as a share of the diagonal"
    )
    color_cells: int = Field(
        default=8, gt=0, description="cells along each side of the map color (T2I-Adapter: 8, of 64 pixels)"
    )

    @property
    @abstractmethod
    def map_names(self) -> tuple[str, ...]:
        """The maps that a model of this config can be shown when it draws."""

    @property
    def taken_only(self) -> tuple[str, ...]:
        """Those of them that nobody can draw: they are taken from a photograph."""
        return ()

    @property
    def needs_maps(self) -> bool:
        """Whether the model draws nothing without a map."""
        return True

    def stored_as(self, name: str) -> str:
        """The map of a sample that the map `name` is made of."""
        return name

    def with_map(self, name: str) -> Self:  # noqa: ARG002
        """The config under which a view needs no other map than `name`."""
        return self

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if not self.canny_low <= self.canny_high:
            raise ValueError("canny_low is above canny_high: give a lower one first")
        if self.edge_threshold and not 0 <= self.edge_threshold[0] <= self.edge_threshold[1] <= 1:
            raise ValueError("edge_threshold needs two numbers in [0, 1], the lower one first")
        return self

    def plain(self) -> Self:
        """Without drops and mirroring, and with thresholds in the middle of their ranges."""
        middle = sum(self.edge_threshold) / 2 if self.edge_threshold else None
        fixed = None if middle is None else (middle, middle)
        return self.model_copy(update={"mirror": False, "canny_shift": 0.0, "edge_threshold": fixed})


def check_map(name: str) -> str:
    """Return the name of a map.

    Raises:
        ValueError: there is no such map.
    """
    known = (*MAPS, *FROM_PICTURE)
    if name not in known:
        raise ValueError(f"there is no map {name!r}{choices(name, known)}")
    return name


def check_maps(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of maps.

    Raises:
        ValueError: there is no such map, or one is named twice.
    """
    if len(set(map(check_map, names))) < len(names):
        raise ValueError(f"the map {max(names, key=names.count)!r} is named twice")
    return names
