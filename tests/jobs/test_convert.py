"""`subjectloom weights convert`: weights of other projects, to models of ours and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertTokenizer, InstructBlipQFormerModel

from jobs.convert import weights_of
from tests.jobs.conftest import Run
from tests.training.models import tiny_parts
from tests.training.objects import tiny_mip_parts, tiny_xl_mip_parts
from tests.training.pairs import tiny_blip_parts
from training.adapter import WEIGHTS, XL_WEIGHTS
from training.recipes import blip_diffusion, fastcomposer, mip_adapter
from training.small import WIDTH
from training.weights.files import read_weights, write_weights

FILES = ("proj_layer/proj_weight.pt", "blip_model/blip_weight.pt", "vae/diffusion_pytorch_model.bin")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained autoencoder with attention, whose weights have had other names."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    """What the tests save themselves prints nothing."""
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


@pytest.fixture
def convert(run: Run) -> Callable[..., str]:
    """Convert, and return what was printed; `status` is what to expect."""

    def command(source: Path, output: Path, given: str, wanted: str, *options: object, status: int = 0) -> str:
        arguments = (source, output, "--from", given, "--to", wanted, *options)
        found, printed = run("weights", "convert", *arguments)
        assert found == status, printed
        assert len(printed.splitlines()) == 1
        return printed

    return command


def changed(folder: Path) -> None:
    """Set the weights of a saved model's U-Net to 0, so that they cannot be taken for converted ones."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write_weights(path, {name: torch.zeros_like(value) for name, value in load_file(path).items()})


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_fastcomposer_there_and_back(convert: Callable[..., str], vae: Path, tmp_path: Path) -> None:
    parts = tiny_parts(vae)
    fastcomposer.Model(parts).save(tmp_path / "own")
    printed = convert(tmp_path / "own", tmp_path / "new" / "pytorch_model.bin", "subjectloom", "fastcomposer")
    assert printed == f"weights  {tmp_path}/new/pytorch_model.bin\n"
    released = torch.load(tmp_path / "new" / "pytorch_model.bin")
    assert torch.equal(released["postfuse_module.mlp2.fc1.weight"], parts.fuser.state_dict()["refine.1.weight"])
    assert released["image_encoder.vision_model.embeddings.position_ids"].tolist() == [list(range(65))]
    changed(tmp_path / "own")
    convert(
        tmp_path / "new" / "pytorch_model.bin",
        tmp_path / "back",
        "fastcomposer",
        "subjectloom",
        "--base",
        tmp_path / "own",
    )
    assert equal(weights_of(fastcomposer.load(tmp_path / "back")), weights_of(parts))


@pytest.mark.parametrize("xl", [False, True])
def test_adapters_there_and_back(convert: Callable[..., str], vae: Path, tmp_path: Path, xl: bool) -> None:
    parts = tiny_xl_mip_parts(vae) if xl else tiny_mip_parts(vae)
    own = tmp_path / "own"
    mip_adapter.Model(parts).save(own)
    expected = load_file(own / (XL_WEIGHTS if xl else WEIGHTS))
    convert(own, tmp_path / "model.bin", "subjectloom", "mip-adapter")
    nested = torch.load(tmp_path / "model.bin")
    assert list(nested) == ["image_proj", "ip_adapter"]
    assert "1.text_to_weight.weight" in nested["ip_adapter"]
    assert equal(read_weights(tmp_path / "model.bin"), expected)
    convert(tmp_path / "model.bin", tmp_path / "back", "mip-adapter", "subjectloom", "--base", own)
    assert equal(weights_of(mip_adapter.load(tmp_path / "back")), weights_of(parts))

    plain = {name: value for name, value in expected.items() if "text_to_weight" not in name}
    convert(tmp_path / "model.bin", tmp_path / "ip.bin", "mip-adapter", "ip-adapter")
    convert(tmp_path / "ip.bin", tmp_path / "ip.safetensors", "ip-adapter", "ip-adapter")
    convert(own, tmp_path / "ip2.safetensors", "subjectloom", "ip-adapter")
    for name in ("ip.bin", "ip.safetensors", "ip2.safetensors"):
        assert equal(read_weights(tmp_path / name), plain)
    convert(tmp_path / "ip.bin", tmp_path / "from_ip", "ip-adapter", "subjectloom", "--base", own)
    found = load_file(tmp_path / "from_ip" / (XL_WEIGHTS if xl else WEIGHTS))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.fixture
def blip(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, blip_diffusion.Parts]:
    """A saved model of BLIP-Diffusion whose Q-Former has BERT's tokenizer."""
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ball", "cup")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr("training.recipes.blip_diffusion.published.TOKENIZER", str(tmp_path / "bert"))
    parts = tiny_blip_parts(vae)
    config = parts.qformer.config
    config.update({"vocab_size": 9, "pad_token_id": 0})
    parts = replace(parts, subject_tokenizer=tokenizer, qformer=InstructBlipQFormerModel(config))
    blip_diffusion.Model(parts).save(tmp_path / "own")
    return tmp_path / "own", parts


def test_blip_diffusion_there_and_back(
    convert: Callable[..., str], blip: tuple[Path, blip_diffusion.Parts], tmp_path: Path
) -> None:
    own, parts = blip
    expected = weights_of(parts)
    convert(own, tmp_path / "lavis", "subjectloom", "lavis")
    convert(own, tmp_path / "diffusers", "subjectloom", "diffusers")
    index = json.loads((tmp_path / "diffusers" / "model_index.json").read_text())
    assert index["qformer"] == ["blip_diffusion", "Blip2QFormerModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    convert(tmp_path / "lavis", tmp_path / "lavis2", "lavis", "diffusers", "--base", own)
    convert(tmp_path / "diffusers", tmp_path / "back", "diffusers", "subjectloom")
    convert(tmp_path / "lavis2", tmp_path / "lavis3", "diffusers", "lavis")
    changed(own)
    convert(tmp_path / "lavis", tmp_path / "back2", "lavis", "subjectloom", "--base", own)
    for folder in ("back", "back2"):
        assert equal(weights_of(blip_diffusion.load(tmp_path / folder)), expected)
    for name in FILES:
        assert equal(read_weights(tmp_path / "lavis3" / name), read_weights(tmp_path / "lavis" / name))
    assert not (tmp_path / "lavis" / "ctx_embeddings_cache").exists()


def test_an_averaged_prompt_goes_to_lavis(
    convert: Callable[..., str], blip: tuple[Path, blip_diffusion.Parts], tmp_path: Path
) -> None:
    _, parts = blip
    prompt = torch.randn(16, WIDTH)
    blip_diffusion.Model(replace(parts, subjects={"ball": prompt})).save(tmp_path / "tuned")
    convert(tmp_path / "tuned", tmp_path / "lavis", "subjectloom", "lavis")
    stored = torch.load(tmp_path / "lavis" / "ctx_embeddings_cache" / "ctx_embeddings_cache.pt")
    assert torch.equal(stored, prompt[None])
    blip_diffusion.Model(replace(parts, subjects={"ball": prompt, "cup": prompt})).save(tmp_path / "two")
    printed = convert(tmp_path / "two", tmp_path / "lavis2", "subjectloom", "lavis", status=1)
    assert "averaged prompts of 2 subjects" in printed


def test_diffusers_needs_berts_tokenizer(convert: Callable[..., str], vae: Path, tmp_path: Path) -> None:
    blip_diffusion.Model(tiny_blip_parts(vae)).save(tmp_path / "own")
    printed = convert(tmp_path / "own", tmp_path / "out", "subjectloom", "diffusers", status=1)
    assert "with BERT's tokenizer, and this model has another" in printed


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("fastcompose", "subjectloom", "--from: there is no format 'fastcompose', did you mean 'fastcomposer'?"),
        ("lavis", "keras", "--to: there is no format 'keras': choose from diffusers, fastcomposer"),
        ("lavis", "ip-adapter", "not converted from lavis to ip-adapter; from lavis: diffusers, subjectloom"),
        ("mip-adapter", "mip-adapter", "from mip-adapter: ip-adapter, subjectloom"),
        ("ip-adapter", "subjectloom", "ip.bin: there is no such file or folder"),
    ],
)
def test_formats_that_do_not_exist_are_one_line(
    convert: Callable[..., str], tmp_path: Path, given: str, wanted: str, message: str
) -> None:
    assert message in convert(tmp_path / "ip.bin", tmp_path / "out", given, wanted, status=1)


ADAPTER = {"image_proj.proj.weight": torch.ones(8, 2), "ip_adapter.1.to_k_ip.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(
    ("weights", "given", "wanted", "message"),
    [
        (ADAPTER, "fastcomposer", "subjectloom", "no weight postfuse_module; --from ip-adapter may be right"),
        (ADAPTER, "mip-adapter", "ip-adapter", "no weight text_to_weight; --from ip-adapter may be right"),
        ({**ADAPTER, "ip_adapter.1.text_to_weight.weight": torch.ones(1)}, "ip-adapter", "subjectloom", "mip-adapter"),
        (ADAPTER, "ip-adapter", "mip-adapter", "has no predictor, which a MIP-Adapter has: train it first"),
        ({"x": torch.ones(1)}, "ip-adapter", "subjectloom", "not of the format ip-adapter: it has no weight"),
        (ADAPTER, "lavis", "subjectloom", "lavis is a folder"),
        (ADAPTER, "subjectloom", "lavis", "subjectloom is a folder"),
    ],
)
def test_files_of_another_format_are_one_line(
    convert: Callable[..., str], tmp_path: Path, weights: dict[str, Any], given: str, wanted: str, message: str
) -> None:
    write_weights(tmp_path / "x.bin", weights)
    assert message in convert(tmp_path / "x.bin", tmp_path / "out", given, wanted, status=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ("subjectloom", "fastcomposer", "is no FastComposer model that Subjectloom saved: it has no fuser"),
        ("subjectloom", "mip-adapter", f"is no MIP-Adapter model that Subjectloom saved: it has no {WEIGHTS}"),
        ("subjectloom", "diffusers", "is no BLIP-Diffusion model that Subjectloom saved: it has no prompter"),
        ("diffusers", "subjectloom", "not of the format diffusers: its qformer/ is missing"),
        ("lavis", "subjectloom", "proj_weight.pt: there is no such file"),
        ("ip-adapter", "subjectloom", "ip-adapter is a file"),
    ],
)
def test_folders_of_another_format_are_one_line(
    convert: Callable[..., str], tmp_path: Path, given: str, wanted: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    assert message in convert(tmp_path / "folder", tmp_path / "out", given, wanted, status=1)


def test_what_does_not_fit_the_base_or_exists_is_one_line(
    convert: Callable[..., str], vae: Path, tmp_path: Path
) -> None:
    own, path = tmp_path / "own", tmp_path / "model.bin"
    fastcomposer.Model(tiny_parts(vae)).save(own)
    convert(own, path, "subjectloom", "fastcomposer")
    assert "exists already: name a new one" in convert(own, path, "subjectloom", "fastcomposer", status=1)
    weights = torch.load(path)
    del weights["unet.conv_in.bias"]
    torch.save({**weights, "more": torch.ones(1)}, path)
    printed = convert(path, tmp_path / "out", "fastcomposer", "subjectloom", "--base", own, status=1)
    assert "do not fit the model: missing: unet.conv_in.bias; unknown: more" in printed
    assert not (tmp_path / "out").exists()
