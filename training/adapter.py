"""IP-Adapter's and MIP-Adapter's networks beside a U-Net, and the files that hold them.

A projection turns what the image encoder says of a reference into tokens; beside each cross-attention layer stand keys
and values for them, and in MIP-Adapter the predictor of `training.merge`.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from schemas.errors import ModelError
from training.attention import cross_attention_layers
from training.diffusion import is_xl, loading
from training.merge import AdapterLayer
from training.weights.files import Weights, fill, read_weights
from training.weights.ip_adapter import PREDICTOR, from_released

IP_ADAPTER = "h94/IP-Adapter"
"""The published IP-Adapter on the hub: its weights, and the image encoder they were trained with."""
WEIGHTS, XL_WEIGHTS, IMAGE_ENCODER = "ip-adapter_sd15.safetensors", "ip-adapter_sdxl.safetensors", "image_encoder"
"""The files and the folder that hold them."""
TOKENS = 4
"""Tokens of a reference."""
HEAD_WIDTH = 64
"""Width of each head of a plus model's resampler."""


class Resampler(IPAdapterPlusImageProjection):
    """Projection of a plus model: queries attend to all outputs of the image encoder's last layer but one."""


class ImageProjection(nn.Module):
    """Projects an image embedding to `count` tokens of the text's width."""

    def __init__(self, image_width: int, text_width: int, count: int = TOKENS) -> None:
        super().__init__()
        self.proj = nn.Linear(image_width, count * text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project embeddings [..., E] float: [..., T, D]."""
        return self.norm(self.proj(embeddings).unflatten(-1, (-1, *self.norm.normalized_shape)))


class Adapter(nn.Module):
    """What MIP-Adapter adds to a U-Net, under the published names: cross-attention layer i has number 2 i + 1.

    Args:
        unet: the U-Net.
        image_proj: turns an image embedding into tokens, or for a plus model all outputs of the image encoder.
    """

    def __init__(self, unet: UNet2DConditionModel, image_proj: ImageProjection | Resampler) -> None:
        super().__init__()
        text_width = unet.config.cross_attention_dim
        widths = [unet.get_submodule(name).to_q.out_features for name in cross_attention_layers(unet)]
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): AdapterLayer(text_width, width) for i, width in enumerate(widths)}
        )

    @property
    def layers(self) -> list[AdapterLayer]:
        """The layers beside the U-Net's cross-attention layers, in their order."""
        return [layer for layer in self.ip_adapter.values() if isinstance(layer, AdapterLayer)]


def load_adapter(path: str | Path, unet: UNet2DConditionModel) -> Adapter:
    """Load the adapter of a U-Net: a plain IP-Adapter or a plus model, or one that `Model.save` wrote.

    An IP-Adapter has no predictor; it starts with random weights.

    Raises:
        ModelError: the file cannot be read, holds no IP-Adapter, or one of another U-Net or trained by another formula.
    """
    return adapter_of(from_released(read_weights(Path(path))), unet, path)


def adapter_of(weights: Weights, unet: UNet2DConditionModel, source: str | Path) -> Adapter:
    """Create the adapter of a U-Net with these weights; `source` is named in errors.

    Raises:
        ModelError: they do not fit.
    """
    if any(".predictor." in name for name in weights):
        raise ModelError(f"{source} is of an earlier version, which weighted references differently: train it again")
    adapter = Adapter(unet, projection_of(weights, unet.config.cross_attention_dim))
    own = {name: value for name, value in adapter.state_dict().items() if PREDICTOR in name}
    parts = {"image_proj": adapter.image_proj, "ip_adapter": adapter.ip_adapter}
    fill(parts, {**own, **weights}, source)
    return adapter


def projection_of(weights: Weights, text_width: int) -> ImageProjection | Resampler:
    """Create the projection to tokens of `text_width` that weights are for, with random weights."""
    queries = weights.get("image_proj.latents")
    if queries is None:
        matrix = weights.get("image_proj.proj.weight", torch.empty(1, 1))
        return ImageProjection(matrix.shape[1], text_width, max(1, len(matrix) // text_width))
    layers = {name.split(".")[2] for name in weights if name.startswith("image_proj.layers.")}
    inner = weights.get("image_proj.layers.0.attn.to_q.weight", torch.empty(HEAD_WIDTH, 1))
    return Resampler(
        embed_dims=weights.get("image_proj.proj_in.weight", torch.empty(1, 1)).shape[1],
        output_dims=text_width,
        hidden_dims=queries.shape[2],
        depth=len(layers),
        dim_head=HEAD_WIDTH,
        heads=len(inner) // HEAD_WIDTH,
        num_queries=queries.shape[1],
    )


def load_image_encoder(folder: str | Path, image_proj: ImageProjection | Resampler) -> CLIPVisionModelWithProjection:
    """Load the image encoder whose outputs a projection is for: of a folder that has one, else a published one.

    The published IP-Adapter has two: one for Stable Diffusion 1.5 and the plus model of SDXL, one for the plain SDXL.

    Raises:
        ModelError: none of them has outputs of that width.
    """
    own = (Path(folder) / IMAGE_ENCODER).is_dir()
    places = [(folder, "")] if own else [(IP_ADAPTER, "models"), (IP_ADAPTER, "sdxl_models")]
    plus = isinstance(image_proj, Resampler)
    first: Any = image_proj.proj_in if isinstance(image_proj, Resampler) else image_proj.proj
    width = first.in_features
    with loading(places[0][0], f"a layout with {IMAGE_ENCODER}/, a CLIP image encoder"):
        for source, inner in places:
            subfolder = str(Path(inner, IMAGE_ENCODER))
            config = CLIPVisionConfig.from_pretrained(source, subfolder=subfolder)
            if width == (config.hidden_size if plus else config.projection_dim):
                return CLIPVisionModelWithProjection.from_pretrained(source, subfolder=subfolder, dtype=torch.float32)
    raise ModelError(f"the adapter is for an image encoder of width {width}, which {places[0][0]} does not have")


def weights_file(unet: UNet2DConditionModel) -> str:
    """Name of the published file with the IP-Adapter of a U-Net."""
    return XL_WEIGHTS if is_xl(unet) else WEIGHTS
