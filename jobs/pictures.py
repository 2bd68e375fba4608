"""The folder of drawn pictures.

OUT/000.png, 001.png ...   the pictures, with their settings in text chunks; of several prompts 000-000.png, the
numbers of prompt and picture
OUT/sheet.png              a row for each prompt: its references as the model sees them, then its pictures
OUT/settings.json          the settings of each picture, by file name
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from jobs.generate import Picture

GAP = 4
"""Pixels between the pictures of a sheet."""
SHOWN = 256
"""Least side of a picture with boxes, in pixels: their phrases can be read."""


def write_pictures(
    output: Path, pictures: Iterable[Picture], prompts: int, *, show_boxes: bool = False
) -> Iterator[Path]:
    """Write the pictures of so many prompts to a new folder; yield the path of each when it is there.

    With `show_boxes`, the boxes of phrases are drawn into the pictures.
    """
    rows: list[list[Picture]] = [[] for _ in range(prompts)]
    written: dict[str, Any] = {}
    for drawn in pictures:
        picture = replace(drawn, pixels=with_boxes(drawn)) if show_boxes and drawn.layout else drawn
        name = f"{picture.prompt:03}-{picture.number:03}.png" if prompts > 1 else f"{picture.number:03}.png"
        output.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.pixels).save(output / name, pnginfo=text_chunks(picture.settings))
        rows[picture.prompt].append(picture)
        written[name] = dict(picture.settings)
        (output / "settings.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", "utf-8")
        yield output / name
    Image.fromarray(sheet_of(rows)).save(output / "sheet.png")


def with_boxes(picture: Picture) -> NDArray[np.uint8]:
    """A picture of at least `SHOWN` pixels a side with the boxes of its phrases, each phrase in a colour of its own."""
    assert picture.layout is not None
    side = picture.pixels.shape[0] * max(1, -(-SHOWN // picture.pixels.shape[0]))
    canvas = Image.fromarray(picture.pixels).resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for i, phrase in enumerate(picture.layout.phrases):
        colour = f"hsl({i * 137 % 360},90%,60%)"  # steps of the golden angle keep hues apart
        for box in phrase.boxes:
            left, top, right, bottom = (round(edge * side) for edge in box)
            corners = (left, top, max(right - 1, left), max(bottom - 1, top))
            draw.rectangle(corners, outline="black", width=4)
            draw.rectangle(corners, outline=colour, width=2)
            draw.text((left + 5, top + 4), phrase.text, fill=colour, stroke_width=1, stroke_fill="black")
    return np.asarray(canvas)


def text_chunks(settings: Any) -> PngInfo:  # noqa: ANN401 - a mapping of JSON's values
    """A PNG's text chunks: a setting each; what is no text is written as JSON."""
    info = PngInfo()
    for name, value in settings.items():
        info.add_itxt(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return info


def sheet_of(rows: list[list[Picture]]) -> NDArray[np.uint8]:
    """Lay out pictures, a row for each prompt; before them its references, in one cell: [H, W, 3] uint8."""
    lines = []
    for row in rows:
        side = row[0].pixels.shape[0]
        first = [tile(row[0].references, side)] if len(row[0].references) else []
        cells = [np.pad(cell, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for cell in first]
        cells += [np.pad(picture.pixels, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for picture in row]
        lines.append(np.concatenate(cells, axis=1))
    sheet = np.concatenate(lines)
    return np.pad(sheet, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def tile(pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Lay N pictures [N, h, w, 3] uint8 on a white square of `side` pixels, in rows."""
    columns = math.ceil(math.sqrt(len(pictures)))
    square = np.full((side, side, 3), 255, np.uint8)
    cell = side // columns
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        small = Image.fromarray(picture).resize((cell, cell), Image.Resampling.LANCZOS)
        square[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = np.asarray(small)
    return square
