import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tests.training import processes
from training.tokenizer import extend_tokenizer, merge_pieces, small_tokenizer

CAPTIONS = ("a red ball and a blue cup", "a ballroom, a cupboard by a house", "the house's cup")


def test_words_of_the_captions_are_single_tokens() -> None:
    tokenizer = small_tokenizer(CAPTIONS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("A red ballroom by a CUP").input_ids)
    words = ["a</w>", "red</w>", "ballroom</w>", "by</w>", "a</w>", "cup</w>"]
    assert tokens == ["<|startoftext|>", *words, "<|endoftext|>"]


@pytest.mark.parametrize("text", ["unseen words", "naïve 🐴", "中文", "x"])
def test_unknown_words_are_split_and_their_offsets_cover_the_text(text: str) -> None:
    tokenizer = small_tokenizer(CAPTIONS)
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.unk_token_id not in encoded.input_ids[1:-1]
    covered = {i for start, end in encoded.offset_mapping for i in range(start, end)}
    assert covered == {i for i, letter in enumerate(text) if letter != " "}


def test_short_captions_are_padded_and_long_captions_truncated() -> None:
    tokenizer = small_tokenizer(CAPTIONS)
    both = tokenizer(["", "ball " * 100], padding="max_length", max_length=77, truncation=True).input_ids
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert both[0] == [start] + [end] * 76
    assert (len(both[1]), both[1][0], both[1][-1]) == (77, start, end)


def write_vocabulary(path: Path) -> None:
    path.write_text(json.dumps(small_tokenizer(CAPTIONS).get_vocab()))


def test_the_vocabulary_is_a_function_of_the_captions(tmp_path: Path) -> None:
    """Compare with another process, whose hash seed differs."""
    processes.run(write_vocabulary, tmp_path / "vocabulary.json")
    assert json.loads((tmp_path / "vocabulary.json").read_text()) == small_tokenizer(CAPTIONS).get_vocab()


def test_a_saved_tokenizer_loads_as_clip_tokenizer(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded("a red cupboard").input_ids == tokenizer("a red cupboard").input_ids


def test_the_vocabulary_is_limited_to_its_size() -> None:
    assert len(small_tokenizer(CAPTIONS, size=520)) == 520


def test_an_extended_tokenizer_has_a_token_for_every_new_word_and_keeps_the_old_ones() -> None:
    old = small_tokenizer(CAPTIONS)
    new = extend_tokenizer(old, ["Zebras and a zeppelin, naïve zebra", "a red zeppelin by the house's zebra"])
    for word in ("zebra", "zebras", "zeppelin", "naïve"):
        assert len(old.tokenize(word)) > 1
        assert len(new.tokenize(word)) == 1
    for caption in (*CAPTIONS, "unseen wards"):
        assert new(caption).input_ids == old(caption).input_ids
    assert new.get_vocab().items() >= old.get_vocab().items()
    assert sorted(new.get_vocab().values()) == list(range(len(new)))
    assert (new.eos_token_id, new.pad_token_id) == (old.eos_token_id, old.pad_token_id)
    assert extend_tokenizer(old, CAPTIONS) is old


def test_tokens_of_an_extension_are_limited_and_frequent_words_come_first() -> None:
    old = small_tokenizer(CAPTIONS)
    new = extend_tokenizer(old, ["wyxq", "zebra zebra"], len(old) + 4)
    assert len(new) <= len(old) + 4
    assert new.tokenize("zebra") == ["zebra</w>"]
    assert len(new.tokenize("wyxq")) > 1


@given(st.text(max_size=24))
def test_merging_by_ranks_is_what_the_tokenizer_does(text: str) -> None:
    tokenizer = small_tokenizer(CAPTIONS)
    backend = tokenizer.backend_tokenizer
    ranks = {tuple(pair): i for i, pair in enumerate(json.loads(backend.to_str())["model"]["merges"])}
    for word, _ in backend.pre_tokenizer.pre_tokenize_str(
        backend.normalizer.normalize_str(f"{text} ballroom cupboards")
    ):
        assert merge_pieces(word, ranks) == [token.value for token in backend.model.tokenize(word)]
