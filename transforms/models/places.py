"""Where the sample models lie. Jobs call them "sample/KIND", so that each machine finds those that it has installed."""

from pathlib import Path

SAMPLE = Path(__file__).parent / "sample"
"""Models trained by this project on its own scenes (`jobs.sample_models`); only the parser serves real captions."""


def located(checkpoint: str | Path) -> str:
    """Return the folder of a sample model on this machine for its name "sample/KIND"; any other checkpoint as it is."""
    folder, _, kind = str(checkpoint).partition("/")
    return str(SAMPLE / kind) if folder == "sample" and (SAMPLE / kind).exists() else str(checkpoint)
