"""Grounding DINO: boxes of what a caption's phrases name.

It runs with transformers, or with its authors' own code (`transforms.models.groundingdino`): both get the same pictures
and tokens, and their outputs are read by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
)

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.groundingdino import load_original
from transforms.models.settings import Precision


@dataclass(eq=False)
class Detector:
    """A loaded checkpoint: the model, what prepares pictures and texts for it, and the device that it is on.

    `model` is transformers' `GroundingDinoForObjectDetection` or has the same inputs and outputs.
    """

    model: Any
    processor: Any
    tokenizer: Any
    device: str


def load_detector(checkpoint: str | Path, precision: Precision = "fp32") -> Detector:
    """Load Grounding DINO from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    A name that ends in .pth is a file for groundingdino-py: `transforms.models.groundingdino.load_original`.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    target = device()
    if str(checkpoint).endswith(".pth"):
        original, own_tokenizer = load_original(str(checkpoint))
        # The image processor's defaults are how the authors prepare pictures.
        return Detector(original.eval().to(target), GroundingDinoImageProcessor(), own_tokenizer, target)
    hub = HubModel("detector", "Grounding DINO", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(GroundingDinoConfig.get_config_dict(**place)[0].get("model_type"), ["grounding-dino"])
        model, loaded = GroundingDinoForObjectDetection.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
        processor = GroundingDinoImageProcessor.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    hub.check_weights(loaded)
    return Detector(model.eval().to(target), processor, tokenizer, target)


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


def tokens_of(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """Return the tokens that lie in a span of the prompt, given the characters [start, end) of each token."""
    return [i for i, (start, end) in enumerate(offsets) if start < end and span[0] <= start and end <= span[1]]


def detect_phrases(
    detector: Detector, images: Sequence[NDArray[np.uint8]], phrases: Sequence[Sequence[str]]
) -> list[Detections]:
    """Detect phrases in pictures, in one batch.

    Args:
        detector: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        phrases: the phrases of each picture, one or more.
    """
    if not images:
        return []
    prompts, spans = zip(*map(write_prompt, phrases), strict=True)
    longest = detector.model.config.max_text_len
    texts = detector.tokenizer(
        list(prompts),
        padding=True,
        truncation=True,
        max_length=longest,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = texts.pop("offset_mapping").tolist()
    # Stated, as the processor would take the rows of a picture that is one or three pixels high for its channels.
    pixels = detector.processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
    with torch.inference_mode():
        output = detector.model(**pixels.to(detector.device), **texts.to(detector.device))
    token_scores, boxes = output.logits.sigmoid().cpu().numpy(), output.pred_boxes.cpu().numpy()
    return [
        Detections(_corners(boxes[i], images[i].shape), _scores(token_scores[i], offsets[i], spans[i]))
        for i in range(len(images))
    ]


def _corners(boxes: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn boxes [Q, 4], (centre, size) as shares of the picture, into corners in pixels."""
    size = np.array([shape[1], shape[0]], np.float32)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    corners: NDArray[np.float32] = np.clip(np.concatenate([low * size, high * size], axis=1), 0, np.tile(size, 2))
    return corners


def _scores(
    token_scores: NDArray[np.float32], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """The highest score of each phrase's tokens, [P, Q], of `token_scores` [Q, L]."""
    rows = [token_scores[:, tokens_of(offsets, span)].max(axis=1, initial=0) for span in spans]
    return np.stack(rows).astype(np.float32)
