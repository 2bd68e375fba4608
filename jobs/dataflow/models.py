"""Download published models while an image is built, so that workers start without the hub.

`python -m jobs.dataflow.models segmenter clip` downloads these two.
"""

import sys
from collections.abc import Sequence

from huggingface_hub import hf_hub_download, snapshot_download

from schemas.errors import ConfigError, choices
from transforms.models.presets import KINDS, PRESETS, hub_file

OTHER_FORMATS = ("*.msgpack", "*.h5", "*.ot", "*.onnx", "*.tflite")
"""Weights that no loader of ours reads."""


def download(kinds: Sequence[str]) -> list[str]:
    """Download the hub preset's models of these kinds to huggingface_hub's cache; return where they lie.

    Raises:
        ConfigError: there is no such kind, or its model is a Python package, to be installed.
    """
    places = []
    for kind in kinds:
        if kind not in KINDS or kind == "parser":
            raise ConfigError(f"no model {kind!r} is on the hub{choices(kind, [k for k in KINDS if k != 'parser'])}")
        checkpoint = getattr(PRESETS["hub"], kind)
        repository, file = hub_file(checkpoint)
        name, _, revision = repository.partition("@")
        if checkpoint.endswith(f"/{file}"):
            places.append(hf_hub_download(name, file, revision=revision or None))
        else:
            places.append(snapshot_download(name, revision=revision or None, ignore_patterns=list(OTHER_FORMATS)))
    return places


if __name__ == "__main__":
    sys.stdout.write("".join(f"{place}\n" for place in download(sys.argv[1:])))
