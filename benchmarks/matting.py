"""Closed-form matting beside PyMatting: processor time, difference of alpha, memory.

    python -m benchmarks.matting [--write]

Both run on one thread, one after the other on the same picture and trimap; PyMatting with its default settings for the
time, and to a residual of 1e-9 for the reference alpha. Pictures are sample scenes, and photographs with true masks if
`../shared/real` is there. The unknown pixels of a trimap are those nearest to the edge of the mask, 5, 10 or 15 % of
the picture.
"""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numba
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from pymatting import estimate_alpha_cf
from scipy import ndimage

from benchmarks.memory import forget_peak, held_mb, peak_mb
from benchmarks.tables import Row, Write, report
from transforms.matting.closed_form import closed_form_alpha
from transforms.scenes import make_scene

numba.set_num_threads(1)
REAL = Path(__file__).parents[1] / ".." / "shared" / "real" / "coco"
SEED = 3000
SIZES = (512, 1024, 2048)
SHARES = (0.05, 0.10, 0.15)
LONG = 5.0
"""Seconds; a run that takes longer is not repeated."""

Floats = NDArray[np.float64]
Case = tuple[str, Floats, NDArray[np.bool_]]
"""Name, picture [H, W, 3] float64 in [0, 1] and the subject's mask [H, W] bool."""


def pictures(size: int) -> Iterator[Case]:
    """Yield pictures whose longer side has `size` pixels: two scenes with their largest object, and photographs.

    Scenes are encoded as JPEG, as all pictures of a dataset are. In flat colours without noise only rounding errors
    connect regions, and no two solvers agree.
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
    """Yield annotated photographs, each with one mask of all its things: single ones are too small for a band."""
    annotations = json.loads((REAL / "panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    kinds = {category["id"] for category in annotations["categories"] if category["isthing"]}
    for annotation in annotations["annotations"]:
        things = [info["id"] for info in annotation["segments_info"] if info["category_id"] in kinds]
        colours = np.asarray(Image.open(REAL / "panoptic" / annotation["file_name"]).convert("RGB")).astype(int)
        mask = Image.fromarray(np.isin(colours @ [1, 256, 65536], things))
        name = names[annotation["image_id"]]
        with Image.open(REAL / name) as opened:
            scale = size / max(opened.size)
            shape = round(opened.width * scale), round(opened.height * scale)
            picture = np.asarray(opened.convert("RGB").resize(shape, Image.Resampling.BICUBIC)) / 255
        yield f"photo {Path(name).stem[-4:]}", picture, np.asarray(mask.resize(shape, Image.Resampling.NEAREST))


def band_trimap(mask: NDArray[np.bool_], share: float) -> NDArray[np.uint8]:
    """Make the trimap [H, W] whose unknown pixels are the `share` of the picture nearest to the edge of the mask."""
    distance = np.where(mask, ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask))
    trimap = np.where(mask, 255, 0).astype(np.uint8)
    trimap[distance <= np.quantile(distance, share)] = 128
    return trimap


def by_pymatting(picture: Floats, trimap: NDArray[np.uint8], residual: float = 1e-7) -> Floats:
    """Alpha [H, W] by PyMatting, to its default residual unless another is given."""
    levels = np.where(trimap == 128, 0.5, trimap / 255)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each preconditioner that fails
        return estimate_alpha_cf(picture, levels, cg_kwargs={"rtol": residual})


WAYS: dict[str, Callable[[Floats, NDArray[np.uint8]], Floats]] = {
    "ours": closed_form_alpha,
    "PyMatting": by_pymatting,
}


def seconds_of(run: Callable[[], Floats]) -> float:
    """Processor time of a run in seconds, the median of three unless a run is long."""
    spent: list[float] = []
    while len(spent) < (3 if sum(spent) < LONG else 1):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def peak_of(job: tuple[str, int, float]) -> float:
    """Peak memory of a run in MB, above what its process holds before it; to be called in a new process (Linux)."""
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


def measure(largest: int) -> Iterator[Row]:
    """Measure each picture, size and share of unknown pixels; print every case, yield the summary."""
    sizes = [size for size in SIZES if size <= largest]
    _, small, mask = next(pictures(128))
    for run in WAYS.values():
        run(small, band_trimap(mask, 0.1))  # numba compiles
    ratios, differences = [], []
    for size, share in product(sizes, SHARES):
        for name, picture, mask in pictures(size):
            trimap = band_trimap(mask, share)
            peer = seconds_of(partial(by_pymatting, picture, trimap))
            ours = seconds_of(partial(closed_form_alpha, picture, trimap))
            truth = by_pymatting(picture, trimap, 1e-9)
            ratios.append(peer / ours)
            differences.append(float(np.abs(closed_form_alpha(picture, trimap) - truth).mean()))
            print(
                f"{name}, {trimap.shape[1]} x {trimap.shape[0]} pixels, {share:.0%} unknown: ours {ours:.3f} s, "
                f"PyMatting {peer:.3f} s, difference of alpha {differences[-1]:.5f}",
                flush=True,
            )
    yield Row("PyMatting's time over ours, median", f"{statistics.median(ratios):.1f}", f"{len(ratios)} trimaps")
    yield Row("PyMatting's time over ours, worst case", f"{min(ratios):.1f}")
    yield Row("mean difference of alpha, worst case", f"{max(differences):.5f}", "from PyMatting at a residual of 1e-9")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for size in sizes:
            ours, peer = pool.map(peak_of, [(way, size, SHARES[-1]) for way in WAYS])
            name = f"peak memory at {size} pixels, {SHARES[-1]:.0%} unknown"
            yield Row(name, f"{ours:.0f} MB", f"PyMatting {peer:.0f} MB, {ours / peer:.2f} of it")


def main(
    largest: Annotated[int, typer.Option(help="Largest longer side of a picture in pixels.")] = SIZES[-1],
    write: Write = False,
) -> None:
    """Measure closed-form matting beside PyMatting."""
    report("matting", __doc__ or "", list(measure(largest)), write=write)


if __name__ == "__main__":
    typer.run(main)
