"""How well a model draws: `subjectloom evaluate`.

Either the samples of a dataset are drawn, from their captions and references, or prompts about subjects that
photographs show, as in DreamBench (Ruiz et al. 2023, "DreamBooth", section 4.1). The measures:

    identity           cosine by CLIP of a subject, cut out of its real picture, and of the drawn thing that is most
                       like it. Things are what the segmenter finds, cut out; they are matched to subjects one to one,
                       greedily, and the lowest of a picture's subjects counts, as in FastComposer's multi-subject
                       score. It is 0 with fewer things than subjects.
    identity-others    cosine of the thing that was matched to a subject with the picture's other subjects: high where
                       identities blend
    clip-t             cosine of the picture and its text
    clip-i, dino       cosine of the picture and the real one, by CLIP and by DINO; with several real ones, the mean
    attention-own      share of a subject token's attention within its own mask, in noised pictures of the dataset
    attention-others   the same within the masks of the other subjects (both for FastComposer alone)

A number alone says little, as it depends on CLIP, on the segmenter and on the size of the pictures. So each measure has
two ends beside it, of real pictures: `same` shows the same objects in another picture, `another` shows other objects.
Where the two ends meet, the measure sees nothing. For photographs of subjects these are the other photographs; for
datasets measured by the small models, scenes that are rendered twice; for other datasets, which hold one picture of
each object, `own` is the sample's own picture, and `another` the next sample's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from jobs.compose import mask_of
from jobs.drawing import DrawRequest, Reference, Start, find_model
from jobs.evaluate_attention import attention_shares
from jobs.evaluate_measures import Judged, Judges, Picture, Real, Score, measure, scores_of
from jobs.evaluate_samples import draw_batch, own_pictures, read_batch, scene_ends
from jobs.evaluate_subjects import find_photographs, read_prompts
from jobs.generate import compose_samples, open_model, to_bytes
from jobs.references import find_subjects
from pipelines import RECIPES
from schemas.errors import ConfigError
from schemas.example import Example
from schemas.images import decode_grey
from schemas.masks import Mask
from training.drawing import Drawing
from training.generate import batch_of, draw_pictures, join_samples
from training.recipes import training_of
from training.shards import find_shards
from transforms.models.clip import load_clip
from transforms.models.dino import PUBLISHED, load_dino
from transforms.models.presets import resolve
from transforms.models.segmenter import load_segmenter


@dataclass(frozen=True)
class Drawn:
    """A drawn picture with what is measured of it.

    Attributes:
        judged: the picture, and what it was compared with.
        references: what the model was shown, [h, w, 3] uint8 each.
        values: by measure; NaN where it has none.
    """

    judged: Judged
    references: Sequence[Picture]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What was drawn and measured: scores by measure, first of real pictures, and the drawn pictures."""

    recipe: str
    scores: list[Score]
    drawn: list[Drawn]


def evaluate(request: DrawRequest, data: Sequence[str], count: int, dino: str | None = None) -> Evaluation:
    """Draw the first `count` samples of a dataset that can be read, and measure the pictures.

    Args:
        request: the model, and how it draws; its prompts and references are not used.
        data: the dataset, as `find_shards` reads it. Samples that the model was trained on flatter it.
        count: number of samples, two at least.
        dino: checkpoint of DINO; None: the published one if the published models measure, else none.

    Raises:
        InputError: the run or the dataset cannot be used, or it holds fewer than two samples.
        ModelError: a model is missing.
    """
    start = find_model(request)
    training, shards = training_of(start.recipe), find_shards(list(data), start.recipe)
    judges = load_judges(request, start, dino)
    model, drawing = open_model(start, request)
    config = start.config.model_copy(update={"resolution": drawing.size})
    batch, captions, subjects = read_batch(training, start.recipe, shards, count, model, config)
    own, keys = own_pictures(batch), batch["keys"]
    pictures = draw_batch(model, batch, drawing)
    items = [
        Judged(key, picture, caption, Real([real], [masks]))
        for key, picture, caption, real, masks in zip(keys, pictures, captions, own, subjects, strict=True)
    ]
    if measuring_preset(request, start) == "sample":
        ends = scene_ends([len(masks) for masks in subjects], config.resolution, drawing.seed)
    else:
        ends = {
            "another": [replace(item, picture=own[(i + 1) % len(own)]) for i, item in enumerate(items)],
            "own": [replace(item, picture=own[i]) for i, item in enumerate(items)],
        }
    attention = attention_shares(model, batch, drawing.seed, drawing.batch) if "subject_token_index" in batch else {}
    shown = [[to_bytes(picture.cpu()) for picture in row] for row in model.references(batch)]
    references = [row[: len(masks)] for row, masks in zip(shown, subjects, strict=True)]
    return summarize(start.recipe, judges, ends, items, references, attention)


def evaluate_subjects(
    request: DrawRequest,
    folder: Path,
    prompts: Path,
    dino: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Draw prompts about subjects that photographs show, `request.drawing.count` pictures of each, and measure them.

    Args:
        request: the model, and how it draws; its prompts and references are not used.
        folder: photographs of each subject, in a folder of its name.
        prompts: file of prompts; see `jobs.evaluate_subjects`.
        dino: as in `evaluate`.
        console: where is said what takes long; None: nowhere.

    Raises:
        InputError: run, folder or file cannot be used, or a subject is found in none of its photographs.
        ConfigError: the recipe draws no subjects.
        ModelError: a model is missing.
    """
    benchmark, photographs = read_prompts(prompts), find_photographs(folder)
    references = [
        Reference(benchmark.class_of(name), tuple(paths), (None,) * len(paths)) for name, paths in photographs.items()
    ]
    start = find_model(replace(request, references=references[:1]))  # each picture shows one
    if RECIPES[start.recipe].find is None:
        raise ConfigError(f"{start.recipe} draws from text alone: give --data in place of --subjects")
    preset, doubts = measuring_preset(request, start), request.find_with is None
    console = console or Console(quiet=True)
    found = find_subjects(start.recipe, references, preset, console, doubts_preset=doubts, skips_missing=True)
    judges = load_judges(request, start, dino)
    model, drawing = open_model(start, request)
    items: list[Judged] = []
    shown: list[list[Picture]] = []
    ends: dict[str, list[Judged]] = {"another": [], "same": []}
    groups = [[(example.pixels(), [subject_mask(example)]) for example in group] for group in found]
    reals = [Real(*zip(*group, strict=True)) for group in groups]
    for number, name in enumerate(photographs):
        for prompt in benchmark.prompts_of(name):
            text = without_subject(prompt, benchmark.class_of(name), start)
            drawn, row = draw_subject(start, model, drawing, found[number], text)
            items += [Judged(name, picture, prompt, reals[number]) for picture in drawn]
            shown += [row] * len(drawn)
        for i, (picture, _) in enumerate(groups[number]):
            if rest := [*groups[number][:i], *groups[number][i + 1 :]]:
                ends["same"].append(Judged(name, picture, "", Real(*zip(*rest, strict=True))))
            if len(found) > 1:
                ends["another"].append(Judged(name, picture, "", reals[(number + 1) % len(found)]))
    return summarize(start.recipe, judges, ends, items, shown, {})


def without_subject(prompt: str, subject: str, start: Start) -> str:
    """A prompt as the recipe takes it: without its subject, if the template `released` adds that."""
    if getattr(start.config, "template", "paper") == "paper":
        return prompt
    return " ".join(re.sub(rf"^(?:an? )?(.*?)\b{re.escape(subject)}\b", r"\1", prompt).split())


def draw_subject(
    start: Start,
    model: Any,  # noqa: ANN401 - the recipe's model
    drawing: Drawing,
    found: Sequence[Example],
    prompt: str,
) -> tuple[list[Picture], list[Picture]]:
    """Draw a prompt with the subject of some photographs; return the pictures, and what the model was shown."""
    config = start.config.model_copy(update={"resolution": drawing.size})
    samples = compose_samples(start.recipe, [found], "", prompt)
    batch = batch_of(training_of(start.recipe), samples, model, config)
    drawn = draw_pictures(model, join_samples(model, batch), drawing)
    return [to_bytes(picture) for picture in drawn], [to_bytes(row[0].cpu()) for row in model.references(batch)]


def subject_mask(example: Example) -> Mask:
    """Where the subject of a photograph is, as the recipe's steps found it."""
    return Mask.from_array(decode_grey(example.alpha) >= 128) if example.alpha else mask_of(example)


def measuring_preset(request: DrawRequest, start: Start) -> str:
    """The preset of the models that measure."""
    return request.find_with or start.preset


def load_judges(request: DrawRequest, start: Start, dino: str | None) -> Judges:
    """Load the models that measure."""
    preset = measuring_preset(request, start)
    models = resolve(preset, {})
    checkpoint = dino or (PUBLISHED if preset == "hub" else None)
    loaded = load_dino(checkpoint) if checkpoint else None
    return Judges(load_clip(models.clip), load_segmenter(str(models.segmenter)), loaded)


def summarize(
    recipe: str,
    judges: Judges,
    ends: Mapping[str, Sequence[Judged]],
    items: Sequence[Judged],
    references: Sequence[Sequence[Picture]],
    attention: Mapping[str, Mapping[str, NDArray[np.float64]]],
) -> Evaluation:
    """Measure drawn pictures and the real ones at both ends.

    Args:
        recipe: of the model.
        judges: the models that measure.
        ends: real pictures by what they are called.
        items: the drawn pictures.
        references: what the model was shown for each.
        attention: measured before: values [N] by measure, by what they are of.
    """
    values = measure(judges, items)
    groups = [item.group for item in items]
    scores = [
        score
        for name, end in ends.items()
        if end
        for score in scores_of(measure(judges, end), name, [item.group for item in end])
    ]
    scores += scores_of(values, "drawn", groups)
    for name, measured in attention.items():
        scores += scores_of(measured, name, groups)
    values |= attention.get("drawn", {})
    order = list(values)
    scores.sort(key=lambda score: order.index(score.measure))
    drawn = [
        Drawn(item, row, {name: float(column[i]) for name, column in values.items()})
        for i, (item, row) in enumerate(zip(items, references, strict=True))
    ]
    measured_names = {score.measure for score in scores if score.pictures == "drawn"}
    return Evaluation(recipe, [score for score in scores if score.measure in measured_names], drawn)
