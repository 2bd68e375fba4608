import pytest

from training.resume import PerStep, describe_change, samples_per_step, samples_read


def test_a_run_counts_the_samples_of_all_its_parts() -> None:
    """500 steps of 128 samples, then 300 of 64, then 128 again."""
    first = samples_per_step({}, 0, 128)
    second = samples_per_step({"samples_per_step": first}, 500, 64)
    third = samples_per_step({"samples_per_step": second}, 800, 128)
    assert first == [(0, 128)]
    assert third == [(0, 128), (500, 64), (800, 128)]
    steps = {0: 0, 1: 128, 500: 64_000, 501: 64_064, 800: 83_200, 801: 83_328}
    assert {step: samples_read(third, step) for step in steps} == steps


@pytest.mark.parametrize(
    ("before", "step", "expected"),
    [
        ([[0, 8]], 10, [(0, 8)]),  # as before
        ([[0, 8], [10, 4]], 10, [(0, 8)]),  # changed at the same checkpoint, and changed back
        ([[0, 8], [10, 4]], 5, [(0, 8)]),  # the checkpoint of step 10 was deleted
        ([[0, 4]], 0, [(0, 8)]),  # no checkpoint yet
        ([], 7, [(0, 8)]),
    ],
)
def test_only_what_was_read_up_to_the_checkpoint_counts(before: PerStep, step: int, expected: PerStep) -> None:
    assert samples_per_step({"samples_per_step": before}, step, 8) == expected


def test_a_line_says_what_has_changed() -> None:
    changed = [(0, 128), (500, 64)]
    assert describe_change(changed, 500, 4) == (
        "a step now reads 64 samples instead of 128 (processes: 4); "
        "64,000 were read so far, and those after them follow"
    )
    assert describe_change(changed, 800, 4) == describe_change([(0, 128)], 500, 8) == ""
    assert describe_change([(0, 128)], 0, 8) == ""
