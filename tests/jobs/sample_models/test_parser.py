"""Relabelling the treebank, on small trees, and the scores of the trained parser on held-out text."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import spacy

from jobs.sample_models.caption_trees import write_captions
from jobs.sample_models.parser import evaluate, group, to_doc, train
from jobs.sample_models.treebank import Tree, read_trees, to_clear
from schemas.errors import InputError
from tests.paths import ROOT, SHARED

TREEBANK = SHARED / "treebank"
SAMPLE = ROOT / "transforms" / "models" / "sample" / "parser"


def tree(*rows: str) -> Tree:
    """Rows "word POS head relation"; heads count from 1 as in CoNLL-U, 0 is the root."""
    words, pos, heads, deps = zip(*(row.split() for row in rows), strict=True)
    return Tree(
        words=list(words),
        spaces=[True] * len(rows),
        pos=list(pos),
        numbers=[""] * len(rows),
        heads=[int(head) - 1 if head != "0" else i for i, head in enumerate(heads)],
        deps=list(deps),
    )


def arcs(relabelled: Tree) -> list[str]:
    return [
        f"{word} {dep} {relabelled.words[head]}"
        for word, dep, head in zip(relabelled.words, relabelled.deps, relabelled.heads, strict=True)
    ]


def chunks(relabelled: Tree) -> list[str]:
    return [chunk.text for chunk in to_doc(spacy.blank("en"), [relabelled]).noun_chunks]


def test_a_preposition_becomes_the_head_of_its_noun() -> None:
    sentence = tree("cats NOUN 2 nsubj", "sit VERB 0 root", "on ADP 5 case", "the DET 5 det", "mat NOUN 2 obl")
    expected = ["cats nsubj sit", "sit ROOT sit", "on prep sit", "the det mat", "mat pobj on"]
    assert arcs(to_clear(sentence)) == expected


def test_a_copula_becomes_the_head_of_its_predicate() -> None:
    sentence = tree(
        "this PRON 5 nsubj", "is AUX 5 cop", "not PART 5 advmod", "a DET 5 det", "dog NOUN 0 root", ". PUNCT 5 punct"
    )
    relabelled = to_clear(sentence)
    assert arcs(relabelled) == [
        "this nsubj is",
        "is ROOT is",
        "not advmod is",
        "a det dog",
        "dog attr is",
        ". punct is",
    ]
    assert chunks(relabelled) == ["this", "a dog"]


def test_a_copula_with_a_place_has_the_place_as_its_preposition() -> None:
    sentence = tree(
        "a DET 2 det", "kite NOUN 6 nsubj", "is AUX 6 cop", "above ADP 6 case", "a DET 6 det", "hat NOUN 0 root"
    )
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[2:] == ["is ROOT is", "above prep is", "a det hat", "hat pobj above"]
    assert chunks(relabelled) == ["a kite", "a hat"]


def test_conjuncts_hang_in_a_chain_and_leave_their_and_outside() -> None:
    sentence = tree(
        "a DET 2 det", "cup NOUN 0 root", ", PUNCT 5 punct", "a DET 5 det", "key NOUN 2 conj",
        "and CCONJ 8 cc", "a DET 8 det", "hat NOUN 2 conj",
    )  # fmt: skip
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[2:] == [
        ", punct cup",
        "a det key",
        "key conj cup",
        "and cc key",
        "a det hat",
        "hat conj key",
    ]
    assert chunks(relabelled) == ["a cup", "a key", "a hat"]


def test_prepositions_are_joined_to_prepositions() -> None:
    sentence = tree(
        "sits VERB 0 root", "on ADP 3 case", "mats NOUN 1 obl", "and CCONJ 6 cc", "in ADP 6 case", "boxes NOUN 3 conj"
    )
    expected = ["on prep sits", "mats pobj on", "and cc on", "in conj on", "boxes pobj in"]
    assert arcs(to_clear(sentence))[1:] == expected


def test_a_name_ends_in_its_head() -> None:
    sentence = tree("Ann PROPN 4 nsubj", "M. PROPN 1 flat", "Lee PROPN 1 flat", "left VERB 0 root")
    relabelled = to_clear(sentence)
    assert arcs(relabelled)[:3] == ["Ann compound Lee", "M. compound Lee", "Lee nsubj left"]
    assert chunks(relabelled) == ["Ann M. Lee"]


@pytest.mark.parametrize(
    ("relation", "label"),
    [("nsubj:pass", "nsubjpass"), ("obj", "dobj"), ("iobj", "dative"), ("nmod:poss", "poss"), ("aux:pass", "auxpass")],
)
def test_labels_take_their_clear_names(relation: str, label: str) -> None:
    assert to_clear(tree(f"dog NOUN 2 {relation}", "seen VERB 0 root")).deps[0] == label


def test_contractions_and_missing_spaces_give_the_text_back(tmp_path: Path) -> None:
    rows = [
        "1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tdo\tdo\tAUX\tVBP\tNumber=Plur\t3\taux\t_\t_",
        "2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_",
        "3\tgo\tgo\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\tSpaceAfter=No",
        "3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_",
        "4\t!\t!\tPUNCT\t.\t_\t3\tpunct\t_\t_",
    ]
    path = tmp_path / "a.conllu.gz"
    path.write_bytes(gzip.compress(("# text\n" + "\n".join(rows) + "\n\n").encode()))
    (read,) = read_trees(path)
    assert read.text == "don't go!"
    assert (read.words, read.heads, read.numbers) == (["do", "n't", "go", "!"], [2, 2, 2, 2], ["Plur", "", "", ""])


def test_written_captions_are_trees_whose_chunks_begin_with_no_preposition() -> None:
    written = write_captions(200, np.random.default_rng(0))
    nlp = spacy.blank("en")
    docs = [to_doc(nlp, [caption]) for caption in written]
    assert all(len(list(doc.sents)) == 1 for doc in docs)
    found = [chunk for doc in docs for chunk in doc.noun_chunks]
    assert len(found) > 400
    assert not [chunk.text for chunk in found if chunk[0].pos_ in ("ADP", "CCONJ", "PUNCT", "VERB")]
    assert [c.text for c in written] == [c.text for c in write_captions(200, np.random.default_rng(0))]


def test_groups_are_all_sentences_in_order() -> None:
    sentences = [tree(f"w{i} NOUN 0 root") for i in range(50)]
    runs = list(group(sentences, np.random.default_rng(0)))
    assert [t for run in runs for t in run] == sentences
    assert {len(run) for run in runs} == {1, 2, 3}


def test_a_folder_without_treebank_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no train.conllu.gz or train.conllu in {tmp_path}: give the folder"):
        train(tmp_path, tmp_path / "out", seed=0, steps=1)


@pytest.mark.skipif(not TREEBANK.exists(), reason="no treebank beside the repository")
def test_the_sample_parser_reaches_its_scores_on_held_out_text() -> None:
    scores = evaluate(spacy.load(SAMPLE), TREEBANK / "dev.conllu.gz")
    assert scores.noun_phrase_f1 >= 0.88, scores
    assert scores.part_of_speech >= 0.92, scores
    assert scores.unlabelled_attachment >= 0.83, scores


@pytest.mark.parametrize(("relation", "precision"), [("obj", 1.0), ("dep", 0.5)])
def test_a_phrase_that_the_gold_tree_lacks_costs_precision(tmp_path: Path, relation: str, precision: float) -> None:
    rows = (("Dogs", "NOUN", 2, "nsubj"), ("see", "VERB", 0, "root"), ("cats", "NOUN", 2, relation))
    path = tmp_path / "gold.conllu"
    path.write_text("\n".join(f"{i}\t{w}\t_\t{p}\t_\t_\t{h}\t{d}\t_\t_" for i, (w, p, h, d) in enumerate(rows, 1)))
    scores = evaluate(spacy.load(SAMPLE), path)
    assert (scores.noun_phrase_precision, scores.noun_phrase_recall) == (precision, 1.0)
    assert scores.noun_phrase_f1 == pytest.approx(2 * precision / (1 + precision))
