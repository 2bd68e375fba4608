from benchmarks.localization import TRAINING, examples_of


def test_examples_have_two_subjects_or_more_that_are_where_their_phrases_say() -> None:
    examples = examples_of(TRAINING, 6)
    assert len(examples) == 6
    for example in examples:
        assert len(example.matches) == len(example.phrases) == len(example.segments) >= 2
        assert all(
            example.caption[p.start : p.end] == p.text and s.label in p.text
            for p, s in zip(example.phrases, example.segments, strict=True)
        )
