"""Speed of building a FastComposer dataset, beside the same models run one picture at a time.

    python -m benchmarks.speed [--count 200] [--write]

One picture at a time is how labelling scripts work: load, parse, segment, embed, match, next. Both run in this process,
on the same pictures, one after the other. Compare the ratio between machines, not the rates.
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.tables import Row, Write, report
from jobs.build import Request, build
from jobs.scenes import scene_of, write_scene, write_scenes
from pipelines.fastcomposer import FastComposerConfig
from schemas.errors import RecordError
from schemas.example import Example, Source
from schemas.images import to_stored_jpeg
from transforms.models.clip import load_clip
from transforms.models.parser import load_parser, parse_captions
from transforms.models.presets import Models, resolve
from transforms.models.segmenter import load_segmenter
from transforms.regions.match import match_phrases
from transforms.regions.segment import add_segments, keep_segments
from transforms.regions.similarity import add_clip_similarity
from transforms.text.phrases import add_phrases


def one_at_a_time(pictures: Path, models: Models, config: FastComposerConfig) -> tuple[int, float]:
    """Run all models on each picture alone; return how many pictures matched, and the seconds without loading."""
    assert models.segmenter is not None
    parser, segmenter, clip = load_parser(models.parser), load_segmenter(models.segmenter), load_clip(models.clip)
    keep = partial(keep_segments, min_area=config.min_area, join_plurals=True)
    matched = 0
    started = time.perf_counter()
    for path in sorted(pictures.glob("*.jpg")):
        jpeg, pixels = to_stored_jpeg(path.read_bytes())
        caption = path.with_suffix(".txt").read_text(encoding="utf-8")
        height, width, _ = pixels.shape
        example = Example(path.stem, jpeg, width, height, caption, Source(path.name), caption, _pixels=pixels)
        try:
            (parse,) = parse_captions(parser, [caption])
            example = add_phrases(example, parse, plurals=config.expand_plurals)
            (example,) = add_segments(segmenter, [example], keep)
            (example,) = add_clip_similarity(clip, [example], with_labels=False)
            match_phrases(example, models.thresholds[config.similarity], config.plurals, config.min_area)
            matched += 1
        except RecordError:
            continue
    return matched, time.perf_counter() - started


def scenes_per_second(folder: Path, count: int = 80) -> float:
    """Render and write `count` scenes of 256 x 256 pixels with their truth, on one core."""
    for name in ("images", "truth"):
        (folder / name).mkdir(parents=True)
    started = time.process_time()
    for index in range(count):
        write_scene(folder, f"{index:06d}", scene_of(0, index))
    return count / (time.process_time() - started)


def measure(count: int) -> Iterator[Row]:
    """Measure rendering, both ways to build from `count` pictures, and the seconds by stage."""
    models, config = resolve("sample", {}), FastComposerConfig()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        yield Row("rendering scenes", f"{scenes_per_second(folder / 'rendered'):.0f} scenes/s", "one core")
        list(write_scenes(folder / "scenes", count, seed=2000))
        pictures = folder / "scenes" / "images"
        matched, alone = one_at_a_time(pictures, models, config)
        started = time.perf_counter()
        info = build(Request("fastcomposer", str(pictures), str(folder / "out"), config, models), Console(stderr=True))
        whole = time.perf_counter() - started
        steps = sum(info.seconds.values())
        assert info.counts.written == matched
        yield Row("one picture at a time", f"{count / alone:.1f} pictures/s", "without loading models")
        yield Row("build, its steps", f"{count / steps:.1f} pictures/s", f"{alone / steps:.2f} times as fast")
        yield Row(
            "build, whole command", f"{count / whole:.1f} pictures/s", "including loading models and writing the index"
        )
        for stage, seconds in info.seconds.items():
            yield Row(f"stage {stage}", f"{seconds:.2f} s", f"{count} pictures")


def main(
    count: Annotated[int, typer.Option(help="Pictures to build from.")] = 200,
    write: Write = False,
) -> None:
    """Measure how many pictures per second a build processes."""
    report("speed", __doc__ or "", list(measure(count)), write=write)


if __name__ == "__main__":
    typer.run(main)
