"""The words that the rules of noun phrases look for."""

import re

from transforms.text.parses import word_set

RELATIONS = word_set(
    """side top front back bottom left right middle center centre rear edge corner end inside outside foreground
    background distance air midair focus subject"""
)
"""Parts of space: left out before "of" ("the side of a boat") and as a bare place ("on the left", "in the top
corner"), kept where they are things ("a woman in a red top")."""

POSITIONS = RELATIONS | word_set("far near upper lower very other opposite same")
"""Words that may precede a part of space without turning it into a thing."""

IMAGES = word_set(
    """photo photograph photography picture pic image painting drawing view close closeup up shot portrait illustration
    sketch render rendering cartoon snapshot selfie screenshot screengrab capture artwork art poster scene still
    collage watercolor watercolour clipart graphic wallpaper thumbnail panorama depiction representation
    engraving etching caricature comic anime meme gif video footage diagram scan postcard cgi animation
    visualization composition doodle infographic"""
)
"""What a caption may call the picture ("close up" may be one noun or two): left out at the beginning of a caption ("a
photo of a dog", "In this image, a dog ..."), kept elsewhere ("a wall with a painting of a dog")."""

PICTURES = word_set("photo photograph picture pic image screenshot")
"""Those that mean the picture also later in a caption, as "in the image"."""

SHOWS = word_set(
    """of up with showing shows show depicting depicts depict featuring features feature capturing captures displaying
    displays display presenting presents portraying portrays illustrating illustrates representing represents contains
    containing includes including focuses showcases showcasing may might can where taken from by
    looks :"""
)
"""Words between the picture and what is in it."""

STYLES = word_set(
    """art artwork painting illustration drawing sketch render rendering photography photo lighting light quality
    masterpiece focus resolution detail hdr uhd bokeh depth engine composition aesthetic 4k 8k photorealism realism
    watercolor watercolour"""
)
"""Heads of tags that say how a picture was made: left out between commas and without an article ("concept art")."""

SITES = word_set("artstation deviantart behance pixiv unsplash")
"""Where pictures are shown ("trending on artstation"): no things."""

AMOUNTS = word_set("lot number variety kind type sort bit dozen plenty amount hundred thousand")
"""Joined with what they measure ("a lot of apples", root "apple"); left out if they measure nothing."""

COLLECTIVES = word_set(
    """group pair couple bunch set piece slice row pile stack herd flock crowd handful series collection assortment
    array cluster pack swarm school"""
)
"""Joined with their members ("a group of people", root "person"); kept if they stand alone."""

PARTS = frozenset(("piece", "slice"))
PAIRS = {"pair": 2, "couple": 2, "duo": 2, "trio": 3}
"""Collectives of one thing, and of two or three."""

GROUPS = word_set(
    """family team audience crew band gang trio duo army choir orchestra class staff fleet litter cattle livestock
    poultry police"""
)
"""Other nouns that name several things."""

SEVERAL = word_set("some many several few these those all both two three various numerous multiple")
"""Words that make a plural of a noun without a form for it: "some sheep"."""

_NUMERALS = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: i for i, word in enumerate(_NUMERALS.split(), start=1)} | {str(i): i for i in range(1, 101)}
"""Numbers that say how many things a phrase names."""

NEGATIONS = frozenset(("no", "not", "without", "neither", "nor"))
"""Words before what is absent."""

FORBIDS = word_set("prohibiting prohibits forbidding forbids banning bans")
"""Words of a sign before what it keeps away."""

PRONOUNS = frozenset(("PRON", "DET"))
"""Parts of speech of heads that name nothing by themselves: "it", "this"."""

COLOURS = word_set(
    """orange white black red blue green yellow brown grey gray pink purple violet gold golden silver tan beige cream
    turquoise teal maroon navy crimson scarlet ginger tabby calico brindle ivory bronze copper olive lavender magenta"""
)
"""Adjectives that parsers also take for nouns."""

CAPITALS = re.compile(r"[^\W\d_]*[A-Z]\w*[A-Z]\w*s")
"""Plurals with inner capitals: "TVs", "MacBooks"."""

DEFINITE = frozenset(("the", "this", "that", "these", "those"))
BREAKS = frozenset(".!?;:|()[]{}<>")
"""Punctuation that no noun phrase contains: a chunk that does, as of two lines, is cut to what follows it."""
