"""Settings of models that recipes have in their configs: they can be set without loading a model library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """How a captioner writes.

    `prompt` is the beginning that the caption continues ("" for none), `beams` the width of the beam search, `longest`
    the largest number of new tokens.
    """

    prompt: str = ""
    beams: int = 5
    longest: int = 30


@dataclass(frozen=True)
class Everything:
    """How SAM looks for all masks of a picture; the defaults are those of segment-anything.

    The prompts are a grid of `points` x `points`. A mask is kept if its predicted IoU and its stability score, both
    in [0, 1], reach `predicted_iou` and `stability`.
    """

    points: int = 32
    predicted_iou: float = 0.88
    stability: float = 0.95
