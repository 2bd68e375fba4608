from hypothesis import given
from hypothesis import strategies as st

from schemas.keys import KEY_PATTERN, caption_key, clean_key, rng_of
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


def test_a_cleaned_key_has_no_underscore_at_its_ends_and_may_be_the_hash_alone() -> None:
    assert clean_key("_a.b_").startswith("a_b-")
    assert clean_key("X.X").startswith("X_X-")
    assert clean_key("é b..c/") == "b_c-" + clean_key("é b..c/")[-16:]
    assert clean_key("") == "e3b0c44298fc1c14"  # SHA-256 of nothing
    assert len(clean_key("x" * 201)) == 200


numbers = st.integers(1, 1000)


@given(raw_keys, numbers)
def test_a_caption_s_key_is_fit_for_every_name_and_the_first_is_the_picture_s(raw: str, number: int) -> None:
    key = clean_key(raw)
    assert KEY_PATTERN.fullmatch(caption_key(key, number))
    assert (caption_key(key, number) == key) == (number == 1)


@given(raw_keys, numbers, raw_keys, numbers)
def test_two_captions_never_have_one_key(raw: str, number: int, other: str, other_number: int) -> None:
    same = (clean_key(raw), number) == (clean_key(other), other_number)
    assert (caption_key(clean_key(raw), number) == caption_key(clean_key(other), other_number)) == same


def test_a_caption_s_key_is_no_key_of_a_picture_that_is_numbered_likewise() -> None:
    raws = ["dog", "dog-2", "dog#2", "dog\0" + "2", "dog 2", "x" * 200, "x" * 199, "x" * 181 + "-2"]
    keys = [caption_key(clean_key(raw), number) for raw in raws for number in (1, 2, 12)]
    assert len(set(keys)) == len(keys)


def test_a_caption_s_key_is_the_same_in_every_release() -> None:
    """SHA-256 of "000000142238", a zero byte and "2", first 16 digits."""
    assert caption_key("000000142238", 2) == "000000142238-2-f8f47911018245c9"
    assert caption_key("x" * 200, 12).startswith("x" * 180 + "-12-")


def test_random_numbers_are_the_same_in_every_release() -> None:
    """A dataset is built again from its seed: other numbers would be other bytes."""
    rng = rng_of(7, "composite", "dog")
    assert int(rng.integers(2**32)) == 2293121679


def test_random_numbers_depend_on_seed_stage_and_key_and_on_where_one_ends() -> None:
    given_to = [(7, "ab", "c"), (7, "a", "bc"), (8, "ab", "c"), (7, "ab", "d"), (7, "ac", "c"), (7, "c", "ab")]
    assert len({rng_of(*names).integers(2**62) for names in given_to}) == len(given_to)
    assert rng_of(7, "ab", "c").random() == rng_of(7, "ab", "c").random()
