"""BLIP-Diffusion: a subject, shown on any background, becomes embeddings among the words of the caption.

Li, Li and Hoi, "BLIP-Diffusion: Pre-trained Subject Representation for Controllable Text-to-Image Generation and
Editing" (2023), section 3.2. A frozen CLIP image encoder embeds the input. A Q-Former reads the embedding together with
the subject's text; a two-layer feed-forward network turns its 16 outputs into the subject prompt, which is inserted
among the words of a template in the text encoder's input:

    [text prompt], the [subject text] is [subject prompt]       (the paper's)
    a [subject prompt] [subject text] [text prompt]             (that of the released weights)

The U-Net learns to draw the picture that the subject was taken from, the target. Its background differs from the
input's, so that the prompt represents the subject alone.

Pre-training trains Q-Former, queries, feed-forward network, text encoder and U-Net. Fine-tuning on a few pictures of
one subject averages its prompt over them once, and then trains the U-Net and that average, under the caption
`a [subject text]`. What the released code does (salesforce/LAVIS) and the paper leaves open is done as there. It
differs in that LAVIS shows the image encoder the pictures themselves, and crops their middle.

A batch holds

    keys                    list of B str
    pixel_values            [B, 3, R, R] float32 in [-1, 1], the target
    input_pixel_values      [B, 3, r, r] float32 in [0, 1], the input
    input_ids               [B, L] int64, the template; the caption alone if the subject prompt is dropped
    subject_prompt_mask     [B, L] bool, the 16 positions of the subject prompt; none if it is dropped
    caption                 list of B str, the template's text prompt
    subject_text            list of B str
    subject_input_ids       [B, S] int64, the subject text's tokens for the Q-Former
    subject_attention_mask  [B, S] bool, which of these are not padding
    skipped                 list of str, a line for each sample that could not be read
"""

from collections.abc import Iterable

from training.configs.blip_diffusion import PRESETS, Config
from training.recipe import Training
from training.recipes.blip_diffusion.model import Model, Parts, load, small
from training.recipes.blip_diffusion.view import texts, view
from training.shards import Batch

__all__ = ["TRAINING", "Config", "Model", "Parts", "load", "small", "texts", "view"]


def prepare(model: Model, batches: Iterable[Batch], config: Config) -> None:
    """Forget the subjects of an earlier run; for fine-tuning, average the prompts of the new ones."""
    model.subjects = {}
    if config.finetune:
        model.average_prompts(batches)


TRAINING = Training(
    config=Config,
    presets=PRESETS,
    view=view,
    texts=texts,
    load=load,
    small=small,
    model=Model,
    prepare=prepare,
)
