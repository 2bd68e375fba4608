"""Grounding DINO: boxes of what a caption's phrases name.

With transformers, or with its authors' own code (`transforms.models.groundingdino`): both are given the same pictures
and the same tokens, and their answers are read in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
)
from transformers.utils import logging

from schemas.errors import ModelError
from transforms.models.groundingdino import load_original


@dataclass(eq=False)
class Detector:
    """A loaded checkpoint: the model, what prepares pictures and texts for it, and the device that it is on.

    `model` is transformers' `GroundingDinoForObjectDetection`, or asked and answering as that.
    """

    model: Any
    processor: Any
    tokenizer: Any
    device: str


def load_detector(checkpoint: str | Path) -> Detector:
    """Load Grounding DINO from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    A name that ends in .pth is a file for groundingdino-py: `transforms.models.groundingdino.load_original`.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(checkpoint).endswith(".pth"):
        original, own_tokenizer = load_original(str(checkpoint))
        # Its defaults are how the authors prepare pictures.
        return Detector(original.eval().to(device), GroundingDinoImageProcessor(), own_tokenizer, device)
    is_folder = Path(checkpoint).is_dir()
    name, _, revision = (str(checkpoint), "", "") if is_folder else str(checkpoint).partition("@")
    place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
    try:
        kind = GroundingDinoConfig.get_config_dict(**place)[0].get("model_type")
        if kind != "grounding-dino":
            raise ModelError(f"{checkpoint} is a model of type {kind}, not Grounding DINO")
        model, loaded = GroundingDinoForObjectDetection.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
        processor = GroundingDinoImageProcessor.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"no Grounding DINO {checkpoint}: looked for a folder of that name and on the Hugging Face hub "
            f"({shorten(str(error), 120)}). Give --model detector=FOLDER, or go online once so that it is downloaded"
        ) from error
    if loaded["missing_keys"]:
        raise ModelError(
            f"the Grounding DINO {checkpoint} lacks {len(loaded['missing_keys'])} of its weights, "
            f"such as {min(loaded['missing_keys'])}: it is incomplete"
        )
    return Detector(model.eval().to(device), processor, tokenizer, device)


@dataclass(frozen=True)
class Detections:
    """What was found in a picture: corners [Q, 4] float32 (x, y, x, y) in pixels, inside the picture.

    `scores` [P, Q] float32 in [0, 1] says how well each box fits each phrase: the highest of its tokens. A phrase
    beyond the model's longest text has 0 everywhere.
    """

    corners: NDArray[np.float32]
    scores: NDArray[np.float32]


def write_prompt(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Write the phrases as Grounding DINO reads them, in lower case, a full stop after each; and the span of each.

    Between full stops the model's words see only each other. A full stop within a phrase would cut it: it becomes a
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
    """Look for phrases in pictures, all of them together.

    Args:
        detector: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        phrases: those of each picture, one or more.
    """
    if not images:
        return []
    prompts, spans = zip(*(write_prompt(own) for own in phrases), strict=True)
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
    # Said, not guessed: the processor would take a picture one or three pixels high for channels.
    pixels = detector.processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
    with torch.inference_mode():
        answer = detector.model(**pixels.to(detector.device), **texts.to(detector.device))
    certain, boxes = answer.logits.sigmoid().cpu().numpy(), answer.pred_boxes.cpu().numpy()
    return [
        Detections(_corners(boxes[i], images[i].shape), _scores(certain[i], offsets[i], spans[i]))
        for i in range(len(images))
    ]


def _corners(boxes: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn boxes [Q, 4], (centre, size) as shares of the picture, into corners in pixels."""
    size = np.array([shape[1], shape[0]], np.float32)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    corners: NDArray[np.float32] = np.clip(np.concatenate([low * size, high * size], axis=1), 0, np.tile(size, 2))
    return corners


def _scores(
    certain: NDArray[np.float32], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """Take the highest of each phrase's tokens from `certain` [Q, L]: [P, Q]."""
    rows = [certain[:, tokens_of(offsets, span)].max(axis=1, initial=0) for span in spans]
    return np.stack(rows).astype(np.float32)
