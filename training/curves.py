"""A run's curves as one SVG file, from its `metrics.jsonl`."""

import json
import math
from pathlib import Path

import numpy as np

from training.log import NOT_LOSSES

WIDTH, HEIGHT, LEFT, TOP = 320, 180, 72, 28
"""Size of a panel's plot, and the margins to its left and above it, in pixels."""
POINTS = 400
"""Largest number of points of a curve; each is the mean of several steps if there are more."""
SMOOTHING = 20
"""A curve's smoothed line is the mean over a window of a `SMOOTHING`th of its points."""

_STYLE = """
  svg { background: #fff; color: #1c1c1c; font: 12px system-ui, sans-serif; }
  text { fill: currentColor; } .line { fill: none; stroke: #1f6feb; stroke-width: 1.5; }
  .faint { stroke-opacity: .3; }
  .frame { fill: none; stroke: currentColor; stroke-opacity: .25; }
  @media (prefers-color-scheme: dark) { svg { background: #151515; color: #e6e6e6; } .line { stroke: #6cb0ff; } }
"""


def write_curves(run: Path) -> Path:
    """Draw RUN/metrics.jsonl as RUN/curves.svg, a panel for each loss but their sum, and return its path."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = dict.fromkeys(name for line in lines for name in line)
    shown = {name: f"{name.replace('_', '-')} loss" for name in names if name not in ("loss", *NOT_LOSSES)}
    if "gradient_norm" in names:
        shown["gradient_norm"] = "norm of the gradient"
    if "whole_noise" in names:  # the noise loss of some steps is that inside masks, which is another quantity
        lines = [line if line["noise"] != line["whole_noise"] else _without(line, "noise") for line in lines]
        shown |= {"whole_noise": "noise loss", "noise": "noise loss inside masks"}
    shown = {name: title for name, title in shown.items() if any(name in line for line in lines)}
    panels = []
    for index, (name, title) in enumerate(shown.items()):
        points = np.array([(line["step"], line[name]) for line in lines if name in line], float)
        panels.append(panel(title, points[:, 0], points[:, 1], index * (WIDTH + LEFT + 16)))
    width, height = len(shown) * (WIDTH + LEFT + 16), TOP + HEIGHT + 28
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    path = run / "curves.svg"
    body = "\n".join([f"<style>{_STYLE}</style>", *panels])
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n', encoding="utf-8")
    return path


def _without(line: dict[str, float], name: str) -> dict[str, float]:
    return {other: value for other, value in line.items() if other != name}


def panel(title: str, steps: np.ndarray, values: np.ndarray, x: int) -> str:
    """Draw values [N] over steps [N], faintly, and their running mean, as an SVG group that starts at `x` pixels."""
    group = math.ceil(len(steps) / POINTS)
    starts = np.arange(0, len(steps), group)
    counts = np.diff([*starts, len(steps)])
    across, up = (np.add.reduceat(array, starts) / counts for array in (steps, values))
    low, high = float(up.min()), float(up.max())
    pad = 0.05 * (high - low) or 0.5
    top, bottom = high + pad, low - pad if low < 0 else max(0.0, low - pad)
    span = float(steps[-1]) + 1

    def height(value: float) -> float:
        return TOP + HEIGHT * (top - value) / (top - bottom)

    def points(curve: np.ndarray) -> str:
        return " ".join(
            f"{LEFT + WIDTH * (a + 1) / span:.1f},{height(v):.1f}" for a, v in zip(across, curve, strict=True)
        )

    return "\n".join(
        [
            f'<g transform="translate({x} 0)">',
            f'<text x="{LEFT}" y="{TOP - 10}" font-weight="600">{title}</text>',
            f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>',
            *(_label(LEFT - 6, height(v) + 4, f"{v:.3g}", "end") for v in sorted({low, high})),
            _label(LEFT, TOP + HEIGHT + 18, "0", "start"),
            _label(LEFT + WIDTH, TOP + HEIGHT + 18, f"step {int(span)}", "end"),
            f'<polyline class="line faint" points="{points(up)}"/>',
            f'<polyline class="line" points="{points(running_mean(up, len(up) // SMOOTHING))}"/>',
            "</g>",
        ]
    )


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Return at each of the values [N] the mean of it and of up to `reach` values on either side: [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    start, end = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
