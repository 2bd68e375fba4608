"""Grounding DINO with groundingdino-py, its authors' code: the second backend of `transforms.models.detector`.

The package needs transformers < 5, the rest of Subjectloom needs 5: `make groundingdino` makes an environment for it.
"""

import ast
import contextlib
import importlib
import importlib.resources
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BatchEncoding

from schemas.errors import ModelError
from transforms.models.checkpoints import check_weights, explaining
from transforms.models.pth import find_file, read_weights

# Both prepare pictures as tensors, on any device; the plain class of transformers 4 does not.
_IS_OLD = int(transformers.__version__.partition(".")[0]) < 5
ImageProcessor = getattr(transformers, "GroundingDinoImageProcessorFast" if _IS_OLD else "GroundingDinoImageProcessor")
"""transformers' image processor of Grounding DINO."""

PUBLISHED = {"swint_ogc": "GroundingDINO_SwinT_OGC", "swinb_cogcoor": "GroundingDINO_SwinB_cfg"}
"""A part of a published file's name, and the name of its config in the package."""
# These save memory in training, by computing twice; without gradients they only warn.
UNTRAINED = {"use_checkpoint": False, "use_transformer_ckpt": False}
# What a wrong path, file or config raises: the package does not check a config before using it.
FAULTS = (OSError, ValueError, SyntaxError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)


class OriginalDetector(nn.Module):
    """The authors' model with the inputs and outputs of transformers' `GroundingDinoForObjectDetection`."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - the package has no types
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(max_text_len=model.max_text_len)
        # It would tokenize the texts itself, and cut long ones without their last mark: it gets tokens instead.
        model.tokenizer = _unchanged

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, **tokens: Tensor) -> SimpleNamespace:
        """Look for texts in pictures.

        Args:
            pixel_values: pictures [N, 3, H, W] float32, normalised.
            pixel_mask: [N, H, W], 0 where a picture is padded.
            tokens: `input_ids`, `token_type_ids` and `attention_mask`, each [N, L] int64.

        Returns:
            `logits` [N, Q, max_text_len] and `pred_boxes` [N, Q, 4], (centre, size) as shares of the picture.
        """
        nested = importlib.import_module("groundingdino.util.misc").NestedTensor
        # One by one: its text layers mix up the text masks of a batch (they repeat them head by head, where torch's
        # attention expects them picture by picture), so results would depend on what else is in the batch.
        outputs = [
            self.model(
                nested(pixel_values[i : i + 1], ~pixel_mask[i : i + 1].bool()),
                captions=BatchEncoding({name: value[i : i + 1] for name, value in tokens.items()}),
            )
            for i in range(len(pixel_values))
        ]
        return SimpleNamespace(
            logits=torch.cat([output["pred_logits"] for output in outputs]),
            pred_boxes=torch.cat([output["pred_boxes"] for output in outputs]),
        )


def _unchanged(tokens: BatchEncoding, **_: object) -> BatchEncoding:
    return tokens


def load_original(checkpoint: str) -> tuple[OriginalDetector, Any]:
    """Load a .pth of Grounding DINO and its tokenizer: a local file, or on the hub as OWNER/REPOSITORY/PATH.

    For a name with `swint_ogc` or `swinb_cogcoor`, as the published files have it, the config is the package's own;
    for any other it is the .py of the same name beside the file, of which only assigned literals are read. Neither
    the config nor the .pth is executed. The text encoder that the config names is loaded by transformers.

    Raises:
        ModelError: the package does not run here, or there is no such checkpoint, or it is broken.
    """
    _check_package(checkpoint)
    problem = (
        f"no Grounding DINO {checkpoint}: looked for a file, here and on the Hugging Face hub, that is named "
        "*swint_ogc*.pth or *swinb_cogcoor*.pth or has its config in a .py of the same name beside it"
    )
    with explaining(problem, "Give --model detector=PATH", FAULTS):
        path = find_file(checkpoint)
        config = SimpleNamespace(**{**find_config(checkpoint), **UNTRAINED})
        with contextlib.redirect_stdout(None):  # it prints the name of the text encoder
            model = importlib.import_module("groundingdino.models").build_model(config)
        weights = {name.removeprefix("module."): value for name, value in read_weights(path)["model"].items()}
        missing = model.load_state_dict(weights, strict=False).missing_keys
    check_weights("Grounding DINO", checkpoint, missing)
    tokenizer = model.tokenizer
    return OriginalDetector(model), tokenizer


def _check_package(checkpoint: str) -> None:
    if importlib.util.find_spec("groundingdino") is None:
        wrong = "which is not installed"
    elif not _IS_OLD:
        wrong = f"which needs transformers < 5, and {transformers.__version__} is installed"
    else:
        return
    raise ModelError(
        f"the Grounding DINO {checkpoint} is run by groundingdino-py, {wrong}. Run in .venv-groundingdino, which "
        f"`make groundingdino` makes, or give --model detector=FOLDER with a model of transformers"
    )


def find_config(checkpoint: str) -> dict[str, Any]:
    """Return the config of a checkpoint: the package's own for a published name, else that of the .py beside it.

    Raises:
        OSError, ValueError or SyntaxError: there is no config, or `read_config` refuses it.
    """
    own = [config for mark, config in PUBLISHED.items() if mark in Path(checkpoint).name]
    if own:
        folder = importlib.resources.files("groundingdino.config")
        return read_config(folder.joinpath(f"{own[0]}.py").read_text(encoding="utf-8"))
    return read_config(find_file(checkpoint.removesuffix(".pth") + ".py").read_text(encoding="utf-8"))


def read_config(source: str) -> dict[str, Any]:
    """Read a config in the package's format, Python that assigns literals to names, without executing it.

    Raises:
        ValueError: it does anything else.
        SyntaxError: it is no Python.
    """
    config = {}
    statement: Any
    for statement in ast.parse(source).body:
        try:
            (target,) = statement.targets
            config[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"line {statement.lineno} of its config is not NAME = LITERAL, and no code of it is executed"
            ) from error
    return config
