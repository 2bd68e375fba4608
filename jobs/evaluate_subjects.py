"""A benchmark of single subjects in DreamBench's shape: a folder of photographs for each, and prompts for all.

FOLDER/NAME/*.jpg      photographs of one subject (also .jpeg, .png, .webp)

FILE                   DreamBench's own `prompts_and_classes.txt`, or a prompt per line with {} for the subject:
                       "a {} in the snow"
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
LIVE = frozenset({"cat", "dog"})
"""Classes of DreamBench whose subjects have the prompts for live ones (Ruiz et al. 2023, section 4.1)."""


@dataclass(frozen=True)
class Benchmark:
    """Prompts, with {} for the subject's class, and the class of each subject by name.

    Attributes:
        prompts: for all subjects, or for those that are not alive.
        live: for subjects that are alive, if they have others.
        classes: none where the name says it, as "dog2" or "red_cup".
    """

    prompts: Sequence[str]
    live: Sequence[str]
    classes: Mapping[str, str]

    def class_of(self, name: str) -> str:
        """The class of a subject in words."""
        return self.classes.get(name) or re.sub(r"[_\W\d]+", " ", name).strip()

    def prompts_of(self, name: str) -> list[str]:
        """The prompts of a subject, with the words for it filled in."""
        kind = self.class_of(name)
        chosen = self.live if self.live and kind in LIVE else self.prompts
        return [prompt.format(kind) for prompt in chosen]


def read_prompts(path: Path) -> Benchmark:
    """Read a file of prompts.

    Raises:
        InputError: it cannot be read, or holds no prompt, or one without a place for the subject.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if ".format(" not in text:
        prompts = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]
        wrong = next((prompt for prompt in prompts if prompt.count("{}") != 1), None)
        if wrong is not None or not prompts:
            found = f"{wrong!r} has no single {{}}" if prompts else "it holds none"
            raise InputError(
                f"{path}: {found}: write a prompt per line with {{}} for the subject, as 'a {{}} in the snow'"
            )
        return Benchmark(prompts, (), {})
    lists: list[list[str]] = []
    classes = {}
    for line in text.splitlines():
        if line.strip().startswith("prompt_list"):
            lists.append([])
        elif prompt := re.match(r"""\s*(['"])(.*)\1\.format\(""", line):
            if not lists:
                lists.append([])
            lists[-1].append(" ".join(prompt[2].replace("{0}", "").replace("{1}", "{}").split()))
        elif not lists and (row := re.fullmatch(r"\s*([^\s,]+),([^,]+)", line)) and row[1] != "subject_name":
            classes[row[1]] = row[2].strip()
    return Benchmark(lists[0], lists[1] if len(lists) > 1 else (), classes)


def find_photographs(folder: Path) -> dict[str, list[Path]]:
    """The photographs of each subject in a folder, by the subject's name.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of subjects")
    found = dict(_subjects(folder))
    if not found:
        raise InputError(f"{folder} holds no subject: give a folder with a folder of photographs for each subject")
    return found


def _subjects(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            photographs = sorted(path for path in place.iterdir() if path.suffix.lower() in PICTURES)
            if photographs:
                yield place.name, photographs
