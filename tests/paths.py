"""Where tests find the repository, and the folder of shared data beside it (absent in most checkouts)."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
