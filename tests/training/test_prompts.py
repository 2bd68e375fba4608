"""Sample pictures for captions of the user's own."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from schemas.errors import ConfigError, InputError
from schemas.samples import fastcomposer, mip_adapter
from tests.datasets import example, scored, write_dataset
from training.config import Prompt
from training.configs.fastcomposer import Config
from training.prompts import batch_of_prompts, with_prompt
from training.recipes import training_of
from training.shards import Batch, find_shards
from training.tokenizer import small_tokenizer

SUBJECTS = (("a red dog", (4, 6, 20, 16)), ("a cat", (30, 10, 20, 30)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prompts") / "data"
    write_dataset(folder, [[example(f"key{i}", SUBJECTS) for i in range(3)]])
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return small_tokenizer(["the red dog", "a cat in the snow"])


def batch_of(data: str, tokenizer: CLIPTokenizer, *prompts: Prompt) -> Batch:
    config = Config(resolution=64, reference=32, prompts=prompts)
    shards = find_shards(data, "fastcomposer")
    return batch_of_prompts("fastcomposer", training_of("fastcomposer"), shards, tokenizer, config)


def test_a_prompt_takes_the_references_of_what_it_names(data: str, tokenizer: CLIPTokenizer) -> None:
    cat, both = Prompt(prompt="A cat in the snow", sample="key2"), Prompt(prompt="a cat, a red dog", sample="key0")
    batch = batch_of(data, tokenizer, cat, both)
    assert batch["keys"] == ["key2", "key0"]
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "a cat in the snow"
    assert batch["num_subjects"].tolist() == [1, 2]
    cat_token = tokenizer.convert_tokens_to_ids("cat</w>")
    for row in range(2):
        assert batch["input_ids"][row, batch["subject_token_index"][row, 0]] == cat_token
    assert batch["subject_segmentation"][0, 0].any()


def test_a_sample_may_come_from_another_dataset(data: str, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    write_dataset(tmp_path / "mine", [[example("photo", SUBJECTS)]])
    mine = Prompt(prompt="a cat", sample="photo", dataset=str(tmp_path / "mine"))
    assert batch_of(data, tokenizer, Prompt(prompt="a cat", sample="key1"), mine)["keys"] == ["key1", "photo"]
    with pytest.raises(InputError, match="no shard nowhere"):
        batch_of(data, tokenizer, Prompt(prompt="a cat", sample="photo", dataset="nowhere"))


def test_a_prompt_that_cannot_be_drawn_is_an_error(data: str, tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ConfigError, match="prompts: the dataset has no sample 'key9'"):
        batch_of(data, tokenizer, Prompt(prompt="a cat", sample="key9"))
    with pytest.raises(ConfigError, match="prompts: sample key0: 'a cathedral' names none of 'a red dog', 'a cat'"):
        batch_of(data, tokenizer, Prompt(prompt="a cathedral", sample="key0"))
    with pytest.raises(ConfigError, match="prompts: sample key0 is no fastcomposer sample: "):
        with_prompt("fastcomposer", {"json": b"{}"}, Prompt(prompt="a cat", sample="key0"))


def test_a_fastcomposer_record_under_another_caption_is_sound() -> None:
    record = fastcomposer.Record.from_example(example("key", SUBJECTS))
    moved = record.with_caption("A cat in the snow")
    assert [(subject.text, subject.phrase, subject.label) for subject in moved.subjects] == [("A cat", 0, "cat")]
    assert list(moved.problems({})) == []
    assert list(record.with_caption("A cat and a red dog").problems({})) == []


def test_records_find_the_spans_of_equal_texts_in_their_order() -> None:
    dogs = example("key", (("a dog", (4, 6, 20, 16)), ("a dog", (30, 10, 20, 30)), ("a cat", (0, 0, 4, 4))))
    record = mip_adapter.Record.from_example(scored(dogs, 0.5))
    moved = record.with_caption("A dog sees a dog")
    assert [(thing.text, thing.start, thing.bbox[0]) for thing in moved.objects] == [("A dog", 0, 4), ("a dog", 11, 30)]
    assert moved.caption == "A dog sees a dog"
    one = record.with_caption("A cat sees a dog.")
    assert [(thing.text, thing.start) for thing in one.objects] == [("a dog", 11), ("A cat", 0)]
    with pytest.raises(ValueError, match="'nobody' names none of 'a dog', 'a dog', 'a cat'"):
        record.with_caption("nobody")


def test_a_record_without_spans_takes_any_caption() -> None:
    fields = {"key": "k", "caption": "a cat", "width": 4, "height": 4, "source": {"uri": "u", "license": ""}}
    raw = {"json": json.dumps(fields).encode(), "jpg": b"..."}
    changed = with_prompt("captioned", raw, Prompt(prompt="Snow", sample="k"))
    assert json.loads(changed["json"]) == {**fields, "caption": "Snow"}
    assert changed["jpg"] == b"..."
