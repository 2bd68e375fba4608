"""Speed of a FastComposer build, beside a plain loop of the same functions, two workers, and peers for parts of it.

    python -m benchmarks.speed [--count 2000] [--write]

The loop reads the same batches, passes them to the same functions and writes the same samples into tars, without Beam,
pieces, books or index. All run on the same pictures, one after the other, in one process that keeps its models' code in
memory. Processor time is what to compare on a machine that does other work too. The peers are webdataset's ShardWriter
and, where the package is installed, img2dataset's writer for shards, and spaCy's nlp.pipe for phrases.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, NamedTuple

import pyarrow
import typer
import webdataset
from rich.console import Console

from benchmarks.tables import Row, Write, report
from jobs.build import Request, build
from jobs.exports.folder import read_samples
from jobs.scenes import scene_of, write_scene, write_scenes
from pipelines.fastcomposer import FastComposerConfig
from schemas.dataset import DatasetInfo
from schemas.example import Example
from schemas.samples.fastcomposer import FORMAT
from schemas.shards import Sample
from transforms.batch import advance, each
from transforms.listing import list_source
from transforms.models.clip import load_clip
from transforms.models.parser import load_parser, parse_captions
from transforms.models.presets import Models, resolve
from transforms.models.segmenter import load_segmenter
from transforms.read import Reading, read_batches
from transforms.regions.match import match_phrases
from transforms.regions.segment import add_segments, keep_segments
from transforms.regions.similarity import add_clip_similarity
from transforms.settled import settle
from transforms.text.phrases import extract
from transforms.write import write_shard

Function = Callable[[Sequence[Example]], Sequence[Example]]
QUIET = Console(quiet=True)


class Time(NamedTuple):
    """Seconds by the clock and of the processor."""

    clock: float
    processor: float


class Stopwatch:
    """Measures from its creation on."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> Time:
        """Return the time since then."""
        return Time(time.perf_counter() - self._clock, time.process_time() - self._processor)


def plain_loop(pictures: Path, output: Path, models: Models, config: FastComposerConfig) -> int:
    """Do what the build does, in a loop; return the number of samples."""
    assert models.segmenter is not None
    parser, segmenter, clip = load_parser(models.parser), load_segmenter(models.segmenter), load_clip(models.clip)
    keep = partial(keep_segments, min_area=config.min_area, join_plurals=True)
    threshold = models.thresholds[config.similarity]
    match = partial(match_phrases, threshold=threshold, plurals=config.plurals, min_area=config.min_area)
    functions: list[tuple[str, Function]] = [
        ("phrases", partial(extract, parser, plurals=config.expand_plurals)),
        ("segments", partial(add_segments, segmenter, keep=keep)),
        ("similarity", partial(add_clip_similarity, clip, with_labels=False)),
        ("matches", each(match)),
    ]
    written = 0
    for chunk in list_source(str(pictures), samples_per_shard=config.samples_per_shard).chunks:
        samples: list[Sample] = []
        for item in chunk.items:
            for batch in read_batches(chunk.shard, item, Reading(config.batch_size)):
                for stage, function in functions:
                    batch = advance(batch, stage, function)  # noqa: PLW2901 - the batch, one step further
                samples += settle(batch, FORMAT).samples
        written += len(write_shard(str(output), "loop", chunk.shard, samples))
    return written


def run_build(pictures: Path, output: Path, *options: str) -> DatasetInfo:
    """Build from `pictures`; `options` are Beam's."""
    models, config = resolve("sample", {}), FastComposerConfig()
    return build(Request("fastcomposer", str(pictures), str(output), config, models, beam_options=options), QUIET)


def scenes_per_second(folder: Path, count: int = 80) -> float:
    """Render and write `count` scenes of 256 x 256 pixels with their truth, on one core."""
    for name in ("images", "truth"):
        (folder / name).mkdir(parents=True)
    started = time.process_time()
    for index in range(count):
        write_scene(folder, f"{index:06d}", scene_of(0, index))
    return count / (time.process_time() - started)


def measure_shards(dataset: Path, output: Path) -> Iterator[Row]:
    """Write the samples of a dataset into shards, by `write_shard` and by webdataset's ShardWriter."""
    samples = list(read_samples(str(dataset), "fastcomposer"))
    output.mkdir()
    watch = Stopwatch()
    write_shard(str(output), "ours", 0, samples)
    ours = watch.read().processor
    watch = Stopwatch()
    with webdataset.ShardWriter(str(output / "peer-%06d.tar"), maxcount=10**9, verbose=0) as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
    peer = watch.read().processor
    yield Row("shards, ours", f"{len(samples) / ours:,.0f} samples/s", "processor time; with offsets and checksums")
    yield Row(
        "shards, webdataset.ShardWriter", f"{len(samples) / peer:,.0f} samples/s", f"{peer / ours:.2f} of our time"
    )
    package = find_spec("img2dataset")
    if package and package.origin:
        other = write_with_img2dataset(Path(package.origin).with_name("writer.py"), samples, output)
        yield Row(
            "shards, img2dataset's writer", f"{len(samples) / other:,.0f} samples/s", f"{other / ours:.2f} of our time"
        )


def write_with_img2dataset(module: Path, samples: Sequence[Sample], output: Path) -> float:
    """Write pictures, captions and records as img2dataset does, into a tar and a Parquet file; return the seconds.

    `module` is its `writer.py`, loaded without the package, which imports a dozen libraries that writing does not need.
    """
    spec = spec_from_file_location("img2dataset_writer", module)
    assert spec is not None
    assert spec.loader is not None
    writer_module = module_from_spec(spec)
    spec.loader.exec_module(writer_module)
    records = [json.loads(sample.members["json"]) for sample in samples]
    schema = pyarrow.schema([("key", pyarrow.string()), ("caption", pyarrow.string())])
    watch = Stopwatch()
    writer = writer_module.WebDatasetSampleWriter(0, str(output), True, 5, schema, "jpg")
    for sample, record in zip(samples, records, strict=True):
        writer.write(sample.members["jpg"], sample.key, record["caption"], record)
    writer.close()
    return watch.read().processor


def measure_phrases(pictures: Path, models: Models) -> Iterator[Row]:
    """Find the phrases of all captions, by our parser's batches of eight, and by nlp.pipe with its noun chunks."""
    captions = [path.read_text(encoding="utf-8") for path in sorted(pictures.glob("*.txt"))]
    parser = load_parser(models.parser)
    parse_captions(parser, captions[:8])
    watch = Stopwatch()
    for start in range(0, len(captions), 8):
        parse_captions(parser, captions[start : start + 8])
    ours = watch.read().processor
    watch = Stopwatch()
    for doc in parser.nlp.pipe(captions):
        list(doc.noun_chunks)
    peer = watch.read().processor
    yield Row("phrases, ours in batches of 8", f"{len(captions) / ours:,.0f} captions/s", "processor time")
    yield Row("phrases, spaCy's nlp.pipe", f"{len(captions) / peer:,.0f} captions/s", f"{ours / peer:.2f} of our time")


def measure(count: int) -> Iterator[Row]:
    """Measure all of it on `count` pictures."""
    models, config = resolve("sample", {}), FastComposerConfig()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        yield Row("rendering scenes", f"{scenes_per_second(folder / 'rendered'):.0f} scenes/s", "one core")
        list(write_scenes(folder / "scenes", count, seed=2000))
        pictures = folder / "scenes" / "images"
        few = folder / "few"
        few.mkdir()
        for path in sorted(pictures.iterdir())[:16]:
            (few / path.name).write_bytes(path.read_bytes())
        (folder / "loop").mkdir()
        plain_loop(few, folder / "loop", models, config)  # what is compiled or imported once is not measured
        run_build(few, folder / "warm")
        watch = Stopwatch()
        written = plain_loop(pictures, folder / "loop", models, config)
        loop = watch.read()
        watch = Stopwatch()
        info = run_build(pictures, folder / "build")
        whole = watch.read()
        assert info.counts.written == written
        watch = Stopwatch()
        two = run_build(pictures, folder / "two", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
        both = watch.read()
        assert two.counts.written == written
        yield Row("plain loop", f"{count / loop.processor:.1f} pictures/s", "processor time, with loading models")
        yield Row("build", f"{count / whole.processor:.1f} pictures/s", "processor time, with loading and the books")
        yield Row("build over loop, processor time", f"{whole.processor / loop.processor:.3f}", "at most 1.10")
        yield Row("build over loop, by the clock", f"{whole.clock / loop.clock:.3f}", "depends on what else runs")
        yield Row("two workers over one, by the clock", f"{whole.clock / both.clock:.2f}", "at least 1.8 on two cores")
        for stage, seconds in info.seconds.items():
            yield Row(f"stage {stage}", f"{seconds:.2f} s", f"{count} pictures")
        yield from measure_shards(folder / "build", folder / "shards")
        yield from measure_phrases(pictures, models)


def main(
    count: Annotated[int, typer.Option(help="Pictures to build from.")] = 2000,
    write: Write = False,
) -> None:
    """Measure how many pictures per second a build processes."""
    report("speed", __doc__ or "", list(measure(count)), write=write)


if __name__ == "__main__":
    typer.run(main)
