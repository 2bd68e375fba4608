"""`subjectloom build pairs`: find the subjects of pictures, choose pairs of them, write the pairs.

    OUT/.subjectloom/subjects/        the dataset of the subjects, until the pairs are written
    OUT/.subjectloom/pairs.parquet    the choice: for each subject its reference

Each shard of subjects gives one shard of pairs, and each subject is a pair or a reject: one whose group holds no other
picture of it within the bounds is `no-partner`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jobs.build import Request, build_recipe, for_engine
from jobs.describe import describe_job, settle_precision
from jobs.engines import beam_options
from jobs.exports.subjects import INSTANCES, Instance, show
from jobs.run import run
from pipelines import RECIPES
from pipelines.pairs import SUBJECTS as SOURCES
from pipelines.pairs import PairsConfig
from pipelines.recipe import BuildConfig
from schemas.boxes import box_of
from schemas.dataset import DatasetInfo, Part, RejectRow, Row, decode_part, part_name
from schemas.errors import InputError, RecordError
from schemas.example import Example
from schemas.images import decode_image
from schemas.keys import caption_key
from schemas.masks import Mask
from schemas.rejects import Reason
from schemas.samples import format_of
from schemas.samples.base import SampleRecord, Segmentation, row_of
from schemas.samples.pairs import FORMAT, Record, ReferenceField, ShownField
from schemas.shards import Sample, fragment, read_sample, shard_name
from transforms.batch import Batch, each
from transforms.dataset import STATE, finished_shards, prepare_output, read_info, remove_dataset
from transforms.files import exists, join, open_file, replacing
from transforms.finish import finish_noted, note_expected
from transforms.listing import Listing
from transforms.models.presets import Models
from transforms.selection.pairs import NONE, Bounds, ChoosePairs, Pair, Subject, group_of
from transforms.settled import Settled
from transforms.step import Step, map_batches
from transforms.write import commit_fragments

SUBJECTS, CHOICE = "subjects", "pairs.parquet"
STAGE = "pair"

_COLUMNS = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("index", pa.int32()),
        ("group", pa.string()),
        ("similarity", pa.float64()),
        ("reference_shard", pa.int32()),  # -1: it has none
        ("reference_key", pa.string()),
        ("reference_index", pa.int32()),
        ("reference_offset", pa.int64()),
        ("reference_size", pa.int64()),
    ]
)


def build_pairs(request: Request, console: Console) -> DatasetInfo:
    """Build a dataset of pairs and return the contents of `dataset.json`.

    Raises:
        SubjectloomError: as `jobs.build.build`; also if no pair was found.
    """
    config = request.config
    assert isinstance(config, PairsConfig)
    options = beam_options(request.beam_options, request.dataflow_preset)
    request = for_engine(request, options)
    precision = settle_precision(request.models.hosting.precision, [_Embedding(request.models.clip)])
    job = describe_job("pairs", config, [_Embedding(request.models.clip)], precision)
    is_dataset = exists(join(request.source, "dataset.json"))
    subjects = request.source if is_dataset else join(request.output, STATE, SUBJECTS)
    prepare_output(request.output, job, overwrite=request.overwrite, resume=request.resume)
    if not is_dataset:
        _find_subjects(request, config, subjects, console)
    recipe = read_info(subjects).recipe
    if recipe not in SOURCES:
        raise InputError(f"{subjects} holds a {recipe} dataset, whose samples have no subjects")
    fingerprints = {
        shard: _digest([fingerprint, job.model_dump_json(), sorted(finished_shards(subjects).items())])
        for shard, fingerprint in finished_shards(subjects).items()
    }
    note_expected(request.output, fingerprints, {})
    work = _Work(subjects, recipe, request.output, config, request.models.clip, request.models.hosting.precision)
    with console.status("choosing pairs"):
        run(_StoreChoice(work, sorted(fingerprints)), options)
        left = dict(fingerprints.items() - finished_shards(request.output).items())
        run(_WritePairs(work, left), options)
    info = finish_noted(request.output)
    if not is_dataset:
        remove_dataset(subjects)
    return info


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _find_subjects(request: Request, config: PairsConfig, subjects: str, console: Console) -> None:
    """Build the dataset of the subjects; one that is finished already is kept."""
    described = RECIPES[config.subjects]
    fields = {name: getattr(config, name) for name in BuildConfig.model_fields}
    inner = replace(
        request,
        recipe=config.subjects,
        output=subjects,
        config=described.config(**fields),
        resume=exists(join(subjects, STATE, "job.json")),
        overwrite=False,
    )
    if not config.caption:
        build_recipe(described, inner, console)
        return

    def steps(settled: object, models: Models, listing: Listing) -> list[Step]:
        return [CaptionByFolder(config.caption), *described.steps(settled, models, listing)]

    build_recipe(replace(described, steps=steps), inner, console, needs_captions=False)


@dataclass(eq=False)
class CaptionByFolder(Step):
    """Caption pictures that have no caption by the name of their folder, which `template` has as {group}."""

    template: str

    def stamp(self) -> str:
        """The template."""
        return f"caption {self.template}"

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Caption each picture."""
        return map_batches(batches, "caption", each(self._caption))

    def _caption(self, example: Example) -> Example:
        if example.caption:
            return example
        group = group_of(example.source.uri, "folder").replace("_", " ").strip()
        text = self.template.replace("{group}", group)
        return replace(example, caption=text, source_caption=text)


class _Embedding(Step):
    """Names the CLIP that compares subjects, for `dataset.json`."""

    def __init__(self, clip: str) -> None:
        super().__init__()
        self._clip = clip

    def checkpoints(self) -> Mapping[str, str]:
        return {"clip": self._clip}


@dataclass(frozen=True)
class _Work:
    """What the steps share: the dataset of subjects with its recipe, the output, the config, the CLIP."""

    subjects: str
    recipe: str
    output: str
    config: PairsConfig
    clip: str
    precision: str

    def samples(self, shard: int) -> Iterator[tuple[Row, Sample]]:
        """Yield the rows and samples of a shard of subjects."""
        table = pq.read_table(_opened(join(self.subjects, STATE, part_name(shard))))
        rows = table.to_pylist()
        if not rows:
            return
        path = join(self.subjects, shard_name(self.recipe, shard))
        for row in rows:
            yield row, _read(path, row["offset"], row["size"])

    def reference(self, chosen: Row) -> Sample:
        """Read the sample that holds the reference of a row of the choice."""
        path = join(self.subjects, shard_name(self.recipe, chosen["reference_shard"]))
        return _read(path, chosen["reference_offset"], chosen["reference_size"])

    def instances(self, sample: Sample) -> list[Instance]:
        """Return the subjects of a sample; one that is its whole picture where its recipe has none."""
        if self.recipe in INSTANCES:
            return INSTANCES[self.recipe](sample)
        record = SampleRecord.from_sample(sample)
        whole = np.ones((record.height, record.width), bool)
        return [Instance(record.caption, "", box_of(whole), whole, 1.0)]


def _opened(path: str) -> pa.BufferReader:
    with open_file(path) as stream:
        return pa.BufferReader(stream.read())


class _Embed(beam.DoFn):
    """Yields the subjects of a shard with the embeddings of their masked crops."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    def setup(self) -> None:
        from transforms.models.clip import load_clip  # noqa: PLC0415 - imports torch, on the worker

        self._clip = load_clip(self._work.clip, self._work.precision)  # type: ignore[arg-type]

    def process(self, shard: int) -> Iterator[Subject]:
        from transforms.models.clip import embed_segments  # noqa: PLC0415

        work = self._work
        for row, sample in work.samples(shard):
            shown = show(work.recipe, sample)
            masks = [Mask.from_array(instance.mask) for instance in work.instances(sample)]
            group = _group(row["source"], work.config)
            if group is None:
                continue
            for index, embedding in enumerate(embed_segments(self._clip, [decode_image(shown.image)], [masks])):
                place = (shown.key, index, shard, row["offset"], row["size"])
                yield Subject(*place, group, embedding.astype(np.float32).tobytes())


def _group(uri: str, config: PairsConfig) -> str | None:
    try:
        return group_of(uri, config.group, config.pattern)
    except RecordError:
        return None  # its subjects become rejects, see `_reject`


@dataclass(eq=False)
class _StoreChoice(beam.PTransform):
    """Choose the reference of every subject and store the choice: Pipeline -> PCollection[str]."""

    work: _Work
    shards: list[int]

    def expand(self, root: beam.Pipeline) -> beam.PCollection[str]:
        """Embed the subjects, pair them, and gather the pairs on one worker."""
        config = self.work.config
        count = sum(_rows(self.work.subjects, shard) for shard in self.shards)
        pairs = (
            root
            | "shards" >> beam.Create(self.shards)
            | "spread" >> beam.Reshuffle()
            | "embed" >> beam.ParDo(_Embed(self.work))
            | "pair" >> ChoosePairs(Bounds(config.lower, config.upper), count, config.seed)
        )
        path = join(self.work.output, STATE, CHOICE)
        return root | "path" >> beam.Create([path]) | "store" >> beam.Map(_store, beam.pvalue.AsIter(pairs))


def _rows(subjects: str, shard: int) -> int:
    return int(pq.read_metadata(_opened(join(subjects, STATE, part_name(shard)))).num_rows)


def _store(path: str, pairs: Iterable[Pair]) -> str:
    rows = [_choice_row(pair) for pair in sorted(pairs, key=lambda pair: pair.target)]
    with replacing(path) as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), stream, row_group_size=65_536, compression="zstd")
    return path


def _choice_row(pair: Pair) -> Row:
    target, reference = pair.target, pair.reference
    row: Row = {
        "shard": target.shard, "key": target.key, "index": target.number, "group": target.group,
        "similarity": pair.similarity, "reference_shard": -1, "reference_key": "", "reference_index": -1,
        "reference_offset": -1, "reference_size": -1,
    }  # fmt: skip
    if reference:
        row |= {
            "reference_shard": reference.shard, "reference_key": reference.key, "reference_index": reference.number,
            "reference_offset": reference.offset, "reference_size": reference.size,
        }  # fmt: skip
    return row


@dataclass(eq=False)
class _WritePairs(beam.PTransform):
    """Write the shards of pairs: Pipeline -> PCollection[Part]; `fingerprints` are theirs, by number."""

    work: _Work
    fingerprints: Mapping[int, str]

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Write each shard by itself."""
        shards = root | "shards" >> beam.Create(sorted(self.fingerprints)) | "spread" >> beam.Reshuffle()
        return shards | "write" >> beam.Map(self._write)

    def _write(self, shard: int) -> Part:
        return write_shard_of_pairs(self.work, shard, self.fingerprints[shard])


def write_shard_of_pairs(work: _Work, shard: int, fingerprint: str) -> Part:
    """Write the pairs whose targets are in a shard of subjects, and then their part."""
    planned, rejects = _plan(work, shard)
    path = join(work.subjects, shard_name(work.recipe, shard))
    carried = decode_part(pq.read_schema(_opened(join(work.subjects, STATE, part_name(shard)))).metadata).rejects
    rows = tuple({"shard": shard_name("pairs", shard), **row_of(record)} for record, _, _ in planned)
    books = Settled(read=len(rows) + len(rejects) + len(carried), rows=rows, rejects=(*carried, *rejects))
    fragments = (
        (record.key, fragment(_sample(work, record, _read(path, place["offset"], place["size"]), reference)))
        for record, place, reference in planned
    )
    return commit_fragments(work.output, FORMAT, shard, fingerprint, books, fragments)


def _plan(work: _Work, shard: int) -> tuple[list[tuple[Record, Row, Row]], list[RejectRow]]:
    """Return the pairs of a shard, sorted by key, with the rows that say where their pictures are, and the rejects."""
    table = pq.read_table(_opened(join(work.output, STATE, CHOICE)), filters=[("shard", "==", shard)])
    choice = {(row["key"], row["index"]): row for row in table.to_pylist()}
    planned, rejects = [], []
    for row, sample in work.samples(shard):
        for index, instance in enumerate(work.instances(sample)):
            key = caption_key(sample.key, index + 1)
            chosen = choice.get((sample.key, index))
            if chosen is None or chosen["reference_shard"] == -1:
                rejects.append(_reject(work.config, key, row["source"], chosen))
                continue
            reference = work.reference(chosen)
            other = work.instances(reference)[chosen["reference_index"]]
            planned.append((_record(work, key, (sample, instance), (reference, other), chosen), row, chosen))
    return sorted(planned, key=lambda pair: pair[0].key), rejects


def _read(path: str, offset: int, size: int) -> Sample:
    with open_file(path) as stream:
        stream.seek(offset)
        return read_sample(stream.read(size))


def _reject(config: PairsConfig, key: str, source: str, chosen: Row | None) -> RejectRow:
    if chosen is None:
        detail = f"its address has no {config.group} {config.pattern}".rstrip()
    elif chosen["similarity"] == NONE:
        detail = f"its group {chosen['group']!r} holds no other picture"
    else:
        bounds = f"a reference has {config.lower} to {config.upper}"
        detail = f"the most similar subject of its group has {chosen['similarity']:.4f}, {bounds}"
    return RejectRow(key=key, source=source, stage=STAGE, reason=Reason.NO_PARTNER, detail=detail)


def _record(
    work: _Work, key: str, target: tuple[Sample, Instance], reference: tuple[Sample, Instance], chosen: Row
) -> Record:
    record_type = format_of(work.recipe).record
    record, shown = record_type.from_sample(target[0]), record_type.from_sample(reference[0])
    return Record(
        key=key,
        caption=record.caption,
        other_captions=record.other_captions,
        width=record.width,
        height=record.height,
        source=record.source,
        group=chosen["group"],
        similarity=chosen["similarity"],
        subject=_shown(target[1]),
        reference=ReferenceField(
            key=shown.key,
            caption=shown.caption,
            width=shown.width,
            height=shown.height,
            source=shown.source,
            subject=_shown(reference[1]),
        ),
    )


def _shown(instance: Instance) -> ShownField:
    mask = Mask.from_array(instance.mask)
    return ShownField(
        text=instance.text, label=instance.label, bbox=instance.bbox, area=mask.area, segmentation=Segmentation.of(mask)
    )


def _sample(work: _Work, record: Record, target: Sample, chosen: Row) -> Sample:
    members = {
        "target.jpg": show(work.recipe, target).image,
        "reference.jpg": show(work.recipe, work.reference(chosen)).image,
        "json": record.to_json(),
    }
    return Sample(record.key, members)
