"""Train the sample parser on a Universal Dependencies treebank and on captions of a small grammar.

    python -m jobs.sample_models.parser --treebank DIR --output DIR [--seed 0] [--steps 8000] [--start DIR]

The treebank folder holds `train.conllu[.gz]` and `dev.conllu[.gz]` of UD English EWT. The output is a pipeline of
tok2vec, morphologizer and parser for `spacy.load`; it sets `pos_`, `morph` (Number), `dep_` and `noun_chunks`. While
it is trained, a tagger on the same tok2vec learns `supertag`s: what the parser needs to know of each token.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import spacy
import typer
from spacy.cli.train import train as train_pipeline
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from thinc.api import Config, use_ops

from jobs.sample_models.caption_trees import write_captions
from jobs.sample_models.fit import Output, Seed
from jobs.sample_models.treebank import Tree, read_trees, retokenize, to_clear
from schemas.errors import InputError

CAPTIONS = 4000
"""Captions added to EWT's 12,544 sentences: enough to learn their structure, few enough to keep real English."""

RARE = 10
"""A supertag that fewer tokens have is cut to its part of speech and its place in a noun phrase."""

SENTENCES = (0.6, 0.25, 0.15)
"""Shares of documents of one, two and three sentences, so that the parser learns where a sentence ends."""

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger", "morphologizer", "parser"]
batch_size = 256

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"

[components.tok2vec.model.embed]
@architectures = "spacy.MultiHashEmbed.v2"
width = 128
attrs = ["NORM", "PREFIX", "SUFFIX", "SHAPE", "SPACY"]
rows = [4000, 1000, 2000, 1000, 10]
include_static_vectors = false

[components.tok2vec.model.encode]
@architectures = "spacy.MaxoutWindowEncoder.v2"
width = 128
window_size = 1
maxout_pieces = 3
depth = 4

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 128

[components.morphologizer]
factory = "morphologizer"

[components.morphologizer.model]
@architectures = "spacy.Tagger.v2"

[components.morphologizer.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 128

[components.parser]
factory = "parser"

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
hidden_width = 128
maxout_pieces = 2
use_upper = true

[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 128

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = null

[corpora.train.augmenter]
@augmenters = "spacy.lower_case.v1"
level = 0.2

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = null

[training]
dropout = 0.3
patience = 0
eval_frequency = 500
frozen_components = []

[training.batcher]
@batchers = "spacy.batch_by_words.v1"
tolerance = 0.2

[training.batcher.size]
@schedules = "compounding.v1"
start = 100
stop = 1000
compound = 1.001

[training.optimizer]
@optimizers = "Adam.v1"
use_averages = true

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 250
initial_rate = 0.001
total_steps = 8000

[training.score_weights]
dep_las = 0.5
dep_uas = 0.3
pos_acc = 0.2
"""

FURTHER = {
    "training.batcher.size.start": 500,
    "training.batcher.size.stop": 500,
    "training.optimizer.learn_rate.initial_rate": 0.0005,
    "training.dropout": 0.3,
}
"""Settings of a training that starts with trained weights."""

COMPONENTS = ("tok2vec", "morphologizer", "parser")
"""Those of the trained pipeline."""

META = {
    "name": "subjectloom_sample_parser",
    "version": "1.0.0",
    "description": "Small English parser for captions, trained on UD English EWT and on captions of a small grammar",
    "license": "CC BY-SA 4.0",
    "spacy_version": ">=3.8.0,<4.0.0",
    "sources": [
        {
            "name": "UD_English-EWT",
            "license": "CC BY-SA 4.0",
            "author": "Silveira et al. 2014, A Gold Standard Dependency Corpus for English",
            "url": "https://github.com/UniversalDependencies/UD_English-EWT",
        }
    ],
}


@dataclass(frozen=True)
class ParserScores:
    """Scores of a parser on a treebank's raw text, each in [0, 1].

    A noun phrase is found if both of its character offsets are those of a noun chunk of the gold tree. The other scores
    are spaCy's, over the tokens that both tokenizations share.
    """

    noun_phrase_precision: float
    noun_phrase_recall: float
    noun_phrase_f1: float
    unlabelled_attachment: float
    part_of_speech: float


def to_doc(nlp: Language, trees: Sequence[Tree]) -> Doc:
    """Make a spaCy document of relabelled sentences, with gold tokens, parts of speech, numbers and heads."""
    words: list[str] = []
    spaces: list[bool] = []
    heads: list[int] = []
    for tree in trees:
        heads += [len(words) + head for head in tree.heads]
        words += tree.words
        spaces += [*tree.spaces[:-1], True]
    return Doc(
        nlp.vocab,
        words=words,
        spaces=spaces,
        heads=heads,
        pos=[pos for tree in trees for pos in tree.pos],
        morphs=[f"Number={n}" if n else "" for tree in trees for n in tree.numbers],
        deps=[dep for tree in trees for dep in tree.deps],
    )


def as_found(nlp: Language, tree: Tree) -> Tree:
    """Put a relabelled sentence on the tokens that `nlp` finds in its text: spaCy learns nothing from other ones."""
    doc = nlp.make_doc(tree.text)
    return retokenize(tree, [token.text for token in doc], [bool(token.whitespace_) for token in doc])


def add_supertags(documents: Sequence[Doc]) -> None:
    """Tag the tokens with part of speech, place in a noun phrase, relation and side of the head.

    As "NOUN|I|dobj|L": inside a noun phrase (B begins one, O is in none), the object of a word to its left.
    """
    for doc in documents:
        places = dict.fromkeys(range(len(doc)), "O")
        for chunk in doc.noun_chunks:
            places |= dict.fromkeys(range(chunk.start, chunk.end), "I") | {chunk.start: "B"}
        for token in doc:
            side = "0" if token.head == token else "L" if token.head.i < token.i else "R"
            token.tag_ = f"{token.pos_}|{places[token.i]}|{token.dep_}|{side}"
    counts = Counter(token.tag_ for doc in documents for token in doc)
    for token in (token for doc in documents for token in doc):
        if counts[token.tag_] < RARE:
            token.tag_ = "|".join(token.tag_.split("|")[:2])


def evaluate(nlp: Language, treebank: Path) -> ParserScores:
    """Parse the raw text of each sentence of a CoNLL-U file and compare it with the relabelled gold trees."""
    gold = [to_doc(nlp, [to_clear(tree)]) for tree in read_trees(treebank)]
    found = list(nlp.pipe(doc.text for doc in gold))
    right = missed = wrong = 0
    for gold_doc, found_doc in zip(gold, found, strict=True):
        truth, guess = _chunk_spans(gold_doc), _chunk_spans(found_doc)
        right, missed, wrong = right + len(truth & guess), missed + len(truth - guess), wrong + len(guess - truth)
    scores = nlp.evaluate([Example(nlp.make_doc(doc.text), doc) for doc in gold])
    return ParserScores(
        noun_phrase_precision=right / max(right + wrong, 1),
        noun_phrase_recall=right / max(right + missed, 1),
        noun_phrase_f1=2 * right / max(2 * right + wrong + missed, 1),
        unlabelled_attachment=scores["dep_uas"],
        part_of_speech=scores["pos_acc"],
    )


def _chunk_spans(doc: Doc) -> set[tuple[int, int]]:
    return {(chunk.start_char, chunk.end_char) for chunk in doc.noun_chunks}


def group(trees: Sequence[Tree], rng: np.random.Generator) -> Iterator[Sequence[Tree]]:
    """Split `trees` into runs of one to three neighbours, distributed as `SENTENCES`."""
    start = 0
    while start < len(trees):
        end = start + 1 + int(rng.choice(len(SENTENCES), p=SENTENCES))
        yield trees[start:end]
        start = end


def train(treebank: Path, output: Path, seed: int, steps: int, start: Path | None = None) -> ParserScores:
    """Train on `treebank`/train, write the pipeline to `output`, return its scores on `treebank`/dev.

    Args:
        treebank: folder of the treebank.
        output: folder to write.
        seed: seed of the captions, of the order and of random weights.
        steps: number of batches.
        start: a pipeline of this script, to be trained further; None: random weights.
    """
    rng = np.random.default_rng(seed)
    nlp = spacy.blank("en")
    sentences = [as_found(nlp, to_clear(tree)) for tree in read_trees(_split(treebank, "train"))]
    documents = [to_doc(nlp, trees) for trees in group(sentences, rng)]
    documents += [to_doc(nlp, [tree]) for tree in write_captions(CAPTIONS, rng)]
    add_supertags(documents)
    held_out = [to_doc(nlp, [to_clear(tree)]) for tree in read_trees(_split(treebank, "dev"))]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        DocBin(docs=documents).to_disk(work / "train.spacy")
        DocBin(docs=held_out).to_disk(work / "dev.spacy")
        config = spacy.util.load_model_from_config(Config().from_str(CONFIG), auto_fill=True).config
        if start:
            config["components"] |= {name: {"source": str(start)} for name in COMPONENTS}
        config.to_disk(work / "config.cfg")
        overrides = {
            "corpora.train.path": str(work / "train.spacy"),
            "corpora.dev.path": str(work / "dev.spacy"),
            "training.seed": seed,
            "training.max_steps": steps,
            "training.optimizer.learn_rate.total_steps": steps,
            **(FURTHER if start else {}),
        }
        # NumPy's matrix products take half the time of those that thinc prefers, BLIS'.
        with use_ops("numpy", use_blis=False):
            train_pipeline(work / "config.cfg", work / "run", overrides=overrides)
        # The learning rate ends at 0: the last weights are as good as any, and the dev set has no part in the choice.
        save(spacy.load(work / "run" / "model-last", exclude=["tagger"]), output)
    scores = evaluate(spacy.load(output), _split(treebank, "dev"))
    (output / "scores.json").write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")
    return scores


def save(nlp: Language, output: Path) -> None:
    """Write the pipeline without what parsing does not need: training paths, the list of all words of the corpus."""
    for corpus in nlp.config["corpora"].values():
        corpus["path"] = None
    nlp.meta.update(META)
    nlp.to_disk(output)
    # The network takes words as hashes, and each component stores its own labels.
    (output / "vocab" / "strings.json").write_text("[]\n", encoding="utf-8")
    for empty in ("lookups.bin", "vectors", "vectors.cfg", "key2row"):
        (output / "vocab" / empty).unlink(missing_ok=True)


def _split(treebank: Path, name: str) -> Path:
    for path in (treebank / f"{name}.conllu.gz", treebank / f"{name}.conllu"):
        if path.exists():
            return path
    raise InputError(
        f"no {name}.conllu.gz or {name}.conllu in {treebank}: give the folder of UD English EWT "
        "(https://github.com/UniversalDependencies/UD_English-EWT) with --treebank, its files renamed to train and dev"
    )


def main(
    treebank: Annotated[Path, typer.Option(help="Folder with train.conllu[.gz] and dev.conllu[.gz].")],
    output: Output,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Batches of up to 1,000 words; with --start, of 500.")] = 8000,
    start: Annotated[Path | None, typer.Option(help="A pipeline of this script, to be trained further.")] = None,
) -> None:
    """Train the sample parser and print its scores."""
    for name, value in asdict(train(treebank, output, seed, steps, start)).items():
        print(f"{name.replace('_', ' '):>24}  {value:.3f}")


if __name__ == "__main__":
    typer.run(main)
