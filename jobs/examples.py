"""What stands below the help of a command: examples, and the fields of a recipe. A test parses all examples."""

import textwrap
from collections.abc import Mapping, Sequence

from typer.core import TyperGroup

EXAMPLES: Mapping[str, Sequence[str]] = {
    "scenes": ("subjectloom scenes demo/scenes --count 64 --seed 7",),
    "build": (
        "subjectloom build fastcomposer --input photos --output out --preset hub",
        "subjectloom build mip-adapter --input 'shards/*.tar' --output out --preset hub --best 100000",
        "subjectloom build fastcomposer --input photos --output out --threshold 0.3 --resume",
        "subjectloom build captioned --input photos --output out --dry-run",
    ),
    "preview": ("subjectloom preview photo.jpg 'a dog on a sofa' --recipe fastcomposer --preset hub",),
    "finish": ("subjectloom finish gs://bucket/out",),
    "recipes": ("subjectloom recipes", "subjectloom recipes fastcomposer"),
    "inspect": ("subjectloom inspect out",),
    "report": ("subjectloom report out",),
    "export": (
        "subjectloom export out for-fastcomposer --format fastcomposer --square",
        "subjectloom export out for-coco --format coco",
    ),
    "plan": ("subjectloom plan photos fastcomposer --pictures 1000000 --preset hub",),
    "view": ("subjectloom view out", "subjectloom view out --excluded bad.txt --browser"),
    "filter": (
        "subjectloom filter out best --where 'score_min >= 0.6 and \"dog\" in labels'",
        "subjectloom filter out free --where 'license != \"\" and width >= 512'",
        "subjectloom filter out clean --exclude out.excluded.txt",
    ),
    "merge": ("subjectloom merge photos-2025 photos-2026 --output photos",),
    "split": ("subjectloom split out parts", "subjectloom split out parts --part train=0.8 --part test=0.2"),
    "sample": ("subjectloom sample out small --count 1000",),
    "stats": ("subjectloom stats out", "subjectloom stats out --json"),
    "push": ("subjectloom push out me/dogs --private --dry-run",),
    "train": (
        "subjectloom train fastcomposer --data out --output run --steps 400",
        "subjectloom train mip-adapter --data out --output run --preset hub --resume",
    ),
    "generate": ("subjectloom generate run --prompt 'a dog on the moon' --reference 'a dog=photo.jpg' --output drawn",),
    "evaluate": ("subjectloom evaluate run --data held-out --output measured",),
}
"""Command lines by command."""


WITH_FIELDS = ("build", "preview", "train")
"""Commands whose help lists the fields of the recipe that is named."""


def add_to_help(group: TyperGroup, arguments: Sequence[str]) -> None:
    """Put examples below the help of each command of `group`, and fields if the arguments ask for those of a recipe."""
    for name, command in group.commands.items():
        command.epilog = "\n\n".join(filter(None, (examples(name), fields_help(name, arguments))))


def examples(command: str) -> str:
    """Return the examples of a command as its help shows them, "" if there are none."""
    lines = EXAMPLES.get(command, ())
    return unbroken([f"Example{'s' * (len(lines) > 1)}:", *(f"  {line}" for line in lines)]) if lines else ""


def fields_help(command: str, arguments: Sequence[str]) -> str:
    """Return the fields of the recipe that the arguments name, if they ask for the help of a command with fields."""
    if command not in WITH_FIELDS or command not in arguments or not {"-h", "--help"} & {*arguments}:
        return ""
    # Other commands' help does not wait for the configs.
    from jobs.recipes import fields_of  # noqa: PLC0415
    from pipelines import RECIPES  # noqa: PLC0415
    from training.configs import config_of  # noqa: PLC0415

    names = [name for name in (argument.removeprefix("--recipe=") for argument in arguments) if name in RECIPES]
    if not names:
        return ""
    config = config_of(names[0])[0] if command == "train" else RECIPES[names[0]].config
    lines = [f"Fields of {names[0]}, each of which is an option:"]
    for name, default, values, meaning in fields_of(config, {}):
        lines.append(f"  --{name.replace('_', '-')}  {values}  (default: {default})")
        lines += textwrap.wrap(meaning, 76, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return unbroken(lines)


def unbroken(lines: Sequence[str]) -> str:
    """Return lines as a paragraph that Click does not break anew: below a backspace."""
    return "\n".join(["\b", *lines])
