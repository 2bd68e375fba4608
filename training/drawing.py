"""How pictures are drawn, without torch: settings are checked before anything slow is imported."""

from typing import Literal

from pydantic import Field

from schemas.strict import StrictModel


class Drawing(StrictModel):
    """How pictures are drawn. What is None is as in the model's sample pictures."""

    count: int = Field(default=4, gt=0, description="pictures of each prompt")
    seed: int = Field(default=0, ge=0, description="of the noise, together with a picture's number")
    batch: int = Field(default=4, gt=0, description="pictures that are drawn at a time")
    size: int | None = Field(default=None, gt=0, multiple_of=8, description="side of the pictures, in pixels")
    steps: int | None = Field(default=None, gt=0, description="sampling steps")
    guidance: float | None = Field(default=None, ge=1, description="weight of classifier-free guidance; 1: none")
    negative_prompt: str | None = Field(default=None, description="text that guidance leads away from")
    scheduler: Literal["ddim", "euler", "dpm++"] = Field(default="ddim", description="how noise becomes a picture")
    precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="mixed precision; fp16 needs a GPU")


class Placing(StrictModel):
    """How layout guidance draws phrases in boxes. The defaults are those of the published code, for `backward`."""

    way: Literal["backward", "forward"] = Field(
        default="backward", description="move the latents by a gradient, or mix the attention with windows"
    )
    share: float = Field(default=0.2, ge=0, le=1, description="share of the steps that are guided, the first ones")
    step: Literal["code", "paper"] = Field(
        default="code", description="backward: length of a step is eta sigma^2 (the code's) or eta sigma (the paper's)"
    )
    eta: float = Field(default=30.0, ge=0, description="backward: scale of the energy's gradient")
    repeats: int = Field(default=5, ge=1, description="backward: most moves in a step")
    enough: float = Field(default=0.2, ge=0, description="backward: energy below which latents are not moved")
    strength: float = Field(
        default=0.8, ge=0, le=1, description="forward: weight of the windows, lambda (chosen by us)"
    )
