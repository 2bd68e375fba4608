"""Captions with their trees, written by a small grammar, as a treebank of letters and reviews has few of them.

The English Web Treebank holds hardly any bare noun phrases ("a dog on a red sofa"), lists of them, or "there are
three cups next to a bowl". A parser trained without them takes "parked" or "kite" for the sentence's verb.
The grammar below adds these structures with everyday words; real English comes from the treebank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jobs.sample_models.treebank import Tree
from transforms.text.inflection import article, plural


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words("man woman boy girl child person lady baby surfer player skier chef farmer couple")
ANIMALS = _words("dog cat bird horse cow sheep zebra elephant bear giraffe duck fish puppy kitten goat fox mouse")
THINGS = _words(
    """car truck bus train boat plane bike motorcycle kite ball umbrella bench chair table bed sofa lamp clock vase
    bottle cup glass bowl plate fork knife spoon box bag suitcase book laptop phone keyboard television pizza
    sandwich cake apple orange banana carrot donut tree flower bush house barn tower bridge sign hydrant statue
    surfboard skateboard snowboard frisbee racket bat glove hat shirt dress jacket tie scarf shoe blanket pillow
    towel mirror window door shelf sink toilet oven fridge star heart cloud mushroom leaf rock fence key candle
    basket guitar drum robot rocket toy cube square circle triangle balloon bell crown ship tent wheel"""
)
PLACES = _words(
    """street road beach field park kitchen room bathroom forest lake river ocean hill mountain wall floor desk
    counter roof grass snow sand water city garden sidewalk yard track runway shore sky background stage market"""
)
WHOLES = _words("group pair bunch couple row pile stack bowl plate herd crowd lot piece bunch glass slice picture")
PARTS = _words("top side front back middle edge corner end left right")
ADJECTIVES = _words(
    """red blue green yellow purple pink orange brown black white gray grey golden silver beige small large big tiny
    huge little tall short long round wooden metal plastic old young new shiny dark bright colorful striped
    spotted dotted checkered plain fluffy furry empty open fresh beautiful cute happy wet dirty clean broken
    modern vintage soft smooth smiling sleeping"""
)
COMPOUNDS = _words(
    """baseball tennis kitchen street stuffed traffic coffee tea paper glass stone brick teddy birthday soccer stop
    control shower train commuter fire police rest vanity dinner wine toy"""
)
MATERIALS = {"stuffed": "ADJ"}
PREPOSITIONS = _words("in on near behind under beside above below over against by with at inside beneath by outside")
TIMES = _words("day morning afternoon evening night")
WEATHER = _words("sunny cloudy rainy bright clear foggy snowy cold warm")
NUMBERS = _words("two three four five six several many some")
DOING = _words(
    """riding holding eating carrying wearing watching pulling pushing throwing catching flying feeding chasing
    washing cutting reading making showing prohibiting including drinking rolling"""
)
POSING = _words("sitting standing lying walking running playing jumping swimming sleeping resting waiting floating")
DONE = _words("parked filled covered decorated topped painted surrounded made")
STAYS = _words("sit stand lie rest wait walk run sleep graze swim play float look jump fly lean")
TAKES = _words("hold ride eat wear watch carry pull feed read chase")
IMAGES = _words("photo picture image painting drawing close-up view")


@dataclass
class Node:
    """A word with its dependents on either side."""

    word: str
    pos: str
    dep: str = "ROOT"
    number: str = ""
    left: list["Node"] = field(default_factory=list)
    right: list["Node"] = field(default_factory=list)

    def as_(self, dep: str) -> "Node":
        """Give the word's relation to its head."""
        self.dep = dep
        return self


class Grammar:
    """Writes one caption after another from `rng`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, words: Sequence[str]) -> str:
        """One of `words`, evenly."""
        return words[int(self.rng.integers(len(words)))]

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return bool(self.rng.random() < probability)

    def caption(self) -> Tree:
        """Write a caption, with or without a capital letter and a full stop."""
        patterns: list[tuple[float, Callable[[], Node]]] = [
            (0.30, self.fragment),
            (0.14, self.listing),
            (0.16, self.existence),
            (0.16, self.location),
            (0.10, self.doing),
            (0.06, self.picture),
            (0.05, self.fronted),
            (0.03, self.seeing),
        ]
        weights = [weight for weight, _ in patterns]
        _, pattern = patterns[int(self.rng.choice(len(patterns), p=weights))]
        root = pattern()
        if self.chance(0.25):
            root.right.append(self.time())
        if self.chance(0.3):
            root.right.append(Node(".", "PUNCT", "punct"))
        return _linearize(root, capital=self.chance(0.5))

    # Noun phrases.

    def thing(self, nouns: Sequence[str] = (), *, plain: bool = False) -> Node:
        """A noun with determiner or number, adjectives and sometimes a compound."""
        nouns = nouns or (PEOPLE, ANIMALS, THINGS, THINGS)[int(self.rng.integers(4))]
        noun = self.pick(nouns)
        is_plural = self.chance(0.3)
        node = Node(plural(noun) if is_plural else noun, "NOUN", number="Plur" if is_plural else "Sing")
        for _ in range(int(self.rng.choice(4, p=(0.35, 0.35, 0.24, 0.06)))):
            node.left.append(self.adjective())
        if self.chance(0.04):
            second = Node(self.pick(ADJECTIVES), "ADJ", "conj")
            node.left.append(Node("black", "ADJ", "amod", right=[Node("and", "CCONJ", "cc"), second]))
        if self.chance(0.16):
            compound = self.pick(COMPOUNDS if self.chance(0.7) else THINGS)
            pos = MATERIALS.get(compound, "NOUN")
            node.left.append(Node(compound, pos, "compound" if pos == "NOUN" else "amod", "Sing" * (pos == "NOUN")))
        node.left[:0] = self.determiner(is_plural)
        if not plain and self.chance(0.08):
            whole = Node(self.pick(WHOLES), "NOUN", number="Sing", left=[Node("a", "DET", "det")])
            whole.right.append(Node("of", "ADP", "prep", right=[node.as_("pobj")]))
            return whole
        return node

    def adjective(self) -> Node:
        """An adjective, now and then with "looking": "dirty looking", "very nice looking"."""
        adjective = Node(self.pick(ADJECTIVES), "ADJ", "amod")
        if not self.chance(0.05):
            return adjective
        if self.chance(0.3):
            adjective.left.append(Node("very", "ADV", "advmod"))
        return Node("looking", "VERB", "amod", left=[adjective.as_("advmod")])

    def determiner(self, plural: bool) -> list[Node]:
        """The words before the adjectives; an indefinite article is chosen when the caption is written."""
        draw = self.rng.random()
        if plural and draw < 0.55:
            number = self.pick(NUMBERS)
            counted = number not in ("several", "many", "some")
            dep = "nummod" if counted else "det" if number == "some" else "amod"
            pos = "NUM" if counted else "DET" if number == "some" else "ADJ"
            article = [Node("the", "DET", "det")] if self.chance(0.12) else []
            other = [Node("other", "ADJ", "amod")] if self.chance(0.06) else []
            return [*article, Node(number, pos, dep), *other]
        if draw < 0.75:
            return [] if plural and self.chance(0.6) else [Node("the" if plural else "a", "DET", "det")]
        if draw < 0.83:
            return [Node("the", "DET", "det")]
        if draw < 0.87 and not plural:
            return [Node(self.pick(("another", "one")), "DET", "det")]
        return [Node(self.pick(("his", "her", "their", "its")), "PRON", "poss")] if draw < 0.91 else []

    def things(self) -> Node:
        """One to five noun phrases joined by commas and "and"."""
        first = self.thing()
        previous = first
        count = int(self.rng.choice(5, p=(0.6, 0.26, 0.08, 0.04, 0.02)))
        for i in range(count):
            following = self.thing(plain=True).as_("conj")
            last = i == count - 1
            previous.right.append(Node("and", "CCONJ", "cc") if last else Node(",", "PUNCT", "punct"))
            previous.right.append(following)
            previous = following
        return first

    # Places and times.

    def place(self) -> Node:
        """A prepositional phrase, plain or by way of a part: "on top of", "in front of", "next to"."""
        inner = self.thing(PLACES if self.chance(0.4) else ())
        draw = self.rng.random()
        if draw < 0.62:
            return _under(self.pick(PREPOSITIONS), inner)
        if draw < 0.74:
            return Node("next", "ADV", "advmod", right=[_under("to", inner)])
        if draw < 0.92:
            part = Node(self.pick(PARTS), "NOUN", number="Sing", right=[_under("of", inner)])
            if self.chance(0.5) or part.word in ("left", "right", "side", "edge", "corner", "end", "middle", "back"):
                part.left.append(Node("the", "DET", "det"))
            return _under(self.pick(("on", "in", "at", "to")), part)
        other = self.thing(plain=True).as_("conj")
        inner.right += [Node("and", "CCONJ", "cc"), other]
        return _under("between", inner)

    def time(self) -> Node:
        """A phrase of time such as "on a sunny day", "in the morning", "at night"."""
        if self.chance(0.2):
            return _under("at", Node(self.pick(("night", "dusk", "dawn", "noon", "sunset")), "NOUN", number="Sing"))
        noun = Node(self.pick(TIMES), "NOUN", number="Sing", left=[Node("a", "DET", "det")])
        if self.chance(0.5):
            noun.left.append(Node(self.pick(WEATHER), "ADJ", "amod"))
            return _under("on", noun)
        noun.left = [Node("the", "DET", "det")]
        return _under("in", noun)

    def action(self, dep: str) -> Node:
        """A participle with its object or place: "riding a wave", "parked near a tree"."""
        draw = self.rng.random()
        if draw < 0.45:
            verb = Node(self.pick(DOING), "VERB", dep, right=[self.thing().as_("dobj")])
            if self.chance(0.4):
                verb.right.append(self.place())
            return verb
        words = POSING if draw < 0.8 else DONE
        return Node(self.pick(words), "VERB", dep, right=[self.place()])

    # Whole captions.

    def fragment(self) -> Node:
        """A caption such as "a man riding a wave on top of a surfboard"."""
        root = self.things()
        last = root.right[-1] if root.right else root
        for _ in range(int(self.rng.choice(3, p=(0.1, 0.6, 0.3)))):
            last.right.append(self.action("acl") if self.chance(0.45) else self.place())
        return root

    def listing(self) -> Node:
        """A caption such as "a red cup, two keys and a small dog"."""
        root = self.things()
        if self.chance(0.35):
            root.right.append(self.place())
        return root

    def existence(self) -> Node:
        """A caption such as "there are three fish near a house"."""
        subject = self.things().as_("nsubj")
        several = _is_several(subject)
        root = Node("are" if several else "is", "AUX", left=[Node("there", "PRON", "expl")], right=[subject])
        if self.chance(0.7):
            subject.right.append(self.action("acl") if self.chance(0.4) else self.place())
        return root

    def seeing(self) -> Node:
        """A caption such as "we see a dog, a ball and two trees", "here are two keys"."""
        things = self.things()
        if self.chance(0.5):
            seer = Node(self.pick(("we", "you", "I")), "PRON", "nsubj", "Plur")
            return Node("see", "VERB", left=[seer], right=[things.as_("dobj")])
        verb = Node("are" if _is_several(things) else "is", "AUX", right=[things.as_("nsubj")])
        verb.left.append(Node("here", "ADV", "advmod"))
        return verb

    def location(self) -> Node:
        """A caption such as "a kite is above a hat", "the cup and the key are red"."""
        subject = self.things().as_("nsubj")
        several = _is_several(subject)
        root = Node("are" if several else "is", "AUX", left=[subject])
        root.right.append(self.place() if self.chance(0.85) else Node(self.pick(ADJECTIVES), "ADJ", "acomp"))
        return root

    def doing(self) -> Node:
        """A caption such as "a man is holding a kite", "a cat sits on a bed"."""
        subject = self.things().as_("nsubj")
        several = _is_several(subject)
        if self.chance(0.5):
            taking = self.chance(0.5)
            word = self.pick(TAKES if taking else STAYS)
            third = {"watch": "watches", "carry": "carries", "fly": "flies"}.get(word, word + "s")
            verb = Node(word if several else third, "VERB", right=[self.place()])
            if taking:
                verb.right.insert(0, self.thing().as_("dobj"))
        else:
            verb = self.action("ROOT")
            verb.left.append(Node("are" if several else "is", "AUX", "aux"))
        verb.left.insert(0, subject)
        return verb

    def picture(self) -> Node:
        """A caption such as "a photo of a green star next to a boat"."""
        root = Node(self.pick(IMAGES), "NOUN", number="Sing", left=[Node("a", "DET", "det")])
        if self.chance(0.2):
            root.left.append(Node(self.pick(ADJECTIVES), "ADJ", "amod"))
        shown = self.fragment()
        root.right.append(_under("of", shown))
        return root

    def fronted(self) -> Node:
        """A caption such as "on the table there is a cup", "under a tree, a dog sleeps"."""
        clause = self.existence() if self.chance(0.5) else self.doing()
        clause.left[:0] = [self.place(), Node(",", "PUNCT", "punct")] if self.chance(0.5) else [self.place()]
        return clause


def _is_several(noun: Node) -> bool:
    return noun.number == "Plur" or any(node.dep == "conj" for node in noun.right)


def _under(preposition: str, noun: Node) -> Node:
    return Node(preposition, "ADP", "prep", right=[noun.as_("pobj")])


def _linearize(root: Node, *, capital: bool) -> Tree:
    tree = Tree()
    _append(tree, root)
    root_index = tree.deps.index("ROOT")
    tree.heads[root_index] = root_index
    for i, word in enumerate(tree.words):
        if word == "a" and tree.deps[i] == "det":
            tree.words[i] = article(tree.words[i + 1])
        tree.spaces.append(i + 1 < len(tree.words) and tree.pos[i + 1] != "PUNCT")
    if capital:
        tree.words[0] = tree.words[0].capitalize()
    return tree


def _append(tree: Tree, node: Node) -> int:
    """Append `node` and all nodes below it to `tree`; return its index."""
    dependents = [_append(tree, child) for child in node.left]
    index = len(tree.words)
    tree.words.append(node.word)
    tree.pos.append(node.pos)
    tree.numbers.append(node.number)
    tree.heads.append(-1)
    tree.deps.append(node.dep)
    dependents += [_append(tree, child) for child in node.right]
    for child in dependents:
        tree.heads[child] = index
    return index


def write_captions(count: int, rng: np.random.Generator) -> list[Tree]:
    """`count` captions in the CLEAR style of `jobs.sample_models.treebank`."""
    grammar = Grammar(rng)
    return [grammar.caption() for _ in range(count)]
