"""Whether phrases are drawn in their boxes: the sample text-to-image model, unguided and with layout guidance.

    python -m benchmarks.layout [--count 200] [--sheet FILE.png] [--write]

Layouts are those of held-out scenes of one or two objects. Of the pixels near a phrase's colour, the share inside its
box is measured; a phrase whose colour is not there counts 0. It stands beside the share that the box has of the
picture, which a model that knows nothing of boxes would reach. Average precision (COCO's, IoU 0.5 to 0.95, and at 0.5)
is that of the sample segmenter's boxes, by noun, against the layouts'. "Stronger" guides half of the steps with eta
100, the published code a fifth with 30; these two values were chosen on 16 other layouts.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.tables import Row, Write, report
from benchmarks.text_to_image import BATCH, NEAR, SHARE, Pictures, as_pictures, named_colors
from jobs.generate import Picture
from jobs.pictures import sheet_of, with_boxes
from jobs.sample_models.text_to_image import halve
from schemas.boxes import box_of
from schemas.layouts import Frame, Layout, make_layout
from training.diffusion import LatentDiffusion, Parts, load_stable_diffusion
from training.drawing import Placing
from training.guidance import follow
from training.layout_guidance import guide_layout
from training.small import SIDE
from transforms.models.places import SAMPLE
from transforms.models.segmenter import Segmenter, load_segmenter, segment_images
from transforms.scenes import Scene, SceneObject, make_scene
from transforms.scenes.paint import COLORS

SEED = 2020
"""Stream of the held-out scenes."""
WAYS: Mapping[str, Placing | None] = {
    "unguided": None,
    "forward": Placing(way="forward"),
    "backward": Placing(),
    "backward, stronger": Placing(share=0.5, eta=100.0),
}
COCO_SIDE = 256
"""Side at which the segmenter sees pictures, in pixels."""


def held_out_scenes(count: int) -> list[Scene]:
    """Render `count` scenes whose objects have phrases and colours of their own, named by the caption."""
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = make_scene(np.random.default_rng([SEED, index]), 2 * SIDE, (1, 2), omitted=0)
        things = scene.objects
        distinct = len({t.phrase for t in things}) == len({t.color for t in things}) == len(things)
        if distinct and named_colors(scene) == {t.color for t in things} and all(t.mask.any() for t in things):
            scenes.append(scene)
        index += 1
    return scenes


def frame_of(thing: SceneObject) -> Frame:
    """The box of an object, in shares of the picture."""
    side = thing.mask.shape[0]
    x, y, w, h = box_of(thing.mask)
    return x / side, y / side, (x + w) / side, (y + h) / side


def layout_of_scene(scene: Scene) -> Layout:
    """The layout of a scene: its objects' phrases and boxes."""
    spans = [thing.phrase for thing in scene.objects]
    placed = [
        (scene.caption[slice(*span)], [frame_of(thing)])
        for span, thing in zip(spans, scene.objects, strict=True)
        if span is not None
    ]
    return make_layout(scene.caption, placed, spans)


def color_inside(picture: NDArray[np.uint8], color: str, frame: Frame) -> float:
    """Share of the pixels near a colour that lie in a box; 0 if there are too few of them to see."""
    palette = np.array(list(COLORS.values()), np.float32)
    distances = np.linalg.norm(picture[..., None, :].astype(np.float32) - palette, axis=-1)
    near = (distances.argmin(-1) == list(COLORS).index(color)) & (distances.min(-1) <= NEAR)
    if near.mean() < SHARE:
        return 0.0
    height, width = near.shape
    middles = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    rows, columns = (
        (low <= m) & (m < high) for m, (low, high) in zip(middles, (frame[1::2], frame[0::2]), strict=True)
    )
    return float(near[np.ix_(rows, columns)].sum() / near.sum())


def average_precision(
    truths: Sequence[Sequence[tuple[str, Frame]]], found: Sequence[Sequence[tuple[str, Frame, float]]]
) -> tuple[float, float]:
    """COCO's average precision of boxes: over IoU 0.5 to 0.95, and at 0.5, each in [0, 1].

    Args:
        truths: of each picture, name and box.
        found: of each picture, name, box and score.
    """
    names = {name: i for i, name in enumerate(sorted({name for own in truths for name, _ in own}), start=1)}
    pixels = [(left, top, right - left, bottom - top) for own in truths for _, (left, top, right, bottom) in own]
    places = [(image, names[name]) for image, own in enumerate(truths, start=1) for name, _ in own]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(1, len(truths) + 1)],
        "categories": [{"id": number, "name": name} for name, number in names.items()],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": _large(box), "area": 1e4, "iscrowd": 0}
            for i, ((image, category), box) in enumerate(zip(places, pixels, strict=True), start=1)
        ],
    }
    detections: list[dict[str, Any]] = [
        {"image_id": image, "category_id": names[name], "bbox": _large((a, b, c - a, d - b)), "score": score}
        for image, own in enumerate(found, start=1)
        for name, (a, b, c, d), score in own
        if name in names
    ]
    if not detections:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def _large(box: Frame) -> list[float]:
    return [1000 * value for value in box]


def find_boxes(segmenter: Segmenter, pictures: Pictures) -> list[list[tuple[str, Frame, float]]]:
    """Segment pictures: of each the names, boxes and scores of its things."""
    found: list[list[tuple[str, Frame, float]]] = []
    for first in range(0, len(pictures), BATCH):
        larger = [
            np.asarray(Image.fromarray(picture).resize((COCO_SIDE, COCO_SIDE), Image.Resampling.BICUBIC))
            for picture in pictures[first : first + BATCH]
        ]
        for segments in segment_images(segmenter, larger):
            own = []
            for segment in segments:
                x, y, w, h = (value / COCO_SIDE for value in segment.bbox)
                own.append((segment.label, (x, y, x + w, y + h), segment.score))
            found.append(own)
    return found


def draw_layouts(
    model: LatentDiffusion, layouts: Sequence[Layout], placing: Placing | None, steps: int, guidance: float
) -> Pictures:
    """Draw a picture of each layout; its noise is a function of its place, the same for every way."""
    shape = (1, model.vae.config.latent_channels, SIDE // 4, SIDE // 4)
    drawn = []
    for i, layout in enumerate(layouts):
        noise = torch.from_numpy(np.random.default_rng([SEED, i]).standard_normal(shape, np.float32))
        guide = guide_layout(model, layout, placing) if placing else follow
        batch = {"input_ids": model.tokenize([layout.prompt])}
        drawn.append(model.sample(batch, noise, steps=steps, guidance=guidance, guide=guide))
    return as_pictures(torch.cat(drawn))


def measure(scenes: Sequence[Scene], pictures: Pictures, segmenter: Segmenter) -> tuple[float, float, float]:
    """Mean share of colours inside their boxes, and the two average precisions."""
    inside = [
        color_inside(picture, thing.color, frame_of(thing))
        for scene, picture in zip(scenes, pictures, strict=True)
        for thing in scene.objects
    ]
    truths = [[(thing.noun, frame_of(thing)) for thing in scene.objects] for scene in scenes]
    return float(np.mean(inside)), *average_precision(truths, find_boxes(segmenter, pictures))


def rows_of(way: str, measured: tuple[float, float, float], note: str) -> list[Row]:
    """The two rows of a way of drawing."""
    inside, precision, half = measured
    return [
        Row(f"{way}: colour inside its box", f"{inside:.3f}", note),
        Row(f"{way}: average precision", f"{precision:.3f}", f"at IoU 0.5: {half:.3f}"),
    ]


def write_sheet(path: Path, layouts: Sequence[Layout], columns: Mapping[str, Pictures]) -> None:
    """Save the pictures of layouts with their boxes, a row for each layout and a column for each way."""
    rows = []
    for i, layout in enumerate(layouts):
        shown = [Picture(0, 0, pictures[i], {}, pictures[i][None][:0], layout) for pictures in columns.values()]
        cells = [with_boxes(picture) for picture in shown]
        rows.append([Picture(0, 0, cell, {}, cell[None][:0]) for cell in cells])
    Image.fromarray(sheet_of(rows)).save(path)


def main(
    model: Annotated[Path, typer.Option(help="Folder of a Stable Diffusion for 64 pixels.")] = SAMPLE / "text_to_image",
    count: Annotated[int, typer.Option(help="Layouts.")] = 200,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 15,
    guidance: Annotated[float, typer.Option(help="Weight of classifier-free guidance.")] = 3.0,
    sheet: Annotated[Path | None, typer.Option(help="PNG for the pictures of the first 8 layouts.")] = None,
    write: Write = False,
) -> None:
    """Draw held-out layouts in each way and measure what lies in the boxes."""
    for library in (diffusers, transformers):  # loading prints progress bars
        library.utils.logging.disable_progress_bar()
    network = LatentDiffusion(Parts(**load_stable_diffusion(model)))
    segmenter = load_segmenter(SAMPLE / "segmenter")
    scenes = held_out_scenes(count)
    layouts = [layout_of_scene(scene) for scene in scenes]
    true = np.stack([halve(scene.image) for scene in scenes])
    areas = [
        (right - left) * (bottom - top)
        for layout in layouts
        for p in layout.phrases
        for left, top, right, bottom in p.boxes
    ]
    rows = rows_of(
        "true pictures", measure(scenes, true, segmenter), f"the boxes' share of pictures {np.mean(areas):.3f}"
    )
    columns = {"true": true}
    for way, placing in WAYS.items():
        columns[way] = draw_layouts(network, layouts, placing, steps, guidance)
        rows += rows_of(way, measure(scenes, columns[way], segmenter), "")
    if sheet:
        write_sheet(sheet, layouts[:8], columns)
    report("layout", __doc__ or "", rows, write=write)


if __name__ == "__main__":
    typer.run(main)
