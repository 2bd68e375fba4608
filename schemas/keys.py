"""Keys that are safe as file names, as tar members and as WebDataset keys."""

import hashlib
import re

import numpy as np

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,200}")
"""What a key looks like: no dot (WebDataset cuts a member's name at its first one), no path separator."""

_DIGITS = 16
_STEM = 200 - _DIGITS - 1


def clean_key(raw: str) -> str:
    """Return a key that fully matches `KEY_PATTERN`, for any `raw` key.

    A raw key that already matches stays as it is. Any other has each run of unfit characters replaced by one
    "_", is cut to length, and ends in "-" and 16 hexadecimal digits of the raw key's SHA-256: two raw keys
    meet only if 64 bits of that hash agree, or if one was written to look like the other's result.

    >>> clean_key("000000142238")
    '000000142238'
    >>> clean_key("animals/dog.old")
    'animals_dog_old-76ae3f3e2008dcf1'
    """
    if KEY_PATTERN.fullmatch(raw):
        return raw
    # surrogatepass: a file name that is no valid UTF-8 reaches Python with lone surrogates in it.
    digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", raw)[:_STEM].strip("_")
    return f"{stem}-{digest}" if stem else digest


def caption_key(key: str, number: int) -> str:
    """Return the key of the sample that caption `number` of the picture `key` makes, counted from 1.

    The first caption's is the picture's own key. That of any other ends in its number and 16 hexadecimal digits of a
    SHA-256 of both, and is cut to length before these: like the result of `clean_key`, it meets another key only if 64
    bits of the hash agree, or if that key was written to look like it.

    >>> caption_key("000000142238", 1)
    '000000142238'
    >>> caption_key("000000142238", 2)
    '000000142238-2-f8f47911018245c9'
    """
    if number == 1:
        return key
    digest = hashlib.sha256(f"{key}\0{number}".encode()).hexdigest()[:_DIGITS]
    end = f"-{number}-{digest}"
    return f"{key[: 200 - len(end)]}{end}"


def rng_of(seed: int, stage: str, key: str) -> np.random.Generator:
    """Return the random generator of one record in one stage: a function of these three, never of order or time."""
    digest = hashlib.blake2b(f"{stage}\0{key}".encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
