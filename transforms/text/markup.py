"""What web pages and prompts leave in captions: entities, tags, weights, alternatives, labels."""

import html
import re

from transforms.text.phrase_words import PICTURES

_ENTITY = r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_TAG = (
    r"<!--.*?-->|</?(?:a|b|big|br|center|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|small|span|strong|sub|sup|table"
    r"|tbody|td|th|tr|u|ul)(?:\s[^<>]*)?/?>|<(?:lora|lyco|hypernet):[^<>]*>"
)
_WEIGHT = r"(?<=[^\s\d:]):{1,2}-?\d+(?:\.\d+)?(?![\w:])"
"""The weight of a prompt: "(a red dog:1.3)", "a dog::1.5"."""

_PICTURE = f"(?:{'|'.join(sorted(PICTURES))})"
_NAMES = (
    r"(?:alt(?:ernative)?[ -]?text|caption|contains|contents?|description|keywords?|labels?|objects?|prompt|subjects?"
    rf"|tags?|title|{_PICTURE}(?:[ -](?:caption|description|tags?))?|(?:in )?(?:the|this) {_PICTURE})"
)
_LABEL = re.compile(
    rf"\s*(?:(?:(?:the |this )?{_PICTURE} )?(?:may|might|can) (?:contain|include|show|be(?: an?)? [\w -]{{1,20}}? of)\b"
    rf"(?: ?:)?|{_NAMES} ?:)\s*(?=[^\s:])",
    re.IGNORECASE,
)
"""What stands before a caption or a list of tags and is no part of it: "Tags:", "Image may contain:"."""

_ENTITIES = re.compile(_ENTITY)
_TAGS = re.compile(_TAG, re.IGNORECASE | re.DOTALL)
_UNREADABLE = re.compile(rf"{_ENTITY}|{_TAG}|{_WEIGHT}|[{{}}|\[\]]|;(?=\w)", re.IGNORECASE | re.DOTALL)

_READ_AS = {"{": "(", "}": ")", "[": "(", "]": ")"}


def undo_markup(text: str) -> str:
    """Undo entities and tags: "a dog &amp; a cat<br>" becomes "a dog & a cat ".

    Entities are undone twice, as in OpenAI's CLIP tokenizer: scraped texts are often escaped twice. A tag becomes a
    space. What is no HTML ("<3", "AT&T", "a <new> dog") stays; a prompt's "<lora:name:1>" is a tag.
    """
    for _ in range(2):
        text = _ENTITIES.sub(lambda match: html.unescape(match[0]), text)
    return _TAGS.sub(" ", text)


def readable(caption: str) -> tuple[str, list[int]]:
    """Write a caption as a parser reads it best; return the text, and where each of its characters comes from.

    A label at its beginning ("Tags:") is left out: what follows it is a caption by itself. A prompt's weight ends a
    word, and so do "|", ";" and braces; braces and square brackets become parentheses, which the parser knows better.
    The list has an entry per character of the text, and the caption's length as its last.
    """
    label = _LABEL.match(caption)
    text, cursor = "", label.end() if label else 0
    origins: list[int] = []
    for match in _UNREADABLE.finditer(caption, cursor):
        written = html.unescape(match[0]) if match[0][0] == "&" else _READ_AS.get(match[0], ",")
        text += caption[cursor : match.start()] + (written if len(written) == 1 else ",")
        origins += range(cursor, match.start() + 1)
        cursor = match.end()
    return text + caption[cursor:], [*origins, *range(cursor, len(caption) + 1)]
