import json

import pytest

from tests.examples import phrase, segment
from tests.paths import SHARED
from transforms.regions.match import greedy_match
from transforms.text.labels import KIND, SAME, SYNONYM, label_similarity, word_similarity
from transforms.text.synonyms import KINDS, SYNONYMS, plain_label

CATEGORIES = SHARED / "real" / "coco" / "panoptic_categories.json"


@pytest.mark.parametrize(
    ("text", "root", "label", "expected"),
    [
        ("a dog", "dog", "dog", SAME),
        ("two Dogs", "dog", "dog", SAME),
        ("a puppy", "puppy", "dog", SYNONYM),
        ("the water", "water", "sea", SYNONYM),
        ("the open trunk", "trunk", "suitcase", 0),
        ("a house", "house", "building-other-merged", SYNONYM),
        ("an animal", "animal", "dog", KIND),
        ("a table", "table", "dog", 0),
        ("a hot dog", "dog", "dog", 0),
        ("a hot dog", "dog", "hot dog", SAME),
        ("two hot dogs", "dog", "hot dog", SAME),
        ("a red stop sign", "sign", "stop sign", SAME),
        ("a sign", "sign", "stop sign", 0),
        ("tall trees", "tree", "tree-merged", SAME),
        ("a brick wall", "wall", "wall-brick", SYNONYM),
        ("the blue sky", "sky", "sky-other-merged", SAME),
        ("a woman", "woman", "person", SYNONYM),
        ("a teddy bear", "bear", "bear", 0),
        ("toy animals", "animal", "teddy bear", SYNONYM),
        ("a stuffed animal", "animal", "dog", 0),
        ("two passers-by", "passer", "person", SYNONYM),
        ("a striped kite", "kite", "kite", SAME),
        # Hyphens, spaces and underscores, on either side.
        ("a red t-shirt", "shirt", "t-shirt", SAME),
        ("a red T-shirt", "shirt", "T-Shirt", SAME),
        ("a tshirt", "tshirt", "t-shirt", SAME),
        ("a red t-shirt", "shirt", "shirt", SAME),
        ("a shirt", "shirt", "t-shirt", 0),
        ("an x-ray", "ray", "x-ray", SAME),
        ("a hair-dryer", "dryer", "hair-dryer", SAME),
        ("a hairdryer", "hairdryer", "hair drier", SYNONYM),
        ("a stop-sign", "sign", "stop sign", SAME),
        ("a teddy-bear", "bear", "bear", 0),
        ("a motor bike", "bike", "motorcycle", SYNONYM),
        ("a motor bike", "bike", "bicycle", 0),
        ("a cellphone", "cellphone", "cell phone", SAME),
        ("a fire truck", "truck", "truck", SAME),
        ("a blue train car", "car", "train", SYNONYM),
        ("a blue train car", "car", "car", 0),
        ("a trailer", "trailer", "truck", 0),
        ("the crowd", "crowd", "person", SYNONYM),
        ("the herd", "herd", "elephant", KIND),
        ("a flock", "flock", "person", 0),
        ("a sea gull", "gull", "bird", SYNONYM),
        ("a trash can", "can", "trash_can", SAME),
        # Several names of a class, and remarks.
        ("a mountain", "mountain", "mountain, mount", SAME),
        ("a mount", "mount", "mountain, mount", SAME),
        ("a hill", "hill", "mountain, mount", SYNONYM),
        ("a swivel chair", "chair", "swivel chair", SAME),
        ("a tv", "tv", "Monitor/TV", SAME),
        ("a bat", "bat", "bat_(animal)", SAME),
        # Plural names.
        ("a boot", "boot", "boots", SAME),
        ("two boots", "boot", "Boots", SAME),
        ("a street light", "light", "Street Lights", SAME),
        ("stairs", "stair", "stairs", SAME),
        ("a glass", "glass", "glasses", 0),
        ("glasses", "glass", "glasses", SAME),
        ("a mushroom", "mushroom", "mushroom", SAME),
    ],
)
def test_words_by_hand(text: str, root: str, label: str, expected: float) -> None:
    assert word_similarity(phrase(text, root), label) == expected


def test_the_larger_of_two_and_a_thing_before_stuff() -> None:
    segments = [segment("person", 10), segment("person", 500), segment("person", 900, thing=False)]
    (match,) = greedy_match(label_similarity([phrase("a man", "man")], segments), 0.5)
    assert match.segment == 1


def test_size_never_outweighs_a_better_word() -> None:
    segments = [segment("dog", 1), segment("cat", 1000)]
    scores = label_similarity([phrase("a dog"), phrase("a pet"), phrase("a puppy")], segments)
    assert scores[0, 0] > SYNONYM + 0.02
    assert scores.max() <= 1
    assert scores[0, 1] == 0
    assert scores[1].max() < scores[2, 0]


def test_no_phrases_and_no_segments() -> None:
    assert label_similarity([], []).shape == (0, 0)
    assert label_similarity([phrase("a dog")], []).shape == (1, 0)


@pytest.mark.skipif(not CATEGORIES.exists(), reason="the shared COCO categories are not beside the repository")
def test_the_table_covers_every_class_of_coco() -> None:
    labels = {plain_label(category["name"]) for category in json.loads(CATEGORIES.read_text())}
    assert labels <= SYNONYMS.keys()
    assert SYNONYMS.keys() <= labels
    assert {label for covered in KINDS.values() for label in covered} <= labels
