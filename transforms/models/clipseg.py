"""CLIPSeg with transformers: where in a picture a text is seen."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
from transformers.utils import logging

from schemas.errors import ModelError


@dataclass(eq=False)
class ClipSeg:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


def load_clipseg(checkpoint: str | Path) -> ClipSeg:
    """Load CLIPSeg from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    logging.set_verbosity_error()
    is_folder = Path(checkpoint).is_dir()
    if is_folder:
        logging.disable_progress_bar()  # a download takes minutes and shows its bar, a folder seconds
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, revision = (str(checkpoint), "", "") if is_folder else str(checkpoint).partition("@")
    place = {"pretrained_model_name_or_path": name, "revision": revision or "main"}
    try:
        config = CLIPSegConfig.get_config_dict(**place)[0]
        if config.get("model_type") != "clipseg":
            raise ModelError(f"{checkpoint} is a model of type {config.get('model_type')}, not CLIPSeg")
        processor = CLIPSegProcessor.from_pretrained(**place)
        # Weights may be stored in half precision; a CPU computes in single.
        model, loaded = CLIPSegForImageSegmentation.from_pretrained(
            **place, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_missing(checkpoint, error, is_folder=is_folder)) from error
    if loaded["missing_keys"]:
        raise ModelError(
            f"the CLIPSeg {checkpoint} lacks {len(loaded['missing_keys'])} of its weights, "
            f"such as {min(loaded['missing_keys'])}: it is incomplete"
        )
    return ClipSeg(model.eval().to(device), processor, device)


def _missing(checkpoint: str | Path, error: Exception, *, is_folder: bool) -> str:
    reason = shorten(str(error), 120)
    if is_folder:
        return f"the folder {checkpoint} is no CLIPSeg that can be loaded ({reason}). Give --model clipseg=FOLDER"
    return (
        f"no CLIPSeg {checkpoint}: looked for a folder of that name and on the Hugging Face hub "
        f"({reason}). Give --model clipseg=FOLDER, or go online once so that it is downloaded"
    )


def find_texts(
    clipseg: ClipSeg, images: Sequence[NDArray[np.uint8]], texts: Sequence[Sequence[str]]
) -> list[NDArray[np.float32]]:
    """Tell how sure it is of each pixel that it shows a text.

    The pictures go through the vision tower together and each once, however many texts are asked of it; then all
    pairs of picture and text go through the decoder together, every distinct text having been read once.

    Args:
        clipseg: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        texts: what is looked for, a sequence for each picture.

    Returns:
        [N, S, S] float32 in [0, 1] for each picture, a grid of the model's size over the whole of it.
    """
    asked = [index for index, wanted in enumerate(texts) if wanted]
    place = {text: i for i, text in enumerate(dict.fromkeys(text for wanted in texts for text in wanted))}
    pairs = [(row, place[text]) for row, index in enumerate(asked) for text in texts[index]]
    side = clipseg.model.config.vision_config.image_size
    found: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    if pairs:
        maps = _decode(clipseg, [images[index] for index in asked], list(place), pairs)
        for (row, _), one in zip(pairs, maps, strict=True):
            found[asked[row]].append(one)
    return [np.stack(found[i]) if found[i] else np.zeros((0, side, side), np.float32) for i in range(len(images))]


def _decode(
    clipseg: ClipSeg, images: Sequence[NDArray[np.uint8]], texts: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """Decode `pairs` of a row of `images` and one of `texts`: [len(pairs), S, S] float32 in [0, 1]."""
    model = clipseg.model
    # Said, not guessed: the processor would take a picture one or three pixels high for channels.
    inputs = [
        clipseg.processor(images=image, input_data_format="channels_last", return_tensors="pt") for image in images
    ]
    words = clipseg.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt").to(clipseg.device)
    rows, columns = torch.tensor(pairs, device=clipseg.device).T
    with torch.inference_mode():
        pixels = torch.cat([one["pixel_values"] for one in inputs]).to(clipseg.device)
        seen = model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        layers = [seen.hidden_states[i + 1][rows] for i in model.extract_layers]
        meanings = model.get_conditional_embeddings(len(texts), words["input_ids"], words["attention_mask"])
        maps: NDArray[np.float32] = model.decoder(layers, meanings[columns]).logits.sigmoid().cpu().numpy()
    return maps
