"""Export to InstanceDiffusion, which trains on boxes and masks with a text for each.

    DEST/jsons/KEY.json   picture (base64), caption, annos: bbox [x, y, w, h], mask, caption, category_name, embeddings
    DEST/train.txt        a path of a JSON per line, relative to DEST: give DEST as root_dir

The format follows from what its loader does (frank-xwang/InstanceDiffusion, `dataset/decode_item.py`):

- `text_embedding_before` is the embedding of the category's name by CLIP's text tower, 768 float32 in base64, and
  `blip_clip_embeddings` that of the subject's own words.
- It uses the subjects' own words (`caption`) only where `is_det` is 1; then it puts the categories before the caption.
- It cannot load a picture with a single mask (it drops an axis of length one): such a subject has its box alone.
- It drops boxes of less than a hundredth of its square crop, and keeps the eight largest.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.exports.folder import new_folder, read_samples, recipe_of
from jobs.exports.subjects import INSTANCES, Instance, Shown, show
from schemas.errors import ModelError, SubjectloomError
from schemas.images import decode_image
from schemas.masks import Mask

if TYPE_CHECKING:
    from transforms.models.text_encoder import TextEncoder

TEXT_ENCODER = "openai/clip-vit-large-patch14"
SIZE = 768
"""Numbers in an embedding (its `embedding_len`)."""


@dataclass(frozen=True)
class Exported:
    """Numbers of what an export wrote; `boxes_alone` is how many subjects have no mask, as each is alone."""

    written: int
    subjects: int
    boxes_alone: int

    def lines(self, destination: Path) -> list[str]:
        """Return the numbers as lines for the terminal; `destination` is the folder."""
        return [
            f"{self.written} pictures with {self.subjects} subjects in {destination}",
            f"{self.boxes_alone} subjects without a mask, as its loader takes no single one",
            "checked as the trainer reads it: every file is there, every box, mask and embedding fits",
        ]


def export_instancediffusion(output: str, destination: Path, *, text_encoder: str = TEXT_ENCODER) -> Exported:
    """Write the dataset in `output` to the folder `destination`; texts are embedded by the CLIP `text_encoder`.

    Raises:
        InputError: `output` holds no finished dataset with subjects, or `destination` is not empty.
        ModelError: There is no such CLIP, or its embeddings have another size than `SIZE`.
        SubjectloomError: The check found faults; each is a line of the message.
    """
    from transforms.models.text_encoder import load_text_encoder  # noqa: PLC0415 - imports torch and transformers

    recipe = recipe_of(output, INSTANCES, "boxes")
    with new_folder(destination) as folder:
        encoder = load_text_encoder(text_encoder)
        if encoder.size != SIZE:
            raise ModelError(
                f"the CLIP {text_encoder} embeds texts in {encoder.size} numbers, InstanceDiffusion takes {SIZE}: "
                f"give --text-encoder {TEXT_ENCODER}"
            )
        (folder / "jsons").mkdir()
        subjects = boxes_alone = 0
        names: list[str] = []
        for sample in read_samples(output, recipe):
            shown, instances = show(recipe, sample), INSTANCES[recipe](sample)
            content = _describe(encoder, shown, instances)
            names.append(f"jsons/{shown.key}.json")
            (folder / names[-1]).write_text(json.dumps(content), encoding="ascii")
            subjects += len(instances)
            boxes_alone += len(instances) == 1
        (folder / "train.txt").write_text("".join(f"{name}\n" for name in names), encoding="ascii")
    faults = list(find_faults(destination, len(names)))
    if faults:
        raise SubjectloomError(f"{len(faults)} faults in {destination}:\n" + "\n".join(faults))
    return Exported(len(names), subjects, boxes_alone)


def _describe(encoder: "TextEncoder", shown: Shown, instances: list[Instance]) -> dict[str, Any]:
    from transforms.models.text_encoder import embed_pooled  # noqa: PLC0415 - imports torch and transformers

    texts = [text for thing in instances for text in (thing.label, _whole_text(thing))]
    embeddings = embed_pooled(encoder, texts)
    return {
        "file_name": f"{shown.key}.jpg",
        "dataset_name": "subjectloom",
        "data_id": 1,
        "is_det": 1,
        "width": shown.width,
        "height": shown.height,
        "caption": shown.caption,
        "image": base64.b64encode(shown.image).decode("ascii"),
        "annos": [
            _annotation(i, thing, embeddings[2 * i], embeddings[2 * i + 1], len(instances) > 1)
            for i, thing in enumerate(instances)
        ],
    }


def _whole_text(thing: Instance) -> str:
    """The subject's own words, behind its category where they do not name it."""
    return thing.text if thing.label.lower() in thing.text.lower() else f"{thing.label}. {thing.text}"


def _annotation(
    index: int, thing: Instance, category: NDArray[np.float32], text: NDArray[np.float32], with_mask: bool
) -> dict[str, Any]:
    mask = Mask.from_array(thing.mask)
    return {
        "id": index,
        "data_id": 1,
        "bbox": list(thing.bbox),
        "area": thing.bbox[2] * thing.bbox[3],
        **({"mask": mask.to_json()} if with_mask else {}),
        "mask_value": index + 1,
        "pred_score": thing.score,
        "category_id": 0,
        "category_name": thing.label,
        "caption": thing.text,
        "text_embedding_before": _encoded(category),
        "blip_clip_embeddings": _encoded(text),
        "is_thing": 1,
        "is_stuff": 0,
    }


def _encoded(embedding: NDArray[np.float32]) -> str:
    return base64.b64encode(np.asarray(embedding, "<f4").tobytes()).decode("ascii")


def find_faults(folder: Path, expected: int) -> Iterator[str]:
    """Yield what the loader would fail on in the folder of an export with `expected` pictures, a line for each."""
    names = (folder / "train.txt").read_text("ascii").split()
    if len(names) != expected:
        yield f"train.txt: {len(names)} names, {expected} pictures were written"
    for name in names:
        if not (folder / name).is_file():
            yield f"{name}: is not there"
            continue
        try:
            yield from (f"{name}: {problem}" for problem in _problems(json.loads((folder / name).read_text("ascii"))))
        except (ValueError, KeyError, TypeError) as error:
            yield f"{name}: is not what its loader takes: {error!r}"


def _problems(content: dict[str, Any]) -> Iterator[str]:
    height, width = decode_image(base64.b64decode(content["image"])).shape[:2]
    masks = [anno["mask"] for anno in content["annos"] if "mask" in anno]
    if masks and len(masks) != len(content["annos"]):
        yield f"{len(masks)} of {len(content['annos'])} subjects have a mask: it takes all or none"
    if len(masks) == 1:
        yield "has a single mask, which it cannot load"
    for index, anno in enumerate(content["annos"]):
        x, y, w, h = anno["bbox"]
        if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
            yield f"annos[{index}]: the box {anno['bbox']} is empty or reaches beyond the picture"
        if "mask" in anno and tuple(anno["mask"]["size"]) != (height, width):
            yield f"annos[{index}]: the mask is of another size than the picture"
        for name in ("text_embedding_before", "blip_clip_embeddings"):
            if len(base64.b64decode(anno[name])) != 4 * SIZE:
                yield f"annos[{index}]: {name} is not of {SIZE} numbers"
