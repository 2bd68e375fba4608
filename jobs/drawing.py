"""What is to be drawn, and with which model: a request is checked before anything slow is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.map_files import MapFile
from jobs.settings import read_config
from pipelines import RECIPES
from schemas.errors import ConfigError, InputError
from schemas.layouts import Layout
from schemas.samples.base import find_spans
from training.config import RunConfig
from training.configs import config_of, owners_of_fields
from training.drawing import Drawing, Placing
from training.resume import read_note

PLACED: Mapping[str, Literal["guidance", "model"]] = {"captioned": "guidance", "gligen": "model"}
"""Recipes that draw phrases in boxes: by layout guidance, or by a model that takes boxes."""


@dataclass(frozen=True)
class Reference:
    """A subject: the words for it, and photographs of it.

    Attributes:
        phrase: as in the prompt, such as "a red ball".
        photographs: files, each of the same subject; none for a subject that a fine-tuned model knows.
        masks: file with the mask of each photograph, white where the subject is; None where it is to be found.
    """

    phrase: str
    photographs: tuple[Path, ...] = ()
    masks: tuple[Path | None, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Read "PHRASE=PHOTOGRAPH[:MASK][,PHOTOGRAPH[:MASK]...]"; a phrase alone has no photographs.

        Raises:
            ConfigError: the phrase or a photograph is missing.
        """
        phrase, equals, rest = text.partition("=")
        phrase = " ".join(phrase.split())
        names = [rest] if Path(rest).is_file() else rest.split(",") if equals else []
        if not phrase or not all(name.strip() for name in names):
            raise ConfigError(f"--reference {text!r}: write PHRASE=PHOTOGRAPH, as 'a red ball=photo.jpg'")
        pairs = [(name, "", "") if Path(name).is_file() else name.rpartition(":") for name in map(str.strip, names)]
        photographs = tuple(Path(name or mask) for name, _, mask in pairs)
        return cls(phrase, photographs, tuple(Path(mask) if name and mask else None for name, _, mask in pairs))


@dataclass(frozen=True)
class DrawRequest:
    """What to draw, and with which model.

    Attributes:
        prompts: texts. Those for FastComposer and MIP-Adapter contain the references' phrases; BLIP-Diffusion adds the
            subject itself.
        references: the subjects.
        run: folder of a training run; None: `recipe`, with `model` or `preset`.
        recipe: of the model, where there is no run.
        model: folder of a model in place of the run's own, or the hub's name of one.
        preset: "hub" for the published weights.
        drawing: how pictures are drawn.
        fields: fields of the recipe's config that differ from the run's, as FastComposer's `subject_share`, and
            MIP-Adapter's `scale` and `merge`.
        find_with: preset of the models that find subjects in photographs; None: what the run started from. In that
            case, the small models are refused for what looks like photographs.
        layouts: none, or for each prompt the boxes of its phrases.
        placing: how layout guidance places them, for recipes that do not take boxes themselves.
        maps: condition maps, for recipes that learn from them.
    """

    prompts: Sequence[str]
    references: Sequence[Reference] = ()
    run: Path | None = None
    recipe: str | None = None
    model: str | None = None
    preset: str | None = None
    drawing: Drawing = field(default_factory=Drawing)
    fields: Mapping[str, Any] = field(default_factory=dict)
    find_with: str | None = None
    layouts: Sequence[Layout] = ()
    placing: Placing = field(default_factory=Placing)
    maps: Sequence[MapFile] = ()


@dataclass(frozen=True)
class Start:
    """What is drawn with: recipe and config, the model's folder (None: the published weights), and the preset."""

    recipe: str
    config: RunConfig
    folder: str | None
    preset: str


def find_model(request: DrawRequest) -> Start:
    """Find the model of a request, and the config of its recipe.

    Raises:
        InputError: there is no such run, or it has no model yet.
        ConfigError: it is not said which model, or the recipe has no such field.
    """
    if request.run is not None:
        note = read_note(request.run)
        if "recipe" not in note:
            raise InputError(f"{request.run} holds no training run")
        if request.recipe not in (None, note["recipe"]):
            raise ConfigError(f"{request.run} is a run of {note['recipe']}: leave out --recipe {request.recipe}")
        folder = request.model or str(request.run / "model")
        if request.model is None and not Path(folder).is_dir():
            raise InputError(
                f"{request.run} has no model/ yet, which is written when the run ends: `subjectloom weights export "
                f"{request.run} OUT` makes one of its newest checkpoint, to be named with --model OUT"
            )
        return Start(note["recipe"], fields_of(note["recipe"], note, request), folder, note.get("preset", "sample"))
    if request.recipe is None or (request.model is None) == (request.preset is None):
        raise ConfigError(
            "which model? Name the folder of a training run, or give --recipe NAME with --model FOLDER or --preset hub"
        )
    if request.preset not in (None, "hub"):
        raise ConfigError(f"the preset {request.preset!r} has no trained weights to draw with: choose hub")
    fields = config_of(request.recipe)[1]["hub"]
    return Start(request.recipe, fields_of(request.recipe, fields, request), request.model, "hub")


def fields_of(recipe: str, fields: Mapping[str, Any], request: DrawRequest) -> RunConfig:
    """The config of a recipe for a request: `fields`, those of the request, and room for all references.

    Raises:
        ConfigError: the recipe has no such field, or its value is wrong.
    """
    kind, _ = config_of(recipe)
    for name in request.fields:
        if name not in kind.model_fields:
            owner = owners_of_fields().get(name)
            raise ConfigError(f"{recipe} has no setting {name!r}" + (f", a field of {owner}" if owner else ""))
    own: dict[str, Any] = {"captions": "own"}  # the prompt
    if count := len(request.references):  # all are shown, whatever their class
        own |= {"max_subjects": count, "max_objects": count, "labels": ()}
    if request.layouts:  # and so are all boxes, whatever their size
        own["min_box"] = 0.0
    known = {name: value for name, value in {**fields, **own}.items() if name in kind.model_fields}
    return read_config(kind, None, [f"{name}={value}" for name, value in request.fields.items()], known)


def check_references(recipe: str, request: DrawRequest) -> None:
    """Check that the recipe can draw these references, and that the prompts contain them.

    Raises:
        ConfigError: it cannot, or one does not.
    """
    described, phrases = RECIPES[recipe], [reference.phrase for reference in request.references]
    if not request.prompts or not all(prompt.strip() for prompt in request.prompts):
        raise ConfigError("what is to be drawn? Give a prompt")
    if not described.draws:
        raise ConfigError(f"{recipe} fills holes of pictures, which this command does not take: see docs/layouts.md")
    check_boxes(recipe, request)
    if described.find is None and phrases:
        raise ConfigError(f"{recipe} draws no subjects: leave out --reference {phrases[0]!r}")
    if described.subjects is not None and len(phrases) > described.subjects:
        raise ConfigError(f"{recipe} draws {described.subjects} subject, and {len(phrases)} are given as references")
    if described.find is None or described.subjects is not None:
        return
    unseen = next((reference.phrase for reference in request.references if not reference.photographs), None)
    if unseen or not phrases:
        what = f"no photograph of {unseen!r} is given" if unseen else f"{recipe} draws subjects, and none is given"
        raise ConfigError(f"{what}: show it, with --reference 'PHRASE=PHOTOGRAPH'")
    for prompt in request.prompts:
        find_phrases(phrases, prompt)


def check_boxes(recipe: str, request: DrawRequest) -> None:
    """Check that boxes are given to a recipe that draws in boxes, and how they are obeyed to one that is guided.

    Raises:
        ConfigError: they are not.
    """
    if request.layouts and recipe not in PLACED:
        raise ConfigError(f"{recipe} does not draw in boxes: {' and '.join(PLACED)} do")
    if request.placing != Placing() and (not request.layouts or PLACED[recipe] != "guidance"):
        raise ConfigError("--placing says how captioned obeys boxes: leave it out, or give --box to that recipe")
    if PLACED.get(recipe) == "model" and not request.layouts:
        raise ConfigError(f"{recipe} draws in boxes: give them, with --box 'a red ball=0.1,0.2,0.5,0.6'")


def check_files(references: Sequence[Reference]) -> None:
    """Check that all photographs and masks are there.

    Raises:
        InputError: one is not.
    """
    for reference in references:
        for path in (*reference.photographs, *filter(None, reference.masks)):
            if not path.is_file():
                raise InputError(f"{path}: there is no such file, which --reference {reference.phrase!r} names")


def find_phrases(phrases: Sequence[str], prompt: str) -> list[tuple[int, int]]:
    """Find phrases in a prompt, in any case: the span [start, end) of each; of equal ones, each occurrence in turn.

    Raises:
        ConfigError: the prompt does not contain one, or not as often as it is given.
    """
    spans = find_spans(phrases, prompt)
    missing = next((phrase for phrase, span in zip(phrases, spans, strict=True) if span is None), None)
    if missing is not None:
        count = phrases.count(missing)
        often = f" {count} times" if count > 1 else ""
        raise ConfigError(f"the prompt {prompt!r} does not contain {missing!r}{often}, which is given as a reference")
    return [span for span in spans if span is not None]
