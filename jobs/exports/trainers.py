"""What trainers with reference pictures read: for each, how the files that describe a dataset are written and read.

Every writer has a reader that goes through the files as the trainer's loader does. The check at the end of an export
(`jobs.exports.references`) uses it: some of these loaders leave out a reference that they do not find, without a word.

Where a path is opened as it stands, it is absolute; elsewhere it is relative to the file or folder that the trainer is
given. JSON is ASCII with escapes, as loaders open it in the encoding of the machine.
"""

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from schemas.boxes import BBox, to_corners


@dataclass(frozen=True)
class Entry:
    """A sample whose pictures are written.

    Attributes:
        key: Its key.
        caption: The caption of the target.
        image: Path of the target, relative to the export's folder.
        references: Those of its references, or of its layers, in order.
        texts: The caption's words for each reference.
        boxes: Each reference's subject in the reference, and in the target.
    """

    key: str
    caption: str
    image: str
    references: tuple[str, ...]
    texts: tuple[str, ...] = ()
    boxes: tuple[tuple[BBox, BBox], ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A sample as a trainer's loader finds it; `source` is the file or folder that describes it."""

    source: str
    image: Path
    references: tuple[Path, ...]
    caption: str


@dataclass(frozen=True)
class Trainer:
    """A trainer.

    Attributes:
        help: What its files are, in a few words.
        write: Describes entries in `folder`, which is `root`, an absolute path, when the export is complete.
        read: Yields the samples that its loader finds in the folder of an export.
        most: Most references of a sample; None for any number.
        in_folders: Whether its loader pairs files of several folders by their names.
        even: Whether all samples of one file must have one number of references.
        layered: Whether it takes a target's layers in place of references.
        refuses: Why its loader would not find a reference by its text and the caption; "" if it would.
    """

    help: str
    write: Callable[[Path, Path, Sequence[Entry]], None]
    read: Callable[[Path], Iterator[Loaded]]
    most: int | None = None
    in_folders: bool = False
    even: bool = False
    layered: bool = False
    refuses: Callable[[str, str], str] = lambda _text, _caption: ""


def by_count(entries: Sequence[Entry]) -> dict[int, list[Entry]]:
    """Group entries by their number of references, in ascending order: a batch holds samples of one number."""
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[len(entry.references)].append(entry)
    return dict(sorted(groups.items()))


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="ascii") as lines:
        for line in lines:
            yield json.loads(line)


# DiffSynth-Studio: --dataset_base_path DEST --dataset_metadata_path DEST/metadata.jsonl
#   --data_file_keys image,edit_image --extra_inputs edit_image


def _write_diffsynth(folder: Path, _root: Path, entries: Sequence[Entry]) -> None:
    rows = ({"image": e.image, "prompt": e.caption, "edit_image": list(e.references)} for e in entries)
    _write_lines(folder / "metadata.jsonl", rows)


def _read_diffsynth(folder: Path) -> Iterator[Loaded]:
    for row in _read_lines(folder / "metadata.jsonl"):
        references = tuple(folder / path for path in row["edit_image"])
        yield Loaded("metadata.jsonl", folder / row["image"], references, row["prompt"])


# musubi-tuner: --dataset_config DEST/dataset.toml


def _write_musubi(folder: Path, root: Path, entries: Sequence[Entry], layered: bool = False) -> None:
    blocks = ["[general]\nresolution = [1024, 1024]\nbatch_size = 1\nenable_bucket = true\n"]
    for count, group in by_count(entries).items():
        name = f"metadata_{count}.jsonl"
        paths = [[root / path for path in (e.image, *e.references)] for e in group]
        if layered:
            rows = [{f"image_path_{i}": str(path) for i, path in enumerate(listed)} for listed in paths]
        else:
            rows = [
                {"image_path": str(listed[0])} | {f"control_path_{i}": str(p) for i, p in enumerate(listed[1:])}
                for listed in paths
            ]
        _write_lines(folder / name, (row | {"caption": e.caption} for row, e in zip(rows, group, strict=True)))
        block = {"image_jsonl_file": str(root / name), "cache_directory": str(root / f"cache_{count}")}
        lines = [f"{field} = {_quoted(value)}" for field, value in block.items()]
        blocks.append("\n".join(["[[datasets]]", *lines, *(["multiple_target = true"] if layered else [])]) + "\n")
    (folder / "dataset.toml").write_text("\n".join(blocks), encoding="utf-8")


def _write_layers(folder: Path, root: Path, entries: Sequence[Entry]) -> None:
    _write_musubi(folder, root, entries, layered=True)


def _read_musubi(folder: Path) -> Iterator[Loaded]:
    for dataset in tomllib.loads((folder / "dataset.toml").read_text("utf-8"))["datasets"]:
        path = Path(dataset["image_jsonl_file"])
        name = "image_path_" if dataset.get("multiple_target") else "control_path_"
        first = 1 if dataset.get("multiple_target") else 0
        for row in _read_lines(path):
            numbers = range(first, first + sum(field.startswith(name) for field in row) - first)
            references = tuple(Path(row[f"{name}{i}"]) for i in numbers)
            image = row["image_path"] if "image_path" in row else row["image_path_0"]
            yield Loaded(path.name, Path(image), references, row["caption"])


# ai-toolkit: the blocks of DEST/datasets.yaml under `datasets` of a job's process


def _folders(count: int) -> list[str]:
    return [f"{count}/references_{i + 1}" for i in range(count)]


def _write_ai_toolkit(folder: Path, root: Path, entries: Sequence[Entry]) -> None:
    datasets = [
        {
            "folder_path": str(root / f"{count}/images"),
            "control_path": [str(root / name) for name in _folders(count)],
            "caption_ext": "txt",
        }
        for count in by_count(entries)
    ]
    head = "# White pixels of a mask count more in the loss: for masks, add mask_path: the folder masks beside images\n"
    text = yaml.safe_dump({"datasets": datasets}, allow_unicode=True, sort_keys=False)
    (folder / "datasets.yaml").write_text(head + text, encoding="utf-8")


def _read_ai_toolkit(folder: Path) -> Iterator[Loaded]:
    for dataset in yaml.safe_load((folder / "datasets.yaml").read_text("utf-8"))["datasets"]:
        yield from _read_folders(Path(dataset["folder_path"]), [Path(path) for path in dataset["control_path"]])


def _read_folders(images: Path, references: Sequence[Path]) -> Iterator[Loaded]:
    """Pair the pictures of folders by their names; one that is not there is expected to be a PNG."""
    for image in sorted(path for path in images.iterdir() if path.suffix != ".txt"):
        found = tuple(
            next((other for other in sorted(folder.glob(f"{image.stem}.*"))), folder / f"{image.stem}.png")
            for folder in references
        )
        caption = image.with_suffix(".txt")
        yield Loaded(str(images), image, found, caption.read_text("utf-8") if caption.exists() else "")


# diffusion-pipe: dataset = 'DEST/dataset.toml'


def _write_diffusion_pipe(folder: Path, root: Path, entries: Sequence[Entry]) -> None:
    lines = ["resolutions = [1024]", "enable_ar_bucket = true", "min_ar = 0.5", "max_ar = 2.0", "num_ar_buckets = 9"]
    for count in by_count(entries):
        lines += [
            "\n[[directory]]",
            f"path = {_quoted(str(root / f'{count}/images'))}",
            f"control_path = {_quoted(str(root / _folders(count)[0]))}",
            f"# The loss of black pixels is not counted: mask_path = {_quoted(str(root / f'{count}/masks'))}",
        ]
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_diffusion_pipe(folder: Path) -> Iterator[Loaded]:
    for directory in tomllib.loads((folder / "dataset.toml").read_text("utf-8"))["directory"]:
        yield from _read_folders(Path(directory["path"]), [Path(directory["control_path"])])


# OmniGen2: data_path: DEST/data.yml


def _write_omnigen2(folder: Path, root: Path, entries: Sequence[Entry]) -> None:
    rows = (
        {
            "task_type": "ic",
            "instruction": e.caption,
            "input_images": [str(root / path) for path in e.references],
            "output_image": str(root / e.image),
        }
        for e in entries
    )
    _write_lines(folder / "data.jsonl", rows)
    mixture = {"data": [{"path": str(root / "data.jsonl"), "type": "ic", "ratio": 1.0}]}
    (folder / "data.yml").write_text(yaml.safe_dump(mixture, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _read_omnigen2(folder: Path) -> Iterator[Loaded]:
    for data in yaml.safe_load((folder / "data.yml").read_text("utf-8"))["data"]:
        path = Path(data["path"])
        for row in _read_lines(path):
            references = tuple(map(Path, row["input_images"]))
            yield Loaded(path.name, Path(row["output_image"]), references, row["instruction"])


# UNO: --train_data_json DEST/train_N.json, N references in each sample


def _write_uno(folder: Path, _root: Path, entries: Sequence[Entry]) -> None:
    for count, group in by_count(entries).items():
        rows = [{"image_paths": list(e.references), "image_tgt_path": e.image, "prompt": e.caption} for e in group]
        (folder / f"train_{count}.json").write_text(json.dumps(rows, indent=1), encoding="ascii")


def _read_uno(folder: Path) -> Iterator[Loaded]:
    for path in sorted(folder.glob("train_*.json")):
        for row in json.loads(path.read_text("ascii")):
            references = tuple(folder / name for name in row["image_paths"])
            yield Loaded(path.name, folder / row["image_tgt_path"], references, row["prompt"])


# MS-Diffusion: self.data = json.load(open("DEST/train.json")) in its MyDataset, whose data are an example


def _write_ms_diffusion(folder: Path, root: Path, entries: Sequence[Entry]) -> None:
    rows = [
        {
            "datas": {
                "text": e.caption,
                "image_file": str(root / e.image),
                "reference_image_files": [str(root / path) for path in e.references],
                "image_boxes": [list(to_corners(target)) for _, target in e.boxes],
                "reference_image_boxes": [list(to_corners(own)) for own, _ in e.boxes],
                "reference_image_masks": None,
                "image_phrases": list(e.texts),
            }
        }
        for e in entries
    ]
    (folder / "train.json").write_text(json.dumps(rows, indent=1), encoding="ascii")


def _read_ms_diffusion(folder: Path) -> Iterator[Loaded]:
    for row in json.loads((folder / "train.json").read_text("ascii")):
        datas = row["datas"]
        references = tuple(map(Path, datas["reference_image_files"]))
        yield Loaded("train.json", Path(datas["image_file"]), references, datas["text"])


def has_words(text: str, caption: str) -> bool:
    """Whether MS-Diffusion's loader finds the words of `text` in the caption.

    It splits both at spaces. A word of the caption may end in one of .!?,: or have "-" and the word wanted in it.
    """
    wanted, words = text.split(), caption.split()

    def same(word: str, want: str) -> bool:
        return f"-{want}" in word or re.sub(r"[.!?,:]$", "", word) == want

    places = range(len(words) - len(wanted) + 1)
    return bool(wanted) and any(all(map(same, words[i : i + len(wanted)], wanted)) for i in places)


def _refused_by_ms_diffusion(text: str, caption: str) -> str:
    return "" if has_words(text, caption) else "whose words its loader does not find in the caption"


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return json.dumps(text, ensure_ascii=False)


TRAINERS: Mapping[str, Trainer] = {
    "diffsynth-studio": Trainer("metadata.jsonl", _write_diffsynth, _read_diffsynth),
    "musubi-tuner": Trainer("dataset.toml and JSONL", _write_musubi, _read_musubi, even=True),
    "musubi-tuner-layers": Trainer(
        "the same for layered models: each picture with its layers, RGBA",
        _write_layers,
        _read_musubi,
        even=True,
        layered=True,
    ),
    "ai-toolkit": Trainer("folders of one file name", _write_ai_toolkit, _read_ai_toolkit, most=3, in_folders=True),
    "diffusion-pipe": Trainer(
        "the same, with one reference", _write_diffusion_pipe, _read_diffusion_pipe, most=1, in_folders=True
    ),
    "omnigen2": Trainer("data.yml and JSONL", _write_omnigen2, _read_omnigen2),
    "uno": Trainer("a JSON for each number of references", _write_uno, _read_uno, even=True),
    "ms-diffusion": Trainer(
        "train.json with boxes", _write_ms_diffusion, _read_ms_diffusion, most=4, refuses=_refused_by_ms_diffusion
    ),
}
"""The trainers, by the names that `--trainer` takes."""
