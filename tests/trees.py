"""Small dependency trees for the tests of the sample parser."""

from jobs.sample_models.treebank import Tree


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
    """The tree as "word label head", a text per word."""
    return [
        f"{word} {dep} {relabelled.words[head]}"
        for word, dep, head in zip(relabelled.words, relabelled.deps, relabelled.heads, strict=True)
    ]


def roots(relabelled: Tree) -> list[int]:
    """Indices of the words that are their own head."""
    return [i for i, head in enumerate(relabelled.heads) if i == head]


def has_cycle(relabelled: Tree) -> bool:
    """Whether some word does not reach a root by going from head to head."""
    at = list(range(len(relabelled.words)))
    for _ in relabelled.words:
        at = [relabelled.heads[i] for i in at]
    return any(relabelled.heads[i] != i for i in at)
