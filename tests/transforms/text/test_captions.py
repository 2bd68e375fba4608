from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    GPT2TokenizerFast,
    OPTConfig,
)

from schemas.errors import ModelError
from schemas.example import Example
from schemas.images import encode_jpeg
from tests.beam import apply
from tests.examples import make_example
from training.tokenizer import small_tokenizer
from transforms.batch import Batch
from transforms.models.captioner import Captioner, load_captioner, write_captions
from transforms.models.settings import Wording
from transforms.text.captions import WriteCaptions, add_captions

WORDING = Wording(prompt="", beams=2, longest=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BLIP-2, of the classes of the published ones."""
    path = tmp_path_factory.mktemp("models") / "captioner"
    tokens = _tokenizer(path)
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, encoder_hidden_size=16
    )
    text = OPTConfig(
        vocab_size=len(tokens), hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), text_config=text.to_dict(),
        num_query_tokens=4, image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(1)
    model = Blip2ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    Blip2Processor(images, tokens, num_query_tokens=4).save_pretrained(path)
    return path


def _tokenizer(path: Path) -> GPT2TokenizerFast:
    path.mkdir()
    words = small_tokenizer(["a photo of a dog on the lawn"], size=600)
    tokens = GPT2TokenizerFast(
        vocab={**words.get_vocab()}, merges=[], bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        unk_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left",
    )  # fmt: skip
    tokens.add_tokens(["<image>"])
    return tokens


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return load_captioner(folder)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)


def bare(key: str, seed: int = 0, caption: str = "") -> Example:
    example = make_example(key, caption, size=(24, 20))
    return replace(example, image=encode_jpeg(picture(seed)), _pixels=None)


def test_settings_and_prompt_reach_the_model(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    generate: Callable[..., torch.Tensor] = captioner.model.generate

    def listen(**inputs: Any) -> torch.Tensor:  # noqa: ANN401
        asked.update(inputs)
        return generate(**inputs)

    monkeypatch.setattr(captioner.model, "generate", listen)
    (text,) = write_captions(captioner, [picture(0)], Wording("a photo of", beams=3, longest=5))
    published = captioner.processor.image_processor(images=[Image.fromarray(picture(0))], return_tensors="pt")
    assert (asked["pixel_values"] - published["pixel_values"]).abs().max() < 0.016  # a grey level, normalised
    assert (asked["num_beams"], asked["max_new_tokens"], asked["do_sample"]) == (3, 5, False)
    ids = asked["input_ids"][0]
    prompt = captioner.processor.tokenizer("a photo of", add_special_tokens=False).input_ids
    assert [i for i in ids.tolist() if i in prompt]
    assert text.startswith("a photo of")


def test_the_same_picture_gets_the_same_caption_in_any_batch(captioner: Captioner) -> None:
    together = write_captions(captioner, [picture(i) for i in range(3)], WORDING)
    assert [write_captions(captioner, [picture(i)], WORDING)[0] for i in range(3)] == together
    assert write_captions(captioner, [], WORDING) == []


def test_only_pictures_without_a_caption_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "transforms.models.captioner.write_captions", lambda _, images, __: ["a  dog\n" for _ in images]
    )
    records = [bare("a"), bare("b", caption="my own"), bare("c")]
    described = add_captions(lambda: None, records, WORDING, "blip2")  # type: ignore[arg-type,return-value]
    assert [(example.caption, example.caption_origin) for example in described] == [
        ("a dog", "blip2"),
        ("my own", "source"),
        ("a dog", "blip2"),
    ]


def test_where_all_have_captions_no_captioner_is_loaded() -> None:
    batch = Batch(0, (bare("a", caption="my own"),))
    (passed,) = apply(WriteCaptions("no/such-captioner", WORDING), [batch])
    assert passed.records == batch.records


def test_the_transform_describes_what_is_bare(folder: Path, captioner: Captioner) -> None:
    (batch,) = apply(WriteCaptions(str(folder), WORDING), [Batch(0, (bare("a", 4),))])
    expected = " ".join(write_captions(captioner, [bare("a", 4).pixels()], WORDING)[0].split())
    assert expected  # of a random model, but the same one each time
    (record,) = batch.records
    assert isinstance(record, Example)
    assert (record.caption, record.caption_origin) == (expected, str(folder))


def test_what_is_no_blip2_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match=r"is a model of type clip: .* of type blip-2"):
        load_captioner(tmp_path)
    with pytest.raises(ModelError, match="Give --model captioner=FOLDER") as caught:
        load_captioner(tmp_path / "missing")
    assert "\n" not in str(caught.value)
