"""Texts to tokens: for one or two text encoders, a subject's token, and a CLIP tokenizer that needs no download."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from schemas.errors import ConfigError
from schemas.samples.fastcomposer import Subject

LENGTH = 77
"""Tokens of a caption, start and end included."""
START, END = "<|startoftext|>", "<|endoftext|>"


def small_tokenizer(captions: Iterable[str], size: int = 4096) -> CLIPTokenizer:
    """Make a byte-pair tokenizer whose vocabulary comes from `captions`.

    Frequent words are one token; other text is composed of shorter tokens, down to bytes. There are at most `size`
    tokens, 512 of them single bytes, within a word and at its end.
    """
    template = CLIPTokenizer()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = template.backend_tokenizer.normalizer
    trained.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    single = [*letters, *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        special_tokens=single,  # numbered here: the trainer would number the letters at a word's end in random order
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    learnt = json.loads(trained.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]], model_max_length=LENGTH)


def extend_tokenizer(tokenizer: CLIPTokenizer, texts: Iterable[str], size: int = 4096) -> CLIPTokenizer:
    """Make words of `texts` that `tokenizer` splits one token each, the most frequent ones first.

    Its tokens keep their ids, and words that are one token stay it: the new merges come after all of its own.

    Args:
        tokenizer: a byte-pair tokenizer with CLIP's splitting into words; not changed.
        texts: source of the words.
        size: most tokens of the extended vocabulary, those within the new words included.
    """
    backend = tokenizer.backend_tokenizer
    learnt = json.loads(backend.to_str())["model"]
    vocabulary, ranks = dict(learnt["vocab"]), {tuple(pair): i for i, pair in enumerate(learnt["merges"])}
    split = backend.pre_tokenizer.pre_tokenize_str
    counts = Counter(word for text in texts for word, _ in split(backend.normalizer.normalize_str(text)))
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        pieces = merge_pieces(word, ranks)
        if len(vocabulary) + len(pieces) - 1 > size:
            break
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            vocabulary.setdefault(pieces[0] + pieces[1], len(vocabulary))
            pieces = merge_pieces(word, ranks)
    if len(ranks) == len(learnt["merges"]):
        return tokenizer
    return CLIPTokenizer(vocab=vocabulary, merges=list(ranks), model_max_length=tokenizer.model_max_length)


def merge_pieces(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Split a word into its tokens: the adjacent pair of lowest rank is merged until no pair has one."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
        first = min(pairs, key=ranks.__getitem__)
        at = list(pairwise(pieces)).index(first)
        pieces[at : at + 2] = ["".join(first)]
    return pieces


def tokenize(texts: Sequence[str], tokenizers: Sequence[CLIPTokenizer], length: int | None = None) -> Tensor:
    """Tokenize N texts for each of E text encoders, one after the other: [N, E L] int64.

    Args:
        texts: cut if they are too long.
        tokenizers: one per text encoder. Those of Stable Diffusion XL differ: the second one pads with "!", and reads
            an exclamation mark in a text as that token.
        length: L, start and end included, by default the tokenizers' own.
    """
    return torch.cat(
        [
            tokenizer(
                list(texts),
                padding="max_length",
                max_length=length or tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in tokenizers
        ],
        dim=1,
    )


def locate(caption: str, subjects: Sequence[Subject], tokenizer: CLIPTokenizer) -> tuple[list[int], list[int | None]]:
    """Tokenize a caption, and find each subject's token: the last one of its phrase.

    Returns:
        The L ids, padded or cut to the tokenizer's length, and each subject's position among them. It is None if the
        length cuts the phrase off, or if an earlier subject has the same token.
    """
    length = tokenizer.model_max_length
    encoded = tokenizer(caption, return_offsets_mapping=True, verbose=False)
    ids = encoded.input_ids
    ids = ids[: length - 1] + ids[-1:] if len(ids) > length else ids + [tokenizer.pad_token_id] * (length - len(ids))
    positions: list[int | None] = []
    for subject in subjects:
        within = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < subject.end and b > subject.start]
        fits = bool(within) and within[-1] < length - 1 and within[-1] not in positions
        positions.append(within[-1] if fits else None)
    return ids, positions


def token_range(caption: str, start: int, end: int, tokenizer: CLIPTokenizer) -> tuple[int, int]:
    """Positions [first, last) of the tokens of a caption's characters [start, end), counted from the start token.

    Raises:
        ConfigError: the tokenizer's length cuts them off.
    """
    encoded = tokenizer(caption, return_offsets_mapping=True, verbose=False)
    within = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < end and b > start]
    if not within or within[-1] >= tokenizer.model_max_length - 1:
        raise ConfigError(
            f"{caption[start:end]!r} lies beyond the {tokenizer.model_max_length} tokens that the text encoder reads"
        )
    return within[0], within[-1] + 1
