from hypothesis import given

from schemas.keys import KEY_PATTERN, clean_key
from tests.strategies import raw_keys


@given(raw_keys)
def test_a_cleaned_key_is_fit_for_every_name(raw: str) -> None:
    assert KEY_PATTERN.fullmatch(clean_key(raw))


@given(raw_keys)
def test_cleaning_twice_changes_nothing(raw: str) -> None:
    assert clean_key(clean_key(raw)) == clean_key(raw)


@given(raw_keys, raw_keys)
def test_two_raw_keys_never_become_one(one: str, other: str) -> None:
    assert (clean_key(one) == clean_key(other)) == (one == other)


def test_keys_that_look_alike_once_cleaned_stay_apart() -> None:
    raws = [
        "a.b",
        "a/b",
        "a_b",
        "a b",
        "a\x00b",
        "a..b",
        "",
        ".",
        "..",
        "/",
        "😀",
        "😁",
        "é",
        "x" * 10_000,
        "x" * 10_001,
    ]
    assert len({clean_key(raw) for raw in raws}) == len(raws)


def test_a_clean_key_stays_as_it_is() -> None:
    for raw in ("000000142238", "A-b_9", "x" * 200):
        assert clean_key(raw) == raw


def test_a_cleaned_key_still_shows_where_it_came_from() -> None:
    assert clean_key("../../etc/passwd").startswith("etc_passwd-")
    assert clean_key("x" * 201).startswith("x" * 183 + "-")


def test_a_cleaned_key_never_looks_like_an_option() -> None:
    assert not clean_key("😀").startswith("-")


def test_a_cleaned_key_is_the_same_in_every_release() -> None:
    """--resume compares keys of an earlier run: SHA-256 of "animals/dog.old", first 16 digits."""
    assert clean_key("animals/dog.old") == "animals_dog_old-76ae3f3e2008dcf1"


def test_a_file_name_that_is_no_utf8_has_a_key() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert KEY_PATTERN.fullmatch(clean_key(name))
