import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from schemas.errors import ModelError, RecordError, SubjectloomError
from schemas.example import Example
from schemas.rejects import Reason, Reject
from tests.examples import make_example
from transforms.batch import Batch, advance, each


def batch(count: int, prefix: str = "k") -> Batch:
    return Batch(3, tuple(make_example(f"{prefix}{i}") for i in range(count)))


def name(examples: Sequence[Example]) -> list[Example]:
    return [replace(example, caption=f"seen {example.key}") for example in examples]


def test_a_step_advances_every_example_in_place() -> None:
    done = advance(batch(3), "look", name)
    assert done.shard == 3
    assert [r.caption for r in done.records if isinstance(r, Example)] == ["seen k0", "seen k1", "seen k2"]
    assert [stage for stage, _ in done.seconds] == ["look"]
    assert [stage for stage, _ in advance(done, "again", name).seconds] == ["look", "again"]


def test_one_poisoned_among_sixty_four_in_batches_of_eight_gives_one_reject() -> None:
    calls = []

    def poisoned(examples: Sequence[Example]) -> list[Example]:
        calls.append(len(examples))
        if any(example.key == "b3k5" for example in examples):
            raise ValueError("a   bad\npicture")
        return name(examples)

    done = [advance(batch(8, f"b{b}k"), "segments", poisoned) for b in range(8)]
    records = [record for group in done for record in group.records]
    rejects = [record for record in records if isinstance(record, Reject)]
    assert rejects == [Reject("b3k5", "mem://b3k5", "segments", Reason.STEP_FAILED, "ValueError: a bad picture")]
    assert len(records) == 64
    assert sum(isinstance(record, Example) and record.caption.startswith("seen") for record in records) == 63
    assert records[3 * 8 + 5] == rejects[0]
    # Seven whole batches, and for the bad one 8 -> 4 + 4 -> 2 + 2 -> 1 + 1.
    assert sorted(calls) == [1, 1, 2, 2, 4, 4, *[8] * 8]


def test_what_does_not_fit_into_memory_is_tried_in_smaller_parts() -> None:
    def narrow(examples: Sequence[Example]) -> list[Example]:
        if len(examples) > 2:
            raise MemoryError
        return name(examples)

    assert not [r for r in advance(batch(8), "segments", narrow).records if isinstance(r, Reject)]


class AcceleratorError(RuntimeError):
    """Named as torch names the failure of a device."""


def raising(error: Exception) -> Callable[[Sequence[Example]], list[Example]]:
    def step(_: Sequence[Example]) -> list[Example]:
        raise error

    return step


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        RuntimeError("CUDA out of memory. Tried to allocate"),
        AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_what_alone_does_not_fit_is_rejected_as_such(error: Exception) -> None:
    (record,) = advance(batch(1), "segments", raising(error)).records
    assert isinstance(record, Reject)
    assert record.reason == Reason.OUT_OF_MEMORY


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_the_allocators_of_torch_and_numpy_are_understood(allocate: Callable[[int], object]) -> None:
    def greedy(examples: Sequence[Example]) -> Sequence[Example]:
        allocate(10**15)
        return examples

    (record,) = advance(batch(1), "segments", greedy).records
    assert isinstance(record, Reject)
    assert record.reason == Reason.OUT_OF_MEMORY


def test_the_memory_of_a_failed_attempt_is_free_before_the_next() -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def greedy(examples: Sequence[Example]) -> list[Example]:
        assert not any(earlier() is not None for earlier in held), "an earlier attempt's memory is still held"
        large = np.zeros(8)
        held.append(weakref.ref(large))
        if len(examples) > 1:
            raise MemoryError
        return name(examples)

    assert not [r for r in advance(batch(4), "segments", greedy).records if isinstance(r, Reject)]
    assert len(held) == 7


@pytest.mark.parametrize("error", [ModelError("no segmenter"), SubjectloomError("a defect")])
def test_an_error_that_no_record_is_to_blame_for_stops_the_job(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        advance(batch(3), "segments", raising(error))


def test_a_broken_device_stops_the_job_before_it_rejects_all_that_follows() -> None:
    error = AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(
        SubjectloomError, match=r"^the device failed during segments \(CUDA .*\): run again with --resume"
    ):
        advance(batch(3), "segments", raising(error))


def test_a_record_error_gives_its_own_reason() -> None:
    def refuse(example: Example) -> Example:
        if example.key == "k1":
            raise RecordError(Reason.NO_PHRASE, "nothing to see")
        return example

    records = advance(batch(3), "phrases", each(refuse)).records
    assert records[1] == Reject("k1", "mem://k1", "phrases", Reason.NO_PHRASE, "nothing to see")
    assert [record.key for record in records] == ["k0", "k1", "k2"]


def test_rejects_pass_by_untouched() -> None:
    earlier = Reject("old", "mem://old", "read", Reason.EMPTY_IMAGE, "")
    mixed = Batch(0, (make_example("a"), earlier, make_example("b")))
    records = advance(mixed, "look", name).records
    assert records[1] is earlier
    assert [record.key for record in records] == ["a", "old", "b"]


def test_a_long_detail_is_cut() -> None:
    def fail(_: Sequence[Example]) -> list[Example]:
        raise ValueError("x" * 1000)

    (record,) = advance(batch(1), "look", fail).records
    assert isinstance(record, Reject)
    assert len(record.detail) == 500


@pytest.mark.parametrize("broken", [lambda e: e[:-1], lambda e: [*e, e[0]], lambda e: e[::-1]])
def test_a_step_that_loses_invents_or_reorders_stops_the_job(broken: object) -> None:
    with pytest.raises(SubjectloomError, match=r"the step look returned \d records for 3, or in another order"):
        advance(batch(3), "look", broken)  # type: ignore[arg-type]


def test_decoded_pixels_are_carried_along_and_never_pickled() -> None:
    example = make_example()
    pixels = example.pixels()
    assert replace(example, caption="other").pixels() is pixels
    restored = pickle.loads(pickle.dumps(example))
    assert restored == example
    assert restored._pixels is None
    assert len(pickle.dumps(example)) < len(example.image) + 600
