"""BLIP-Diffusion's networks: what turns an input and its subject's text into a subject prompt, and the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPVisionModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    PreTrainedTokenizerBase,
)

from training import diffusion
from training.configs.blip_diffusion import Config
from training.diffusion import (
    STABLE_DIFFUSION,
    Batch,
    LatentDiffusion,
    concatenate,
    first_sample,
    is_trained,
    load_stable_diffusion,
    loading,
    normalize_for_clip,
)
from training.guidance import Conditions
from training.recipes.blip_diffusion.published import is_published, load_vision
from training.recipes.blip_diffusion.view import QUERIES, Tokenizers, fill_template
from training.small import WIDTH, seeded, small_image_config, small_parts

PUBLISHED = "Salesforce/blipdiffusion"
"""The published weights on the hub."""
SUBJECTS = "subjects.safetensors"
"""File with a fine-tuned model's averaged subject prompts."""


class Prompter(ModelMixin, ConfigMixin):
    """Holds the queries, and turns the Q-Former's outputs into subject prompts: `x + MLP(x)`.

    The MLP has two layers, four times as wide in between, a LayerNorm before and CLIP's quick GELU.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int, count: int = QUERIES) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(count, width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, outputs: Tensor) -> Tensor:
        """Turn outputs [B, Q, D] float into subject prompts [B, Q, D]."""
        hidden = self.widen(self.norm(outputs))
        return outputs + self.narrow(hidden * torch.sigmoid(1.702 * hidden))


@dataclass(frozen=True)
class Parts(diffusion.Parts):
    """Stable Diffusion's parts, those that make subject prompts, and averaged prompts [Q, D] by subject text.

    The Q-Former is BLIP-2's with text beside the queries, which transformers calls InstructBLIP's.
    """

    subject_tokenizer: PreTrainedTokenizerBase
    image_encoder: CLIPVisionModel
    qformer: InstructBlipQFormerModel
    prompter: Prompter
    subjects: Mapping[str, Tensor] = field(default_factory=dict)


def load(folder: str | Path = PUBLISHED) -> Parts:
    """Load a model from a folder that `Model.save` wrote, or one in the layout of the published weights.

    A folder without unet/ holds what makes subject prompts only: the rest is then the published Stable Diffusion 1.5,
    from which the paper's stage 2 starts.

    Raises:
        ModelError: something is missing or of another kind.
    """
    layout = "BLIP-Diffusion's layout, a Stable Diffusion with qformer/ beside"
    with loading(folder, layout):
        vision = _published(folder) if is_published(folder) else _saved(folder)
    alone = Path(folder).is_dir() and not (Path(folder) / "unet").is_dir()
    base = load_stable_diffusion(STABLE_DIFFUSION if alone else folder)
    with loading(folder, layout):
        subjects = Path(folder) / SUBJECTS
        return Parts(**base, **vision, subjects=load_file(subjects) if subjects.is_file() else {})


def _saved(folder: str | Path) -> dict[str, Any]:
    return {
        "subject_tokenizer": AutoTokenizer.from_pretrained(folder, subfolder="subject_tokenizer"),
        "image_encoder": CLIPVisionModel.from_pretrained(folder, subfolder="image_encoder", dtype=torch.float32),
        "qformer": InstructBlipQFormerModel.from_pretrained(folder, subfolder="qformer", dtype=torch.float32),
        "prompter": Prompter.from_pretrained(folder, subfolder="prompter"),
    }


def _published(folder: str | Path) -> dict[str, Any]:
    vision = load_vision(folder)
    count, width = vision.prompter["queries"].shape
    prompter = Prompter(width, count)
    # A Q-Former from the paper's stage 1 has no feed-forward network yet: that one starts from random weights.
    prompter.load_state_dict(vision.prompter, strict=len(vision.prompter) > 1)
    return {
        "subject_tokenizer": AutoTokenizer.from_pretrained(vision.tokenizer),
        "image_encoder": vision.image_encoder,
        "qformer": vision.qformer,
        "prompter": prompter,
    }


def small(folder: Path, texts: Sequence[str], seed: int) -> Parts:
    """Make small parts: those of `training.small.small_parts`, with random weights for what makes subject prompts.

    The Q-Former shares the tokenizer.
    """
    base = small_parts(folder, texts, seed)
    with seeded(seed):
        return Parts(
            **vars(base),
            subject_tokenizer=base.tokenizer,
            image_encoder=CLIPVisionModel(small_image_config()),
            qformer=InstructBlipQFormerModel(
                InstructBlipQFormerConfig(
                    vocab_size=len(base.tokenizer),
                    hidden_size=WIDTH,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=4 * WIDTH,
                    max_position_embeddings=base.tokenizer.model_max_length,
                    pad_token_id=base.tokenizer.pad_token_id,
                    cross_attention_frequency=1,
                    encoder_hidden_size=WIDTH,
                )
            ),
            prompter=Prompter(WIDTH),
        )


def average_by_subject(texts: Sequence[str], prompts: Tensor) -> dict[str, Tensor]:
    """Average prompts [N, Q, D] over the samples with the same subject text: [Q, D] each."""
    rows = {text: [i for i, other in enumerate(texts) if other == text] for text in texts}
    return {text: prompts[chosen].mean(0) for text, chosen in rows.items()}


@contextmanager
def insert_prompts(encoder: CLIPTextModel, mask: Tensor, prompts: Tensor) -> Iterator[None]:
    """Within this block, replace the encoder's word embeddings where `mask` [B, L] bool is true by `prompts` [B, Q, D].

    The first true position of a row takes its first embedding, the second its second, and so on.
    """
    order = (mask.cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, prompts.shape[-1])

    def insert(_module: nn.Module, _inputs: object, words: Tensor) -> Tensor:
        return torch.where(mask[..., None], prompts.gather(1, order).to(words.dtype), words)

    handle = encoder.get_input_embeddings().register_forward_hook(insert)
    try:
        yield
    finally:
        handle.remove()


class Model(LatentDiffusion):
    """A BLIP-Diffusion model.

    Args:
        parts: the networks, trained in place.
        config: says which of them are trained, and how the text is laid out.

    Attributes:
        averaged: the averaged prompts of S subjects, [S, Q, D]; None if there are none.
        averaged_texts: their texts.
    """

    parts: Parts
    subject_tokenizer: PreTrainedTokenizerBase
    image_encoder: CLIPVisionModel
    qformer: InstructBlipQFormerModel
    prompter: Prompter
    averaged: nn.Parameter | None
    averaged_texts: list[str]

    def __init__(self, parts: Parts, config: Config | None = None) -> None:
        self.config = config or Config()
        super().__init__(parts)
        self.negative_prompt = self.config.negative_prompt
        self.image_encoder.requires_grad_(self.config.train_encoders and not self.config.finetune)
        for part in (self.qformer, self.prompter, self.text_encoder):
            part.requires_grad_(not self.config.finetune)

    @property
    def tools(self) -> Tokenizers:
        """The two tokenizers."""
        return Tokenizers(self.tokenizer, self.subject_tokenizer)

    @property
    def subjects(self) -> Mapping[str, Tensor]:
        """Averaged prompts [Q, D] by subject text, used in place of those of the inputs. Fine-tuning trains them."""
        return {} if self.averaged is None else dict(zip(self.averaged_texts, self.averaged, strict=True))

    @subjects.setter
    def subjects(self, subjects: Mapping[str, Tensor]) -> None:
        self.averaged_texts = list(subjects)
        # One tensor for all subjects: a batch need not show each, and yet every parameter has a gradient.
        self.averaged = nn.Parameter(torch.stack(list(subjects.values())), self.config.finetune) if subjects else None

    def conditions(self, batch: Batch) -> Conditions:
        """The template with the subject prompts in their places, encoded; for training, its padding is masked."""
        conditions: Conditions = {"encoder_hidden_states": self.encode(batch)}
        if self.config.mask_padding:
            ends = (batch["input_ids"] == self.tokenizer.eos_token_id) & ~batch["subject_prompt_mask"]
            conditions["encoder_attention_mask"] = ends.cumsum(1) - ends.int() == 0  # up to the first end
        return conditions

    def encode(self, batch: Batch) -> Tensor:
        """Encode the ids with the subject prompts in their places: [B, L, D]."""
        with insert_prompts(self.text_encoder, batch["subject_prompt_mask"], self.prompts(batch)):
            # Gradients reach the prompts also through a text encoder that is not trained.
            encoded: Tensor = self.text_encoder(batch["input_ids"]).last_hidden_state
        return encoded

    def sampling_conditions(self, batch: Batch, steps: int) -> Sequence[Conditions]:
        """Conditions for sampling, where no padding is masked and the template `released` is repeated: [2B, ...]."""
        both = concatenate(self.unconditional(batch), self.repeated(batch))
        return [{"encoder_hidden_states": self.encode(both)}] * steps

    def unconditional(self, batch: Batch) -> Batch:
        """The negative prompt in place of caption and subject prompt."""
        return {
            **super().unconditional(batch),
            "subject_prompt_mask": torch.zeros_like(batch["subject_prompt_mask"]),
        }

    def repeated(self, batch: Batch) -> Batch:
        """The same batch with its text repeated, where it has a subject prompt in the template `released`."""
        if self.config.template == "paper":
            return batch
        prompted = batch["subject_prompt_mask"].any(1).tolist()
        filled = [
            fill_template(caption, subject if shown else None, self.tokenizer, "released", self.config.prompt_reps)
            for caption, subject, shown in zip(batch["caption"], batch["subject_text"], prompted, strict=True)
        ]
        ids, mask = (torch.tensor(values, device=batch["input_ids"].device) for values in zip(*filled, strict=True))
        return {**batch, "input_ids": ids, "subject_prompt_mask": mask}

    def prompts(self, batch: Batch) -> Tensor:
        """The subject prompts of a batch, [B, Q, D]: its own averages, averaged ones of the model, or the inputs'."""
        if "subject_prompts" in batch:
            return batch["subject_prompts"]
        averaged = [self.subjects.get(text) for text in batch["subject_text"]]
        if all(prompt is not None for prompt in averaged):
            return torch.stack([prompt for prompt in averaged if prompt is not None])
        # They are computed even if all prompts are dropped: each parameter has a gradient at every step.
        computed = self.compute_prompts(batch)
        chosen = [own if prompt is None else prompt.to(own) for own, prompt in zip(computed, averaged, strict=True)]
        return torch.stack(chosen)

    def compute_prompts(self, batch: Batch) -> Tensor:
        """Compute the subject prompts of inputs and subject texts: [B, Q, D]."""
        pictures = normalize_for_clip(batch["input_pixel_values"], self.image_encoder.config.image_size)
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.image_encoder)):
            embedded = self.image_encoder.post_layernorm(self.image_encoder(pictures).last_hidden_state)
        words = batch["subject_attention_mask"]
        queries = self.prompter.queries.expand(len(words), -1, -1)
        attended = torch.cat([words.new_ones(queries.shape[:2]), words], dim=1)
        outputs = self.qformer(
            input_ids=batch["subject_input_ids"],
            attention_mask=attended.long(),
            query_embeds=queries,
            encoder_hidden_states=embedded,
        ).last_hidden_state[:, : queries.shape[1]]
        return self.prompter(outputs)

    @torch.no_grad()
    def average_prompts(self, batches: Iterable[Batch]) -> None:
        """Keep the average prompt of each subject over all its samples in `batches`."""
        texts: list[str] = []
        prompts: list[Tensor] = []
        for batch in batches:
            texts += batch["subject_text"]
            prompts.append(self.compute_prompts(batch))
        self.subjects = average_by_subject(texts, torch.cat(prompts))

    @torch.no_grad()
    def average_references(self, batch: Batch) -> Batch:
        """The first sample alone, with the mean subject prompt of all samples of the batch."""
        return {**first_sample(batch), "subject_prompts": self.compute_prompts(batch).mean(0, keepdim=True)}

    def references(self, batch: Batch) -> Tensor:
        """The inputs, [B, 1, 3, h, w] float32 in [0, 1]."""
        return batch["input_pixel_values"][:, None]

    def save(self, folder: Path) -> None:
        """Write the model as the base class does, with averaged prompts in a file beside, if there are any."""
        super().save(folder)
        if self.subjects:
            prompts = {text: prompt.detach().cpu().clone() for text, prompt in self.subjects.items()}
            save_file(prompts, folder / SUBJECTS)
