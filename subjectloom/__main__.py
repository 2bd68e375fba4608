"""`python -m subjectloom` and `torchrun -m subjectloom`: the same as the command `subjectloom`."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("schemas", "transforms", "pipelines", "training", "jobs")
"""The packages beside this one that make up Subjectloom."""


def shadowed(root: Path) -> list[str]:
    """Return where other packages lie that Python finds in place of ours, which lie in `root`."""
    found = {name: find_spec(name) for name in PACKAGES}
    places = {name: Path(spec.origin).parent if spec and spec.origin else None for name, spec in found.items()}
    return [str(place or name) for name, place in places.items() if place != root / name]


def main() -> None:
    """Run the command, unless another package has the name of one of ours."""
    if others := shadowed(Path(__file__).resolve().parents[1]):
        sys.exit(
            f"error: Python finds {others[0]} in place of Subjectloom's package of that name: start in another folder, "
            "or rename yours"
        )
    try:
        import_module("jobs.main").main()
    except KeyboardInterrupt:  # before the command itself answers to Ctrl-C
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
