"""Cut a dataset down to its best samples, once all candidates are written.

Which samples are the best is known only when the last one is scored. So all samples are first written as candidates,
in the shards of any recipe. Then one pipeline chooses among them from the books (`ChooseSamples`), and another writes
every shard again with its chosen samples (`CutShards`); the others become rejects with a reason.

    OUT/.subjectloom/chosen.parquet        the choice, written before the first shard is cut

A job may be killed at any moment. The fingerprint in a shard's part says whether the shard holds candidates or is cut;
the fingerprint of a cut shard also depends on what all other shards are made from (`choice_digest`). A shard whose cut
was interrupted has no part: it is built again and cut by the stored choice, which a new choice would equal.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.dataset import Part, RejectRow, Row, decode_part, part_name
from schemas.errors import SubjectloomError
from schemas.rejects import Reason
from schemas.samples.base import SampleFormat
from transforms.dataset import STATE
from transforms.files import exists, join, open_file, replacing
from transforms.selection.top_k import Candidate, ChooseBest, MarkNearDuplicates
from transforms.write import rewrite_shard

STAGE = "best"
CHOSEN = "chosen.parquet"

_CHOICE_KEY = b"subjectloom"
_CHOICE_COLUMNS = pa.schema([("shard", pa.int32()), ("key", pa.string()), ("better", pa.string())])
_ROWS = 65_536
"""Rows per row group: a worker reads only the groups that hold its shard."""


@dataclass(frozen=True)
class Cut:
    """Which samples of a dataset are kept: the `best` ones by their quality; None: all.

    Before that, of samples whose `phash` (a column of the index) differs in at most `distance` bits only the best is
    kept; None skips this. The quality is the column `by`, or for "pixels" the number of pixels of the picture.
    """

    best: int | None
    distance: int | None = 3
    by: str = "quality"

    @property
    def what(self) -> str:
        """What it does, in words."""
        return "leaving out duplicates" if self.best is None else f"keeping the best {self.best:,}"


@dataclass(frozen=True)
class Choice:
    """The choice for a shard: maps the key of a near duplicate to the key of the better sample, a chosen key to "".

    `lowest` is the lowest quality of all chosen samples of the dataset, None if none was chosen.
    """

    better: Mapping[str, str]
    lowest: float | None


def choice_digest(fingerprints: Mapping[int, str], cut: Cut) -> str:
    """Return the SHA-256 of what a choice depends on: the fingerprints of all candidates, by shard, and the cut."""
    # Choices of earlier versions had no other quality than the column of that name.
    how = {name: value for name, value in asdict(cut).items() if (name, value) != ("by", "quality")}
    what = json.dumps([sorted(fingerprints.items()), how])
    return hashlib.sha256(what.encode()).hexdigest()


def cut_fingerprints(fingerprints: Mapping[int, str], cut: Cut) -> dict[int, str]:
    """Return the fingerprints of shards after the cut, given those of their candidates."""
    digest = choice_digest(fingerprints, cut)
    return {
        shard: hashlib.sha256(f"{fingerprint}\n{digest}".encode()).hexdigest()
        for shard, fingerprint in fingerprints.items()
    }


def is_chosen(output: str, digest: str) -> bool:
    """Whether `output` holds the choice with this digest."""
    path = join(output, STATE, CHOSEN)
    if not exists(path):
        return False
    with open_file(path) as stream:
        try:
            return _head(pq.read_schema(stream))["digest"] == digest
        except (pa.ArrowInvalid, KeyError, ValueError):
            return False  # of another version, or damaged: the choice is made again


@dataclass(eq=False)
class ChooseSamples(beam.PTransform):
    """Choose among the candidates in `output` and store the choice there: Pipeline -> PCollection[str], its digest.

    `fingerprints` are those of the candidates, by shard. One worker writes the choice; it holds the keys of all chosen
    samples and near duplicates in memory, about 100 bytes each.
    """

    output: str
    fingerprints: Mapping[int, str]
    cut: Cut

    def expand(self, root: beam.Pipeline) -> beam.PCollection[str]:
        """Read the books of the shards, mark near duplicates, take the best."""
        candidates = (
            root
            | "shards" >> beam.Create(sorted(self.fingerprints))
            | "spread" >> beam.Reshuffle()
            | "read books" >> beam.FlatMap(self._read).with_output_types(Candidate)
        )
        if self.cut.distance is not None:
            candidates |= "near duplicates" >> MarkNearDuplicates(self.cut.distance)
        chosen = (
            candidates | "first" >> beam.Filter(lambda candidate: not candidate.better)
            if self.cut.best is None
            else candidates | "best" >> ChooseBest(self.cut.best)
        )
        duplicates = candidates | "duplicates" >> beam.Filter(lambda candidate: bool(candidate.better))
        both = (chosen, duplicates) | "both" >> beam.Flatten()
        digest = choice_digest(self.fingerprints, self.cut)
        return root | "digest" >> beam.Create([digest]) | "store" >> beam.Map(self._store, beam.pvalue.AsIter(both))

    def _read(self, shard: int) -> Iterator[Candidate]:
        return read_candidates(self.output, shard, self.fingerprints[shard], self.cut.by)

    def _store(self, digest: str, candidates: Iterable[Candidate]) -> str:
        store_choice(self.output, digest, candidates)
        return digest


def read_candidates(output: str, shard: int, fingerprint: str, by: str = "quality") -> Iterator[Candidate]:
    """Read the candidates of a shard out of its part; `by` as in `Cut`.

    Raises:
        SubjectloomError: the part has another fingerprint.
    """
    path = join(output, STATE, part_name(shard))
    with open_file(path) as stream:
        table = pq.read_table(stream, columns=["key", "phash", *(["width", "height"] if by == "pixels" else [by])])
    if decode_part(table.schema.metadata).fingerprint != fingerprint:
        raise SubjectloomError(f"{path} changed while the best were chosen: run again with --resume")
    for row in table.to_pylist():
        quality = float(row["width"] * row["height"]) if by == "pixels" else row[by]
        yield Candidate(shard, row["key"], quality, row["phash"])


def store_choice(output: str, digest: str, candidates: Iterable[Candidate]) -> None:
    """Store the chosen samples and the near duplicates; a sample that is neither was not good enough."""
    ordered = sorted(candidates, key=lambda candidate: (candidate.shard, candidate.key))
    chosen = [candidate.quality for candidate in ordered if not candidate.better]
    head = {"digest": digest, "lowest": min(chosen, default=None)}
    rows = [{"shard": candidate.shard, "key": candidate.key, "better": candidate.better} for candidate in ordered]
    table = pa.Table.from_pylist(rows, schema=_CHOICE_COLUMNS)
    with replacing(join(output, STATE, CHOSEN)) as stream:
        pq.write_table(
            table.replace_schema_metadata({_CHOICE_KEY: json.dumps(head)}),
            stream,
            row_group_size=_ROWS,
            compression="zstd",
        )


def read_choice(output: str, shard: int) -> Choice:
    """Read the choice for a shard."""
    with open_file(join(output, STATE, CHOSEN)) as stream:
        table = pq.read_table(stream, filters=[("shard", "==", shard)])
    better = dict(zip(table["key"].to_pylist(), table["better"].to_pylist(), strict=True))
    return Choice(better, _head(table.schema)["lowest"])


def _head(schema: pa.Schema) -> dict[str, Any]:
    head: dict[str, Any] = json.loads((schema.metadata or {})[_CHOICE_KEY])
    return head


@dataclass(eq=False)
class CutShards(beam.PTransform):
    """Write shards again with their chosen samples: Pipeline -> PCollection[Part].

    `output` holds their candidates and the choice, `sample_format` is the recipe's, `fingerprints` maps the shards to
    cut to the fingerprints that they have afterwards. Other shards are left alone.
    """

    output: str
    sample_format: SampleFormat
    fingerprints: Mapping[int, str]

    def expand(self, root: beam.Pipeline) -> beam.PCollection[Part]:
        """Cut each shard by itself."""
        shards = root | "shards" >> beam.Create(sorted(self.fingerprints)) | "spread" >> beam.Reshuffle()
        return shards | "cut" >> beam.Map(self._cut)

    def _cut(self, shard: int) -> Part:
        return cut_shard(self.output, self.sample_format, shard, self.fingerprints[shard])


def cut_shard(output: str, sample_format: SampleFormat, shard: int, fingerprint: str) -> Part:
    """Write a shard again with its chosen samples, unchanged, and then its part under the new fingerprint.

    Raises:
        InputError: a sample in the shard has another checksum than its row of the index.
    """
    choice = read_choice(output, shard)

    def refuse(row: Row) -> RejectRow | None:
        return None if choice.better.get(row["key"]) == "" else _reject(row, choice)

    return rewrite_shard(output, sample_format, shard, fingerprint, refuse, STAGE)


def _reject(row: Row, choice: Choice) -> RejectRow:
    """Return the reject of the sample that was cut."""
    better = choice.better.get(row["key"])
    if better:
        reason, detail = Reason.NEAR_DUPLICATE, f"it looks like {better}, which is better"
    else:
        reason, detail = Reason.BELOW_CUT, f"quality {row['quality']}, the lowest chosen is {choice.lowest}"
    return RejectRow(key=row["key"], source=row["source"], stage=STAGE, reason=reason, detail=detail)
