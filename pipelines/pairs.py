"""Pairs: two different pictures of one subject, the target and a reference, each with mask and caption.

    subjectloom build pairs --input PICTURES --output OUT

The pictures' subjects are found by another recipe (`subjects`) or are those of a dataset, if PICTURES is one. Subjects
of one folder, of one id in the address of their pictures, or of similar embeddings are compared by CLIP, and each gets
the most similar one within the bounds as its reference (`transforms.selection.pairs`). A pair has no training recipe of
its own: `subjectloom export --format references` hands pairs to trainers that take references.
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.recipe import BuildConfig

SUBJECTS = ("fastcomposer", "blip-diffusion", "mip-adapter", "captioned")
"""Recipes whose samples pairs are made of."""


class PairsConfig(BuildConfig):
    """What can be chosen about pairs."""

    subjects: Literal["fastcomposer", "blip-diffusion", "mip-adapter", "captioned"] = Field(
        default="fastcomposer",
        description="recipe that finds the subjects; captioned: the whole picture shows one subject",
    )
    group: Literal["folder", "pattern", "clusters"] = Field(
        default="folder",
        description="which subjects are compared: those of a folder, of an id in the pictures' addresses (pattern), or "
        "of similar embeddings (clusters)",
    )
    pattern: str = Field(
        default="",
        description="regular expression that finds the id in an address, in parentheses: '(\\w+)-\\d+\\.jpg'",
    )
    lower: float = Field(
        default=0.6, ge=-1, le=1, description="lowest similarity of a pair, a cosine of CLIP (reasoned, not measured)"
    )
    upper: float = Field(
        default=0.95, ge=-1, le=1, description="highest similarity: near copies teach a model to copy (reasoned)"
    )
    caption: str = Field(
        default="",
        description="caption of pictures that have none; {group} stands for their folder: 'a photo of {group}'",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lower > self.upper:
            raise ValueError(f"lower {self.lower} must not be above upper {self.upper}")
        if (self.group == "pattern") != bool(self.pattern):
            raise ValueError("group = 'pattern' and a pattern belong together: give both or neither")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        return self
