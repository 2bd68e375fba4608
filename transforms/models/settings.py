"""Settings of models that recipes have in their configs: they can be set without loading a model library."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
"""Floating-point numbers that models compute with; "auto" is bf16 on a CUDA device that has it, else fp32."""


@dataclass(frozen=True)
class Hosting:
    """How the workers of a build hold its models.

    Attributes:
        precision: of weights and activations. A build settles "auto" before it starts.
        copies: how many copies of each model the processes of a machine share; None: each process loads its own.
        large: load each model once per machine, in one process that serves the others.
    """

    precision: Precision = "auto"
    copies: int | None = None
    large: bool = False


HOSTING = Hosting()
"""Each process loads its own model, and computes in what its device does best."""

FILL = (122, 116, 104)
"""RGB around a segment's crop: the mean that OpenAI's CLIP subtracts, so that the model sees zeros there."""


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
