"""The base of all that is written as JSON. It is light: a config must be checked before anything slow is imported."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Base of all that is written as JSON: an unknown or a missing field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
