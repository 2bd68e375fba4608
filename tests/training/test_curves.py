import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from training.curves import HEIGHT, LEFT, POINTS, TOP, WIDTH, panel, running_mean, write_curves

SVG = "{http://www.w3.org/2000/svg}"


def write_metrics(run: Path, count: int) -> None:
    lines = [
        json.dumps({"step": i, "noise": 1 / (i + 1), "localization": -0.1 * i, "gradient_norm": 2.0})
        for i in range(count)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("count", [1, 2, 50, 3 * POINTS + 7])
def test_three_curves_stay_within_their_frames_for_any_length_of_run(tmp_path: Path, count: int) -> None:
    write_metrics(tmp_path, count)
    svg = ET.parse(write_curves(tmp_path)).getroot()
    lines = svg.findall(f".//{SVG}polyline")
    assert len(lines) == 6  # each as it is, and smoothed
    assert svg.get("viewBox") == f"0 0 {svg.get('width')} {svg.get('height')}"
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
        assert len(points) == math.ceil(count / math.ceil(count / POINTS))
        assert all(LEFT <= x <= LEFT + WIDTH and TOP <= y <= TOP + HEIGHT for x, y in points)


def test_points_are_plotted_at_their_values() -> None:
    """The values -10 and 0 after steps 1 and 5: the frame spans -10.5 to 0.5."""
    plot = ET.fromstring(panel("title", np.array([0.0, 4.0]), np.array([-10.0, 0.0]), 0))
    line = plot.find("polyline")
    assert line is not None
    low, high = TOP + HEIGHT * 10.5 / 11, TOP + HEIGHT * 0.5 / 11
    assert line.get("points") == f"{LEFT + WIDTH / 5:.1f},{low:.1f} {LEFT + WIDTH:.1f},{high:.1f}"
    texts = {(element.text, float(element.get("y") or 0)) for element in plot.findall("text")}
    below = float(TOP + HEIGHT + 18)
    assert texts == {("title", TOP - 10.0), ("-10", low + 4), ("0", high + 4), ("0", below), ("step 5", below)}


def test_long_runs_are_plotted_as_means() -> None:
    steps = np.arange(2.0 * POINTS)
    plot = ET.fromstring(panel("", steps, steps % 2, 0))
    line = plot.find("polyline")
    assert line is not None
    heights = {point.split(",")[1] for point in (line.get("points") or "").split()}
    assert heights == {f"{TOP + HEIGHT / 2:.1f}"}  # each point is the mean of a 0 and a 1


def test_an_axis_of_positive_values_does_not_go_below_zero() -> None:
    plot = ET.fromstring(panel("", np.arange(3.0), np.array([10.0, 5.0, 0.1]), 0))
    line = plot.find("polyline")
    assert line is not None
    last = float((line.get("points") or "").rsplit(",", 1)[1])
    assert last == pytest.approx(TOP + HEIGHT * (1 - 0.1 / (10 + 0.05 * 9.9)), abs=0.1)


def test_a_running_mean_by_hand() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 1).tolist() == [1.5, 3.0, 3.0, 3.0]
    assert running_mean(np.array([0.0, 3.0, 6.0]), 0).tolist() == [0.0, 3.0, 6.0]


def test_a_metric_that_only_some_steps_have_is_plotted_at_these(tmp_path: Path) -> None:
    """The held-out loss is 4 after the second step and 2 after the fourth, the last."""
    lines: list[dict[str, float]] = [{"step": i, "loss": 1.0, "noise": 1.0} for i in range(4)]
    lines[1]["held_out"], lines[3]["held_out"] = 4.0, 2.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    svg = ET.parse(write_curves(tmp_path)).getroot()
    titles = [text.text for text in svg.iter(f"{SVG}text") if text.get("font-weight")]
    assert titles == ["noise loss", "held-out loss"]  # no step has a norm of its gradient
    points = (svg.findall(f".//{SVG}polyline")[-1].get("points") or "").split()
    assert [float(point.split(",")[0]) for point in points] == [LEFT + WIDTH / 2, LEFT + WIDTH]


def test_the_noise_loss_inside_masks_is_a_curve_of_its_own(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1.0, "noise": 1.0 if i % 2 else 0.2, "whole_noise": 1.0} for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    svg = ET.parse(write_curves(tmp_path)).getroot()
    drawn = {plot.findtext(f"{SVG}text"): plot.findall(f"{SVG}polyline")[0] for plot in svg.findall(f"{SVG}g")}
    assert list(drawn) == ["noise loss inside masks", "noise loss"]
    counts = {title: len((line.get("points") or "").split()) for title, line in drawn.items()}
    assert counts == {"noise loss inside masks": 5, "noise loss": 10}
