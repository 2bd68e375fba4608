"""Paint by Example: fill a hole in a picture with what a reference shows.

Yang et al., "Paint by Example: Exemplar-based Image Editing with Diffusion Models" (2023). The U-Net sees, beside the
noisy latents, those of the picture with the hole and the hole's mask: 9 channels. Its cross-attention sees a single
token, CLIP's pooled embedding of the reference after blocks of its own: so narrow a bottleneck that the reference's
pixels cannot be passed on. A learnt vector stands for no reference. The text encoder of the Stable Diffusion that the
training starts from is neither used nor trained.

The reference is the inside of the box, squashed to a square. What is random is written out in `training.exemplar`; the
target is never mirrored. The mask is scaled with linear interpolation, so that its border is soft.

A batch holds

    keys                    list of B str
    pixel_values            [B, 3, R, R] float32 in [-1, 1]
    inpaint_values          [B, 3, R, R] float32 in [-1, 1], the picture times the mask: 0, a middle grey, in the hole
    inpaint_mask            [B, 1, R, R] float32 in [0, 1], 1 where the picture is kept, 0 in the hole
    reference_pixel_values  [B, 3, r, r] float32 in [0, 1]
    skipped                 list of str, a line for each sample that could not be read
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from schemas.errors import ModelError
from schemas.samples.paint_by_example import Record
from training import diffusion
from training.configs.paint_by_example import PRESETS, Config
from training.diffusion import (
    STABLE_DIFFUSION,
    Batch,
    Draws,
    LatentDiffusion,
    load_stable_diffusion,
    loading,
    normalize_for_clip,
)
from training.drops import Drops, DropTable, drop_all
from training.exemplar import augment, choose_box, choose_window, draw_hole, extend, pad
from training.geometry import Crop, decode, open_jpeg
from training.guidance import Conditions
from training.recipe import Training
from training.shards import Pixels, Raw
from training.small import seeded, small_image_config, small_parts

IMAGE_ENCODER = "openai/clip-vit-large-patch14"
"""The published image encoder on the hub."""
BLOCKS = 5
"""Blocks of one token between the image encoder and the U-Net."""
MASKED_CHANNELS = 1


def drop_table(config: Config) -> DropTable:
    """The reference is dropped per batch."""
    return {"batch": Drops(exclusive=(drop_all(config.reference_dropped, ("reference",)),))}


def texts(raw: Raw) -> list[str]:
    """The caption, which is not used, so that a tokenizer has a vocabulary."""
    return [_record(raw).caption]


def view(raw: Raw, rng: np.random.Generator, _tools: Any, config: Config) -> dict[str, Tensor | Pixels]:  # noqa: ANN401
    """Make one sample's values; see the module for what a batch of them holds."""
    record = _record(raw)
    width, height, side = record.width, record.height, config.resolution
    opened = open_jpeg(raw.get("jpg", b""), width, height)
    drawing = rng if config.draw_box else None
    box = choose_box([box.bbox for box in record.boxes], drawing)
    extended = extend(box, width, height, config.extend, rng)
    curved = rng if rng.random() < config.arbitrary_mask else None
    hole = Image.fromarray(draw_hole(box, extended, width, height, curved))
    part = choose_window(extended, width, height, config.shrink, drawing)
    left, top, right, bottom = part
    crop = Crop(height, (left, top, right, bottom), side, (0, side), mirrored=False)
    padded = pad(box, width, height, config.pad)
    decoded = decode(opened, crop, [(*padded[:2], padded[2] - padded[0], padded[3] - padded[1])], config.reference)
    reference = cut_square(decoded, padded, (width, height), config.reference)
    if config.augment:
        reference = augment(reference, rng)
    picture = crop.crop_picture(decoded).transpose(2, 0, 1)
    resized = hole.resize((side, side), Image.Resampling.BILINEAR, box=part)
    kept = torch.from_numpy(np.array(resized, np.float32)[None] / 255)
    return {
        "pixel_values": Pixels(torch.from_numpy(np.ascontiguousarray(picture)), -1, 1),
        "inpaint_values": torch.from_numpy(picture.astype(np.float32) / 127.5 - 1) * kept,
        "inpaint_mask": kept,
        "reference_pixel_values": Pixels(torch.from_numpy(reference).permute(2, 0, 1), 0, 1),
    }


def cut_square(
    decoded: Image.Image, corners: Sequence[int], size: tuple[int, int], side: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Cut corners out of a picture of `size` (width, height), decoded at any size, and squash them: [side, side, 3]."""
    across, down = decoded.width / size[0], decoded.height / size[1]
    left, top = math.floor(corners[0] * across), math.floor(corners[1] * down)
    right, bottom = math.ceil(corners[2] * across), math.ceil(corners[3] * down)
    return np.array(decoded.crop((left, top, right, bottom)).resize((side, side), Image.Resampling.BILINEAR))


def _record(raw: Raw) -> Record:
    return Record.model_validate_json(raw.get("json", b""))


class ExemplarEncoder(ModelMixin, ConfigMixin):
    """A reference as one token: CLIP's pooled embedding, blocks that see it alone, and a projection.

    Args:
        vision: fields of the `CLIPVisionConfig`.
        width: of the token.
        blocks: number of blocks.
    """

    @register_to_config
    def __init__(self, vision: dict[str, Any], width: int, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.model = CLIPVisionModel(CLIPVisionConfig(**vision))
        hidden = self.model.config.hidden_size
        self.mapper = nn.ModuleList(
            [BasicTransformerBlock(hidden, 1, hidden, activation_fn="gelu", attention_bias=True) for _ in range(blocks)]
        )
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.proj_out = nn.Linear(hidden, width)
        self.null = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, references: Tensor) -> Tensor:
        """Encode references [B, 3, h, w] in [0, 1]: [B, 1, width]."""
        pixels = normalize_for_clip(references, self.model.config.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and next(self.model.parameters()).requires_grad):
            token = self.model(pixel_values=pixels).pooler_output[:, None]
        for block in self.mapper:
            token = block(token)
        projected: Tensor = self.proj_out(self.final_layer_norm(token))
        return projected


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts, with a U-Net of further channels, and the encoder of references."""

    image_encoder: ExemplarEncoder


def load(folder: str | Path = STABLE_DIFFUSION, image_encoder: str = IMAGE_ENCODER) -> Parts:
    """Load a model that `Model.save` wrote, or start from a Stable Diffusion 1.5 and a CLIP.

    A plain Stable Diffusion's first layer gets channels with weights of zero, so that it draws as before.

    Args:
        folder: in Stable Diffusion's layout, or the hub's name of one; a saved model has an image_encoder/ too.
        image_encoder: CLIP for a folder without one.

    Raises:
        ModelError: something is missing or of another kind.
    """
    base = load_stable_diffusion(folder)
    unet = add_channels(base["unet"], base["vae"].config.latent_channels)
    if (Path(folder) / "image_encoder").is_dir():
        with loading(folder, "the layout of a saved run, with image_encoder/"):
            encoder = ExemplarEncoder.from_pretrained(folder, subfolder="image_encoder")
    else:
        with loading(image_encoder, "CLIP's layout"):
            vision = CLIPVisionModel.from_pretrained(image_encoder, dtype=torch.float32)
        encoder = ExemplarEncoder(vision.config.to_dict(), unet.config.cross_attention_dim)
        encoder.model.load_state_dict(vision.state_dict())
    return Parts(**{**base, "unet": unet}, image_encoder=encoder)


def small(autoencoder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Take the text-to-image model beside the sample autoencoder, or untrained parts, and an untrained encoder."""
    trained = autoencoder.parent / "text_to_image"
    base = load_stable_diffusion(trained) if trained.is_dir() else vars(small_parts(autoencoder, texts, seed))
    unet = add_channels(base["unet"], base["vae"].config.latent_channels)
    with seeded(seed):
        encoder = ExemplarEncoder(small_image_config().to_dict(), unet.config.cross_attention_dim, blocks=2)
    return Parts(**{**base, "unet": unet}, image_encoder=encoder)


def add_channels(unet: UNet2DConditionModel, latents: int) -> UNet2DConditionModel:
    """Return a U-Net that also takes `latents` channels of a picture and a mask: itself if it does already.

    Raises:
        ModelError: it takes another number of channels.
    """
    wanted, present = 2 * latents + MASKED_CHANNELS, unet.config.in_channels
    if present == wanted:
        return unet
    if present != latents:
        raise ModelError(f"the U-Net takes {present} channels; this recipe starts from one of {latents} or {wanted}")
    larger = UNet2DConditionModel.from_config(unet.config, in_channels=wanted)
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = F.pad(first, (0, 0, 0, 0, 0, wanted - present))
    larger.load_state_dict(weights)
    return larger


class Model(LatentDiffusion):
    """A Paint by Example model; the U-Net and what follows the image encoder are trained.

    Args:
        parts: the networks, trained in place.
        config: says whether the image encoder is trained too, and how often references are dropped.
    """

    guidance = 5.0
    parts: Parts
    image_encoder: ExemplarEncoder

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        config = config or Config()
        super().__init__(parts, drop_table(config))
        self.train_text_encoders(False)
        self.image_encoder.requires_grad_(True)
        self.image_encoder.model.requires_grad_(config.train_encoders)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Compute the losses of a batch, without its references if the draws say so."""
        dropped = "reference" in draws.dropped
        return super().forward(self.unconditional(batch) if dropped else batch, draws)

    def conditions(self, batch: Batch) -> Conditions:
        """The reference's token, and `beside`: the picture with its hole, encoded, and the mask, [B, 5, h, w]."""
        references = batch["reference_pixel_values"]
        tokens = self.image_encoder(references)
        if "reference_kept" in batch:
            null = self.image_encoder.null.expand_as(tokens)
            tokens = torch.where(batch["reference_kept"][:, None, None], tokens, null)
        with torch.no_grad(), self.autoencoder_precision():
            seen = self.vae.encode(batch["inpaint_values"]).latent_dist.mode() * self.vae.config.scaling_factor
        mask = F.interpolate(batch["inpaint_mask"], seen.shape[-2:], mode="nearest")
        return {"encoder_hidden_states": tokens, "beside": torch.cat([seen, mask], dim=1)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Predict as in the base class, from the latents and the channels beside them."""
        others = {name: value for name, value in conditions.items() if name != "beside"}
        return super().predict(torch.cat([noisy, conditions["beside"].to(noisy)], dim=1), timesteps, others)

    def unconditional(self, batch: Batch) -> Batch:
        """The same batch without references."""
        kept = torch.zeros(len(batch["inpaint_mask"]), dtype=torch.bool, device=batch["inpaint_mask"].device)
        return {**batch, "reference_kept": kept}

    def sampling_conditions(self, batch: Batch, steps: int) -> list[Conditions]:
        """Conditions as in the base class: the second half of the batch keeps its references."""
        kept = torch.ones(len(batch["inpaint_mask"]), dtype=torch.bool, device=batch["inpaint_mask"].device)
        return list(super().sampling_conditions({**batch, "reference_kept": kept}, steps))

    def references(self, batch: Batch) -> Tensor:
        """The reference of each sample, [B, 1, 3, h, w] float32 in [0, 1]."""
        references: Tensor = batch["reference_pixel_values"][:, None]
        return references


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
)
