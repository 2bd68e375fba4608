"""MIP-Adapter's model and objective: several references, each with its text, seen beside the caption.

Huang et al., "Resolving Multi-Condition Confusion for Finetuning-Free Personalized Image Generation" (2024), on
IP-Adapter (Ye et al., 2023) for Stable Diffusion 1.5. A CLIP image encoder reads each reference, a projection turns
what it saw into four tokens, and each cross-attention layer of the U-Net looks at them beside the text;
`training.merge` says how much of which reference comes in where. The U-Net learns to draw the picture that the
references were cut out of; the loss is that of the noise alone.

Started from the published IP-Adapter, only what stands beside the cross-attention layers is trained: keys and values of
pictures, and the predictor. The projection is as frozen as U-Net, encoders and autoencoder. A model that starts from
nothing trains its projection, its U-Net and its encoders too.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from training.diffusion import (
    Batch,
    Draws,
    as_clip_sees,
    draw_pictures,
    encode_pictures,
    latent_shape,
    loading,
    noise_loss,
    noise_target,
    save_stable_diffusion,
    tokenize,
    trains,
)
from training.merge import MERGES, AdapterLayer, MergeName, References, adapt, cross_attention_layers

IP_ADAPTER = "h94/IP-Adapter"
"""The published IP-Adapter: its weights, and the image encoder that they were trained with."""
WEIGHTS, IMAGE_ENCODER = "ip-adapter_sd15.safetensors", "image_encoder"
"""The file and the folder that hold them."""
TOKENS = 4
"""Of each reference."""


class ImageProjection(nn.Module):
    """Turns an image embedding into `count` tokens among the text's."""

    def __init__(self, image_width: int, text_width: int, count: int = TOKENS) -> None:
        super().__init__()
        self.proj = nn.Linear(image_width, count * text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project embeddings [..., E] float: [..., T, D]."""
        return self.norm(self.proj(embeddings).unflatten(-1, (-1, *self.norm.normalized_shape)))


class Adapter(nn.Module):
    """All that MIP-Adapter adds to a U-Net, under the published names: cross-attention layer i is number 2 i + 1."""

    def __init__(self, unet: UNet2DConditionModel, image_width: int, tokens: int = TOKENS) -> None:
        super().__init__()
        width = unet.config.cross_attention_dim
        widths = [unet.get_submodule(name).to_q.out_features for name in cross_attention_layers(unet)]
        self.image_proj = ImageProjection(image_width, width, tokens)
        self.ip_adapter = nn.ModuleDict({str(2 * i + 1): AdapterLayer(width, one) for i, one in enumerate(widths)})

    @property
    def layers(self) -> list[AdapterLayer]:
        """What stands beside the U-Net's cross-attention layers, in their order."""
        return [layer for layer in self.ip_adapter.values() if isinstance(layer, AdapterLayer)]


def load_adapter(path: str | Path, unet: UNet2DConditionModel) -> Adapter:
    """Load the adapter of a U-Net, a plain IP-Adapter or one that `save_mip_parts` wrote.

    A plain one has no predictor: it starts as a constant.

    Raises:
        ValueError: the file holds no IP-Adapter, or one of another U-Net.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    projection = weights.get("image_proj.proj.weight", torch.empty(1, 1))
    adapter = Adapter(unet, projection.shape[1], max(1, len(projection) // unet.config.cross_attention_dim))
    wanted = adapter.state_dict()
    found = {**{name: value for name, value in wanted.items() if ".predictor." in name}, **weights}
    shapes = [{name: value.shape for name, value in one.items()} for one in (wanted, found)]
    wrong = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
    if wrong:
        raise ValueError(f"{wrong[0]} is missing, unknown or of a size that does not fit the U-Net: {path}")
    adapter.load_state_dict(found)
    return adapter


@dataclass(frozen=True)
class MipParts:
    """The networks of a model, its noise schedule and its tokenizer."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    image_encoder: CLIPVisionModelWithProjection
    adapter: Adapter
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler


def load_mip_parts(folder: str | Path, ip_adapter: str | Path = IP_ADAPTER) -> MipParts:
    """Load a model from a folder (or the hub's name of one) in Stable Diffusion 1.5's layout.

    A folder that holds `ip-adapter_sd15.safetensors`, as one that `save_mip_parts` wrote, has its `image_encoder/`
    beside. To a plain Stable Diffusion these two come from `ip_adapter`, a folder or the hub's name of one, there or
    in its `models/`.

    Raises:
        ModelError: something is missing or is of another kind.
    """
    source = folder if (Path(folder) / WEIGHTS).is_file() else ip_adapter
    inner = "" if (Path(source) / WEIGHTS).is_file() else "models"
    layout = (
        "Stable Diffusion 1.5's layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/), "
        f"with IP-Adapter's {WEIGHTS} and {IMAGE_ENCODER}/ in it or in {ip_adapter}"
    )
    with loading(folder, layout):
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        return MipParts(
            tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            text_encoder=CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(
                source, subfolder=str(Path(inner, IMAGE_ENCODER))
            ),
            adapter=load_adapter(cached_file(source, WEIGHTS, subfolder=inner), unet),
            unet=unet,
            vae=AutoencoderKL.from_pretrained(folder, subfolder="vae"),
            scheduler=DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        )


def save_mip_parts(parts: MipParts, folder: Path) -> None:
    """Write a model in Stable Diffusion 1.5's layout, with the adapter and `image_encoder/` beside.

    diffusers' own `StableDiffusionPipeline` reads the folder, and its `load_ip_adapter` the adapter: without the
    predictor, as a plain IP-Adapter.
    """
    save_stable_diffusion(folder, parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.scheduler)
    parts.image_encoder.save_pretrained(folder / IMAGE_ENCODER)
    weights = {name: value.detach().cpu().contiguous() for name, value in parts.adapter.state_dict().items()}
    save_file(weights, folder / WEIGHTS)


class MipAdapter(nn.Module):
    """A MIP-Adapter model; `forward` is its objective, `sample` its use.

    Args:
        parts: the networks. Of them only the adapter's layers are trained.
        merge: how references and text come together; the same weights serve all three.
        train_encoders: train the image projection, the U-Net and both encoders too: for a model that starts from
            nothing.
    """

    losses: tuple[str, ...] = ("loss", "noise")

    def __init__(self, parts: MipParts, *, merge: MergeName = "code", train_encoders: bool = False) -> None:
        super().__init__()
        self.tokenizer, self.scheduler = parts.tokenizer, parts.scheduler
        self.text_encoder, self.image_encoder = parts.text_encoder, parts.image_encoder
        self.adapter, self.unet, self.vae = parts.adapter, parts.unet, parts.vae
        adapt(self.unet, self.adapter.layers, MERGES[merge])
        self.vae.requires_grad_(False)
        for part in (self.text_encoder, self.image_encoder, self.unet, self.adapter.image_proj):
            part.requires_grad_(train_encoders)
        for layer in self.adapter.layers:
            layer.requires_grad_(True)
            layer.predictor.requires_grad_(merge != "uniform")  # which does not ask it

    @property
    def parts(self) -> MipParts:
        """The networks, as `save_mip_parts` takes them."""
        return MipParts(
            self.tokenizer, self.text_encoder, self.image_encoder, self.adapter, self.unet, self.vae, self.scheduler
        )

    def draw(self, batch: Batch, rng: np.random.Generator) -> Draws:
        """Draw all that is random in a step on `batch`."""
        shape = latent_shape(batch["pixel_values"], self.vae)
        return Draws.of(shape, self.scheduler.config.num_train_timesteps, 0.0, rng)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the loss of a batch, a scalar under `loss` and `noise`."""
        latents = encode_pictures(self.vae, batch["pixel_values"], draws.latent_noise)
        noisy = self.scheduler.add_noise(latents, draws.noise, draws.timesteps)
        told = {"references": self.refer(batch)}
        prediction = self.unet(
            noisy, draws.timesteps, encoder_hidden_states=self.read(batch["input_ids"]), cross_attention_kwargs=told
        ).sample
        noise = noise_loss(prediction, noise_target(self.scheduler, latents, draws))
        return {"loss": noise, "noise": noise}

    def read(self, ids: Tensor) -> Tensor:
        """Encode texts of token ids [B, L]: [B, L, D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.text_encoder)):
            return self.text_encoder(ids).last_hidden_state

    def refer(self, batch: Batch) -> References:
        """Say what the U-Net is told of a batch's references.

        Where they are dropped, the image embedding is zero, as IP-Adapter was trained: their tokens say "no picture".
        """
        names = batch["object_input_ids"]
        with torch.no_grad():  # what they are for carries no gradient
            texts = self.text_encoder(names.flatten(0, 1)).last_hidden_state
        embeddings = self.see(batch["object_pixel_values"].flatten(0, 1)).unflatten(0, names.shape[:2])
        return References(
            tokens=self.adapter.image_proj(embeddings * batch["image_kept"][:, None, None]),
            texts=texts.unflatten(0, names.shape[:2]),
            words=batch["object_token_mask"],
            valid=batch["object_mask"],
        )

    def see(self, references: Tensor) -> Tensor:
        """Embed references [N, 3, h, w] float32 in [0, 1]: [N, E]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.image_encoder)):
            return self.image_encoder(as_clip_sees(references, self.image_encoder.config.image_size)).image_embeds

    def references(self, batch: Batch) -> Tensor:
        """The pictures that a batch shows the model: [B, M, 3, h, w] float32 in [0, 1]."""
        return batch["object_pixel_values"]

    @torch.no_grad()
    def sample(self, batch: Batch, noise: Tensor, *, steps: int = 30, guidance: float = 7.5) -> Tensor:
        """Draw a picture for each caption and its references: [B, 3, H, W] float32 in [0, 1].

        Args:
            batch: all but `pixel_values`.
            noise: where it starts, [B, C, h, w] float32, standard normal.
            steps: of DDIM, without fresh noise; 30 as published.
            guidance: weight of classifier-free guidance, away from no caption and no pictures; 1 is none.
        """
        text = self.read(batch["input_ids"])
        nothing = self.read(self.tokenize([""]).to(noise.device)).expand_as(text)
        both = {name: torch.cat([batch[name]] * 2) for name in batch if name.startswith("object_")}
        both["image_kept"] = torch.cat([torch.zeros_like(batch["image_kept"]), batch["image_kept"]])
        unet = partial(self.unet, cross_attention_kwargs={"references": self.refer(both)})
        return draw_pictures(unet, self.vae, self.scheduler, noise, nothing, [text] * steps, guidance)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Turn texts into token ids, padded and cut to the encoder's length L: [B, L] int64."""
        return tokenize(self.tokenizer, texts, self.text_encoder.config.max_position_embeddings)

    def save(self, folder: Path) -> None:
        """Write the model as `save_mip_parts` does."""
        save_mip_parts(self.parts, folder)
