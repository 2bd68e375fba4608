"""CLIPSeg with transformers: heatmaps of where a picture shows a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

from transforms.models.checkpoints import HubModel, device, dtype_of
from transforms.models.places import located
from transforms.models.settings import Precision
from transforms.models.tensors import download, upload

AT_ONCE = 128
"""Most pairs of a picture and a text that are decoded together."""


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
    checkpoint = located(checkpoint)
    hub = HubModel("clipseg", "CLIPSeg", str(checkpoint))
    with hub.loading() as place:
        hub.check_type(CLIPSegConfig.get_config_dict(**place)[0].get("model_type"), ["clipseg"])
        processor = CLIPSegProcessor.from_pretrained(**place)
        model, loaded = CLIPSegForImageSegmentation.from_pretrained(
            **place, dtype=dtype_of(precision), output_loading_info=True
        )
    hub.check_weights(loaded)
    target = device()
    _tokens(processor, [""])  # its first call sets it to pad and to cut off: later ones, by any thread, change nothing
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
    side = clipseg.model.config.vision_config.image_size
    found = [np.zeros((0, side, side), np.float32)] * len(images)
    if not asked:
        return found
    counts = [len(texts[index]) for index in asked]
    pairs = np.array([(row, place[text]) for row, index in enumerate(asked) for text in texts[index]])
    tokens = _tokens(clipseg.processor, list(place))
    words, mask, pairs_there, *pictures = upload(
        [tokens["input_ids"], tokens["attention_mask"], pairs, *(images[index] for index in asked)], clipseg.device
    )
    (maps,) = download([_decode(clipseg, [p.permute(2, 0, 1) for p in pictures], words, mask, pairs_there)])
    for index, end, count in zip(asked, np.cumsum(counts).tolist(), counts, strict=True):
        found[index] = maps[end - count : end]
    return found


def _tokens(processor: Any, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:  # noqa: ANN401 - of transformers
    """Return `input_ids` and `attention_mask`, [N, L] each."""
    tokens: dict[str, NDArray[np.int64]] = processor.tokenizer(
        list(texts), padding=True, truncation=True, return_tensors="np"
    )
    return tokens


def _decode(
    clipseg: ClipSeg,
    images: Sequence[torch.Tensor],
    words: torch.Tensor,
    mask: torch.Tensor,
    pairs: torch.Tensor,
) -> torch.Tensor:
    """Decode pairs of a picture and a text; all tensors are on the model's device.

    Args:
        clipseg: the model.
        images: pictures, each [3, H, W] uint8.
        words: tokens of the texts, [N, L].
        mask: 1 for each token that is not padding, [N, L].
        pairs: [P, 2], (index of an image, index of a text); all pairs of an image are together, in order of the images.

    Returns:
        [P, S, S] in [0, 1], float32 or, of a model in bf16, float16, which is more than such a model is exact to.
    """
    model = clipseg.model
    with torch.inference_mode():
        # Stated, as the processor would take the rows of a picture that is one or three pixels high for its channels.
        pixels = clipseg.processor.image_processor(
            images=list(images), input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"].to(model.dtype)
        vision = model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        conditions = model.get_conditional_embeddings(len(words), words, mask)
        maps = []
        for rows, columns in zip(pairs[:, 0].split(AT_ONCE), pairs[:, 1].split(AT_ONCE), strict=True):
            layers = [vision.hidden_states[i + 1][rows] for i in model.extract_layers]
            maps.append(model.decoder(layers, conditions[columns]).logits.float().sigmoid())
        together = torch.cat(maps)
    return together if model.dtype == torch.float32 else together.half()
