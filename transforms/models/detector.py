"""Grounding DINO: boxes of what a caption's phrases name.

It runs with transformers, or with its authors' own code (`transforms.models.groundingdino`): both get the same pictures
and tokens, and their outputs are read by the same code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.groundingdino import ImageProcessor, load_original
from transforms.models.places import located
from transforms.models.settings import Precision
from transforms.models.tensors import download, groups, process_pictures, upload_pictures

AT_ONCE = 8
"""Pictures that go through the model together, at most."""


@dataclass(eq=False)
class Detector:
    """A loaded checkpoint: the model, what prepares pictures and texts for it, and the device that it is on.

    `model` is transformers' `GroundingDinoForObjectDetection` or has the same inputs and outputs. Its matrix products
    are computed in `dtype`.
    """

    model: Any
    processor: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype = torch.float32


def load_detector(checkpoint: str | Path, precision: Precision = "fp32") -> Detector:
    """Load Grounding DINO from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    A name that ends in .pth is a file for groundingdino-py: `transforms.models.groundingdino.load_original`.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    checkpoint = located(checkpoint)
    target = device()
    if str(checkpoint).endswith(".pth"):
        original, own_tokenizer = load_original(str(checkpoint))
        # The image processor's defaults are how the authors prepare pictures. Their kernel has no bf16.
        return _ready(Detector(original.eval().to(target), ImageProcessor(), own_tokenizer, target))
    hub = HubModel("detector", "Grounding DINO", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(GroundingDinoConfig.get_config_dict(**place)[0].get("model_type"), ["grounding-dino"])
        # Always in single precision: bf16 would round the coordinates of boxes to 1/256 of the picture.
        model, loaded = GroundingDinoForObjectDetection.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
        processor = ImageProcessor.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    hub.check_weights(loaded)
    return _ready(Detector(model.eval().to(target), processor, tokenizer, target, dtype_of(precision)))


def _ready(detector: Detector) -> Detector:
    """Let threads share the tokenizer: it only changes itself in a call whose arguments differ from those before."""
    tokenize(detector.tokenizer, ["."], detector.model.config.max_text_len)
    return detector


@dataclass(frozen=True)
class Detections:
    """What was found in a picture: `corners` [Q, 4] float32, (left, top, right, bottom) in pixels, inside the picture.

    `scores` [P, Q] float32 in [0, 1] says how well each box fits each phrase: the highest score of the phrase's
    tokens. A phrase beyond the model's longest text has 0 everywhere.
    """

    corners: NDArray[np.float32]
    scores: NDArray[np.float32]


def write_prompt(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Write the prompt of Grounding DINO, lower-case phrases each followed by a full stop, and the span of each phrase.

    Words attend only to words between the same full stops. A full stop within a phrase would split it: it becomes a
    space.
    """
    spans = []
    prompt = ""
    for phrase in phrases:
        text = phrase.replace(".", " ").lower()
        spans.append((len(prompt), len(prompt) + len(text)))
        prompt += f"{text} . "
    return prompt.rstrip(), spans


def tokens_of(offsets: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens lie in each span of the prompt: [P, L] bool, given the characters [start, end) of tokens, [L, 2]."""
    starts, ends = offsets.T
    low, high = np.array(spans).T[:, :, None]
    return (starts < ends) & (low <= starts) & (ends <= high)


def detect_phrases(
    detector: Detector, images: Sequence[NDArray[np.uint8]], phrases: Sequence[Sequence[str]]
) -> list[Detections]:
    """Detect phrases in pictures.

    Pictures that the processor resizes to the same size go through the model in one batch.

    Args:
        detector: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        phrases: the phrases of each picture, one or more.
    """
    if not images:
        return []
    prompts, spans = zip(*map(write_prompt, phrases), strict=True)
    texts = tokenize(detector.tokenizer, prompts, detector.model.config.max_text_len)
    offsets = texts.pop("offset_mapping").numpy()
    tokens = _padded([tokens_of(*own) for own in zip(offsets, spans, strict=True)])
    found = _forward(detector, upload_pictures(images, detector.device), texts, tokens)
    host = download([tensor for scores_and_boxes in found for tensor in scores_and_boxes])
    return [
        Detections(_corners(boxes, image.shape), scores[: len(own)])
        for scores, boxes, image, own in zip(host[::2], host[1::2], images, phrases, strict=True)
    ]


def tokenize(tokenizer: Any, prompts: Sequence[str], longest: int) -> dict[str, Tensor]:  # noqa: ANN401
    """Turn prompts into tokens, [N, L] each, with "offset_mapping" [N, L, 2]; at most `longest` of each are kept."""
    return dict(
        tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=longest,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
    )


def _padded(chosen: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Turn the tokens of phrases, [P, L] bool for each picture, into indices [N, P, T]; -1 where there is none."""
    shape = max(map(len, chosen)), max(1, *(int(own.sum(1).max()) for own in chosen))
    indices = np.full((len(chosen), *shape), -1)
    for own, row in zip(chosen, indices, strict=True):
        phrase, token = np.nonzero(own)
        # The tokens of a phrase come one after the other.
        row[phrase, np.arange(len(phrase)) - np.searchsorted(phrase, phrase)] = token
    return indices


@torch.inference_mode()
def _forward(
    detector: Detector, pictures: Sequence[Tensor], texts: Mapping[str, Tensor], tokens: NDArray[np.int64]
) -> list[tuple[Tensor, Tensor]]:
    """Do all that runs on the device.

    Args:
        detector: the model.
        pictures: [3, H, W] uint8 each, on the device.
        texts: the tokens of the N pictures, [N, L] each.
        tokens: [N, P, T], the tokens of each phrase, -1 for none.

    Returns:
        For each picture the highest score of each phrase's tokens, [P, Q] float32 in [0, 1], and boxes [Q, 4], (centre,
        size) as shares of the picture.
    """
    inputs = process_pictures(detector.processor, pictures)
    texts = {name: values.to(detector.device) for name, values in texts.items()}
    wanted = torch.from_numpy(tokens).to(detector.device)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for members in groups((picture["pixel_values"].shape for picture in inputs), AT_ONCE):
        together = {name: torch.cat([inputs[i][name] for i in members]) for name in inputs[members[0]]}
        own_texts = {name: values[members] for name, values in texts.items()}
        with torch.autocast(detector.device.partition(":")[0], detector.dtype, detector.dtype != torch.float32):
            output = detector.model(**together, **own_texts)
        # A token of score 0 behind the others stands for none.
        scores = F.pad(output.logits.float().sigmoid(), (0, 1))
        places = wanted[members].where(wanted[members] >= 0, scores.shape[-1] - 1)
        of_tokens = scores.gather(2, places.flatten(1)[:, None].expand(-1, scores.shape[1], -1))
        of_phrases = of_tokens.unflatten(2, places.shape[1:]).amax(-1).transpose(1, 2)
        found.update(zip(members, zip(of_phrases, output.pred_boxes.float(), strict=True), strict=True))
    return [found[index] for index in range(len(pictures))]


def _corners(boxes: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn boxes [Q, 4], (centre, size) as shares of the picture, into corners in pixels."""
    size = np.array([shape[1], shape[0]], np.float32)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    corners: NDArray[np.float32] = np.clip(np.concatenate([low * size, high * size], axis=1), 0, np.tile(size, 2))
    return corners
