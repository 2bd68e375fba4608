"""MIP-Adapter's merge: at each position, references are weighted by how relevant their objects are there.

Huang et al., "Resolving Multi-Condition Confusion for Finetuning-Free Personalized Image Generation" (2024). IP-Adapter
(Ye et al., 2023) gives each cross-attention layer a second one beside it, whose keys and values come from a picture:
`Z_text` is the layer's output for the text, `Z_i,img` the second layer's output for reference i. In a plain sum of
several `Z_i,img` each reference acts on the whole picture. Instead

    A_i = mean over the tokens of reference i's text of Softmax(K_i,text Q^T / sqrt(d))

measures where object i is in the picture. The softmax runs over the positions of the picture, not over the tokens; keys
and queries are the frozen text layer's; heads are averaged, and no gradient flows. Then the references share each
position among them. With a trained predictor f (one linear layer and a sigmoid on `Z_text`, f/mean f over positions),
the published code computes (`merge_as_code`)

    Z_new = Z_text + f(Z_text)/mean(f(Z_text)) * sum_i A_i/sum_j(A_j) * Z_i,img

and the paper writes (`merge_as_paper`)

    Z_new = f(Z_text)/mean(f(Z_text)) * Z_text + sum_i A_i/mean_j(A_j) * Z_i,img

so that the weights of M references add up to 1 at each position in the code, and to M in the paper.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from schemas.errors import ModelError
from training.attention import (
    add_residual,
    attention_modules,
    cross_attention_layers,
    join_heads,
    normalize_text,
    split_heads,
    unusual_parts,
)
from training.configs.mip_adapter import MergeName

Predict = Callable[[Tensor], Tensor]
"""The predictor f: from `Z_text` [B, P, C] to [B, P] in (0, 1)."""
Merge = Callable[[Tensor, Tensor, Tensor, Predict], Tensor]
"""Merges `Z_text` [B, P, C], all `Z_i,img` [B, M, P, C] and all A_i [B, M, P], with f, into `Z_new` [B, P, C].

`Z_i,img` and A_i are 0 if there is no reference i; else A_i sums to 1.
"""


def relevance(query: Tensor, key: Tensor, words: Tensor, scale: float) -> Tensor:
    """Compute A_i of each reference: [B, M, P] float32, or float64 if `query` is float64.

    Each sums to 1 over the positions; a reference without words has 0 everywhere.

    Args:
        query: of the picture's P positions, [B, heads, P, d].
        key: of the references' texts, each encoded alone, [B, M, heads, S, d].
        words: which of the S tokens are words, [B, M, S] bool; start, end and padding are not.
        scale: of the products, 1 / sqrt(d).
    """
    products = torch.einsum("bhpd, bmhsd -> bmhsp", _exact(query), _exact(key)) * scale
    shares = products.softmax(-1).mean(2).masked_fill(~words[..., None], 0)
    return shares.sum(2) / words.sum(-1, keepdim=True).clamp(min=1)


def _exact(values: Tensor) -> Tensor:
    """Convert to single precision at least: sums over thousands of positions need it."""
    return values if values.dtype == torch.float64 else values.float()


def over_mean(weights: Tensor) -> Tensor:
    """Divide weights [..., P] by their mean over the positions; if all are 0, they stay 0."""
    mean = weights.mean(-1, keepdim=True)
    return weights / mean.masked_fill(mean == 0, 1)


def merge_as_code(text: Tensor, images: Tensor, relevances: Tensor, predict: Predict) -> Tensor:
    """Merge as in the published code: f weights the references."""
    return text + over_mean(predict(text))[..., None] * shared(images, relevances)


def merge_as_paper(text: Tensor, images: Tensor, relevances: Tensor, predict: Predict) -> Tensor:
    """Merge as in the paper: f weights the text."""
    count = relevances.any(-1).sum(1)[:, None, None]
    return over_mean(predict(text))[..., None] * text + count * shared(images, relevances)


def merge_uniformly(text: Tensor, images: Tensor, _relevances: Tensor, _predict: Predict) -> Tensor:
    """Add the references with equal weight everywhere, as IP-Adapter does: the baseline."""
    return text + images.sum(1)


def shared(images: Tensor, relevances: Tensor) -> Tensor:
    """Mix `Z_i,img` [B, M, P, C] at each position in proportion to A_i [B, M, P]: [B, P, C]."""
    total = relevances.sum(1, keepdim=True)
    return ((relevances / total.masked_fill(total == 0, 1))[..., None] * images).sum(1)


MERGES: Mapping[MergeName, Merge] = {"code": merge_as_code, "paper": merge_as_paper, "uniform": merge_uniformly}


@dataclass(frozen=True)
class References:
    """The references of a pass through the U-Net, up to M per sample.

    Attributes:
        tokens: embeddings of the references, [B, M, T, D] float.
        texts: their texts, each encoded separately, [B, M, S, D] float.
        words: which of the S tokens are words, [B, M, S] bool.
        valid: which of the M are references, [B, M] bool.
        scale: of `Z_i,img`; 1 in training, less in sampling to give the text more weight.
    """

    tokens: Tensor
    texts: Tensor
    words: Tensor
    valid: Tensor
    scale: float = 1.0


class AdapterLayer(nn.Module):
    """What is trained beside a cross-attention layer: keys and values of references, and the predictor f.

    Names and shapes are those of the published weights.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(text_width, width, bias=False)
        self.to_v_ip = nn.Linear(text_width, width, bias=False)
        self.text_to_weight = nn.Linear(width, 1, bias=False)

    def predict(self, text: Tensor) -> Tensor:
        """Compute f of `Z_text` [B, P, C]: [B, P] in (0, 1)."""
        return torch.sigmoid(_exact(self.text_to_weight(text)[..., 0]))


def adapt(unet: UNet2DConditionModel, layers: Sequence[AdapterLayer], merge: Merge) -> None:
    """Make the U-Net's cross-attention layers, in their order, use references whenever it is called with `references`.

    Raises:
        ModelError: a layer is of a kind that the text-to-image U-Nets do not have.
    """
    chosen = dict(zip(cross_attention_layers(unet), layers, strict=True))
    for name, attention in attention_modules(unet):
        unusual = unusual_parts(attention) if name in chosen else []
        if unusual:
            raise ModelError(f"layer {name} of the U-Net has a {unusual[0]}: it cannot use references")
        attention.set_processor(MergedAttention(chosen.get(name), merge))


class MergedAttention(AttnProcessor2_0):
    """Attention as diffusers computes it, with references merged into the text's output.

    It keeps no state between steps, and its layer's weights belong to the adapter, not to the U-Net.
    """

    def __init__(self, layer: AdapterLayer | None, merge: Merge) -> None:
        super().__init__()
        self.layer, self.merge = layer, merge

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        references: References | None = None,
    ) -> Tensor:
        """Attend; `hidden_states` [B, P, C], `encoder_hidden_states` [B, L, D], `attention_mask` None."""
        if references is None or self.layer is None or encoder_hidden_states is None:
            plain: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        assert attention_mask is None, "Stable Diffusion's text needs no mask"
        caption, texts = normalize_text(attn, encoder_hidden_states), normalize_text(attn, references.texts)
        query, key, value = (
            split_heads(projected, attn.heads)
            for projected in (attn.to_q(hidden_states), attn.to_k(caption), attn.to_v(caption))
        )
        text = join_heads(F.scaled_dot_product_attention(query, key, value, scale=attn.scale))
        with torch.no_grad():
            words = references.words & references.valid[..., None]
            relevances = relevance(query, split_heads(attn.to_k(texts), attn.heads), words, attn.scale)
        images = references.scale * attend_to_references(query, references.tokens, self.layer, attn.scale)
        images = images.masked_fill(~references.valid[..., None, None], 0)
        merged = self.merge(text, images, relevances, self.layer.predict).to(text.dtype)
        project, dropout = attn.to_out
        output: Tensor = dropout(project(merged))
        return add_residual(attn, output, hidden_states)


def attend_to_references(query: Tensor, tokens: Tensor, layer: AdapterLayer, scale: float) -> Tensor:
    """Attend to each reference separately: `Z_i,img`, [B, M, P, C].

    Args:
        query: [B, heads, P, d].
        tokens: of the references, [B, M, T, D].
        layer: computes their keys and values.
        scale: of the products, 1 / sqrt(d).
    """
    count, heads = tokens.shape[1], query.shape[1]
    key, value = (split_heads(projection(tokens), heads).flatten(0, 1) for projection in (layer.to_k_ip, layer.to_v_ip))
    repeated = query[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    return join_heads(F.scaled_dot_product_attention(repeated, key, value, scale=scale)).unflatten(0, (-1, count))
