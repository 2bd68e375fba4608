"""Properties of the captions that the grammar writes, over several seeds."""

import math
import re

import numpy as np
import pytest
import spacy

from jobs.sample_models.caption_trees import Grammar, write_captions
from jobs.sample_models.parser import to_doc
from jobs.sample_models.treebank import Tree
from tests.trees import has_cycle, roots

SEEDS, COUNT = 5, 600
IRREGULAR = {"watches", "carries", "flies"}


@pytest.fixture(scope="module")
def captions() -> list[Tree]:
    return [caption for seed in range(SEEDS) for caption in write_captions(COUNT, np.random.default_rng(seed))]


def share_is_near(found: list[bool], share: float) -> bool:
    """Whether as many are true as of independent draws, within four standard deviations."""
    return abs(sum(found) / len(found) - share) < 4 * math.sqrt(share * (1 - share) / len(found))


def is_several(caption: Tree, subject: int) -> bool:
    return caption.numbers[subject] == "Plur" or any(j > subject for j in caption.children(subject, "conj"))


def is_crossed(caption: Tree, i: int) -> bool:
    """Whether a word between word `i` and its head hangs outside of them."""
    low, high = sorted((i, caption.heads[i]))
    return any(not low <= caption.heads[j] <= high for j in range(low + 1, high))


def test_each_caption_is_a_tree_with_one_root(captions: list[Tree]) -> None:
    for caption in captions:
        (root,) = roots(caption)
        assert [i for i, dep in enumerate(caption.deps) if dep == "ROOT"] == [root], caption.text
        assert not has_cycle(caption), caption.text


def test_no_arcs_cross(captions: list[Tree]) -> None:
    assert not [caption.text for caption in captions if any(is_crossed(caption, i) for i in range(len(caption.words)))]


def test_all_lists_have_an_entry_per_word(captions: list[Tree]) -> None:
    for caption in captions:
        lists = (caption.spaces, caption.pos, caption.numbers, caption.heads, caption.deps)
        assert {len(values) for values in lists} == {len(caption.words)}


def test_chunks_begin_with_no_preposition(captions: list[Tree]) -> None:
    nlp = spacy.blank("en")
    docs = [to_doc(nlp, [caption]) for caption in captions[:200]]
    assert all(len(list(doc.sents)) == 1 for doc in docs)
    found = [chunk for doc in docs for chunk in doc.noun_chunks]
    assert len(found) > 400
    assert not [chunk.text for chunk in found if chunk[0].pos_ in ("ADP", "CCONJ", "PUNCT", "VERB")]


def test_an_article_follows_the_next_word(captions: list[Tree]) -> None:
    articles = {"a": 0, "an": 0}
    for caption in captions:
        for word, following in zip(caption.words, caption.words[1:], strict=False):
            if word.lower() in articles:
                # True of the grammar's words: it has neither "hour" nor "unicorn".
                assert (word.lower() == "an") == (following[0] in "aeiou"), caption.text
                articles[word.lower()] += 1
    assert min(articles.values()) > 200


def test_numerals_count_plurals_and_articles_stand_before_singulars(captions: list[Tree]) -> None:
    for caption in captions:
        for i, head in enumerate(caption.heads):
            if caption.deps[i] == "nummod":
                assert caption.numbers[head] == "Plur", caption.text
            if caption.words[i].lower() in ("a", "an", "another", "one") and caption.deps[i] == "det":
                assert caption.numbers[head] == "Sing", caption.text


def test_is_and_are_agree_with_their_subject(captions: list[Tree]) -> None:
    verbs: list[bool] = []
    for caption in captions:
        for i, word in enumerate(caption.words):
            if word in ("is", "are"):
                (subject,) = caption.children(i if caption.deps[i] == "ROOT" else caption.heads[i], "nsubj")
                assert (word == "are") == is_several(caption, subject), caption.text
                verbs.append(word == "are")
    assert len(verbs) > 1000
    assert 0.3 < np.mean(verbs) < 0.9


def test_a_verb_in_the_present_agrees_with_its_subject(captions: list[Tree]) -> None:
    forms: set[str] = set()
    for caption in captions:
        (root,) = roots(caption)
        subjects = caption.children(root, "nsubj")
        if caption.pos[root] != "VERB" or caption.children(root, "aux") or not subjects:
            continue
        assert caption.words[root].endswith("s") != is_several(caption, subjects[0]), caption.text
        forms.add(caption.words[root])
    assert forms >= IRREGULAR | {"sit", "holds", "hold", "watch", "carry", "fly"}
    assert not forms & {"watchs", "carrys", "flys"}


def test_between_takes_two_and_next_takes_to(captions: list[Tree]) -> None:
    between = next_to = 0
    for caption in captions:
        for i, word in enumerate(caption.words):
            if word.lower() == "between":
                (noun,) = caption.children(i, "pobj")
                between += 1
                assert is_several(caption, noun), caption.text
                assert caption.children(noun, "cc"), caption.text
            if word.lower() == "next":
                next_to += 1
                (to,) = caption.children(i, "prep")
                assert caption.words[i + 1] == caption.words[to] == "to"
    assert min(between, next_to) > 50


def test_spaces_stand_before_words_and_not_before_punctuation(captions: list[Tree]) -> None:
    for caption in captions:
        assert re.sub(r"([,.])", r" \1", caption.text).split() == caption.words
        assert not re.search(r"\s[,.]|,(?! )|\.(?!$)|  |^ | $", caption.text), caption.text
        assert not caption.spaces[-1]


def test_only_the_first_word_has_a_capital_and_half_of_the_captions_have_it(captions: list[Tree]) -> None:
    for caption in captions:
        assert all(word.islower() or word in {",", ".", "I"} for word in caption.words[1:]), caption.text
        assert caption.words[0][1:] == caption.words[0][1:].lower()
    assert share_is_near([caption.words[0][0].isupper() for caption in captions if caption.words[0] != "I"], 0.5)


def test_a_full_stop_and_a_time_end_their_shares_of_captions(captions: list[Tree]) -> None:
    assert share_is_near([caption.words[-1] == "." for caption in captions], 0.3)
    time = re.compile(r"at (night|dusk|dawn|noon|sunset)|(in the|on an? \w+) (day|morning|afternoon|evening|night)")
    assert share_is_near([bool(time.search(caption.text)) for caption in captions], 0.25)


def pattern_of(caption: Tree) -> str:
    (root,) = roots(caption)
    left = [caption.deps[i] for i in caption.children(root) if i < root]
    if caption.words[root] == "see" or (left == ["advmod"] and caption.words[root - 1].lower() == "here"):
        return "seeing"
    if left and left[0] in ("prep", "advmod"):
        return "fronted"
    if "expl" in left:
        return "existence"
    if "nsubj" in left:
        return "location" if caption.pos[root] == "AUX" else "doing"
    is_picture = re.match(r"an? (\w+ )?(photo|image|painting|drawing|close-up|view) of ", caption.text, re.IGNORECASE)
    return "picture" if is_picture else "noun phrase"


@pytest.mark.parametrize(
    ("pattern", "share"),
    [
        # Of the seven words for a picture one, "picture", also opens other noun phrases.
        ("noun phrase", 0.30 + 0.14 + 0.06 / 7),
        ("picture", 0.06 * 6 / 7),
        ("existence", 0.16),
        ("location", 0.16),
        ("doing", 0.10),
        ("fronted", 0.05),
        ("seeing", 0.03),
    ],
)
def test_patterns_have_their_shares(captions: list[Tree], pattern: str, share: float) -> None:
    assert share_is_near([pattern_of(caption) == pattern for caption in captions], share)


def test_lists_have_one_to_five_things() -> None:
    grammar = Grammar(np.random.default_rng(0))
    lengths, joints = [], []
    for _ in range(3000):
        thing = grammar.things()
        joint = []
        while following := [node for node in thing.right if node.dep == "conj"]:
            joint += [node.word for node in thing.right if node.dep in ("cc", "punct")]
            (thing,) = following
        lengths.append(len(joint) + 1)
        joints.append(joint)
    for length, share in enumerate((0.6, 0.26, 0.08, 0.04, 0.02), start=1):
        assert share_is_near([n == length for n in lengths], share)
    assert all(joint == [","] * (len(joint) - 1) + ["and"] for joint in joints if joint)


def test_the_same_seed_writes_the_same_captions_and_another_seed_others() -> None:
    captions = write_captions(40, np.random.default_rng(3))
    assert captions == write_captions(40, np.random.default_rng(3))
    assert captions[:10] == write_captions(10, np.random.default_rng(3))
    assert not {c.text for c in captions} & {c.text for c in write_captions(40, np.random.default_rng(4))}
