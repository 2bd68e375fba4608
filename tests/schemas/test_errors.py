import pickle

import pytest

from schemas.errors import ConfigError, InputError, ModelError, RecordError, SubjectloomError, choices
from schemas.rejects import Reason


@pytest.mark.parametrize(
    ("word", "ending"),
    [
        ("fastcompser", ", did you mean 'fastcomposer'? Choose from fastcomposer, blip-diffusion"),
        ("blip-difusion", ", did you mean 'blip-diffusion'? Choose from fastcomposer, blip-diffusion"),
        ("kosmos", ": choose from fastcomposer, blip-diffusion"),
    ],
)
def test_a_mistyped_word_gets_the_nearest_choice_and_all_choices(word: str, ending: str) -> None:
    assert choices(word, iter(["fastcomposer", "blip-diffusion"])) == ending


def test_a_record_error_reads_as_its_reason_and_its_detail() -> None:
    error = RecordError(Reason.NO_MATCH, "the best similarity is 0.100")
    assert str(error) == "no-match: the best similarity is 0.100"
    assert (error.reason, error.detail) == (Reason.NO_MATCH, "the best similarity is 0.100")


def test_a_record_error_crosses_processes() -> None:
    """Workers pickle what they raise: an error that takes two arguments must keep both."""
    error = pickle.loads(pickle.dumps(RecordError(Reason.NO_PHRASE, "no noun")))
    assert type(error) is RecordError
    assert (error.reason, error.detail) == (Reason.NO_PHRASE, "no noun")


@pytest.mark.parametrize("kind", [InputError, ConfigError, ModelError])
def test_every_error_for_people_has_one_base(kind: type[SubjectloomError]) -> None:
    assert str(kind("a: what to do")) == "a: what to do"
    assert issubclass(kind, SubjectloomError)
    assert issubclass(RecordError, SubjectloomError)
