import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from schemas.errors import ModelError
from tests.training import processes
from tests.training.pairs import PROMPTS, published_text_encoder, tiny_blip_parts, tiny_pairs
from training.latent_space import encode_pictures
from training.loop import train
from training.optimize import decay_groups
from training.recipes.blip_diffusion import Config, Model, Parts, load, prepare
from training.recipes.blip_diffusion.model import Prompter, average_by_subject
from training.recipes.blip_diffusion.view import fill_template

CONFIG = Config(
    steps=4, batch=2, learning_rate=1e-3, warmup=2, average=0.5, checkpoint_every=2, sample_every=3, train_encoders=True
)


@pytest.fixture
def parts(vae: Path) -> Parts:
    return tiny_blip_parts(vae)


def test_the_prompter_computes_the_formula() -> None:
    torch.manual_seed(0)
    prompter = Prompter(3, 2)
    answers = torch.randn(1, 2, 3)

    def linear(x: list[float], layer: Any) -> list[float]:  # noqa: ANN401
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [sum(a * b for a, b in zip(x, row, strict=True)) + bias for row, bias in rows]

    expected = []
    for x in answers[0].tolist():
        mean = sum(x) / 3
        deviation = (sum((v - mean) ** 2 for v in x) / 3) ** 0.5
        hidden = linear([(v - mean) / deviation for v in x], prompter.widen)
        changed = linear([v / (1 + np.exp(-1.702 * v)) for v in hidden], prompter.narrow)
        expected.append([a + b for a, b in zip(x, changed, strict=True)])
    assert prompter.widen.weight.shape == (12, 3)
    np.testing.assert_allclose(prompter(answers)[0].detach(), expected, atol=1e-5)


def test_the_forward_pass_matches_the_steps_of_the_paper(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball", "cup", None])
    draws = model.draw(batch, np.random.default_rng(1))
    with torch.no_grad():
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        texts = []
        for row in range(3):
            vision = parts.image_encoder
            features = vision.post_layernorm(
                vision((batch["input_pixel_values"][row : row + 1] - mean) / std).last_hidden_state
            )
            subject = batch["subject_input_ids"][row][batch["subject_attention_mask"][row]]  # without padding
            answers = parts.qformer(
                subject[None], query_embeds=parts.prompter.queries[None], encoder_hidden_states=features
            )
            prompt = parts.prompter(answers.last_hidden_state[:, :16])[0]
            encoder = parts.text_encoder
            words = encoder.embeddings.token_embedding(batch["input_ids"][row])
            if row < 2:
                words[10:26] = prompt
            hidden = (words + encoder.embeddings.position_embedding.weight)[None]
            causal = torch.full((77, 77), float("-inf")).triu(1)[None, None]
            for layer in encoder.encoder.layers:
                hidden = layer(hidden, causal)
            texts.append(encoder.final_layer_norm(hidden))
        text = torch.cat(texts)
        assert torch.allclose(text_of(model, batch), text, atol=1e-4)
        posterior = parts.vae.encode(batch["pixel_values"]).latent_dist
        latents = (posterior.mean + posterior.std * draws.latent_noise) * parts.vae.config.scaling_factor
        a = parts.scheduler.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * draws.noise
        expected = (parts.unet(noisy, draws.timesteps, text).sample - draws.noise).square().mean().item()
    losses = model(batch, draws)
    assert losses["loss"].item() == losses["noise"].item() == pytest.approx(expected, rel=1e-4)


def test_the_subject_prompt_changes_only_its_own_and_later_tokens(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball", "ball"])
    with torch.no_grad():
        plain = parts.text_encoder(batch["input_ids"]).last_hidden_state
        changed = (text_of(model, batch) - plain).abs().amax(-1) > 1e-5
    assert not changed[:, :10].any()
    assert changed[:, 10:].all()
    with torch.no_grad():  # the encoder itself is unchanged
        assert torch.equal(parts.text_encoder(batch["input_ids"]).last_hidden_state, plain)


def test_without_a_prompt_the_text_is_the_encoded_caption(parts: Parts) -> None:
    batch = tiny_pairs(parts, [None])
    with torch.no_grad():
        text = text_of(Model(parts), batch)
        assert torch.equal(text, parts.text_encoder(batch["input_ids"]).last_hidden_state)


def test_the_prompt_depends_on_picture_and_subject_but_not_on_padding(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball"])
    other = {**batch, "input_pixel_values": batch["input_pixel_values"].flip(-1)}
    named = tiny_pairs(parts, ["cup"])
    longer = {
        **batch,
        "subject_input_ids": torch.nn.functional.pad(batch["subject_input_ids"], (0, 5), value=3),
        "subject_attention_mask": torch.nn.functional.pad(batch["subject_attention_mask"], (0, 5)),
    }
    with torch.no_grad():
        prompt, mirrored, cup, padded = (model.compute_prompts(changed) for changed in (batch, other, named, longer))
    assert prompt.shape == (1, 16, 64)
    assert (prompt - mirrored).abs().max() > 1e-4
    assert (prompt - cup).abs().max() > 1e-4
    assert torch.allclose(prompt, padded, atol=1e-5)


def text_of(model: Model, batch: dict[str, Any]) -> torch.Tensor:
    text: torch.Tensor = model.conditions(batch)["encoder_hidden_states"]
    return text


def trained(model: Model) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_pre_training_trains_all_but_image_encoder_and_autoencoder(parts: Parts) -> None:
    assert trained(Model(parts)) == {"qformer", "prompter", "text_encoder", "unet"}
    assert trained(Model(parts, Config(train_encoders=True))) == {
        "qformer", "prompter", "text_encoder", "unet", "image_encoder",
    }  # fmt: skip
    assert trained(Model(parts, Config(train_encoders=True, finetune=True))) == {"unet"}


def test_norms_and_biases_do_not_decay(parts: Parts) -> None:
    model = Model(parts)
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed, whole = decay_groups(names, Config())
    assert (decayed["weight_decay"], whole["weight_decay"]) == (0.01, 0.0)
    assert sorted(names[p] for group in (decayed, whole) for p in group["params"]) == sorted(names.values())
    kept = {names[parameter] for parameter in whole["params"]}
    assert {"prompter.norm.weight", "unet.conv_in.bias", "unet.conv_norm_out.weight"} <= kept
    assert all("norm" in name.lower() or name.endswith("bias") for name in kept)
    assert not any("norm" in name.lower() or name.endswith("bias") for name in names.values() if name not in kept)
    (one_group,) = decay_groups(names, Config(decay_all=True))
    assert one_group["weight_decay"] == 0.01
    assert list(one_group["params"]) == list(names)


@pytest.mark.parametrize("subjects", [["ball", "cup"], [None, None]])
@pytest.mark.parametrize("train_encoders", [False, True])
def test_every_trained_parameter_has_a_gradient_and_no_frozen_one(
    parts: Parts, subjects: list[str | None], train_encoders: bool
) -> None:
    model = Model(parts, Config(train_encoders=train_encoders))
    batch = tiny_pairs(parts, subjects)
    model(batch, model.draw(batch, np.random.default_rng(0)))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    gradient = model.prompter.queries.grad
    assert gradient is not None
    assert bool(gradient.any()) == (subjects[0] is not None)


def test_the_networks_apply_no_dropout(parts: Parts) -> None:
    for part in (parts.qformer, parts.text_encoder, parts.unet):
        part.train()
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball"])
    draws = model.draw(batch, np.random.default_rng(0))
    assert model(batch, draws)["loss"].item() == model(batch, draws)["loss"].item()


def test_prompts_are_averaged_by_subject() -> None:
    prompts = torch.arange(24.0).view(4, 3, 2)
    averaged = average_by_subject(["dog", "cat", "dog", "dog"], prompts)
    assert averaged.keys() == {"dog", "cat"}
    assert torch.equal(averaged["cat"], prompts[1])
    assert torch.allclose(averaged["dog"], (prompts[0] + prompts[2] + prompts[3]) / 3)


def test_averaged_prompts_replace_those_of_the_pictures(parts: Parts) -> None:
    model = Model(parts, Config(finetune=True))
    first, second = (tiny_pairs(parts, ["ball", "ball"], seed) for seed in (0, 1))
    with torch.no_grad():
        mean = torch.cat([model.compute_prompts(first), model.compute_prompts(second)]).mean(0)
    model.average_prompts(iter([first, second]))
    assert torch.allclose(model.prompts(first), mean.expand(2, -1, -1), atol=1e-6)
    mixed = tiny_pairs(parts, ["ball", "cup"])
    with torch.no_grad():
        prompts = model.prompts(mixed)
        assert torch.allclose(prompts[0], mean, atol=1e-6)
        assert torch.equal(prompts[1], model.compute_prompts(mixed)[1])

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the Q-Former ran although an averaged prompt exists")

    model.qformer.forward = fail
    batch = tiny_pairs(parts, ["ball", None])
    model(batch, model.draw(batch, np.random.default_rng(0)))["loss"].backward()
    assert model.unet.conv_in.weight.grad is not None


def test_a_saved_model_can_be_loaded_also_by_diffusers(parts: Parts, tmp_path: Path) -> None:
    batch = tiny_pairs(parts, ["ball", "cup", None])
    model = Model(parts)
    draws = model.draw(batch, np.random.default_rng(0))
    Model(parts).save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    reloaded = Model(loaded)
    assert loaded.subjects == {}
    assert reloaded(batch, draws)["loss"].item() == pytest.approx(model(batch, draws)["loss"].item(), rel=1e-6)
    assert loaded.subject_tokenizer("a ball").input_ids == parts.subject_tokenizer("a ball").input_ids
    assert not list((tmp_path / "model").rglob("*.bin"))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(PROMPTS[0], num_inference_steps=2, output_type="np").images.shape == (1, 64, 64, 3)


def test_averaged_prompts_replace_each_other_whatever_their_subjects_are_called(parts: Parts) -> None:
    model = Model(parts, Config(finetune=True))
    prompts = {"st. bernard": torch.rand(16, 64), "keys": torch.rand(16, 64)}
    model.subjects = prompts
    assert all(torch.equal(model.subjects[text], prompt) for text, prompt in prompts.items())
    model.subjects = {"ball": prompts["keys"]}
    assert model.subjects.keys() == {"ball"}
    assert trained(model) == {"unet", "averaged"}
    model.subjects = {}
    assert trained(model) == {"unet"}


def test_averaged_prompts_are_saved_with_the_model(parts: Parts, tmp_path: Path) -> None:
    model = Model(parts, Config(finetune=True))
    batch = tiny_pairs(parts, ["ball", "cup"])
    model.average_prompts([batch])
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(Model(loaded).prompts(batch), model.prompts(batch))
    reloaded = Model(loaded)
    prepare(reloaded, [], Config())
    assert reloaded.subjects == {}


def test_a_missing_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no model in {tmp_path / 'none'}: .*BLIP-Diffusion's layout"):
        load(tmp_path / "none")


def test_sampling_depends_only_on_noise_texts_and_input(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_pairs(parts, ["ball"])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first = model.sample(batch, noise, steps=3)
    assert first.shape == (1, 3, 64, 64)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, model.sample({**batch, "pixel_values": None}, noise, steps=3))
    other = {**batch, "input_pixel_values": batch["input_pixel_values"].flip(-1)}
    assert not torch.equal(first, model.sample(other, noise, steps=3))
    assert model.references(batch).shape == (1, 1, 3, 64, 64)


def new_model(vae: Path, **options: bool) -> Model:
    return Model(tiny_blip_parts(vae), Config().model_copy(update=options))


def batches_of(model: Model) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Return a function that yields batches, each determined by its number."""

    def batches(start: int) -> Iterator[dict[str, Any]]:
        done = start // CONFIG.batch
        while True:
            yield tiny_pairs(model.parts, ["ball", None if done % 3 == 0 else "cup"], seed=done)
            done += 1

    return batches


def run(vae: Path, output: Path, **options: Any) -> list[dict[str, float]]:  # noqa: ANN401
    model = new_model(vae, train_encoders=True)
    return list(train(model, batches_of(model), CONFIG, output, **options))


def losses(metrics: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(m["step"], m["loss"], m["gradient_norm"]) for m in metrics]


def test_an_interrupted_run_is_resumed_with_the_same_numbers_and_weights(vae: Path, tmp_path: Path) -> None:
    whole = run(vae, tmp_path / "whole")
    model = new_model(vae, train_encoders=True)
    running = train(model, batches_of(model), CONFIG, tmp_path / "broken")
    first = [next(running) for _ in range(3)]
    running.close()
    rest = run(vae, tmp_path / "broken", resume=True)
    assert losses([*first[:2], *rest]) == losses(whole)
    for name in ("unet/diffusion_pytorch_model", "qformer/model", "prompter/diffusion_pytorch_model"):
        whole_weights, resumed_weights = (
            load_file(tmp_path / folder / "model" / f"{name}.safetensors") for folder in ("whole", "broken")
        )
        assert all(torch.equal(whole_weights[key], resumed_weights[key]) for key in whole_weights)


def train_with_dropped_prompts(vae: Path, output: Path, steps: int) -> None:
    """Train in one of two processes. Its batches alternately have all of their subject prompts and none."""
    rank = int(os.environ["RANK"])
    model = new_model(vae)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        done = start // (2 * CONFIG.batch)
        while True:
            yield tiny_pairs(model.parts, [[None, "ball"][(done + rank) % 2]] * 2, seed=done)
            done += 1

    list(train(model, batches, CONFIG.model_copy(update={"steps": steps}), output, resume=True))


def test_two_processes_train_one_model_and_resume_together(vae: Path, tmp_path: Path) -> None:
    """In each step one process drops all subject prompts: the other must not wait for gradients of the prompter."""

    def train_both(name: str, steps: int) -> list[tuple[float, ...]]:
        processes.run_together(2, tmp_path / f"{name}-{steps}", train_with_dropped_prompts, vae, tmp_path / name, steps)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return losses([json.loads(line) for line in lines])

    whole = train_both("whole", 4)
    assert [line[0] for line in whole] == [0, 1, 2, 3]
    assert train_both("broken", 2) == whole[:2]
    assert train_both("broken", 4) == whole


def test_fine_tuning_takes_the_published_steps_also_if_it_is_resumed(vae: Path, tmp_path: Path) -> None:
    """By hand: LAVIS' loss on texts without padding, its initial prompt, its optimizer, and a constant rate."""
    config = Config(
        finetune=True, template="released", steps=3, learning_rate=1e-3, weight_decay=0.5, checkpoint_every=2
    )
    interrupted, model, peer = (Model(tiny_blip_parts(vae), config) for _ in range(3))
    batch = tiny_pairs(model.parts, ["ball", "ball"])
    for name, text in (("input_ids", 0), ("subject_prompt_mask", 1)):
        filled = fill_template("", "ball", model.tokenizer, "released")[text]
        batch[name] = torch.tensor([filled] * 2)
    for each in (interrupted, model):
        prepare(each, [batch], config)

    def repeated(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    running = train(interrupted, repeated, config, tmp_path / "run")
    metrics = [next(running), next(running)]
    running.close()
    metrics += train(model, repeated, config, tmp_path / "run", resume=True)
    assert [line["learning_rate"] for line in metrics] == [1e-3] * 3

    start = deepcopy(peer.unet)
    encoder = published_text_encoder(peer.text_encoder)
    words = peer.tokenizer(["a ball"] * 2, return_tensors="pt").input_ids
    assert words.shape == (2, 4)
    with torch.no_grad():
        prompt = torch.nn.Parameter(peer.compute_prompts(batch).mean(0, keepdim=True))
    parameters = [prompt, *peer.unet.parameters()]
    flat = [parameter for parameter in parameters if parameter.ndim < 2]
    rest = [parameter for parameter in parameters if parameter.ndim >= 2]
    groups = [{"params": rest, "weight_decay": 0.5}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for step, line in enumerate(metrics):
        draws = peer.draw(batch, np.random.default_rng([config.seed, step, 0, 0]))
        with torch.no_grad():
            latents = encode_pictures(peer.vae, batch["pixel_values"], draws.latent_noise)
        text = encoder(input_ids=words, ctx_embeddings=prompt.expand(2, -1, -1), ctx_begin_pos=[2, 2])[0]
        assert text.shape[1] == 20
        noisy = peer.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        loss = (peer.unet(noisy, draws.timesteps, text).sample - draws.noise).square().mean()
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(model.subjects["ball"], prompt[0], atol=2e-5)
    for name, expected in peer.unet.named_parameters():
        # Adam magnifies rounding where a gradient is next to nothing: compare with how far the steps went.
        difference, moved = (expected - other.get_parameter(name) for other in (model.unet, start))
        assert difference.norm() <= 0.02 * moved.norm(), name
    saved = load(tmp_path / "run" / "model")
    assert torch.equal(saved.subjects["ball"], model.subjects["ball"])


def test_fine_tuning_changes_only_unet_and_prompts_and_lowers_the_loss(vae: Path, tmp_path: Path) -> None:
    model = new_model(vae, finetune=True)
    batch = tiny_pairs(model.parts, ["ball", "ball"])
    model.average_prompts([batch])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    draws = model.draw(batch, np.random.default_rng(0))
    start = model(batch, draws)["loss"].item()
    config = CONFIG.model_copy(update={"steps": 12, "average": 0.0, "checkpoint_every": 12})

    def repeated(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    list(train(model, repeated, config, tmp_path / "run"))
    changed = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"unet", "averaged"}
    assert model(batch, draws)["loss"].item() < 0.9 * start
    assert load(tmp_path / "run" / "model").subjects.keys() == {"ball"}


def test_a_model_keeps_the_averaged_prompts_of_its_parts(parts: Parts) -> None:
    prompt = torch.ones(16, 64)
    model = Model(replace(parts, subjects={"ball": prompt}))
    assert model.subjects.keys() == {"ball"}
    assert torch.equal(model.subjects["ball"], prompt)
    assert "averaged" not in trained(model)
