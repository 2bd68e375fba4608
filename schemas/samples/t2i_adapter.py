"""What a T2I-Adapter sample is: a picture, its caption and its condition maps; see `schemas.samples.mapped`."""

from schemas.samples.mapped import mapped_format

FORMAT = mapped_format("t2i-adapter")
