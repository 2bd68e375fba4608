"""The sample parser: its documents, a training of one step, and the scores of the trained one on held-out text."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import spacy

from jobs.sample_models import parser
from jobs.sample_models.parser import META, evaluate, group, main, save, to_doc, train
from schemas.errors import InputError
from tests.paths import ROOT, SHARED
from tests.trees import tree

TREEBANK = SHARED / "treebank"
SAMPLE = ROOT / "transforms" / "models" / "sample" / "parser"

SENTENCE = (("Dogs", "NOUN", 2, "nsubj"), ("see", "VERB", 0, "root"), ("cats", "NOUN", 2, "obj"))


def write_sentence(path: Path, rows: tuple[tuple[str, str, int, str], ...] = SENTENCE) -> Path:
    """Write a sentence of (word, part of speech, head, relation) as CoNLL-U."""
    path.write_text("\n".join(f"{i}\t{w}\t_\t{p}\t_\t_\t{h}\t{d}\t_\t_" for i, (w, p, h, d) in enumerate(rows, 1)))
    return path


def write_treebank(folder: Path) -> Path:
    """Write a treebank of one sentence in both of its files."""
    for name in ("train", "dev"):
        write_sentence(folder / f"{name}.conllu")
    return folder


def test_a_document_joins_sentences_with_a_space() -> None:
    dogs = tree("Dogs NOUN 2 nsubj", "bark VERB 0 ROOT", ". PUNCT 2 punct")
    dogs.spaces, dogs.numbers = [True, False, False], ["Plur", "", ""]
    cats = tree("A DET 2 det", "cat NOUN 0 ROOT")
    cats.spaces, cats.numbers = [True, False], ["", "Sing"]
    doc = to_doc(spacy.blank("en"), [dogs, cats])
    assert doc.text == "Dogs bark. A cat "
    assert [sentence.text for sentence in doc.sents] == ["Dogs bark.", "A cat"]
    assert [token.head.text for token in doc] == ["bark", "bark", "bark", "cat", "cat"]
    assert [token.pos_ for token in doc] == ["NOUN", "VERB", "PUNCT", "DET", "NOUN"]
    assert [str(token.morph) for token in doc] == ["Number=Plur", "", "", "", "Number=Sing"]


def test_groups_are_all_sentences_in_order() -> None:
    sentences = [tree(f"w{i} NOUN 0 root") for i in range(2000)]
    runs = list(group(sentences, np.random.default_rng(0)))
    assert [t for run in runs for t in run] == sentences
    lengths = np.bincount([len(run) for run in runs[:-1]])  # the last one is what is left
    assert lengths[0] == 0
    np.testing.assert_allclose(lengths[1:] / lengths.sum(), (0.6, 0.25, 0.15), atol=0.05)


@pytest.mark.parametrize("missing", ["train", "dev"])
def test_a_folder_without_treebank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(parser, "CAPTIONS", 10)
    (write_treebank(tmp_path) / f"{missing}.conllu").unlink()
    message = f"no {missing}.conllu.gz or {missing}.conllu in {tmp_path}: give the folder"
    with pytest.raises(InputError, match=message):
        train(tmp_path, tmp_path / "out", seed=0, steps=1)


def test_a_training_writes_a_pipeline_and_prints_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parser, "CAPTIONS", 10)
    output = tmp_path / "out"
    main(write_treebank(tmp_path), output, seed=0, steps=1)
    scores = json.loads((output / "scores.json").read_text())
    assert scores == asdict(evaluate(spacy.load(output), tmp_path / "dev.conllu"))
    printed = capsys.readouterr().out
    for name, score in scores.items():
        assert f"{name.replace('_', ' ')}  {score:.3f}\n" in printed
    assert spacy.load(output).pipe_names == ["tok2vec", "morphologizer", "parser"]


def test_a_training_may_start_with_the_weights_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "CAPTIONS", 10)
    output = tmp_path / "out"
    train(write_treebank(tmp_path), output, seed=0, steps=1, start=SAMPLE)
    text = "There are two brown dogs next to a wooden bench."
    before, after = (
        [(token.pos_, token.dep_, token.head.i) for token in nlp(text)] for nlp in map(spacy.load, (SAMPLE, output))
    )
    assert after == before
    assert "source =" not in (output / "config.cfg").read_text()


def test_a_saved_pipeline_has_no_paths_and_no_words_and_parses_the_same(tmp_path: Path) -> None:
    nlp = spacy.load(SAMPLE)
    for name in ("train", "dev"):
        nlp.config["corpora"][name]["path"] = "/home/me/corpus"
    text = "There are two brown dogs next to a wooden bench."
    before = [(token.text, token.dep_, token.head.i) for token in nlp(text)]
    save(nlp, tmp_path / "out")
    assert "/home/me" not in (tmp_path / "out" / "config.cfg").read_text()
    assert json.loads((tmp_path / "out" / "vocab" / "strings.json").read_text()) == []
    assert [path.name for path in (tmp_path / "out" / "vocab").iterdir()] == ["strings.json"]
    stored = spacy.load(tmp_path / "out")
    assert (stored.meta["license"], stored.meta["sources"]) == ("CC BY-SA 4.0", META["sources"])
    assert [(token.text, token.dep_, token.head.i) for token in stored(text)] == before


@pytest.mark.skipif(not TREEBANK.exists(), reason="no treebank beside the repository")
def test_the_sample_parser_reaches_its_scores_on_held_out_text() -> None:
    scores = evaluate(spacy.load(SAMPLE), TREEBANK / "dev.conllu.gz")
    assert scores.noun_phrase_f1 >= 0.90, scores
    assert scores.part_of_speech >= 0.92, scores
    assert scores.unlabelled_attachment >= 0.83, scores


@pytest.mark.parametrize(("relation", "precision"), [("obj", 1.0), ("dep", 0.5)])
def test_a_phrase_that_the_gold_tree_lacks_costs_precision(tmp_path: Path, relation: str, precision: float) -> None:
    path = write_sentence(tmp_path / "gold.conllu", (*SENTENCE[:2], ("cats", "NOUN", 2, relation)))
    scores = evaluate(spacy.load(SAMPLE), path)
    assert (scores.noun_phrase_precision, scores.noun_phrase_recall) == (precision, 1.0)
    assert scores.noun_phrase_f1 == pytest.approx(2 * precision / (1 + precision))


def test_a_phrase_that_is_not_found_costs_recall(tmp_path: Path) -> None:
    # The gold tree calls an adverb a noun, which no parser finds.
    path = write_sentence(tmp_path / "gold.conllu", (*SENTENCE, ("here", "NOUN", 2, "obj")))
    scores = evaluate(spacy.load(SAMPLE), path)
    assert scores.noun_phrase_precision == 1.0
    assert scores.noun_phrase_recall == pytest.approx(2 / 3)
    assert scores.noun_phrase_f1 == pytest.approx(2 * (2 / 3) / (5 / 3))
    assert scores.part_of_speech == pytest.approx(3 / 4)
