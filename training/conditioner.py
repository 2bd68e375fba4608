"""Composer's conditions on their way into a U-Net: into its time embedding, beside the text, and beside the latents."""

from collections.abc import Mapping

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from training.configs.composer import CONDITIONS

LOCAL: Mapping[str, int] = {"sketch": 1, "instances": 3, "depth": 1, "intensity": 1, "masked": 4}
"""Channels of each local condition."""
COLORS = 180
"""Colours of a palette."""
TOKENS = 4
"""Tokens of the image embedding, and of the palette: together the paper's eight."""
LOCAL_WIDTH = 16
"""Channels that all local conditions together add to the latents."""


class Conditioner(ModelMixin, ConfigMixin):
    """Projects conditions, each with a weight.

    What goes into the time embedding starts at 0, so that it changes nothing before training.

    Args:
        text_width: of the caption's embeddings, D.
        image_width: of the picture's embedding, E.
        time_width: of the U-Net's time embedding, T.
        factor: pixels of a map per latent, along each side; a power of 2.
    """

    @register_to_config
    def __init__(self, text_width: int, image_width: int, time_width: int, factor: int) -> None:
        super().__init__()
        widths = {"caption": text_width, "image": image_width, "palette": COLORS}
        self.to_time = nn.ModuleDict({name: _perceptron(width, time_width) for name, width in widths.items()})
        self.to_tokens = nn.ModuleDict(
            {name: nn.Linear(width, TOKENS * text_width) for name, width in widths.items() if name != "caption"}
        )
        self.local = nn.ModuleDict({name: _pyramid(channels, factor) for name, channels in LOCAL.items()})

    def forward(
        self, sentence: Tensor, conditions: Mapping[str, Tensor], weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project a batch of conditions.

        Args:
            sentence: embedding of the caption, [B, D].
            conditions: `image` [B, E], `palette` [B, 180], and the local ones, [B, C, R, R] each.
            weights: what the projections of each are multiplied by, [B, 8] in the order of `CONDITIONS`; 0: dropped.

        Returns:
            What is added to the time embedding, [B, T]; tokens, [B, 8, D]; what stands beside latents, [B, K, h, w].
        """
        weight: dict[str, Tensor] = dict(zip(CONDITIONS, weights.to(sentence.dtype).unbind(1), strict=True))
        vectors = {"caption": sentence, "image": conditions["image"], "palette": COLORS * conditions["palette"]}
        time = sum(weight[name][:, None] * self.to_time[name](vector) for name, vector in vectors.items())
        tokens = [
            weight[name][:, None, None] * layer(vectors[name]).unflatten(1, (TOKENS, -1))
            for name, layer in self.to_tokens.items()
        ]
        local = sum(weight[name][:, None, None, None] * layer(conditions[name]) for name, layer in self.local.items())
        return torch.as_tensor(time), torch.cat(tokens, dim=1), torch.as_tensor(local)


def _perceptron(width: int, out: int) -> nn.Sequential:
    last = nn.Linear(out, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, out), nn.SiLU(), last)


def _pyramid(channels: int, factor: int) -> nn.Sequential:
    """Convolutions that scale a map down by `factor`."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 2 * LOCAL_WIDTH, 3, padding=1), nn.SiLU()]
    for _ in range(factor.bit_length() - 1):
        layers += [nn.Conv2d(2 * LOCAL_WIDTH, 2 * LOCAL_WIDTH, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(2 * LOCAL_WIDTH, LOCAL_WIDTH, 3, padding=1))


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of a U-Net that takes `LOCAL_WIDTH` further channels and a vector for its time embedding.

    It predicts what the U-Net does, as the weights of the further channels are 0.
    """
    own = unet.config.in_channels
    changes = {"in_channels": own + LOCAL_WIDTH, "class_embed_type": "identity"}
    wide: UNet2DConditionModel = UNet2DConditionModel.from_config({**unet.config, **changes})
    weights = unet.state_dict()
    first = torch.zeros_like(wide.conv_in.weight)
    first[:, :own] = weights["conv_in.weight"]
    wide.load_state_dict({**weights, "conv_in.weight": first})
    return wide.eval()
