import hashlib
import io
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from schemas.dataset import Part, decode_part
from schemas.errors import InputError, SubjectloomError
from schemas.rejects import Reason, Reject
from schemas.samples.mip_adapter import FORMAT
from schemas.shards import Entry, Sample, read_tar
from tests.datasets import JOB, example, scored
from transforms.batch import Batch
from transforms.dataset import finished_shards, prepare_output, read_table
from transforms.finish import finish_dataset
from transforms.selection.cut import (
    ChooseSamples,
    Cut,
    CutShards,
    choice_digest,
    cut_fingerprints,
    cut_shard,
    is_chosen,
    read_candidates,
    read_choice,
    store_choice,
)
from transforms.selection.top_k import Candidate
from transforms.settled import settle
from transforms.write import commit_shard

FAR = 0x00FF00FF00FF00FF
SHARDS = {
    0: {"a": (0.9, 0), "b": (0.8, 0b11), "c": (0.2, FAR)},
    1: {"d": (0.5, ~FAR & (2**64 - 1)), "e": (0.95, FAR)},
    2: {"f": (0.1, 0x0F0F0F0F0F0F0F0F)},
    3: {},
}
"""Of each shard the samples' quality and look: b looks like a, c like e, f like nothing, but it is poor."""
REJECT = Reject("r", "pictures/r.jpg", "gates", Reason.FEW_OBJECTS, "0 found")
FINGERPRINTS = {shard: f"print-{shard}" for shard in SHARDS}
CUT = Cut(best=3, distance=3)
JOB_HERE = JOB.model_copy(update={"recipe": FORMAT.recipe})


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A dataset of candidates, with a reject in its second shard."""
    write_candidates(tmp_path / "out")
    return str(tmp_path / "out")


def write_candidates(folder: Path) -> None:
    prepare_output(str(folder), JOB_HERE)
    for shard in SHARDS:
        write_shard(str(folder), shard)


def write_shard(output: str, shard: int) -> None:
    made = [scored(example(key), quality, look) for key, (quality, look) in SHARDS[shard].items()]
    batch = Batch(shard, (*made, REJECT) if shard == 1 else tuple(made), (("read", 1.5),))
    commit_shard(output, FORMAT, shard, FINGERPRINTS[shard], [settle(batch, FORMAT)])


def run(transform: beam.PTransform) -> None:
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        _ = pipeline | transform


def choose_and_cut(output: str, cut: Cut = CUT) -> None:
    run(ChooseSamples(output, FINGERPRINTS, cut))
    run(CutShards(output, FORMAT, cut_fingerprints(FINGERPRINTS, cut)))


def keys_of(output: str) -> dict[str, list[str]]:
    return {path.name: [sample.key for _, sample in read(path)] for path in sorted(Path(output).glob("*.tar"))}


def read(path: Path) -> list[tuple[Entry, Sample]]:
    return list(read_tar(io.BytesIO(path.read_bytes())))


def part_of(output: str, shard: int) -> Part:
    return decode_part(pq.read_schema(Path(output) / ".subjectloom" / f"part-{shard:06d}.parquet").metadata)


def digests(output: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(output).glob("*.tar"))}


def test_only_the_chosen_stay_and_the_others_are_rejects(output: str) -> None:
    choose_and_cut(output)
    assert keys_of(output) == {"mip-adapter-000000.tar": ["a"], "mip-adapter-000001.tar": ["d", "e"]}
    final = cut_fingerprints(FINGERPRINTS, CUT)
    assert finished_shards(output) == final
    info = finish_dataset(output, JOB_HERE, final, FORMAT)
    assert info.counts.model_dump() == {
        "read": 7,
        "written": 3,
        "rejected": 4,
        "shards": 2,
        "rejects": {"best": {"below-cut": 1, "near-duplicate": 2}, "gates": {"few-objects": 1}},
    }
    assert read_table(output, "index.parquet")["key"].to_pylist() == ["a", "d", "e"]
    told = {row["key"]: (row["source"], row["detail"]) for row in read_table(output, "rejects.parquet").to_pylist()}
    assert told["b"] == ("pictures/b.jpg", "it looks like a, which is better")
    assert told["c"] == ("pictures/c.jpg", "it looks like e, which is better")
    assert told["f"] == ("pictures/f.jpg", "quality 0.1, the lowest chosen is 0.5")


def test_near_duplicates_stay_where_nobody_asks(output: str) -> None:
    choose_and_cut(output, Cut(best=3, distance=None))
    assert keys_of(output) == {"mip-adapter-000000.tar": ["a", "b"], "mip-adapter-000001.tar": ["e"]}


def test_samples_stay_as_they_are_and_their_rows_point_at_them(output: str) -> None:
    before = {s.key: s.members for tar in Path(output).glob("*.tar") for _, s in read(tar)}
    choose_and_cut(output)
    for shard in (0, 1):
        table = pq.read_table(Path(output) / ".subjectloom" / f"part-{shard:06d}.parquet")
        tar = Path(output) / f"mip-adapter-{shard:06d}.tar"
        for row, (entry, sample) in zip(table.to_pylist(), read(tar), strict=True):
            assert sample.members == before[sample.key]
            assert (row["key"], row["offset"], row["size"], row["crc32"]) == (*vars(entry).values(),)
            assert (row["quality"], row["look"]) == SHARDS[shard][sample.key]
            assert FORMAT.problems_of(sample, row) == []


def test_a_part_keeps_what_was_read_and_what_was_rejected_before(output: str) -> None:
    choose_and_cut(output)
    part = part_of(output, 1)
    assert (part.read, part.written, [reject.key for reject in part.rejects]) == (3, 2, ["r"])
    assert part.seconds["read"] == 1.5
    assert part.seconds["best"] > 0
    empty = part_of(output, 3)
    assert (empty.read, empty.written, empty.rejects) == (0, 0, [])


def test_more_than_there_are_can_be_asked_for(output: str) -> None:
    before = digests(output)
    choose_and_cut(output, Cut(best=99, distance=None))
    assert digests(output) == before


def test_of_no_candidates_none_are_chosen(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB_HERE)
    write_shard(str(tmp_path), 3)
    run(ChooseSamples(str(tmp_path), {3: FINGERPRINTS[3]}, CUT))
    assert read_choice(str(tmp_path), 3).lowest is None
    final = cut_fingerprints({3: FINGERPRINTS[3]}, CUT)
    run(CutShards(str(tmp_path), FORMAT, final))
    assert finish_dataset(str(tmp_path), JOB_HERE, final, FORMAT).counts.written == 0


def test_the_choice_is_stored_by_shard(tmp_path: Path) -> None:
    told = [Candidate(0, "b", 0.5, 0, "a"), Candidate(7, "x", 0.25, 1), Candidate(0, "a", 0.5, 0)]
    store_choice(str(tmp_path), "digest", told)
    choice = read_choice(str(tmp_path), 0)
    assert (choice.better, choice.lowest) == ({"a": "", "b": "a"}, 0.25)
    assert read_choice(str(tmp_path), 7).better == {"x": ""}
    assert read_choice(str(tmp_path), 3).better == {}
    stored = (tmp_path / ".subjectloom" / "chosen.parquet").read_bytes()
    store_choice(str(tmp_path), "digest", told[::-1])
    assert (tmp_path / ".subjectloom" / "chosen.parquet").read_bytes() == stored


def test_only_the_choice_of_the_same_candidates_stands(tmp_path: Path) -> None:
    assert not is_chosen(str(tmp_path), "digest")
    store_choice(str(tmp_path), "digest", [])
    assert is_chosen(str(tmp_path), "digest")
    assert not is_chosen(str(tmp_path), "other")
    path = tmp_path / ".subjectloom" / "chosen.parquet"
    pq.write_table(pa.table({"key": ["a"]}), path)
    assert not is_chosen(str(tmp_path), "digest")
    path.write_bytes(b"PAR1 and no more")
    assert not is_chosen(str(tmp_path), "digest")


def test_a_fingerprint_depends_on_all_candidates_and_on_the_cut() -> None:
    base = cut_fingerprints(FINGERPRINTS, CUT)
    assert base == cut_fingerprints(dict(reversed(FINGERPRINTS.items())), CUT)
    assert len({*base.values(), *FINGERPRINTS.values()}) == 2 * len(SHARDS)
    changes = [
        ({**FINGERPRINTS, 2: "new"}, CUT),
        (FINGERPRINTS, Cut(4)),
        (FINGERPRINTS, Cut(3, 2)),
        ({0: "print-0"}, CUT),
    ]
    for fingerprints, cut in changes:
        assert cut_fingerprints(fingerprints, cut)[0] != base[0]
        assert choice_digest(fingerprints, cut) != choice_digest(FINGERPRINTS, CUT)


def test_candidates_that_changed_meanwhile_are_noticed(output: str) -> None:
    assert [candidate.key for candidate in read_candidates(output, 0, "print-0")] == ["a", "b", "c"]
    with pytest.raises(SubjectloomError, match=r"part-000000.parquet changed while the best were chosen: run"):
        list(read_candidates(output, 0, "other"))


def test_a_damaged_sample_is_not_passed_on(output: str) -> None:
    run(ChooseSamples(output, FINGERPRINTS, CUT))
    tar = Path(output) / "mip-adapter-000000.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"000000.tar: the sample a is damaged: remove this file and run again with"):
        cut_shard(output, FORMAT, 0, "new")
    assert finished_shards(output)[0] == "print-0"


def test_a_key_in_two_shards_is_chosen_in_one(tmp_path: Path) -> None:
    prepare_output(str(tmp_path), JOB_HERE)
    for shard in (0, 1):
        settled = settle(Batch(shard, (scored(example("twin"), 0.5),)), FORMAT)
        commit_shard(str(tmp_path), FORMAT, shard, FINGERPRINTS[shard], [settled])
    prints = {shard: FINGERPRINTS[shard] for shard in (0, 1)}
    run(ChooseSamples(str(tmp_path), prints, Cut(best=1, distance=None)))
    run(CutShards(str(tmp_path), FORMAT, cut_fingerprints(prints, Cut(best=1, distance=None))))
    assert keys_of(str(tmp_path)) == {"mip-adapter-000000.tar": ["twin"]}
