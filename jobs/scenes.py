"""Write sample scenes with captions and exact truth to a folder."""

import json
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from schemas.errors import InputError
from schemas.maps import encode_png, to_pixels
from schemas.masks import Mask
from transforms.scenes import Scene, make_scene
from transforms.scenes.paint import paint_background
from transforms.scenes.relief import true_relief
from transforms.scenes.scene import OBJECTS

SCENES, BACKGROUNDS = 0, 1
"""Streams of random numbers: the number of scenes does not change the backgrounds, nor the other way round."""


def write_scenes(
    output: Path,
    count: int,
    seed: int,
    size: int = 256,
    objects: tuple[int, int] = OBJECTS,
    *,
    maps: bool = False,
) -> Iterator[int]:
    """Render `count` scenes of `size` x `size` pixels and `count` / 4 backgrounds, on all cores.

    Scene i, of the fewest to the most `objects`, is a function of (seed, i). With `maps`, exact depth and normals are
    written beside the pictures, where builds find them.

    Yields:
        The number of scenes written so far.

    Raises:
        InputError: `output` exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not empty: name a new folder, or remove this one first")
    for name in ("images", "truth", "backgrounds"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for index in range(max(1, count // 4)):
        rng = np.random.default_rng([seed, BACKGROUNDS, index])
        background = np.rint(paint_background(rng, size, size)).astype(np.uint8)
        Image.fromarray(background).save(output / "backgrounds" / f"{index:06d}.jpg", quality=92)
    jobs = ((output, seed, index, size, objects, maps) for index in range(count))
    with get_context("spawn").Pool() as workers:
        for done, _ in enumerate(workers.imap_unordered(_write_job, jobs, chunksize=8), start=1):
            yield done


def parse_objects(text: str) -> tuple[int, int]:
    """Read the fewest and the most objects of a scene: "1-3", or "2" for both.

    Raises:
        InputError: they are not two such numbers.
    """
    fewest, _, most = text.partition("-")
    if fewest.isdecimal() and (most or fewest).isdecimal():
        objects = int(fewest), int(most or fewest)
        if OBJECTS[0] <= objects[0] <= objects[1] <= OBJECTS[1]:
            return objects
    raise InputError(f"--objects {text}: give the fewest and the most objects of a scene, from 1 to 5, such as 1-3")


def scene_of(seed: int, index: int, size: int = 256, objects: tuple[int, int] = OBJECTS) -> Scene:
    """Render scene `index` of `seed`, which `write_scenes` writes under the key `index:06d`."""
    return make_scene(np.random.default_rng([seed, SCENES, index]), size, objects)


def _write_job(job: tuple[Path, int, int, int, tuple[int, int], bool]) -> None:
    output, seed, index, size, objects, maps = job
    scene = scene_of(seed, index, size, objects)
    write_scene(output, f"{index:06d}", scene)
    if maps:
        write_maps(output, f"{index:06d}", scene)


def write_maps(output: Path, key: str, scene: Scene) -> None:
    """Write the exact depth of a scene, 16 bits, and its normals beside its picture; see `transforms.scenes.relief`.

    The depth is the height above the far plane: 65,535 stands for the picture's side.
    """
    height, normals = true_relief(scene)
    side = float(scene.image.shape[0])
    for kind, pixels in (("depth", to_pixels("depth", height, (0.0, side))), ("normal", to_pixels("normal", normals))):
        (output / "images" / f"{key}.{kind}.png").write_bytes(encode_png(pixels))


def write_scene(output: Path, key: str, scene: Scene) -> None:
    """Write a scene: its picture, caption, truth and an alpha per object."""
    Image.fromarray(scene.image).save(output / "images" / f"{key}.jpg", quality=92)
    (output / "images" / f"{key}.txt").write_text(scene.caption, encoding="utf-8")
    for j, thing in enumerate(scene.objects):
        Image.fromarray(thing.alpha).save(output / "truth" / f"{key}.{j}.png", compress_level=1)
    truth = json.dumps(describe_truth(key, scene), ensure_ascii=False, indent=1)
    (output / "truth" / f"{key}.json").write_text(truth + "\n", encoding="utf-8")


def describe_truth(key: str, scene: Scene) -> dict[str, Any]:
    """Return the contents of `truth/KEY.json`.

    `phrases` lists all noun phrases of the caption. `phrase`, `start` and `end` of an object are null if the caption
    leaves it out.
    """
    objects = []
    for j, thing in enumerate(scene.objects):
        mask = Mask.from_array(thing.mask)
        start, end = thing.phrase or (None, None)
        objects.append(
            {
                "noun": thing.noun,
                "color": thing.color,
                "texture": thing.texture,
                "phrase": scene.caption[start:end] if thing.phrase else None,
                "start": start,
                "end": end,
                "bbox": list(mask.bbox),
                "segmentation": mask.to_json(),
                "alpha": f"{key}.{j}.png",
            }
        )
    phrases = [{"text": scene.caption[p.start : p.end], "start": p.start, "end": p.end} for p in scene.phrases]
    return {"caption": scene.caption, "phrases": phrases, "objects": objects}
