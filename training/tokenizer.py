"""A tokenizer of CLIP's kind for the words of given captions, made on the spot and without a download."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

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
