"""Reading CoNLL-U, and relabelling sentences, each with the tree that is expected of it."""

import gzip
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from jobs.sample_models.parser import to_doc
from jobs.sample_models.treebank import LABELS, Tree, read_trees, retokenize, to_clear
from tests.paths import SHARED
from tests.trees import arcs, has_cycle, roots, tree

TREEBANK = SHARED / "treebank"

DOGS = "1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t2\tnsubj\t_\t_\n2\tbark\tbark\tVERB\tVBP\t_\t0\troot\t_\tSpaceAfter=No\n"
CATS = "1\tCats\tcat\tNOUN\tNNS\tNumber=Plur\t0\troot\t_\t_\n"


def line(number: str, form: str, head: str = "_", dep: str = "_", feats: str = "_", misc: str = "_") -> str:
    """A line of CoNLL-U whose other columns do not matter."""
    return f"{number}\t{form}\t_\tX\t_\t{feats}\t{head}\t{dep}\t_\t{misc}"


def read(tmp_path: Path, text: str) -> list[Tree]:
    path = tmp_path / "text.conllu"
    path.write_text(text, encoding="utf-8")
    return list(read_trees(path))


def chunks(relabelled: Tree) -> list[str]:
    return [chunk.text for chunk in to_doc(spacy.blank("en"), [relabelled]).noun_chunks]


# Reading.


def test_a_sentence_is_read_into_parallel_lists(tmp_path: Path) -> None:
    assert read(tmp_path, DOGS) == [
        Tree(["Dogs", "bark"], [True, False], ["NOUN", "VERB"], ["Plur", ""], [1, 1], ["nsubj", "root"])
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\n# newdoc\n\n"])
def test_the_last_sentence_is_read_with_and_without_an_empty_line_after_it(tmp_path: Path, end: str) -> None:
    assert [sentence.text for sentence in read(tmp_path, f"{DOGS}\n\n{CATS}{end}")] == ["Dogs bark", "Cats"]


def test_comments_are_left_out_and_do_not_end_a_sentence(tmp_path: Path) -> None:
    first, second = DOGS.splitlines()
    (sentence,) = read(tmp_path, f"# sent_id = 1\n# text = x\n{first}\n# in the middle\n{second}\n\n")
    assert sentence.words == ["Dogs", "bark"]


def test_a_word_that_is_a_hash_is_no_comment(tmp_path: Path) -> None:
    (sentence,) = read(tmp_path, f"{line('1', '#', '0', 'root')}\n{line('2', '1', '1', 'nummod')}\n")
    assert sentence.words == ["#", "1"]


def test_compressed_and_plain_files_give_the_same_trees(tmp_path: Path) -> None:
    text = f"{DOGS}\n{CATS.replace('Cats', 'Kätzchen')}\n"
    packed = tmp_path / "text.conllu.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(read_trees(packed)) == read(tmp_path, text)


def test_contractions_and_missing_spaces_give_the_text_back(tmp_path: Path) -> None:
    rows = [
        "1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tdo\tdo\tAUX\tVBP\tNumber=Plur\t3\taux\t_\t_",
        "2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_",
        "3\tgo\tgo\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\tSpaceAfter=No",
        "3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_",
        "4\t!\t!\tPUNCT\t.\t_\t3\tpunct\t_\t_",
    ]
    (sentence,) = read(tmp_path, "# text\n" + "\n".join(rows) + "\n\n")
    assert sentence.text == "don't go!"
    assert sentence.words == ["do", "n't", "go", "!"]
    assert sentence.heads == [2, 2, 2, 2]
    assert sentence.numbers == ["Plur", "", "", ""]


def test_the_space_after_a_contraction_is_that_of_its_own_line(tmp_path: Path) -> None:
    rows = [
        line("1", "I", "4", "nsubj"),
        line("2-4", "wouldn't've", misc="SpaceAfter=No"),
        *(line(str(i), word, "0" if i == 4 else "4", "root" if i == 4 else "aux") for i, word in enumerate(
            ("would", "n't", "'ve"), start=2)),
        line("5", ",", "4", "punct"),
        line("6-7", "it's"),
        line("6", "it", "4", "obj", misc="SpaceAfter=No"),
        line("7", "'s", "4", "aux", misc="SpaceAfter=No"),
        line("8", "so", "4", "advmod"),
    ]  # fmt: skip
    (sentence,) = read(tmp_path, "\n".join(rows))
    assert sentence.text == "I wouldn't've, it's so"


def test_an_elided_word_does_not_shift_the_heads(tmp_path: Path) -> None:
    rows = [
        line("0.1", "we"),
        line("1", "saw", "0", "root"),
        line("1.1", "and"),
        line("1.2", "saw"),
        line("2", "dogs", "1", "obj"),
        line("3", "there", "2", "advmod"),
    ]
    (sentence,) = read(tmp_path, "\n".join(rows))
    assert arcs(sentence) == ["saw root saw", "dogs obj saw", "there advmod dogs"]


@pytest.mark.parametrize(
    ("feats", "number"),
    [
        ("Case=Nom|Number=Sing|Person=1", "Sing"),
        ("Number=Plur", "Plur"),
        ("Number=Ptan", ""),
        ("Number[psor]=Sing", ""),
        ("Person=2", ""),
        ("_", ""),
    ],
)
def test_only_singular_and_plural_are_numbers(tmp_path: Path, feats: str, number: str) -> None:
    (sentence,) = read(tmp_path, line("1", "word", "0", "root", feats))
    assert sentence.numbers == [number]


# Prepositions.


def test_a_preposition_becomes_the_head_of_its_noun() -> None:
    sentence = tree("cats NOUN 2 nsubj", "sit VERB 0 root", "on ADP 5 case", "the DET 5 det", "mat NOUN 2 obl")
    expected = ["cats nsubj sit", "sit ROOT sit", "on prep sit", "the det mat", "mat pobj on"]
    assert arcs(to_clear(sentence)) == expected


def test_of_two_prepositions_the_second_hangs_under_the_first() -> None:
    sentence = tree("jumps VERB 0 root", "out ADP 4 case", "of ADP 4 case", "boxes NOUN 1 obl")
    assert arcs(to_clear(sentence))[1:] == ["out prep jumps", "of prep out", "boxes pobj of"]


def test_a_modifier_before_the_preposition_follows_it_and_one_behind_it_stays() -> None:
    sentence = tree("sits VERB 0 root", "right ADV 4 advmod", "on ADP 4 case", "mats NOUN 1 obl", "there ADV 4 advmod")
    assert arcs(to_clear(sentence))[1:] == [
        "right advmod on", "on prep sits", "mats pobj on", "there advmod mats",
    ]  # fmt: skip


def test_a_preposition_may_be_the_root_and_takes_the_full_stop() -> None:
    sentence = tree("On ADP 3 case", "the DET 3 det", "mat NOUN 0 root", ". PUNCT 3 punct")
    assert arcs(to_clear(sentence)) == ["On ROOT On", "the det mat", "mat pobj On", ". punct On"]


def test_the_comma_of_a_place_inside_a_sentence_stays_with_its_noun() -> None:
    sentence = tree("sits VERB 0 root", "on ADP 3 case", "mats NOUN 1 obl", ", PUNCT 3 punct")
    assert arcs(to_clear(sentence))[3] == ", punct mats"


def test_a_case_behind_its_noun_is_no_preposition() -> None:
    sentence = tree("dog NOUN 3 nmod:poss", "'s PART 1 case", "tail NOUN 0 root")
    assert arcs(to_clear(sentence)) == ["dog poss tail", "'s case dog", "tail ROOT tail"]


def test_a_word_such_as_ago_stays_behind_its_noun() -> None:
    sentence = tree("left VERB 0 root", "years NOUN 1 obl", "ago ADP 2 case")
    assert arcs(to_clear(sentence)) == ["left ROOT left", "years npadvmod left", "ago case years"]


def test_a_preposition_before_a_subject_stays_below_it() -> None:
    sentence = tree("over ADP 2 case", "ten NUM 3 nsubj", "left VERB 0 root")
    assert arcs(to_clear(sentence)) == ["over case ten", "ten nsubj left", "left ROOT left"]


def test_by_before_an_agent_is_named_so() -> None:
    sentence = tree("bitten VERB 0 root", "by ADP 3 case", "dogs NOUN 1 obl:agent")
    assert arcs(to_clear(sentence))[1:] == ["by agent bitten", "dogs pobj by"]


def test_a_verb_under_a_preposition_is_its_clause() -> None:
    sentence = tree("ends VERB 0 root", "before ADP 3 case", "eating VERB 1 obl")
    assert arcs(to_clear(sentence))[1:] == ["before prep ends", "eating pcomp before"]


def test_prepositions_are_joined_to_prepositions() -> None:
    sentence = tree(
        "sits VERB 0 root", "on ADP 3 case", "mats NOUN 1 obl", "and CCONJ 6 cc", "in ADP 6 case", "boxes NOUN 3 conj"
    )
    expected = ["on prep sits", "mats pobj on", "and cc on", "in conj on", "boxes pobj in"]
    assert arcs(to_clear(sentence))[1:] == expected


def test_a_preposition_is_joined_to_the_outermost_of_two() -> None:
    sentence = tree(
        "jumps VERB 0 root", "out ADP 4 case", "of ADP 4 case", "boxes NOUN 1 obl",
        "or CCONJ 7 cc", "off ADP 7 case", "tables NOUN 4 conj",
    )  # fmt: skip
    assert arcs(to_clear(sentence))[3:] == ["boxes pobj of", "or cc out", "off conj out", "tables pobj off"]


# Copulas.

COPULAS = {
    "an attribute": (
        ("this PRON 5 nsubj", "is AUX 5 cop", "not PART 5 advmod", "a DET 5 det", "dog NOUN 0 root", ". PUNCT 5 punct"),
        ["this nsubj is", "is ROOT is", "not advmod is", "a det dog", "dog attr is", ". punct is"],
    ),
    "an adverb of the clause": (
        ("she PRON 4 nsubj", "is AUX 4 cop", "really ADV 4 advmod", "king NOUN 0 root", "now ADV 4 advmod"),
        ["she nsubj is", "is ROOT is", "really advmod is", "king attr is", "now advmod king"],
    ),
    "an adverb of the adjective": (
        ("she PRON 5 nsubj", "is AUX 5 cop", "n't PART 5 advmod", "really ADV 5 advmod", "tall ADJ 0 root"),
        ["she nsubj is", "is ROOT is", "n't advmod is", "really advmod tall", "tall acomp is"],
    ),
    "an adverb as predicate": (
        ("he PRON 3 nsubj", "is AUX 3 cop", "here ADV 0 root"),
        ["he nsubj is", "is ROOT is", "here advmod is"],
    ),
    "a question": (
        ("is AUX 4 cop", "it PRON 4 nsubj", "( PUNCT 4 punct", "dogs NOUN 0 root", "? PUNCT 4 punct"),
        ["is ROOT is", "it nsubj is", "( punct dogs", "dogs attr is", "? punct is"],
    ),
    "a predicate before the copula": (
        ("what PRON 0 root", "is AUX 1 cop", "this PRON 1 nsubj"),
        ["what attr is", "is ROOT is", "this nsubj is"],
    ),
    "a clause as predicate": (
        ("point NOUN 5 nsubj", "is AUX 5 cop", "that SCONJ 5 mark", "it PRON 5 nsubj", "works VERB 0 root"),
        ["point nsubj is", "is ROOT is", "that mark works", "it nsubj works", "works ccomp is"],
    ),
    "a place": (
        ("kite NOUN 5 nsubj", "is AUX 5 cop", "above ADP 5 case", "a DET 5 det", "hat NOUN 0 root"),
        ["kite nsubj is", "is ROOT is", "above prep is", "a det hat", "hat pobj above"],
    ),
    "inside another clause": (
        ("says VERB 0 root", "it PRON 4 nsubj", "is AUX 4 cop", "dogs NOUN 1 ccomp"),
        ["says ROOT says", "it nsubj is", "is ccomp says", "dogs attr is"],
    ),
    "an adverbial clause": (
        ("it PRON 3 nsubj", "is AUX 3 cop", "dogs NOUN 0 root", "running VERB 3 advcl", "here ADV 4 advmod"),
        ["it nsubj is", "is ROOT is", "dogs attr is", "running advcl is", "here advmod running"],
    ),
    "a noun joined to the predicate": (
        ("it PRON 4 nsubj", "is AUX 4 cop", "both CCONJ 4 cc:preconj", "dog NOUN 0 root", "and CCONJ 6 cc",
         "cat NOUN 4 conj"),
        ["it nsubj is", "is ROOT is", "both preconj dog", "dog attr is", "and cc dog", "cat conj dog"],
    ),
    "a verb joined to the clause": (
        ("it PRON 3 nsubj", "is AUX 3 cop", "dog NOUN 0 root", "and CCONJ 5 cc", "barks VERB 3 conj"),
        ["it nsubj is", "is ROOT is", "dog attr is", "and cc is", "barks conj is"],
    ),
    "a clause without a verb joined to the clause": (
        ("it PRON 3 nsubj", "is AUX 3 cop", "dog NOUN 0 root", "he PRON 5 nsubj", "cat NOUN 3 conj"),
        ["it nsubj is", "is ROOT is", "dog attr is", "he nsubj cat", "cat conj is"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COPULAS)
def test_a_copula_becomes_the_head_of_its_clause(case: str) -> None:
    rows, expected = COPULAS[case]
    assert arcs(to_clear(tree(*rows))) == expected


def test_chunks_leave_the_copula_and_its_preposition_out() -> None:
    sentence = tree(
        "a DET 2 det", "kite NOUN 6 nsubj", "is AUX 6 cop", "above ADP 6 case", "a DET 6 det", "hat NOUN 0 root"
    )
    assert chunks(to_clear(sentence)) == ["a kite", "a hat"]


# Conjuncts, names and labels.


def test_conjuncts_hang_in_a_chain_and_leave_their_and_outside() -> None:
    sentence = tree(
        "a DET 2 det", "cup NOUN 0 root", ", PUNCT 5 punct", "a DET 5 det", "key NOUN 2 conj",
        "and CCONJ 8 cc", "a DET 8 det", "hat NOUN 2 conj",
    )  # fmt: skip
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[2:] == [
        ", punct cup", "a det key", "key conj cup", "and cc key", "a det hat", "hat conj key",
    ]  # fmt: skip
    assert chunks(relabelled) == ["a cup", "a key", "a hat"]


@pytest.mark.parametrize("mark", [",", "-", ":", "("])
def test_a_phrase_does_not_begin_with_what_sets_it_apart(mark: str) -> None:
    sentence = tree("Ann PROPN 0 root", f"{mark} PUNCT 4 punct", "a DET 4 det", "chef NOUN 1 appos", ", PUNCT 4 punct")
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[1:] == [f"{mark} punct Ann", "a det chef", "chef appos Ann", ", punct chef"]
    assert chunks(relabelled) == ["Ann", "a chef"]


def test_a_quotation_mark_stays_with_what_it_quotes() -> None:
    sentence = tree("book NOUN 0 root", ", PUNCT 4 punct", '" PUNCT 4 punct', "Emma PROPN 1 appos", '" PUNCT 4 punct')
    assert arcs(to_clear(sentence))[1:] == [", punct book", '" punct Emma', "Emma appos book", '" punct Emma']


def test_punctuation_before_a_word_that_precedes_its_head_stays() -> None:
    sentence = tree("( PUNCT 2 punct", "no INTJ 3 parataxis", "go VERB 0 root")
    assert arcs(to_clear(sentence))[0] == "( punct no"


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (("It PRON 3 expl", "is AUX 3 cop", "hard ADJ 0 root", "go VERB 3 csubj"), "nsubj"),
        (("It PRON 2 expl", "helps VERB 0 root", "go VERB 2 csubj"), "nsubj"),
        (("There PRON 2 expl", "are VERB 0 root", "dogs NOUN 2 nsubj"), "expl"),
    ],
)
def test_only_there_is_an_expletive(rows: tuple[str, ...], label: str) -> None:
    assert to_clear(tree(*rows)).deps[0] == label


def test_an_it_that_an_object_clause_follows_is_an_object() -> None:
    sentence = tree("make VERB 0 root", "it PRON 1 expl", "easy ADJ 1 xcomp", "see VERB 3 csubj")
    assert to_clear(sentence).deps[1] == "dobj"


def test_a_name_ends_in_its_head() -> None:
    sentence = tree("Ann PROPN 4 nsubj", "M. PROPN 1 flat", "Lee PROPN 1 flat", "left VERB 0 root")
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[:3] == ["Ann compound Lee", "M. compound Lee", "Lee nsubj left"]
    assert chunks(relabelled) == ["Ann M. Lee"]


def test_what_depends_on_a_name_depends_on_its_last_word() -> None:
    sentence = tree(
        "ran VERB 0 root", "to ADP 4 case", "old ADJ 4 amod", "Ann PROPN 1 obl", "Lee PROPN 4 flat",
        "waiting VERB 4 acl",
    )  # fmt: skip
    assert arcs(to_clear(sentence))[1:] == [
        "to prep ran", "old amod Lee", "Ann compound Lee", "Lee pobj to", "waiting acl Lee",
    ]  # fmt: skip


def test_a_name_may_be_the_root() -> None:
    assert arcs(to_clear(tree("Ann PROPN 0 root", "Lee PROPN 1 flat"))) == ["Ann compound Lee", "Lee ROOT Lee"]


def test_a_name_whose_parts_are_not_adjacent_keeps_its_head() -> None:
    sentence = tree("Ann PROPN 0 root", '" PUNCT 3 punct', "Bo PROPN 1 flat", "Lee PROPN 1 flat")
    assert arcs(to_clear(sentence)) == ["Ann ROOT Ann", '" punct Bo', "Bo compound Ann", "Lee compound Ann"]


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (("became VERB 0 root", "kings NOUN 1 xcomp"), "attr"),
        (("called VERB 0 root", "kings NOUN 1 xcomp", "him PRON 1 obj"), "oprd"),
        (("became VERB 0 root", "rich ADJ 1 xcomp"), "xcomp"),
        (("wants VERB 0 root", "go VERB 1 xcomp", "him PRON 1 obj"), "xcomp"),
    ],
)
def test_a_noun_that_completes_a_verb_is_its_attribute_or_its_objects(rows: tuple[str, ...], label: str) -> None:
    assert to_clear(tree(*rows)).deps[1] == label


@pytest.mark.parametrize(
    ("relation", "label"),
    [
        ("nsubj:pass", "nsubjpass"),
        ("obj", "dobj"),
        ("iobj", "dative"),
        ("nmod:poss", "poss"),
        ("aux:pass", "auxpass"),
        ("obl", "npadvmod"),
        ("amod", "amod"),
    ],
)
def test_labels_take_their_clear_names(relation: str, label: str) -> None:
    assert to_clear(tree(f"dog NOUN 2 {relation}", "seen VERB 0 root")).deps[0] == label


# Any tree.

RELATIONS = sorted(
    {*LABELS, "nsubj", "case", "cop", "conj", "cc", "punct", "xcomp", "advmod", "det", "nmod"} - {"root"}
)
PARTS = ("NOUN", "PROPN", "VERB", "AUX", "ADJ", "ADV", "ADP", "PUNCT")


@st.composite
def any_tree(draw: st.DrawFn) -> Tree:
    """A tree of up to ten words with any heads, relations and parts of speech."""
    order = draw(st.permutations(range(draw(st.integers(1, 10)))))
    heads, deps = [0] * len(order), [""] * len(order)
    for place, word in enumerate(order):
        # In `order` each word follows its head: without a cycle.
        heads[word] = order[draw(st.integers(0, place - 1))] if place else word
        deps[word] = draw(st.sampled_from(RELATIONS)) if place else "root"
    words = [f"w{i}" for i in range(len(order))]
    pos = draw(st.lists(st.sampled_from(PARTS), min_size=len(order), max_size=len(order)))
    return Tree(words, [True] * len(order), pos, [""] * len(order), heads, deps)


def check_relabelled(sentence: Tree) -> None:
    before = replace(sentence, words=[*sentence.words], pos=[*sentence.pos])
    relabelled = to_clear(sentence)
    assert (relabelled.words, relabelled.pos) == (before.words, before.pos)
    (root,) = roots(relabelled)
    assert not has_cycle(relabelled)
    assert [i for i, dep in enumerate(relabelled.deps) if dep == "ROOT"] == [root]


@given(any_tree())
def test_any_tree_stays_a_tree_with_one_root(sentence: Tree) -> None:
    check_relabelled(sentence)


@pytest.mark.skipif(not TREEBANK.exists(), reason="no treebank beside the repository")
def test_every_sentence_of_the_treebank_stays_a_tree_with_one_root() -> None:
    for sentence in islice(read_trees(TREEBANK / "dev.conllu.gz"), 500):
        check_relabelled(sentence)


# Other tokens.


def test_split_words_become_compounds_and_joined_ones_the_highest_of_them() -> None:
    sentence = tree("it PRON 3 nsubj", "e-mail NOUN 3 attr", "s AUX 3 ROOT", "!! PUNCT 3 punct")
    sentence.numbers[1] = "Sing"
    found = retokenize(sentence, ["it", "e", "-", "mail", "s!", "!"], [True, False, False, True, False, False])
    assert arcs(found) == ["it nsubj s!", "e compound mail", "- punct mail", "mail attr s!", "s! ROOT s!", "! punct s!"]
    assert found.pos == ["PRON", "NOUN", "PUNCT", "NOUN", "AUX", "PUNCT"]
    assert found.numbers == ["", "", "", "Sing", "", ""]
    assert found.text == "it e-mail s!!"


@given(any_tree(), st.data())
def test_a_tree_stays_one_over_any_tokens(sentence: Tree, data: st.DataObject) -> None:
    text = "".join(sentence.words)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    words = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    found = retokenize(sentence, words, [False] * len(words))
    assert (found.words, len(roots(found)), has_cycle(found)) == (words, 1, False)
    assert retokenize(sentence, sentence.words, sentence.spaces) == sentence
    with pytest.raises(ValueError, match="are not those of"):
        retokenize(sentence, [*words, "x"], [])
