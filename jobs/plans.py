"""What a job runs of each recipe: its transform, the checkpoints that it loads, its config with nothing left open."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam

from pipelines.blip_diffusion import BlipDiffusionConfig, BuildBlipDiffusion, with_thresholds
from pipelines.fastcomposer import BuildFastComposer, FastComposerConfig, threshold_of
from pipelines.mip_adapter import BuildMipAdapter, MipAdapterConfig, mask_threshold
from schemas.dataset import Layout
from schemas.errors import ConfigError
from schemas.samples import blip_diffusion, fastcomposer, mip_adapter
from transforms.matting.backgrounds import list_backgrounds
from transforms.models.presets import Models
from transforms.read import Listing
from transforms.selection.cut import Cut

Config = FastComposerConfig | BlipDiffusionConfig | MipAdapterConfig

CONFIGS: Mapping[str, type[Config]] = {
    fastcomposer.LAYOUT.recipe: FastComposerConfig,
    blip_diffusion.LAYOUT.recipe: BlipDiffusionConfig,
    mip_adapter.LAYOUT.recipe: MipAdapterConfig,
}
"""The config of each recipe, by its name."""


@dataclass(frozen=True)
class Plan:
    """A recipe made ready for one source.

    `models` names the checkpoints that run, by what they do; `recipe` takes chunks, `output`, `fingerprints` and
    `progress` and makes the transform that builds their shards; `extra` changes when anything does that is neither
    source nor config nor checkpoint. `cut` says which of the samples stay, None: all do.
    """

    layout: Layout
    config: Config
    models: Mapping[str, str]
    recipe: Callable[..., beam.PTransform]
    extra: str = ""
    cut: Cut | None = None


def plan(config: Config, models: Models, listing: Listing) -> Plan:
    """Make the recipe of a config ready for the source that was listed.

    Raises:
        SubjectloomError: an input beside the source cannot be used.
    """
    if isinstance(config, FastComposerConfig):
        return _plan_fastcomposer(config, models, listing)
    if isinstance(config, MipAdapterConfig):
        return _plan_mip_adapter(config, models, listing)
    return _plan_blip_diffusion(config, models, listing)


def _plan_fastcomposer(config: FastComposerConfig, models: Models, listing: Listing) -> Plan:
    if listing.has_segments and config.segmenter == "sam":
        raise ConfigError(f"{listing.kind} has masks of its own, which are the segments: leave out --segmenter sam")
    is_named = listing.has_labels if listing.has_segments else config.segmenter == "panoptic"
    _check_similarity(config.similarity, listing.kind if listing.has_segments else "SAM", is_named=is_named)
    # A preset's threshold is written down as the number that it was.
    config = config.model_copy(update={"threshold": threshold_of(config, models)})
    models = replace(models, segmenter=None) if listing.has_segments else models
    used = {"parser": models.parser}
    if models.segmenter is not None:
        used |= {"sam": models.sam} if config.segmenter == "sam" else {"segmenter": models.segmenter}
    if config.similarity != "label":
        used["clip"] = models.clip
    return Plan(fastcomposer.LAYOUT, config, used, partial(BuildFastComposer, config=config, models=models))


def _plan_blip_diffusion(config: BlipDiffusionConfig, models: Models, listing: Listing) -> Plan:
    config = with_thresholds(config, models)
    backgrounds = list_backgrounds(config.backgrounds)
    # A mask without a name says nothing of what the subject is called: then the caption does.
    has_names = listing.has_segments and listing.has_labels
    annotation = "masks" if has_names else "boxes" if listing.has_boxes else ""
    used = {}
    if models.captioner is not None:
        used["captioner"] = models.captioner
    if not annotation:
        used["parser"] = models.parser
    if annotation != "masks":
        used["clipseg"] = models.clipseg
    recipe = partial(BuildBlipDiffusion, config=config, models=models, backgrounds=backgrounds, annotation=annotation)
    return Plan(blip_diffusion.LAYOUT, config, used, recipe, backgrounds.fingerprint)


def _plan_mip_adapter(config: MipAdapterConfig, models: Models, listing: Listing) -> Plan:
    grounding = config.grounding or ("detector" if models.detector is not None else "masks")
    if grounding == "detector" and models.detector is None:
        raise ConfigError("grounding = detector needs one: choose --preset hub, or --model detector=FOLDER_OR_NAME")
    is_annotated = listing.has_segments
    update: dict[str, object] = {"grounding": grounding}
    used = {"parser": models.parser, "clip": models.clip}
    if models.captioner is not None:
        used["captioner"] = models.captioner
    if grounding == "detector" and models.detector is not None:
        used["detector"] = models.detector
    else:
        named = is_annotated and listing.has_labels
        _check_similarity(config.similarity, listing.kind if is_annotated else "SAM", is_named=named)
        update["threshold"] = mask_threshold(config, models)
    if not is_annotated:
        used["sam"] = models.sam
    config = config.model_copy(update=update)
    recipe = partial(BuildMipAdapter, config=config, models=models, is_annotated=is_annotated)
    return Plan(mip_adapter.LAYOUT, config, used, recipe, cut=Cut(config.best, config.duplicates))


def _check_similarity(similarity: str, origin: str, *, is_named: bool) -> None:
    """Refuse to compare class names where the segments, which come from `origin`, have none."""
    if similarity != "clip" and not is_named:
        raise ConfigError(
            f"the segments of {origin} have no class names, which similarity = {similarity!r} compares with: "
            "choose --similarity clip"
        )
