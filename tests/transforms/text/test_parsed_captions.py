"""Phrases of whole captions as the sample parser reads them."""

import pytest

from transforms.models.parser import Parser, load_parser, parse_captions
from transforms.models.presets import resolve
from transforms.text.phrases import find_phrases


@pytest.fixture(scope="module")
def parser() -> Parser:
    return load_parser(resolve("sample", {}).parser)


def roots_and_texts(parser: Parser, caption: str) -> list[tuple[str, str]]:
    (parse,) = parse_captions(parser, [caption])
    return [(phrase.text, phrase.root) for phrase in find_phrases(parse)]


def texts(parser: Parser, caption: str) -> list[str]:
    return [text for text, _ in roots_and_texts(parser, caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("An orange and white cat", ["An orange and white cat"]),
        ("a black and white dog", ["a black and white dog"]),
        ("orange and white cat on a red and white blanket", ["orange and white cat", "a red and white blanket"]),
        ("a photo of an orange and white cat", ["an orange and white cat"]),
        ("A gold and silver watch on a table", ["A gold and silver watch", "a table"]),
        ("a gold and white plate", ["a gold and white plate"]),
        ("A tan and white dog runs", ["A tan and white dog"]),
        ("a red, white, and blue flag on a pole", ["a red, white, and blue flag", "a pole"]),
        ("her orange and white cat", ["her orange and white cat"]),
        ("an orange & white cat", ["an orange & white cat"]),
        # Two things.
        ("an orange and a white cat", ["an orange", "a white cat"]),
        ("a cup of coffee and brown sugar", ["a cup", "coffee", "brown sugar"]),
        ("a man in red and white birds", ["a man", "red and white birds"]),
        ("dogs, cats, and white birds", ["dogs", "cats", "white birds"]),
    ],
)
def test_several_colours_are_one_phrase(parser: Parser, caption: str, expected: list[str]) -> None:
    assert texts(parser, caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("In this image, a dog is drinking from a bowl.", ["a dog", "a bowl"]),
        ("The image features a brown dog sitting on a couch.", ["a brown dog", "a couch"]),
        ("The image depicts a man riding a horse.", ["a man", "a horse"]),
        ("The photo captures a man on a bike.", ["a man", "a bike"]),
        ("In this picture we can see a man holding a bat.", ["a man", "a bat"]),
        ("Image may contain: dog, grass", ["dog", "grass"]),
        ("A screenshot of a phone", ["a phone"]),
        ("a 3d render of a robot", ["a robot"]),
        ("A digital artwork of a fox", ["a fox"]),
        ("a movie poster of a dragon", ["a dragon"]),
        ("photograph, a dog on a beach", ["a dog", "a beach"]),
        ("This image is a digital rendering of a robot.", ["a robot"]),
        ("The image is of a dog.", ["a dog"]),
        ("a dog in the image", ["a dog"]),
        ("The main subject of the image is a horse.", ["a horse"]),
        # Pictures that can be seen.
        ("a poster on a wall", ["a poster", "a wall"]),
        ("a wall with a poster of a cat", ["a wall", "a poster", "a cat"]),
        ("a man looks at the picture on the wall", ["a man", "the picture", "the wall"]),
        ("a painting, a lamp and a chair", ["a painting", "a lamp", "a chair"]),
    ],
)
def test_the_picture_itself_is_no_subject(parser: Parser, caption: str, expected: list[str]) -> None:
    assert texts(parser, caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("(a red dog:1.3), [grass]", [("a red dog", "dog"), ("grass", "grass")]),
        ("a dog::1.5 and a cat::0.5", [("a dog", "dog"), ("a cat", "cat")]),
        ("{a dog|a cat} on a mat", [("a dog", "dog"), ("a cat", "cat"), ("a mat", "mat")]),
        ("a dog;a cat", [("a dog", "dog"), ("a cat", "cat")]),
        ("a dog &amp; a cat", [("a dog", "dog"), ("a cat", "cat")]),
        ("a cup<br>and a spoon", [("a cup", "cup"), ("a spoon", "spoon")]),
        ("a tv (16:9) at 10:30", [("a tv", "tv")]),
        ("two SUVs and two walkie-talkies", [("two SUVs", "suv"), ("two walkie-talkies", "talkie")]),
        ("two passers-by", [("two passers-by", "passer")]),
        # A verb that the parser takes for a noun.
        ("a homeless man begs for cash", [("a homeless man", "man"), ("cash", "cash")]),
        ("A young girl inhales", [("A young girl", "girl")]),
        ("a dozen eggs on a table", [("a dozen eggs", "egg"), ("a table", "table")]),
        ("some elephants and one is by some water", [("some elephants", "elephant"), ("some water", "water")]),
        ("two mothers-in-law", [("two mothers-in-law", "mother")]),
    ],
)
def test_a_phrase_ends_with_a_word(parser: Parser, caption: str, expected: list[tuple[str, str]]) -> None:
    assert roots_and_texts(parser, caption) == expected


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a group of people", None),
        ("some elephants in a field", None),
        ("toy animals", None),
        ("A crowd of people", None),
        ("a herd of sheep", None),
        ("some sheep", None),
        ("Cattle in a field", None),
        ("a lot of apples", None),
        ("a crowd on a street", None),
        ("a family at a table", None),
        ("five dogs", 5),
        ("two dogs", 2),
        ("a couple of dogs", 2),
        ("a pair of shoes", 2),
        ("a dog", 1),
        ("a sheep", 1),
        ("the bus", 1),
        ("a slice of pizza", 1),
        ("a piece of cake", 1),
        ("scissors on a table", 1),
        ("a man in jeans", 1),
    ],
)
def test_how_many_things_a_phrase_names(parser: Parser, caption: str, things: int | None) -> None:
    (parse,) = parse_captions(parser, [caption])
    assert find_phrases(parse)[0].things == things


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("digital art by Greg Rutkowski", []),
        ("a dragon on a hill, digital art by Greg Rutkowski, trending on artstation", ["a dragon", "a hill"]),
        ("a cat in the style of Van Gogh", ["a cat"]),
        ("portrait of an old man, oil painting, highly detailed", ["an old man"]),
        ("a fox, concept art, cinematic lighting, octane render", ["a fox"]),
        ("masterpiece, best quality, a girl with a hat", ["a girl", "a hat"]),
        ("a red car, studio lighting, sharp focus, hdr", ["a red car"]),
        ("an oil painting on a wall", ["an oil painting", "a wall"]),
        ("a woman looks at art near a light", ["a woman", "art", "a light"]),
    ],
)
def test_what_says_how_a_picture_was_made_is_no_subject(parser: Parser, caption: str, expected: list[str]) -> None:
    assert texts(parser, caption) == expected


def test_what_a_sign_forbids_is_not_there(parser: Parser) -> None:
    assert "A No bicycles" not in texts(parser, "A No bicycles, skates or skateboards sign on a pole.")
    assert texts(parser, "a street sign prohibiting bicycles") == ["a street sign"]
