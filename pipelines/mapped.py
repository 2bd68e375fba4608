"""What the recipes with condition maps have in common: which maps are stored, and the steps that make them."""

from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, field_validator

from pipelines.recipe import BuildConfig, refuse_most_linked
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from transforms.listing import Listing
    from transforms.models.presets import Models
    from transforms.step import Step

MapName = Literal["canny", "sketch", "edges", "scribble", "lines", "depth", "normal", "pose", "segmentation"]


class MapsConfig(BuildConfig):
    """What can be chosen about datasets with condition maps; docs/condition-maps.md describes the maps."""

    maps: tuple[MapName, ...] = Field(default=("canny",), min_length=1, description="the maps that are stored")
    palette: Literal["coco", "ade20k"] = Field(
        default="coco", description="colours of classes in segmentation maps; classes that it lacks get others"
    )
    depth_files: Literal["nearness", "distance"] = Field(
        default="nearness",
        description="what depth maps of the source hold: nearness (larger is nearer) or distance (0 for unknown)",
    )
    focal: float | None = Field(
        default=None, gt=0,
        description="focal length in pixels: normals of distances are then exact; none: the surface is a relief",
    )  # fmt: skip
    relief: float = Field(
        default=0.5, gt=0,
        description="height of the nearest point above the farthest, as a share of the longer side (chosen by us)",
    )  # fmt: skip
    background: float = Field(
        default=0.1, ge=0, le=1,
        description="nearness, 0 to 1, below which the normals of a relief face the viewer (ControlNet's bg_th)",
    )  # fmt: skip
    min_points: float = Field(
        default=0.3, ge=0, le=1,
        description="share of a person's key points that must be seen (ControlNet's supplement: 0.3)",
    )  # fmt: skip
    min_area: float = Field(default=0.0, ge=0, le=1, description="smallest segment, as a share of the picture's area")
    caption_prompt: str = Field(default="", description='what a captioner continues, such as "a photo of"')

    @field_validator("maps")
    @classmethod
    def _check_maps(cls, maps: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(maps)) < len(maps):
            raise ValueError("a map is named twice")
        return maps


Config = TypeVar("Config", bound=MapsConfig)


def settle_maps(config: Config, models: "Models", listing: "Listing") -> Config:
    """Return the config as it is; refuse maps that neither the source nor the preset's models can give."""
    refuse_most_linked(config)
    if config.focal is not None and config.depth_files != "distance":
        raise ConfigError("focal is for depth maps that hold distances: add --depth-files distance, or leave it out")
    needs = {"depth": models.depth, "edges": models.edges}
    for kind, model in needs.items():
        if kind in config.maps and model is None and not listing.has_maps:
            raise ConfigError(
                f"maps = {kind}: the preset has no model for it, and {listing.kind} brings no maps: --preset hub, or "
                f"--model {kind}=FOLDER_OR_NAME"
            )
    if "pose" in config.maps and models.pose is None and not listing.has_people:
        raise ConfigError(
            "maps = pose: the preset has no pose model, and the source no key points: --preset hub, --model "
            "pose=FOLDER_OR_NAME, or COCO's person_keypoints_*.json"
        )
    return config


def map_steps(config: MapsConfig, models: "Models", listing: "Listing") -> "list[Step]":
    """Return the steps from a picture to its maps. Each runs only if a map needs it."""
    from transforms.maps.draw import Drawing, DrawMaps
    from transforms.maps.estimate import EstimateDepth, FindEdges, FindPeople
    from transforms.models.settings import Wording
    from transforms.regions.segment import SegmentPictures
    from transforms.text.captions import WriteCaptions

    wanted = set(config.maps)
    finds_people = "pose" in wanted and not listing.has_people
    steps: list[Step] = [WriteCaptions(models.captioner, Wording(config.caption_prompt), models.hosting)]
    if "segmentation" in wanted or finds_people:
        segmenter = None if listing.has_segments else models.segmenter
        steps.append(SegmentPictures(segmenter, config.min_area, hosting=models.hosting))
    if finds_people:
        assert models.pose is not None
        steps.append(FindPeople(models.pose, models.hosting))
    if models.depth and wanted & {"depth", "normal"}:
        steps.append(EstimateDepth(models.depth, models.hosting))
    if models.edges and wanted & {"edges", "scribble"}:
        steps.append(FindEdges(models.edges, models.hosting))
    drawing = Drawing(
        config.palette, config.depth_files, config.focal, config.relief, config.background, config.min_points
    )
    return [*steps, DrawMaps(config.maps, drawing)]
