"""Pictures of a prompt and of a person's own photographs, drawn with a trained model.

A photograph goes through the steps of the recipe's build (`jobs.references`), becomes a sample of the recipe
(`jobs.compose`), and this goes through the recipe's view (`training.generate`): training and use see the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console

from jobs.compose import blank, compose, place
from jobs.drawing import PLACED, DrawRequest, Reference, Start, check_references, find_model
from jobs.map_files import check_maps
from jobs.maps import batch_of_maps
from jobs.references import find_subjects, samples_of
from pipelines import RECIPES
from schemas.errors import ConfigError
from schemas.example import Example
from schemas.layouts import Layout
from schemas.samples import FORMATS
from training.configs.maps import MapsConfig
from training.drawing import Drawing, Placing
from training.generate import batch_of, draw_pictures, join_samples, set_drawing
from training.guidance import Guide, follow
from training.layout_guidance import coarsest_side, guide_layout, widened
from training.loop import this_process
from training.recipes import training_of
from training.shards import Raw
from transforms.models.presets import resolve, revision_of

SAMPLING = (
    "subject_share", "grounded_share", "scale", "merge", "template", "prompt_reps", "shared", "canny_low", "canny_high",
    "edge_threshold", "line_length", "color_cells",
)  # fmt: skip
"""Fields of configs that change what a model draws."""


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        prompt: number of its prompt, from 0.
        number: among the pictures of this prompt, from 0.
        pixels: [H, W, 3] uint8 RGB.
        settings: what it is a function of, as JSON has it.
        references: what the model was shown, [N, h, w, 3] uint8.
        layout: the boxes of its phrases, if they have any.
    """

    prompt: int
    number: int
    pixels: NDArray[np.uint8]
    settings: Mapping[str, Any]
    references: NDArray[np.uint8]
    layout: Layout | None = None


def generate(request: DrawRequest, console: Console | None = None) -> Iterator[Picture]:
    """Yield the pictures of each prompt, in their order.

    Args:
        request: what to draw.
        console: where is said what takes long; None: nowhere.

    Raises:
        InputError: the run or a file cannot be used, or a subject is not found in a photograph.
        ConfigError: prompts, references and recipe do not go together, or a setting is wrong.
        ModelError: a model is missing.
    """
    console = console or Console(quiet=True)
    start = find_model(request)
    check_references(start.recipe, request)
    check_maps(start.recipe, start.config, request.maps)
    shown = [reference for reference in request.references if reference.photographs]
    preset = request.find_with or start.preset
    found = find_subjects(start.recipe, shown, preset, console, doubts_preset=request.find_with is None)
    training = training_of(start.recipe)
    model, drawing = open_model(start, request)
    known = known_subject(start.recipe, model, request.references, found)
    config = start.config.model_copy(update={"resolution": drawing.size})
    settings = describe(request, start, drawing)
    maps = batch_of_maps(start.recipe, model, config, request.maps, preset) if isinstance(config, MapsConfig) else None
    for i, prompt in enumerate(request.prompts):
        layout = request.layouts[i] if request.layouts else None
        if maps:
            batch = {**maps, "input_ids": model.tokenize([prompt]).to(model.unet.device)}
        elif layout and PLACED[start.recipe] == "model":
            samples = [pack(start.recipe, place(blank(prompt), layout, resolve(start.preset, {}).clip))]
            batch = batch_of(training, samples, model, config)
        else:
            batch = batch_of(training, compose_samples(start.recipe, found, known, prompt), model, config)
        conditions = model.references(batch)
        counts = [int(shown.any()) for shown in conditions[0]] if maps else [len(group) for group in found]
        references = shown_pictures(conditions, counts)
        guided = layout if PLACED.get(start.recipe) == "guidance" else None
        guide = guide_of(model, guided, request.placing, drawing, console)
        own = {"prompt": prompt, **describe_layout(layout, request.placing if guided else None)}
        for number, drawn in enumerate(draw_pictures(model, join_samples(model, batch), drawing, guide)):
            yield Picture(i, number, to_bytes(drawn), {**own, "number": number, **settings}, references, layout)


def guide_of(
    model: Any,  # noqa: ANN401 - the recipe's model
    layout: Layout | None,
    placing: Placing,
    drawing: Drawing,
    console: Console,
) -> Guide:
    """The guide of a layout, where there is one; say which boxes are widened."""
    if layout is None:
        return follow
    for text in widened(layout, coarsest_side(model, drawing.size or 0)):
        console.print(f"the box of {text!r} is narrower than a cell of the attention: it is widened to one")
    return guide_layout(model, layout, placing)


def open_model(start: Start, request: DrawRequest) -> tuple[Any, Drawing]:
    """Load the model of a request and set it up; return it with the settings in full, as `set_drawing` does."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    training = training_of(start.recipe)
    parts = training.load(start.folder) if start.folder else training.load()
    model = training.model(parts, start.config)
    size = request.drawing.size or (start.config.resolution if request.run else None)
    return model, set_drawing(model, request.drawing.model_copy(update={"size": size}), this_process().device)


def known_subject(
    recipe: str,
    model: Any,  # noqa: ANN401 - the recipe's model
    references: Sequence[Reference],
    found: Sequence[Sequence[Example]],
) -> str:
    """The subject that a fine-tuned model draws without a photograph; "" if photographs show it, or there is none.

    Raises:
        ConfigError: the model knows no such subject, or knows the one that a photograph shows.
    """
    if RECIPES[recipe].subjects is None:
        return ""
    subjects = list(model.subjects)
    if found:
        text = found[0][0].subject.text if found[0][0].subject else ""
        if text in subjects:
            raise ConfigError(f"the model was fine-tuned on its own pictures of {text!r}: leave out the photographs")
        return ""
    if not references and len(subjects) == 1:
        return subjects[0]
    phrase = references[0].phrase if references else ""
    if phrase in subjects:
        return phrase
    if not subjects:
        raise ConfigError(f"{recipe} draws a subject: show it, with --reference 'PHRASE=PHOTOGRAPH'")
    raise ConfigError(f"the model knows {', '.join(map(repr, subjects))}: name one, with --reference {subjects[0]!r}")


def compose_samples(recipe: str, found: Sequence[Sequence[Example]], known: str, prompt: str) -> list[Raw]:
    """Make the samples of a prompt: one, or several where subjects have several photographs (`samples_of`)."""
    if not found:
        return [pack(recipe, blank(prompt, known))]
    single = RECIPES[recipe].subjects is not None
    return [
        pack(recipe, replace(group[0], caption=prompt, source_caption=prompt) if single else compose(group, prompt))
        for group in samples_of(found)
    ]


def pack(recipe: str, example: Example) -> Raw:
    """Make a sample as a dataset's reader yields it."""
    sample, _ = FORMATS[recipe].pack(example)
    return {"__key__": sample.key, "__url__": "", **sample.members}


def shown_pictures(references: torch.Tensor, counts: Sequence[int]) -> NDArray[np.uint8]:
    """The references of a batch of samples [K, M, 3, h, w], each once: [N, h, w, 3] uint8.

    `counts` are the numbers of photographs of the subjects, as in `samples_of`.
    """
    chosen = [references[number, subject] for subject, count in enumerate(counts) for number in range(count)]
    if not chosen:
        return np.zeros((0, 1, 1, 3), np.uint8)
    return np.stack([to_bytes(picture.cpu()) for picture in chosen])


def to_bytes(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Turn a picture [3, H, W] float32 in [0, 1] into [H, W, 3] uint8."""
    values: NDArray[np.uint8] = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return values


def describe_layout(layout: Layout | None, placing: Placing | None) -> dict[str, Any]:
    """The boxes of a picture's phrases, and how guidance placed them, as JSON has them; nothing if there are none."""
    if layout is None:
        return {}
    boxes = [{"text": phrase.text, "boxes": phrase.boxes} for phrase in layout.phrases]
    return {"layout": boxes} | ({"placing": placing.model_dump(mode="json")} if placing else {})


def describe(request: DrawRequest, start: Start, drawing: Drawing) -> dict[str, Any]:
    """What the pictures of a request are a function of, beside prompt and number; file names without their folders."""
    local = start.folder is not None and Path(start.folder).is_dir()
    return {
        "references": [
            {
                "phrase": reference.phrase,
                "photographs": [photograph.name for photograph in reference.photographs],
                "masks": [mask.name if mask else None for mask in reference.masks],
            }
            for reference in request.references
        ],
        **({"maps": [{**vars(given), "file": given.file.name} for given in request.maps]} if request.maps else {}),
        **drawing.model_dump(mode="json", exclude={"count", "batch"}),
        **{name: value for name, value in start.config.model_dump(mode="json").items() if name in SAMPLING},
        "recipe": start.recipe,
        "model": start.folder or "published",
        "fingerprint": revision_of(str(start.folder)) if local else "",
    }
