"""Reads Universal Dependencies trees and relabels them in the CLEAR style that spaCy's English rules expect.

UD makes content words heads: the noun governs its preposition, the predicate its copula. spaCy's `noun_chunks`
takes everything from a noun's leftmost descendant to the noun, so under UD's heads "on the mat" would be one
chunk, preposition included. Here function words become heads again and labels take CLEAR's names
(Choi and Palmer 2012, "Guidelines for the CLEAR Style Constituent to Dependency Conversion").
"""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

NOMINAL = ("NOUN", "PROPN", "PRON", "NUM", "DET", "SYM", "X")

LABELS = {
    "nsubj:pass": "nsubjpass",
    "nsubj:outer": "nsubj",
    "csubj:pass": "csubjpass",
    "csubj:outer": "csubj",
    "obj": "dobj",
    "iobj": "dative",
    "obl": "npadvmod",
    "obl:agent": "npadvmod",
    "obl:unmarked": "npadvmod",
    "nmod:unmarked": "npadvmod",
    "nmod:desc": "compound",
    "nmod:poss": "poss",
    "acl:relcl": "relcl",
    "advcl:relcl": "relcl",
    "aux:pass": "auxpass",
    "compound:prt": "prt",
    "det:predet": "predet",
    "cc:preconj": "preconj",
    "discourse": "intj",
    "vocative": "npadvmod",
    "flat": "compound",
    "goeswith": "compound",
    "fixed": "prep",
    "list": "dep",
    "orphan": "dep",
    "reparandum": "dep",
    "dislocated": "dep",
    "root": "ROOT",
}
"""CLEAR label of each UD relation, applied after the heads have moved; relations without an entry keep their name."""

QUOTES = frozenset("\"'`\u2018\u2019\u201c\u201d") | {"``", "''"}

CLAUSAL = ("nsubj", "csubj", "aux", "mark", "expl", "cc", "discourse", "vocative", "parataxis", "advcl", "dislocated")
"""Relations that belong to a clause, not to its nominal predicate: they follow the copula."""


@dataclass
class Tree:
    """One sentence: parallel lists over its tokens.

    `spaces[i]` says whether a space follows token i, `heads[i]` is the index of its head (its own for the root),
    `numbers[i]` is "Sing", "Plur" or "".
    """

    words: list[str] = field(default_factory=list)
    spaces: list[bool] = field(default_factory=list)
    pos: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    deps: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The sentence as it is written, without the space that follows it."""
        return "".join(w + " " * s for w, s in zip(self.words, self.spaces, strict=True)).rstrip()

    def children(self, i: int, *labels: str) -> list[int]:
        """Indices of the dependents of token `i`, in order; only those of `labels`, where any are given."""
        found = (j for j, head in enumerate(self.heads) if head == i and j != i)
        return [j for j in found if not labels or self.deps[j].split(":")[0] in labels]

    def attach(self, i: int, head: int, dep: str) -> None:
        """Hang token `i` under `head`; under itself, it becomes the root."""
        self.heads[i], self.deps[i] = head, dep

    def replace(self, i: int, heir: int) -> None:
        """Let `heir` take the place of token `i` under the head of `i`."""
        self.attach(heir, heir if self.heads[i] == i else self.heads[i], self.deps[i])


def read_trees(path: Path) -> Iterator[Tree]:
    """Yield the sentences of a CoNLL-U file (`.conllu` or `.conllu.gz`), unchanged."""
    lines: list[list[str]] = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                lines.append(line.rstrip("\n").split("\t"))
            elif lines and not line.strip():
                yield _tree(lines)
                lines = []
    if lines:
        yield _tree(lines)


def _tree(lines: Iterable[list[str]]) -> Tree:
    tree = Tree()
    contracted, space_after = 0, True  # last token of a contraction such as "don't", and what follows it
    for number, form, _, upos, _, feats, head, dep, _, misc in lines:
        space = "SpaceAfter=No" not in misc
        if "." in number:  # an elided word: it is not written
            continue
        if "-" in number:
            contracted, space_after = int(number.split("-")[1]), space
            continue
        i = len(tree.words)
        if i + 1 < contracted:
            space = False
        elif i + 1 == contracted:
            space = space_after
        tree.words.append(form)
        tree.spaces.append(space)
        tree.pos.append(upos)
        tree.numbers.append(next((f[7:] for f in feats.split("|") if f in ("Number=Sing", "Number=Plur")), ""))
        tree.heads.append(int(head) - 1 if head != "0" else i)
        tree.deps.append(dep)
    return tree


def to_clear(tree: Tree) -> Tree:
    """Relabel a UD tree in place, heads and names, and return it."""
    _end_names_in_their_head(tree)
    _promote_copulas(tree)
    _promote_prepositions(tree)
    _chain_conjuncts(tree)
    _leave_out_separators(tree)
    for i, (pos, dep) in enumerate(zip(tree.pos, tree.deps, strict=True)):
        if dep == "xcomp" and pos in ("NOUN", "PROPN", "PRON"):
            tree.deps[i] = "oprd" if tree.children(tree.heads[i], "obj") else "attr"
        elif dep == "expl" and tree.words[i].lower() != "there":
            # CLEAR's `expl` is the "there" of "there is"; the "it" of "it is hard to say" is a subject.
            tree.deps[i] = "dobj" if tree.pos[tree.heads[i]] == "VERB" and tree.heads[i] < i else "nsubj"
        else:
            tree.deps[i] = LABELS.get(dep, dep)
    return tree


def _end_names_in_their_head(tree: Tree) -> None:
    """Make the last word of "Jennifer M. Anderson" its head: UD takes the first, a chunk ends at its head."""
    for first in range(len(tree.words)):
        rest = tree.children(first, "flat")
        last = first + len(rest)
        if not rest or rest[-1] != last:
            continue
        others = [j for j in tree.children(first) if j not in rest]
        tree.replace(first, last)
        for j in (first, *rest[:-1]):
            tree.attach(j, last, "compound")
        for j in others:
            tree.heads[j] = last


def _promote_copulas(tree: Tree) -> None:
    """In "this is a dog" make "is" the head, "this" its subject and "dog" its attribute."""
    for predicate in range(len(tree.words)):
        copulas = tree.children(predicate, "cop")
        if not copulas:
            continue
        copula = copulas[-1]
        for j in tree.children(predicate):
            if j != copula and _belongs_to_clause(tree, j, copula, predicate):
                tree.heads[j] = copula
        tree.replace(predicate, copula)
        tree.attach(predicate, copula, _predicate_label(tree, predicate))


def _belongs_to_clause(tree: Tree, j: int, copula: int, predicate: int) -> bool:
    dep = tree.deps[j].split(":")[0]
    if (j < copula) != (predicate < copula):
        return True
    if tree.pos[predicate] in ("VERB", "AUX"):  # "the point is that it works": what follows is a clause of its own
        return False
    if dep in CLAUSAL and tree.deps[j] != "cc:preconj":
        return True
    if dep == "advmod":
        return j < predicate and (tree.pos[predicate] in NOMINAL or tree.words[j].lower() in ("not", "n't"))
    if dep == "punct":
        return j > predicate
    return dep == "conj" and (tree.pos[j] == "VERB" or bool(tree.children(j, "nsubj", "cop")))


def _predicate_label(tree: Tree, predicate: int) -> str:
    if any(j < predicate for j in tree.children(predicate, "case")):
        return "obl"
    if tree.pos[predicate] in NOMINAL:
        return "attr"
    return {"ADJ": "acomp", "ADV": "advmod"}.get(tree.pos[predicate], "ccomp")


def _promote_prepositions(tree: Tree) -> None:
    """In "sits on the mat" make "on" a `prep` of "sits" and "mat" the `pobj` of "on"."""
    for noun in range(len(tree.words)):
        cases = [j for j in tree.children(noun, "case") if j < noun]
        if not cases or tree.deps[noun] in ("nsubj", "nsubj:pass", "obj", "iobj", "nmod:poss", "pobj"):
            continue
        first, last = cases[0], cases[-1]
        for j in tree.children(noun):
            outer = tree.deps[j] == "punct" and j > noun and tree.heads[noun] == noun
            if j < first or outer:
                tree.heads[j] = first
        relation = tree.deps[noun]
        tree.replace(noun, first)
        tree.deps[first] = {"obl:agent": "agent", "conj": "conj", "root": "root"}.get(relation, "prep")
        if relation == "conj":
            tree.heads[first] = _outermost_preposition(tree, tree.heads[first])
        for outer_case, inner_case in pairwise(cases):
            tree.attach(inner_case, outer_case, "prep")
        tree.attach(noun, last, "pcomp" if tree.pos[noun] == "VERB" else "pobj")


def _outermost_preposition(tree: Tree, conjunct: int) -> int:
    """The preposition over `conjunct`, if it has one: "on the mat and in the box" joins "on" and "in"."""
    while tree.deps[conjunct] == "pobj" or (
        tree.deps[conjunct] == "prep" and tree.deps[tree.heads[conjunct]] == "prep"
    ):
        conjunct = tree.heads[conjunct]
    return conjunct


def _chain_conjuncts(tree: Tree) -> None:
    """Hang each conjunct under the one before it, and its "and" and comma under that one too."""
    for head in range(len(tree.words)):
        previous = head
        for conjunct in tree.children(head, "conj"):
            if conjunct < head:
                continue
            tree.heads[conjunct] = previous
            for j in tree.children(conjunct):
                if j > conjunct or tree.deps[j] not in ("cc", "punct"):
                    break
                tree.heads[j] = previous
            previous = conjunct


def _leave_out_separators(tree: Tree) -> None:
    """In "Yassin, a leader" hang the comma under "Yassin": a phrase does not begin with what sets it apart.

    UD hangs commas, dashes, colons and brackets under the apposition that follows them, CLEAR outside of it, as before
    a conjunct. Quotation marks belong to what they quote.
    """
    for i, dep in enumerate(tree.deps):
        if dep.split(":")[0] not in ("appos", "list", "parataxis"):
            continue
        for j in tree.children(i):
            if not tree.heads[i] < j < i or tree.deps[j] != "punct" or tree.words[j] in QUOTES:
                break
            tree.heads[j] = tree.heads[i]


def retokenize(tree: Tree, words: Sequence[str], spaces: Sequence[bool]) -> Tree:
    """Return a relabelled tree over other tokens of its text, those that a pipeline finds in it.

    The treebank has "e-mail" as one token and "its" for "it's" as two. A token that is split becomes compounds and
    punctuation under its last word, "!!" two marks under its head; tokens that are joined become the highest of them.

    Args:
        tree: as `to_clear` returns it.
        words: the other tokens.
        spaces: whether a space follows each.

    Raises:
        ValueError: the tokens are not those of the tree's text.
    """
    if "".join(words) != "".join(tree.words):
        raise ValueError(f"the tokens {words} are not those of {tree.text!r}")
    ends, new_ends = list(accumulate(map(len, tree.words))), list(accumulate(map(len, words)))
    heirs: dict[int, int] = {}  # token of the tree -> token that takes its dependents
    origins: list[tuple[int, int]] = []  # of each new token, its heir and the token of the tree that this replaces
    for start, end in pairwise([0, *sorted({*ends} & {*new_ends})]):
        before = [i for i, last in enumerate(ends) if start < last <= end]
        after = [j for j, last in enumerate(new_ends) if start < last <= end]
        heir = max(after, key=lambda j: (_is_word(words[j]), j))
        heirs |= dict.fromkeys(before, heir)
        origins += [(heir, min(before, key=lambda i: _depth(tree, i)))] * len(after)
    result = Tree(words=[*words], spaces=[*spaces])
    for j, (heir, origin) in enumerate(origins):
        is_heir, is_word = j == heir, _is_word(words[j])
        head = heirs[tree.heads[origin]] if is_heir or not _is_word(words[heir]) else heir
        result.pos.append(tree.pos[origin] if is_heir or is_word else "PUNCT")
        result.numbers.append(tree.numbers[origin] if is_heir else "")
        result.heads.append(head)
        result.deps.append(tree.deps[origin] if is_heir else "compound" if is_word else "punct")
    return result


def _is_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def _depth(tree: Tree, i: int) -> int:
    depth = 0
    while tree.heads[i] != i:
        i, depth = tree.heads[i], depth + 1
    return depth
