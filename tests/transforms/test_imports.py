"""Which libraries importing the steps loads: each waits until a step runs that uses it."""

import json
import subprocess
import sys

from tests.paths import ROOT

PROGRAM = """
import json, pkgutil, sys
from importlib import import_module

LIBRARIES = ("apache_beam", "torch", "transformers", "open_clip", "segment_anything", "spacy", "pymatting", "numba",
             "huggingface_hub", "inflect")

def loaded():
    return [name for name in LIBRARIES if name in sys.modules]

for name in ("transforms.listing", "transforms.models.presets", "transforms.matting.backgrounds", "transforms.files"):
    import_module(name)
listing = loaded()

import transforms
steps = [module.name for module in pkgutil.walk_packages(transforms.__path__, "transforms.")]
for name in steps:
    if not name.startswith("transforms.models.") and name != "transforms.matting.laplacian":
        import_module(name)
print(json.dumps([listing, loaded(), len(steps)]))
"""


def test_listing_loads_no_beam_and_steps_load_no_model_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    listing, steps, count = json.loads(done.stdout.splitlines()[-1])
    assert listing == []
    assert steps == ["apache_beam"]
    assert count > 40
