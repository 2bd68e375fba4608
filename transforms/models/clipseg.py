"""CLIPSeg with transformers: heatmaps of where a picture shows a text."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.settings import Precision


@dataclass(eq=False)
class ClipSeg:
    """A loaded checkpoint: the model, its processor and the device that it is on."""

    model: Any
    processor: Any
    device: str


def load_clipseg(checkpoint: str | Path, precision: Precision = "fp32") -> ClipSeg:
    """Load CLIPSeg from a folder or from the Hugging Face hub, as NAME or NAME@REVISION.

    Raises:
        ModelError: there is no such checkpoint, or it is broken or of another kind.
    """
    hub = HubModel("clipseg", "CLIPSeg", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(CLIPSegConfig.get_config_dict(**place)[0].get("model_type"), ["clipseg"])
        processor = CLIPSegProcessor.from_pretrained(**place)
        model, loaded = CLIPSegForImageSegmentation.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
    hub.check_weights(loaded)
    target = device()
    return ClipSeg(model.eval().to(target), processor, target)


def find_heatmaps(
    clipseg: ClipSeg, images: Sequence[NDArray[np.uint8]], texts: Sequence[Sequence[str]]
) -> list[NDArray[np.float32]]:
    """Per-pixel confidence that each picture shows each of its texts.

    Every picture goes through the vision tower once, however many texts it has, and every distinct text through the
    text tower once; the decoder then runs on all pairs of picture and text in one batch.

    Args:
        clipseg: the model.
        images: pictures, each [H, W, 3] uint8 RGB of any size.
        texts: the texts of each picture, any number.

    Returns:
        [N, S, S] float32 in [0, 1] for each picture and its N texts: a grid of the model's input size over the whole
        picture.
    """
    asked = [index for index, wanted in enumerate(texts) if wanted]
    place = {text: i for i, text in enumerate(dict.fromkeys(text for wanted in texts for text in wanted))}
    pairs = [(row, place[text]) for row, index in enumerate(asked) for text in texts[index]]
    side = clipseg.model.config.vision_config.image_size
    found: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    if pairs:
        maps = _decode(clipseg, [images[index] for index in asked], list(place), pairs)
        for (row, _), heatmap in zip(pairs, maps, strict=True):
            found[asked[row]].append(heatmap)
    return [np.stack(found[i]) if found[i] else np.zeros((0, side, side), np.float32) for i in range(len(images))]


def _decode(
    clipseg: ClipSeg, images: Sequence[NDArray[np.uint8]], texts: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """Decode `pairs` of (index of an image, index of a text): [len(pairs), S, S] float32 in [0, 1]."""
    model = clipseg.model
    # Stated, as the processor would take the rows of a picture that is one or three pixels high for its channels.
    inputs = [
        clipseg.processor(images=image, input_data_format="channels_last", return_tensors="pt") for image in images
    ]
    words = clipseg.processor(text=list(texts), padding=True, truncation=True, return_tensors="pt").to(clipseg.device)
    rows, columns = torch.tensor(pairs, device=clipseg.device).T
    with torch.inference_mode():
        pixels = torch.cat([picture["pixel_values"] for picture in inputs]).to(clipseg.device)
        vision = model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        layers = [vision.hidden_states[i + 1][rows] for i in model.extract_layers]
        conditions = model.get_conditional_embeddings(len(texts), words["input_ids"], words["attention_mask"])
        maps: NDArray[np.float32] = model.decoder(layers, conditions[columns]).logits.sigmoid().cpu().numpy()
    return maps
