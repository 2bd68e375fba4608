"""Captions to tokens: which of them carries a subject, and a tokenizer of CLIP's kind that needs no download."""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from schemas.samples.fastcomposer import Subject

LENGTH = 77
"""Tokens of a caption, the first and the last mark included."""
START, END = "<|startoftext|>", "<|endoftext|>"


def small_tokenizer(captions: Iterable[str], size: int = 4096) -> CLIPTokenizer:
    """Make a byte-pair tokenizer whose vocabulary comes from `captions`.

    Frequent words are one token; any other text is spelt out of shorter ones, down to bytes. At most `size` tokens,
    512 of them single bytes, within a word and at its end.
    """
    template = CLIPTokenizer()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = template.backend_tokenizer.normalizer
    trained.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    single = [*letters, *(f"{letter}</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        special_tokens=single,  # numbered beforehand: the trainer would number a word's last letters at random
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    learnt = json.loads(trained.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]], model_max_length=LENGTH)


def locate(caption: str, subjects: Sequence[Subject], tokenizer: CLIPTokenizer) -> tuple[list[int], list[int | None]]:
    """Tokenize a caption, and find the token that carries each subject: the last one of its phrase.

    Returns:
        The L ids, padded or cut to the tokenizer's length, and each subject's position among them. That is None
        where the length cuts the phrase off, and where an earlier subject has the token already.
    """
    length = tokenizer.model_max_length
    whole = tokenizer(caption, return_offsets_mapping=True, verbose=False)
    ids = whole.input_ids
    ids = ids[: length - 1] + ids[-1:] if len(ids) > length else ids + [tokenizer.pad_token_id] * (length - len(ids))
    places: list[int | None] = []
    for subject in subjects:
        within = [i for i, (a, b) in enumerate(whole.offset_mapping) if a < subject.end and b > subject.start]
        fits = bool(within) and within[-1] < length - 1 and within[-1] not in places
        places.append(within[-1] if fits else None)
    return ids, places
