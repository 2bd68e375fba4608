"""How fast a FastComposer dataset is built, beside the same models run one picture at a time.

    python -m benchmarks.speed [--count 200]

One picture at a time is how labelling scripts do it: load, parse, segment, embed, match, next. Both run in this
process, on the same pictures, one after the other; the ratio travels between machines, the rates do not.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

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
from transforms.regions.segment import add_segments
from transforms.regions.similarity import add_clip_similarity
from transforms.text.phrases import add_phrases


def one_at_a_time(pictures: Path, models: Models, config: FastComposerConfig) -> tuple[int, float]:
    """Take each picture through all models by itself; return how many were matched, and the seconds without loading."""
    assert models.segmenter is not None
    parser, segmenter, clip = load_parser(models.parser), load_segmenter(models.segmenter), load_clip(models.clip)
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
            (example,) = add_segments(segmenter, [example], config.min_area)
            (example,) = add_clip_similarity(clip, [example], with_labels=False)
            match_phrases(example, models.thresholds[config.similarity])
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


def main(count: Annotated[int, typer.Option(help="Pictures to build from.")] = 200) -> None:
    """Print pictures per second of both ways, the seconds by stage, and the rate of rendering scenes."""
    console = Console(highlight=False)
    models, config = resolve("sample", {}), FastComposerConfig()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        console.print(f"scenes, one core     {scenes_per_second(folder / 'rendered'):.0f} scenes/s")
        list(write_scenes(folder / "scenes", count, seed=2000))
        matched, alone = one_at_a_time(folder / "scenes" / "images", models, config)
        started = time.perf_counter()
        info = build(
            Request("fastcomposer", str(folder / "scenes" / "images"), str(folder / "out"), config, models), console
        )
        built = time.perf_counter() - started
        working = float(np.sum([*info.seconds.values()]))
        assert info.counts.written == matched
        console.print(f"one at a time        {count / alone:.1f} pictures/s, models loaded before")
        console.print(f"build, work          {count / working:.1f} pictures/s, {alone / working:.2f} times as fast")
        console.print(f"build, whole command {count / built:.1f} pictures/s, models loaded and books closed")
        console.print("seconds by stage     " + ", ".join(f"{s} {t:.2f}" for s, t in info.seconds.items()))


if __name__ == "__main__":
    typer.run(main)
