"""English nouns: singulars, plurals and the indefinite article, by tables and spelling rules.

Written for captions, where a wrong word costs more than a missing one: a word that is not surely a plural has no
singular here. The tables hold common nouns; a spelling rule covers the rest.
"""

import re
import unicodedata
from collections.abc import Callable


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _pairs(words: str) -> dict[str, str]:
    """Read "plural singular plural singular ..."."""
    listed = words.split()
    return dict(zip(listed[::2], listed[1::2], strict=True))


PAIRED = _set(
    """jeans scissors sunglasses eyeglasses spectacles pants trousers shorts boxers briefs panties knickers pajamas
    pyjamas binoculars goggles headphones earphones earbuds tights leggings clothes pliers tongs tweezers shears pincers
    overalls coveralls dungarees slacks chinos khakis suspenders sweatpants underpants swimtrunks"""
)
"""Plural in form, one thing: they have no singular."""

_NO_SINGULAR = PAIRED | _set(
    """thanks surroundings belongings groceries outskirts remains premises goods riches savings earnings leftovers
    furnishings amends annals alms antics dregs entrails innards looks measles mumps news odds oats politics physics
    mathematics athletics gymnastics economics ethics aerobics robotics electronics cattle police poultry livestock
    luggage bellows fatigues scrubs whereabouts fireworks woods eaves data media graffiti confetti spaghetti
    always perhaps besides overseas sometimes this his its was has does yes us plus thus is as hers ours yours theirs"""
)
"""Also without a singular; and frequent words in -s that are no nouns."""

_SAME = _set(
    """sheep deer fish moose bison swine elk squid shrimp salmon trout cod tuna carp bass halibut plankton offspring
    aircraft spacecraft hovercraft watercraft series species chassis corps crossroads barracks buffalo reindeer
    biceps triceps"""
)
"""Singular and plural alike. So are compounds of fish, sheep, deer and craft."""

_IRREGULAR = _pairs(
    """men man women woman children child people person feet foot teeth tooth geese goose mice mouse lice louse
    dormice dormouse oxen ox dice die pence penny brethren brother
    axes axe pickaxes pickaxe quizzes quiz fezzes fez whizzes whiz
    waltzes waltz benzes benz joneses jones quartzes quartz blitzes blitz topazes topaz klutzes klutz
    gases gas lenses lens irises iris trellises trellis atlases atlas canvases canvas biases bias aliases alias
    christmases christmas pancreases pancreas thermoses thermos rhinoceroses rhinoceros clematises clematis
    metropolises metropolis pelvises pelvis mantises mantis portcullises portcullis
    posses posse mousses mousse crevasses crevasse impasses impasse
    analyses analysis crises crisis theses thesis hypotheses hypothesis parentheses parenthesis oases oasis
    diagnoses diagnosis synopses synopsis neuroses neurosis emphases emphasis metamorphoses metamorphosis
    syntheses synthesis nemeses nemesis
    cacti cactus fungi fungus alumni alumnus nuclei nucleus stimuli stimulus syllabi syllabus radii radius foci focus
    octopi octopus hippopotami hippopotamus gladioli gladiolus bacilli bacillus papyri papyrus
    phenomena phenomenon criteria criterion bacteria bacterium strata stratum memoranda memorandum
    curricula curriculum millennia millennium aquaria aquarium stadia stadium gymnasia gymnasium podia podium
    symposia symposium automata automaton ova ovum
    algae alga larvae larva antennae antenna vertebrae vertebra formulae formula nebulae nebula pupae pupa
    amoebae amoeba supernovae supernova
    vertices vertex indices index matrices matrix vortices vortex appendices appendix codices codex helices helix
    chateaux chateau châteaux château plateaux plateau bureaux bureau tableaux tableau gateaux gateau gâteaux gâteau
    cherubim cherub seraphim seraph paparazzi paparazzo passersby passerby"""
)
"""Plurals that no rule below covers."""

_VES = _pairs(
    """knives knife wives wife lives life leaves leaf loaves loaf shelves shelf selves self elves elf wolves wolf
    calves calf halves half hooves hoof scarves scarf thieves thief wharves wharf sheaves sheaf dwarves dwarf
    rooves roof turves turf handkerchieves handkerchief"""
)
"""Plurals in -ves of words in -f or -fe; all others are of words in -ve ("gloves", "olives", "sleeves")."""

_COMPOUNDED = _pairs(
    """men man people person children child feet foot teeth tooth mice mouse
    knives knife wives wife leaves leaf loaves loaf shelves shelf wolves wolf calves calf halves half hooves hoof
    scarves scarf thieves thief"""
)
"""Irregular plurals that also end longer words: "firemen", "grandchildren", "bookshelves"."""

_NOT_COMPOUNDS = _set(
    """specimen abdomen stamen regimen acumen bitumen cyclamen pumice
    german shaman caiman talisman ottoman norman"""
)
"""Words that end in one of these by chance."""

_IE = _set(
    """pie tie lie die bowtie necktie magpie potpie cookie brownie movie selfie zombie hoodie smoothie birdie genie
    rookie calorie prairie collie hippie junkie foodie groupie newbie cutie sweetie pixie walkie-talkie veggie doggie
    auntie onesie pinkie budgie beanie bootie townie bogie cabbie caddie boogie lassie laddie quickie sortie goalie
    roadie yuppie freebie newsie menagerie patisserie rotisserie brasserie dearie girlie homie indie kiddie nightie
    oldie pressie techie weenie wheelie barbie stymie aerie valkyrie reverie sharpie bikie cowrie dixie hoagie corgie
    stogie tootsie aussie yorkie westie frenchie scottie sheltie kelpie mountie talkie chappie preemie roomie hottie
    wedgie trekkie bookie baddie softie meanie luvvie greenie moggie kewpie coterie eyrie faerie undie lingerie coolie
    twinkie druggie brie"""
)
"""Words in -ie; other plurals in -ies are of words in -y."""

_CHE = _set(
    """ache headache toothache stomachache backache earache cache mustache moustache avalanche niche quiche brioche
    creche crèche pastiche psyche gouache cloche porsche"""
)
"""Words in -che and -she; other plurals in -ches and -shes are of words in -ch and -sh."""

_USE = re.compile(r"(ouse|ause|^(?:re|over|ab|mis|f|ref|m|r|exc|recl|hypoten|masse|chante)?use)$")
"""Words in -use; other plurals in -uses are of words in -us."""

_OE = re.compile(
    r"(^(?:horse|snow|over|gum|tip|mistle)?(?:shoe|toe)|^canoe|^(?:back)?hoe|oboe|^[fdwr]oe|floe|aloe|sloe)$"
)
"""Words in -oe; other plurals in -oes are of words in -o."""

_O_ES = _set(
    """potato tomato hero superhero echo torpedo volcano mosquito tornado domino cargo veto embargo buffalo mango"""
)
"""Words in -o whose usual plural is in -oes."""

_U = _set("menu gnu emu tutu guru haiku kudu caribou bayou zebu marabou ecu")
"""Words in -u; other words in -us are singulars."""

_I = _set(
    """ski taxi bikini kiwi martini safari yeti zucchini rabbi alibi sari jacuzzi panini salami tsunami corgi okapi
    chili samurai bonsai mini semi israeli pakistani iraqi jet-ski ravioli cannoli deli wiki emoji sensei tatami koi
    yogi hibachi lori ferrari maserati lamborghini audi suzuki pepperoni chai maki"""
)
"""Words in -i; other words in -is are singulars."""

_SINGULAR = _set(
    """gas atlas canvas christmas pancreas bias alias texas kansas thermos rhinoceros cosmos chaos asbestos ethos pathos
    lens summons mars adidas vegas gallows headquarters means forceps mercedes starbucks hermes levis molasses kudos
    diabetes herpes rabies scabies cyclops triceratops sassafras descartes hercules achilles moses james charles hans
    thames innings sweepstakes"""
)
"""Words in -as, -os and consonant + s that are singulars, or used as singulars."""

_HARD_CH = _set("stomach monarch patriarch matriarch epoch eunuch loch oligarch")
"""Words in -ch that is spoken as k: their plural takes -s."""

_PLURALS = {base: inflected for inflected, base in (_IRREGULAR | _VES).items()} | {
    base: inflected
    for inflected, base in _pairs(
        """pennies penny octopuses octopus brothers brother hippopotamuses hippopotamus papyruses papyrus
        stadiums stadium aquariums aquarium gymnasiums gymnasium podiums podium plateaus plateau bureaus bureau
        formulas formula antennas antenna handkerchiefs handkerchief axes axis bases basis roofs roof turfs turf"""
    ).items()
}
"""Plurals by their singulars; of several plurals the most usual."""


_HEADED = re.compile(r"(\w+)(-in-law|-of-.+|(?:(?<=er)|(?<=ers))-(?:by|up|on))")
"""Compounds whose first part is inflected: "mothers-in-law", "passers-by"."""


def singular(noun: str) -> str | None:
    """The singular of a plural noun, None if there is none or `noun` is not surely a plural.

    The case of the letters is kept: "women" -> "woman", "iPhones" -> "iPhone", "sheep" -> "sheep", "jeans" -> None.
    """
    word = noun.lower()
    if not word[:1].isalpha() or "'" in word or "’" in word or len(word) != len(noun):
        return None
    base = _singular(word) or _singular_of_head(word)
    return None if base is None else _with_case(base, noun)


def _singular_of_head(word: str) -> str | None:
    compound = _HEADED.fullmatch(word)
    head = _singular(compound[1]) if compound else None
    return f"{head}{compound[2]}" if compound and head else None


def _singular(word: str) -> str | None:
    before, hyphen, last = word.rpartition("-")
    if before and word[:-1] not in _IE | _I:
        found = _singular(last)
        return f"{before}{hyphen}{found}" if found else None
    if word in _NO_SINGULAR or word.endswith(("pants", "jeans", "trousers", "scissors")):
        return None
    if word in _SAME or (word.endswith(("fish", "sheep", "deer")) and len(word) > 4) or word.endswith("aircraft"):
        return word
    table = _IRREGULAR.get(word) or _VES.get(word)
    return table or _compound(word) or _by_rule(word)


def _compound(word: str) -> str | None:
    if word in _NOT_COMPOUNDS:
        return None
    for inflected, base in _COMPOUNDED.items():
        # With at least three letters before it: "women" and "omen" are no compounds of "men".
        if word.endswith(inflected) and len(word) - len(inflected) >= 3:
            return word.removesuffix(inflected) + base
    return None


def _by_rule(word: str) -> str | None:
    """Undo the spelling of a regular plural."""
    stem = word[:-1]
    if len(word) < 3 or not word.endswith("s") or not stem[-1].isalnum() or word in _SINGULAR:
        return None
    for ending, is_word, replacement in _ENDINGS:
        if stem.endswith(ending) and not is_word(stem):
            return None if replacement is None else stem.removesuffix(ending) + replacement
    return stem


def _never(_: str) -> bool:
    return False


_ENDINGS: tuple[tuple[str, Callable[[str], object], str | None], ...] = (
    ("ie", lambda stem: stem in _IE or len(stem) <= 3, "y"),
    ("che", _CHE.__contains__, "ch"),
    ("she", _CHE.__contains__, "sh"),
    ("use", _USE.search, "us"),
    ("oe", _OE.search, "o"),
    ("sse", _never, "ss"),
    ("xe", _never, "x"),
    ("zze", _never, "zz"),
    ("s", _never, None),
    ("u", lambda stem: stem in _U or stem.endswith("eau"), None),
    ("i", _I.__contains__, None),
)
"""For a plural without its -s: its ending, whether it is a word as it is, else the ending of the singular (None: it is
no plural)."""


def plural(noun: str) -> str:
    """The plural of a singular noun: "woman" -> "women", "box" -> "boxes", "sheep" -> "sheep"."""
    word = noun.lower()
    if compound := _HEADED.fullmatch(word):
        return _with_case(f"{_plural(compound[1])}{compound[2]}", noun)
    before, hyphen, last = word.rpartition("-")
    return _with_case(f"{before}{hyphen}{_plural(last)}", noun)


def _plural(word: str) -> str:
    if word in _SAME or word in _NO_SINGULAR or word.endswith(("fish", "sheep", "deer", "aircraft")):
        return word
    compounds = (
        word.removesuffix(base) + inflected
        for inflected, base in _COMPOUNDED.items()
        if word.endswith(base) and len(word) - len(base) >= 3 and word not in _NOT_COMPOUNDS
    )
    return _PLURALS.get(word) or next(compounds, "") or _add_s(word)


def _add_s(word: str) -> str:
    """Spell a regular plural."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    hisses = word.endswith(("s", "x", "z", "ch", "sh")) and word not in _HARD_CH
    return f"{word}es" if hisses or word in _O_ES else f"{word}s"


def _with_case(changed: str, noun: str) -> str:
    """Give `changed` the case that its letters have in `noun`; what is new is capital only if all of `noun` is."""
    same = next((i for i, (a, b) in enumerate(zip(changed, noun.lower(), strict=False)) if a != b), None)
    same = min(len(changed), len(noun)) if same is None else same
    rest = changed[same:]
    return noun[:same] + (rest.upper() if noun.isupper() and len(noun) > 1 else rest)


_AN_LETTERS = frozenset("AEFHILMNORSX")
"""Letters whose names begin with a vowel: "an X-ray", "an SUV"."""

SPELLED = _set("LED SUV HIV SOS LAX NES RAF MIT NCAA NAACP")
"""Capitals that could be spoken as a word and are not."""

_READ = _set("NO ME MY HE SO MR")
"""Two capitals that are a word."""

_ONSET = re.compile(r"[^AEIOUY]?[AEIOUY]|[FSTBCGPKD][LR]|S[CHKMNPTW]|[TCPRW]H|TW|QU")
"""How a word that can be spoken begins."""

_SILENT_H = re.compile(r"hour(?!i)|heir|honest|hono")
_SPOKEN_Y_OR_W = re.compile(
    r"eu|ew|one(?!i|rous)|once|ouija|u(?:-|ni(?!n[^g]|m|d(?!i)|ll|ro)|na(?:nim|ry)|[bfgk][aiou]|kr|[st][aeiou]|r[aio])"
)
"""Words that begin with a vowel letter, spoken as in "you" or "won": "a unicorn", "a European", "a one-way sign"."""
_SPOKEN_VOWEL = re.compile(r"[aeiouæœø]|y(?:tt|gg)")


def article(words: str) -> str:
    """The indefinite article of `words`, "a" or "an": "an hour", "a unicorn", "an X-ray", "an 8-year-old"."""
    # Accents make no difference: "éclair" begins as "eclair" does.
    plain = "".join(c for c in unicodedata.normalize("NFD", words) if not unicodedata.combining(c))
    first = (plain.split() or [""])[0]
    if first[:1].isdigit():
        return "an" if _is_an_number(first) else "a"
    letters = re.split(r"[^A-Za-z]", first, maxsplit=1)[0]
    if letters.isupper() and _is_spelled(letters):
        return "an" if letters[0] in _AN_LETTERS else "a"
    word = first.lower()
    if _SILENT_H.match(word):
        return "an"
    return "an" if _SPOKEN_VOWEL.match(word) and not _SPOKEN_Y_OR_W.match(word) else "a"


def _is_spelled(letters: str) -> bool:
    """Whether capitals are spoken letter by letter, as "SUV" is and "STOP" is not."""
    if letters in SPELLED or len(letters) < 3:
        return letters not in _READ
    return not _ONSET.match(letters) or not re.search("[AEIOUY]", letters[1:])


def _is_an_number(word: str) -> bool:
    """Whether a number is spoken with a vowel first: eight, eleven, eighteen, eighty, eleven thousand, 1850."""
    digits = re.match(r"\d+(?:,\d{3})*", word)
    assert digits is not None
    number = digits[0].replace(",", "")
    is_year = len(number) == 4 and "," not in digits[0]
    return number[0] == "8" or (number[:2] in ("11", "18") and (len(number) % 3 == 2 or is_year))


def with_article(words: str) -> str:
    """Put the indefinite article before `words`: "an hour", "a unicorn"."""
    return f"{article(words)} {words}"
