import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.training.objects import loss_of, tiny_mip_parts, tiny_objects, tiny_xl_mip_parts
from training.adapter import WEIGHTS, ImageProjection
from training.attention import cross_attention_layers
from training.configs.mip_adapter import Config, MergeName
from training.loop import train
from training.recipes.mip_adapter import Model, Parts, name_tokens

CONFIG = Config(
    steps=4, batch=2, learning_rate=1e-3, average=0.5, checkpoint_every=2, sample_every=3, train_encoders=True
)
BOTH = [[True, True], [True, False]]
NOISE = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts(vae: Path) -> Parts:
    return tiny_mip_parts(vae)


@pytest.fixture(params=["1.5", "XL"])
def either(request: pytest.FixtureRequest, vae: Path) -> Parts:
    return tiny_xl_mip_parts(vae) if request.param == "XL" else tiny_mip_parts(vae)


def test_the_projection_by_hand() -> None:
    """An embedding of width 1 gives two tokens of width 2: (3, 6) and (9, -3), normalized."""
    projection = ImageProjection(1, 2, 2)
    with torch.no_grad():
        projection.proj.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [-1.0]]))
        projection.proj.bias.zero_()
    tokens = projection(torch.full((1, 2, 1), 3.0))
    assert tokens.shape == (1, 2, 2, 2)
    torch.testing.assert_close(tokens[0, 1], torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))


@pytest.mark.parametrize("merge", ["code", "paper", "uniform"])
def test_the_forward_pass_matches_a_sample_by_sample_computation(parts: Parts, merge: MergeName) -> None:
    model = Model(parts, Config(merge=merge))
    batch = tiny_objects(parts, BOTH, kept=[False, True])
    draws = model.draw(batch, np.random.default_rng(1))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        posterior = parts.vae.encode(batch["pixel_values"]).latent_dist
        latents = (posterior.mean + posterior.std * draws.latent_noise) * parts.vae.config.scaling_factor
        a = parts.scheduler.alphas_cumprod[draws.timesteps].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * draws.noise
        names = [
            parts.text_encoder(parts.tokenizer(name, return_tensors="pt").input_ids).last_hidden_state[0, 1:-1]
            for name in ("ball", "cup")
        ]
        modules = dict(parts.unet.named_modules())
        errors = []
        for row in range(2):  # each sample alone, with as many references as it has
            embeddings = parts.image_encoder((batch["object_pixel_values"][row] - mean) / std).image_embeds
            tokens = parts.adapter.image_proj(embeddings if row else torch.zeros_like(embeddings))
            count = 1 if row else 2

            def merged(
                attn: Any,  # noqa: ANN401
                x: torch.Tensor,
                text: torch.Tensor | None = None,
                *_: object,
                tokens: torch.Tensor = tokens,
                count: int = count,
            ) -> torch.Tensor:
                def heads(values: torch.Tensor) -> torch.Tensor:
                    return values.unflatten(-1, (attn.heads, -1)).transpose(0, 1)

                def attend(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
                    shares = (heads(attn.to_q(x[0])) @ heads(key).mT * attn.scale).softmax(-1)
                    return (shares @ heads(value)).transpose(0, 1).flatten(1)

                assert text is not None
                z = attend(attn.to_k(text[0]), attn.to_v(text[0]))
                layer = attn.adapter_layer
                f = torch.sigmoid(layer.text_to_weight(z))
                scores = [heads(attn.to_k(name)) @ heads(attn.to_q(x[0])).mT * attn.scale for name in names[:count]]
                a = torch.stack([score.softmax(-1).mean((0, 1)) for score in scores])[..., None]
                pictures = torch.stack([attend(layer.to_k_ip(t), layer.to_v_ip(t)) for t in tokens[:count]])
                z_new = {
                    "code": z + f / f.mean() * (a / a.sum(0) * pictures).sum(0),
                    "paper": f / f.mean() * z + (a / a.mean(0) * pictures).sum(0),
                    "uniform": z + pictures.sum(0),
                }[merge]
                return attn.to_out[0](z_new)[None]

            processors = {}
            for name, layer in zip(cross_attention_layers(parts.unet), parts.adapter.layers, strict=True):
                processors[name] = modules[name].forward
                modules[name].__dict__["adapter_layer"] = layer
                modules[name].forward = _bound(merged, modules[name])
            text = parts.text_encoder(batch["input_ids"][row : row + 1]).last_hidden_state
            predicted = parts.unet(noisy[row : row + 1], draws.timesteps[row], text).sample
            for name, forward in processors.items():
                modules[name].forward = forward
            errors.append((predicted[0] - draws.noise[row]).square().mean())
    losses = model(batch, draws)
    assert losses["loss"].item() == losses["noise"].item()
    assert losses["loss"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def _bound(function: Callable[..., torch.Tensor], attention: torch.nn.Module) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return function(attention, x, encoder_hidden_states)

    return forward


def test_the_merges_differ_only_if_there_are_several_references(parts: Parts) -> None:
    for layer in parts.adapter.layers:
        torch.nn.init.zeros_(layer.text_to_weight.weight)
    single, both = (
        [loss_of(Model(parts, Config(merge=merge)), tiny_objects(parts, valid)) for merge in get_args(MergeName)]
        for valid in ([[True, False]], [[True, True]])
    )
    assert single == pytest.approx([single[0]] * 3, rel=1e-6)
    assert min(abs(a - b) for a, b in itertools.combinations(both, 2)) > 1e-6


def test_missing_and_dropped_references_differ(parts: Parts) -> None:
    model = Model(parts)
    plain, other = (tiny_objects(parts, [[True, True]], seed=seed) for seed in (0, 1))
    swapped = {**plain, "object_pixel_values": other["object_pixel_values"]}
    dropped = {**plain, "image_kept": torch.tensor([False])}
    none = {**plain, "object_mask": torch.tensor([[False, False]])}
    assert loss_of(model, swapped) != loss_of(model, plain)
    for changed in ({**swapped, "image_kept": torch.tensor([False])}, {**none, **dropped}):
        assert loss_of(model, changed) != loss_of(model, plain)
    assert loss_of(model, {**swapped, "image_kept": torch.tensor([False])}) == loss_of(model, dropped)
    assert loss_of(model, {**swapped, "object_mask": none["object_mask"]}) == loss_of(model, none)
    with torch.no_grad():
        text = model.encode_text(plain["input_ids"])
        bare = parts.unet(NOISE, 10, text).sample
        conditions = {"references": model.embed_references(none)}
        torch.testing.assert_close(parts.unet(NOISE, 10, text, cross_attention_kwargs=conditions).sample, bare)


def trained(model: Model) -> set[str]:
    """The parts whose parameters are trained; for the adapter, its layers."""
    names = [name.split(".") for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {
        parts[-2] if parts[1] == "ip_adapter" else parts[1] if parts[0] == "adapter" else parts[0] for parts in names
    }


def test_only_the_layers_of_the_adapter_are_trained(parts: Parts) -> None:
    layers = {"to_k_ip", "to_v_ip"}
    assert trained(Model(parts)) == trained(Model(parts, Config(merge="paper"))) == {*layers, "text_to_weight"}
    assert trained(Model(parts, Config(merge="uniform"))) == layers
    whole = {*layers, "text_to_weight", "image_proj", "unet", "text_encoder", "image_encoder"}
    assert trained(Model(parts, Config(train_encoders=True))) == whole
    assert trained(Model(parts)) == {*layers, "text_to_weight"}


@pytest.mark.parametrize("valid", [[True, True], [False, False]])
@pytest.mark.parametrize("merge", ["code", "paper", "uniform"])
@pytest.mark.parametrize("train_encoders", [False, True])
def test_every_trained_parameter_has_a_gradient_and_no_frozen_one(
    parts: Parts, valid: list[bool], merge: MergeName, train_encoders: bool
) -> None:
    check_gradients(parts, valid, Config(merge=merge, train_encoders=train_encoders))


@pytest.mark.parametrize("train_encoders", [False, True])
def test_every_trained_parameter_of_sdxl_has_a_gradient_and_no_frozen_one(vae: Path, train_encoders: bool) -> None:
    check_gradients(tiny_xl_mip_parts(vae), [True, True], Config(train_encoders=train_encoders))


def check_gradients(parts: Parts, valid: list[bool], config: Config) -> None:
    model = Model(parts, config)
    batch = tiny_objects(parts, [valid])
    model(batch, model.draw(batch, np.random.default_rng(0)))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    gradient = parts.adapter.layers[0].to_v_ip.weight.grad
    assert gradient is not None
    assert bool(gradient.any()) == valid[0]


@pytest.mark.parametrize("train_encoders", [False, True])
def test_gradient_checkpointing_changes_no_gradient(parts: Parts, train_encoders: bool) -> None:
    model = Model(parts, Config(train_encoders=train_encoders))
    batch = tiny_objects(parts, BOTH)
    draws = model.draw(batch, np.random.default_rng(0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        model.zero_grad()
        model(batch, draws)["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_sampling_depends_only_on_noise_text_and_references(parts: Parts) -> None:
    model = Model(parts)
    batch = tiny_objects(parts, [[True, True]])
    first = model.sample(batch, NOISE, steps=3)
    assert first.shape == (1, 3, 64, 64)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, model.sample({**batch, "pixel_values": None}, NOISE, steps=3))
    mirrored = {**batch, "object_pixel_values": batch["object_pixel_values"].flip(-1)}
    assert not torch.equal(first, model.sample(mirrored, NOISE, steps=3))
    assert model.references(batch).shape == (1, 2, 3, 64, 64)


def test_guidance_moves_away_from_empty_texts_without_pictures(either: Parts) -> None:
    model = Model(either, Config(scale=0.5))
    batch = tiny_objects(either, [[True, True]])
    empty = {
        **batch,
        "input_ids": model.tokenize([""]),
        "image_kept": torch.tensor([False]),
        "object_input_ids": name_tokens(["", ""], either.tokenizers)[0][None],
    }
    # Dropped references are all alike, so that the picture does not depend on their names.
    assert torch.equal(model.unconditional(batch)["object_input_ids"], empty["object_input_ids"])
    halves = []
    for half in (empty, batch):
        conditions = model.conditions({**half, "sizes": torch.tensor([[64, 64, 0, 0, 64, 64]])})
        references = conditions["cross_attention_kwargs"]["references"]
        assert references.scale == 1
        assert references.words.any()
        conditions["cross_attention_kwargs"] = {"references": replace(references, scale=0.5)}
        with torch.no_grad():
            halves.append(either.unet(NOISE, 501, **conditions).sample)
    predictions: list[torch.Tensor] = []
    forward = either.unet.forward

    def recording_forward(*arguments: object, **named: object) -> Any:  # noqa: ANN401
        result = forward(*arguments, **named)
        predictions.append(result.sample)
        return result

    either.unet.forward = recording_forward
    model.sample(batch, NOISE, steps=2)
    torch.testing.assert_close(predictions[0], torch.cat(halves), atol=1e-5, rtol=1e-4)


def batches_of(parts: Parts) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Return a function that yields batches, each determined by its number."""

    def batches(start: int) -> Iterator[dict[str, Any]]:
        done = start // CONFIG.batch
        while True:
            yield tiny_objects(parts, BOTH, kept=[True, done % 3 != 0], seed=done)
            done += 1

    return batches


def new_model(vae: Path, **options: Any) -> Model:  # noqa: ANN401
    return Model(tiny_mip_parts(vae), Config(**options))


def losses(metrics: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(m["step"], m["loss"], m["gradient_norm"]) for m in metrics]


def test_an_interrupted_run_is_resumed_with_the_same_numbers_and_weights(vae: Path, tmp_path: Path) -> None:
    model = new_model(vae, train_encoders=True)
    whole = list(train(model, batches_of(model.parts), CONFIG, tmp_path / "whole"))
    model = new_model(vae, train_encoders=True)
    running = train(model, batches_of(model.parts), CONFIG, tmp_path / "broken")
    first = [next(running) for _ in range(3)]
    running.close()
    model = new_model(vae, train_encoders=True)
    rest = list(train(model, batches_of(model.parts), CONFIG, tmp_path / "broken", resume=True))
    assert losses([*first[:2], *rest]) == losses(whole)
    whole_weights, resumed_weights = (
        load_file(tmp_path / folder / "model" / WEIGHTS) for folder in ("whole", "broken")
    )
    assert all(torch.equal(whole_weights[name], resumed_weights[name]) for name in whole_weights)


def test_half_precision_changes_the_loss_little(vae: Path, tmp_path: Path) -> None:
    runs = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()  # otherwise it keeps the precision of the first run
        model = new_model(vae, merge="paper")
        config = CONFIG.model_copy(update={"steps": 2, "precision": precision})
        runs.append(list(train(model, batches_of(model.parts), config, tmp_path / precision)))
    for plain, cheap in zip(*runs, strict=True):
        assert cheap["loss"] == pytest.approx(plain["loss"], rel=0.03)


def test_training_the_adapter_lowers_the_loss_and_changes_nothing_else(either: Parts, tmp_path: Path) -> None:
    model = Model(either)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = tiny_objects(model.parts, [[True, True]])
    start = loss_of(model, batch)
    config = CONFIG.model_copy(
        update={"steps": 15, "average": 0.0, "checkpoint_every": 15, "learning_rate": 1e-2, "train_encoders": False}
    )

    def repeated(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    list(train(model, repeated, config, tmp_path / "run"))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("adapter.ip_adapter.") for name in changed)
    assert loss_of(model, batch) < start
