"""Singulars, plurals and articles, on ordinary nouns, and beside the library `inflect` where that is installed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.text.nouns import PAIRS
from transforms.text.inflection import PAIRED, article, plural, singular, with_article
from transforms.text.synonyms import KINDS, SYNONYMS


def test_singulars_of_ordinary_nouns() -> None:
    assert len(PAIRS) > 1000
    assert {many: singular(many) for many in PAIRS} == PAIRS


def test_plurals_of_ordinary_nouns() -> None:
    assert {plural(form): form for form in PAIRS.values()} == PAIRS


def test_a_singular_has_no_singular_of_its_own() -> None:
    assert [form for many, form in PAIRS.items() if form != many and singular(form) is not None] == []


def test_most_classes_and_their_synonyms_are_among_the_nouns() -> None:
    """The nouns that captions have: without those that are not counted, as "luggage" and "snow"."""
    listed = set(PAIRS.values())
    words = {word for table in (SYNONYMS, KINDS) for label, others in table.items() for word in (label, *others)}
    single = {word for word in words if word.isalpha()}
    assert len(single & listed) > 0.75 * len(single)


@pytest.mark.parametrize(
    ("many", "form"),
    [
        ("women", "woman"), ("people", "person"), ("children", "child"), ("mice", "mouse"), ("geese", "goose"),
        ("sheep", "sheep"), ("buses", "bus"), ("leaves", "leaf"), ("cacti", "cactus"), ("éclairs", "éclair"),
        # Compounds of irregular nouns, and words that only end like them.
        ("snowmen", "snowman"), ("schoolchildren", "schoolchild"), ("bookshelves", "bookshelf"),
        ("swordfish", "swordfish"), ("olives", "olive"), ("gloves", "glove"), ("sleeves", "sleeve"),
        ("specimens", "specimen"), ("ottomans", "ottoman"), ("Germans", "German"), ("mongooses", "mongoose"),
        # -us or -use, -o or -oe, -y or -ie, -ch or -che
        ("walruses", "walrus"), ("viruses", "virus"), ("hippopotamuses", "hippopotamus"), ("houses", "house"),
        ("spouses", "spouse"), ("fuses", "fuse"), ("causes", "cause"), ("masseuses", "masseuse"),
        ("volcanoes", "volcano"), ("canoes", "canoe"), ("potatoes", "potato"), ("horseshoes", "horseshoe"),
        ("brownies", "brownie"), ("berries", "berry"), ("pies", "pie"), ("headaches", "headache"),
        ("benches", "bench"), ("quiches", "quiche"), ("axes", "axe"), ("lenses", "lens"),
        # Several parts.
        ("mothers-in-law", "mother-in-law"), ("passers-by", "passer-by"), ("two-year-olds", "two-year-old"),
        ("close-ups", "close-up"), ("jack-in-the-boxes", "jack-in-the-box"), ("walkie-talkies", "walkie-talkie"),
        # Capitals.
        ("Women", "Woman"), ("WOMEN", "WOMAN"), ("iPhones", "iPhone"), ("DVDs", "DVD"), ("T-shirts", "T-shirt"),
        ("McDonalds", "McDonald"), ("Wolves", "Wolf"), ("B52s", "B52"),
    ],
)  # fmt: skip
def test_singulars(many: str, form: str) -> None:
    assert singular(many) == form


@pytest.mark.parametrize(
    "word",
    [
        "jeans", "scissors", "binoculars", "sweatpants", "thanks", "clothes", "dog", "glass", "dress", "bus", "gas",
        "iris", "tennis", "chess", "canvas", "cosmos", "lens", "specimen", "omen", "pumice", "news", "cattle", "taxi",
        "sushi", "graffiti", "women's", "women’s", "its", "this", "us", "s", "", "-", "-s", "--s", "猫", "2", "2s",
    ],
)  # fmt: skip
def test_what_is_no_plural_or_has_no_singular(word: str) -> None:
    assert singular(word) is None


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[a-zA-Zé'-]{0,12}(s|es|ies|men|ves|i)", fullmatch=True)))
def test_any_text_gives_a_word_or_none(word: str) -> None:
    form = singular(word)
    assert form is None or (form and form[0] == word[0] and len(form) <= len(word) + 2)
    assert form is None or form == word or singular(form) is None or "-" in word
    assert with_article(word).endswith(f" {word}")


@pytest.mark.parametrize(
    "words",
    """dog|unicorn|uniform|union|unit|university|usual one|used car|utensil|ukulele|Ukrainian|u-turn|U-turn|European|
    ewe|one-way sign|one-eyed cat|onesie|ouija board|T-shirt|UFO|USB stick|DVD|100-year-old|1,800|yellow car|
    STOP sign|FREE sign|NASA rocket|house|hospital|herb|猫|unanimous vote""".replace("\n    ", "").split("|"),
)
def test_an_indefinite_article_before_a_consonant(words: str) -> None:
    assert with_article(words) == f"a {words}"


@pytest.mark.parametrize(
    "words",
    [
        "umbrella", "hour", "hourglass", "honest man", "heirloom", "éclair", "Œuvre", "apple", "8-ball", "8-year-old",
        "80s car", "11-year-old", "18-wheeler", "1850s house", "11,000", "X-ray", "SUV", "LED lamp", "MRI", "HD screen",
        "A-frame", "EXIT sign", "usher", "urn", "ugly dog", "unidentified man", "unilluminated sign",
        "unironed shirt", "unimportant", "uninteresting",
        "onerous", "ottoman", "egg",
    ],
)  # fmt: skip
def test_an_indefinite_article_before_a_vowel(words: str) -> None:
    assert with_article(words) == f"an {words}"


def test_beside_inflect() -> None:
    """Where the two differ on an ordinary noun, inflect gives a non-word, nothing, or a rarer form."""
    peer = pytest.importorskip("inflect").engine()
    differing = {many for many, form in PAIRS.items() if peer.singular_noun(many) != form}
    assert len(differing) / len(PAIRS) < 0.03
    nonwords = {"bowties": "bowty", "hoodies": "hoody", "selfies": "selfy", "mustaches": "mustach", "indices": "indice"}
    assert {many: peer.singular_noun(many) for many in nonwords} == nonwords
    assert all(singular(many) == PAIRS[many] for many in differing)
    articles = [form for form in PAIRS.values() if peer.a(form).split()[0] != article(form)]
    assert articles == []


def test_paired_nouns_are_their_own_plural() -> None:
    assert {plural(noun) for noun in PAIRED} == PAIRED
