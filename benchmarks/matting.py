"""Closed-form matting beside PyMatting: seconds, difference of alpha, memory.

    python -m benchmarks.matting

Both run on one thread, one after the other on the same picture and trimap; PyMatting with its own settings for the
time, and to a residual of 1e-9 for the truth. Pictures are sample scenes, and photographs with true masks where
`../shared/real` is there; the band around the mask's edge is as wide as the share of unknown pixels asks.
"""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numba
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from pymatting import estimate_alpha_cf
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmarks.memory import forget_peak, held_mb, peak_mb
from transforms.matting.closed_form import closed_form_alpha
from transforms.scenes import make_scene

numba.set_num_threads(1)
REAL = Path(__file__).parents[1] / ".." / "shared" / "real" / "coco"
SEED = 3000
SIZES = (512, 1024, 2048)
SHARES = (0.05, 0.10, 0.15)
LONG = 5.0
"""Seconds; what takes longer is not run again."""

Floats = NDArray[np.float64]
Case = tuple[str, Floats, NDArray[np.bool_]]
"""Name, picture [H, W, 3] float64 in [0, 1] and the subject's mask [H, W] bool."""


def pictures(size: int) -> Iterator[Case]:
    """Yield pictures whose longer side has `size` pixels: the largest object of two scenes, two photographs' things.

    Scenes go through JPEG, as every picture of a dataset has: in flat colours without any noise, what ties one region
    to another is what rounding leaves, and no two solvers agree.
    """
    for index in range(2):
        scene = make_scene(np.random.default_rng([SEED, index]), size)
        stored = io.BytesIO()
        Image.fromarray(scene.image).save(stored, "JPEG", quality=92)
        mask = max((thing.mask for thing in scene.objects), key=np.count_nonzero)
        yield f"scene {index}", np.asarray(Image.open(stored)) / 255, mask
    if REAL.is_dir():
        yield from photographs(size)


def photographs(size: int) -> Iterator[Case]:
    """Yield the annotated photographs with one mask of all things in each: the single ones are too small for a band."""
    told = json.loads((REAL / "panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in told["images"]}
    kinds = {category["id"] for category in told["categories"] if category["isthing"]}
    for annotation in told["annotations"]:
        things = [one["id"] for one in annotation["segments_info"] if one["category_id"] in kinds]
        colours = np.asarray(Image.open(REAL / "panoptic" / annotation["file_name"]).convert("RGB")).astype(int)
        mask = Image.fromarray(np.isin(colours @ [1, 256, 65536], things))
        name = names[annotation["image_id"]]
        with Image.open(REAL / name) as opened:
            scale = size / max(opened.size)
            shape = round(opened.width * scale), round(opened.height * scale)
            picture = np.asarray(opened.convert("RGB").resize(shape, Image.Resampling.BICUBIC)) / 255
        yield f"photo {Path(name).stem[-4:]}", picture, np.asarray(mask.resize(shape, Image.Resampling.NEAREST))


def band_trimap(mask: NDArray[np.bool_], share: float) -> NDArray[np.uint8]:
    """Make the trimap whose unknown pixels are the `share` of the picture that is nearest to the mask's edge."""
    distance = np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask))
    trimap = np.where(mask, 255, 0).astype(np.uint8)
    trimap[distance <= np.quantile(distance, share)] = 128
    return trimap


def by_pymatting(picture: Floats, trimap: NDArray[np.uint8], residual: float = 1e-7) -> Floats:
    """Run the peer; its own residual by default."""
    levels = np.where(trimap == 128, 0.5, trimap / 255)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of factors that fail and tries the next
        return estimate_alpha_cf(picture, levels, cg_kwargs={"rtol": residual})


WAYS: dict[str, Callable[[Floats, NDArray[np.uint8]], Floats]] = {
    "ours": closed_form_alpha,
    "PyMatting": by_pymatting,
}


def seconds_of(run: Callable[[], Floats]) -> float:
    """Take the processor's time of a run, so that other processes do not count: the middle of three, if it is short."""
    spent: list[float] = []
    while len(spent) < (3 if sum(spent) < LONG else 1):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def peak_of(job: tuple[str, int, float]) -> float:
    """Measure, in a process of its own, how many MB a run needs on top of what the process holds before it (Linux)."""
    way, size, share = job
    run = WAYS[way]
    _, picture, mask = next(pictures(128))
    run(picture, band_trimap(mask, 0.1))  # numba compiles
    _, picture, mask = next(pictures(size))
    trimap = band_trimap(mask, share)
    forget_peak()
    before = held_mb()
    run(picture, trimap)
    return peak_mb() - before


def main(largest: Annotated[int, typer.Option(help="Longest side of the pictures, in pixels.")] = SIZES[-1]) -> None:
    """Measure each picture, size and share; print the worst of all at the end."""
    console = Console()
    _, small, mask = next(pictures(128))
    for run in WAYS.values():
        run(small, band_trimap(mask, 0.1))  # numba compiles
    table = Table(title="closed-form matting, one thread")
    for title in (
        "picture",
        "pixels",
        "unknown",
        "PyMatting, s",
        "ours, s",
        "times",
        "mean difference",
        "us per unknown",
    ):
        table.add_column(title, justify="right")
    ratios, differences = [], []
    for size in [size for size in SIZES if size <= largest]:
        for name, picture, mask in pictures(size):
            for share in SHARES:
                trimap = band_trimap(mask, share)
                peer = seconds_of(lambda: by_pymatting(picture, trimap))  # noqa: B023 - runs at once
                ours = seconds_of(lambda: closed_form_alpha(picture, trimap))  # noqa: B023
                truth = by_pymatting(picture, trimap, 1e-9)
                difference = float(np.abs(closed_form_alpha(picture, trimap) - truth).mean())
                unknown = int(np.count_nonzero(trimap == 128))
                ratios.append(peer / ours)
                differences.append(difference)
                row = (
                    f"{peer:.3f}",
                    f"{ours:.3f}",
                    f"{ratios[-1]:.1f}",
                    f"{difference:.5f}",
                    f"{ours / unknown * 1e6:.2f}",
                )
                table.add_row(name, "x".join(map(str, trimap.shape)), f"{unknown:,}", *row)
    console.print(table)
    console.print(
        f"times PyMatting's speed: {min(ratios):.1f} at worst, {statistics.median(ratios):.1f} in the median; "
        f"difference {max(differences):.5f} at worst"
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for size in [size for size in SIZES if size <= largest]:
            ours, peer = pool.map(peak_of, [(way, size, SHARES[-1]) for way in WAYS])
            told = f"{ours:.0f} MB, PyMatting {peer:.0f} MB, {ours / peer:.2f} of it"
            console.print(f"peak memory at {size} pixels, {SHARES[-1]:.0%} unknown: {told}")


if __name__ == "__main__":
    typer.run(main)
