"""What a folder holds, for errors about models that are not in it."""

import json
from pathlib import Path

CONTENTS = {
    "meta.json": "a spaCy pipeline",
    "open_clip_config.json": "a CLIP of open_clip",
    "dataset.json": "a dataset of Subjectloom",
    "checkpoints": "a training run, whose model is in model/",
    "qformer": "a Q-Former",
}
"""What a file or folder of that name is found in."""

SHOWN = 3
"""Most names that are listed of a folder that holds none of these."""


def describe_folder(folder: str | Path) -> str:
    """Say what a folder holds, as "it holds a spaCy pipeline" or "it is empty"."""
    names = sorted(path.name for path in Path(folder).iterdir())
    if "unet" in names:
        parts = [name for name in names if (Path(folder) / name).is_dir()]
        return f"it holds a diffusion model of {', '.join(parts)}"
    for name, content in CONTENTS.items():
        if name in names:
            return f"it holds {content}"
    if kind := _kind_of_model(Path(folder) / "config.json"):
        return f"it holds a model of type {kind}"
    if not names:
        return "it is empty"
    return f"it holds no model, but {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def _kind_of_model(config: Path) -> str:
    """Return the type that a `config.json` of transformers or diffusers states, "" if there is none."""
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(fields.get("model_type") or fields.get("_class_name") or "") if isinstance(fields, dict) else ""
