"""Rates of the handlers of full-size models on a GPU, beside the same models' bare forward passes.

    python -m benchmarks.gpu [--threads 1,2,4,8] [--write]
    python -m benchmarks.gpu --device cpu --small

The models are the published architectures with random weights; nothing is downloaded, and Beam is not needed. Pictures
are of 640 x 480 pixels. "ours" is what a build calls, in bf16, from arrays in memory to arrays and run lengths; "bare"
is the model alone, on inputs that are on the device. `--small` takes the sample models, to try the command out.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from numpy.typing import NDArray
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    ViTImageProcessor,
)

import transforms.models
from benchmarks.tables import Row, Write, report
from schemas.boxes import BBox
from transforms.models.clip import Clip, embed_images, load_clip, preprocess_of
from transforms.models.clipseg import ClipSeg, find_heatmaps, load_clipseg
from transforms.models.detector import Detector, detect_phrases
from transforms.models.groundingdino import ImageProcessor
from transforms.models.sam import load_sam, segment_boxes, segment_everything
from transforms.models.segmenter import Segmenter, load_segmenter, segment_images
from transforms.models.settings import Everything

SAMPLE = Path(transforms.models.__file__).parent / "sample"
HEIGHT, WIDTH = 480, 640
BOXES: list[BBox] = [(20 + 90 * i, 40 + 30 * i, 200, 260) for i in range(5)]
WORDS = ("a", "the", "red", "dog", "ball", "cup", "tall", "tree")

Run = Callable[[], object]


@dataclass(frozen=True)
class Step:
    """A handler with its model, and how many pictures (or crops) a call takes.

    `ours` and `bare` put the model into a type, once, and return what is measured.
    """

    name: str
    count: int
    ours: Callable[[torch.dtype], Run]
    bare: Callable[[torch.dtype], Run]


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Smoothed noise, [height, width, 3] uint8."""
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(127, 60, (1, 3, height // 8, width // 8)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    return np.ascontiguousarray(smooth.clamp(0, 255).to(torch.uint8).numpy())


def noise(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normalised pictures, as models take them."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def inference(run: Run) -> Run:
    """Run without gradients."""
    return torch.inference_mode()(run)


def clip_step(device: str, *, small: bool) -> Step:
    """CLIP ViT-L/14 and crops of 300 pixels."""
    if small:
        clip = load_clip(SAMPLE / "clip")
    else:
        model = open_clip.create_model("ViT-L-14-quickgelu", device=device).eval()
        clip = Clip(model, preprocess_of(model), open_clip.get_tokenizer("ViT-L-14-quickgelu"), device)
    count = 4 if small else 64
    crops = [picture(i, 300, 300) for i in range(count)]

    def ours(dtype: torch.dtype) -> Run:
        clip.model.to(dtype)
        return partial(embed_images, clip, crops)

    def bare(dtype: torch.dtype) -> Run:
        clip.model.to(dtype)
        side = clip.preprocess.size if isinstance(clip.preprocess.size, int) else clip.preprocess.size[0]
        return inference(partial(clip.model.encode_image, noise(device, dtype, count, 3, side, side)))

    return Step("CLIP ViT-L/14, crops of 300 px", count, ours, bare)


def clipseg_step(device: str, *, small: bool) -> Step:
    """CLIPSeg rd64-refined, a text a picture."""
    seeker = load_clipseg(SAMPLE / "clipseg")
    if not small:
        config = CLIPSegConfig(
            vision_config={"image_size": 352, "patch_size": 16}, use_complex_transposed_convolution=True
        )
        processor = CLIPSegProcessor(
            ViTImageProcessor(size={"height": 352, "width": 352}, image_mean=[0.485, 0.456, 0.406]),
            seeker.processor.tokenizer,
        )
        seeker = ClipSeg(CLIPSegForImageSegmentation(config).eval().to(device), processor, device)
    count = 2 if small else 16
    pictures, texts = [picture(i) for i in range(count)], [[f"a red ball {i}"] for i in range(count)]

    def ours(dtype: torch.dtype) -> Run:
        seeker.model.to(dtype)
        return partial(find_heatmaps, seeker, pictures, texts)

    def bare(dtype: torch.dtype) -> Run:
        seeker.model.to(dtype)
        side = seeker.model.config.vision_config.image_size
        tokens = seeker.processor.tokenizer([text for (text,) in texts], padding=True, return_tensors="pt").to(device)
        pixels = noise(device, dtype, count, 3, side, side)
        return inference(
            lambda: seeker.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
        )

    return Step("CLIPSeg rd64, a text a picture", count, ours, bare)


def segmenter_step(device: str, *, small: bool) -> Step:
    """Mask2Former Swin-L at 384 pixels."""
    if small:
        segmenter = load_segmenter(SAMPLE / "segmenter")
    else:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = SwinConfig(
            image_size=384, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12,
            out_features=stages,
        )  # fmt: skip
        config = Mask2FormerConfig(backbone_config=backbone, num_queries=200, num_labels=133)
        model = Mask2FormerForUniversalSegmentation(config).eval().to(device)
        segmenter = Segmenter(
            model, Mask2FormerImageProcessor(size={"height": 384, "width": 384}), device, frozenset(range(80, 133))
        )
    count = 2 if small else 32
    pictures = [picture(i) for i in range(count)]

    def ours(dtype: torch.dtype) -> Run:
        segmenter.model.to(dtype)
        return partial(segment_images, segmenter, pictures)

    def bare(dtype: torch.dtype) -> Run:
        segmenter.model.to(dtype)
        pixels = noise(device, dtype, min(count, 8), 3, *((96, 128) if small else (384, 384)))
        return inference(lambda: [segmenter.model(pixel_values=pixels) for _ in range(count // len(pixels))])

    return Step("Mask2Former Swin-L, 384 px", count, ours, bare)


def sam_steps(device: str, *, small: bool) -> Iterator[Step]:
    """SAM ViT-H: five boxes a picture, and automatic masks of a grid of prompts."""
    sam = load_sam(SAMPLE / "sam") if small else sam_model_registry["vit_h"]().eval().to(device)
    count, points = (1, 2) if small else (8, 32)
    pictures = [picture(i) for i in range(count)]

    def cast(dtype: torch.dtype) -> None:
        for part in (sam.image_encoder, sam.mask_decoder):
            part.to(dtype)

    def ours(dtype: torch.dtype) -> Run:
        cast(dtype)
        return partial(segment_boxes, sam, pictures, [BOXES] * count)

    def bare(dtype: torch.dtype) -> Run:
        cast(dtype)
        return bare_sam(sam, device, dtype, count, len(BOXES))

    yield Step("SAM ViT-H, 5 boxes a picture", count, ours, bare)

    def everything(dtype: torch.dtype, settings: Everything) -> Run:
        cast(dtype)
        return partial(segment_everything, sam, pictures[:1], settings)

    def bare_everything(dtype: torch.dtype) -> Run:
        cast(dtype)
        return bare_sam(sam, device, dtype, 1, points**2)

    for name, settings in (
        ("SAM's automatic masks, all filtered", Everything(points, 1.0, 1.0)),
        ("SAM's automatic masks, none filtered", Everything(points, 0.0, 0.0)),
    ):
        yield Step(name, 1, partial(everything, settings=settings), bare_everything)


def bare_sam(sam: Sam, device: str, dtype: torch.dtype, count: int, prompts: int) -> Run:
    """Embed `count` pictures, and decode `prompts` of each, 64 or less at a time."""
    side = sam.image_encoder.img_size
    pixels = noise(device, dtype, count, 3, side, side)
    at_once = min(prompts, 64)
    corners = torch.tensor([[0.1, 0.1, 0.6, 0.7]], device=device).repeat(at_once, 1) * side

    def run() -> list[Any]:
        decoded = []
        for embedding in sam.image_encoder(pixels).split(1):
            sparse, dense = sam.prompt_encoder(None, corners, None)
            decoded += [
                sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.prompt_encoder.get_dense_pe().to(dtype),
                    sparse_prompt_embeddings=sparse.to(dtype),
                    dense_prompt_embeddings=dense.to(dtype),
                    multimask_output=prompts > len(BOXES),
                )
                for _ in range(prompts // at_once)
            ]
        return decoded

    return inference(run)


def detector_step(device: str, *, small: bool) -> Step:
    """Grounding DINO Swin-B at 800 pixels."""
    size = 64 if small else 384
    backbone = SwinConfig(
        image_size=size,
        embed_dim=8 if small else 128,
        depths=[1, 1, 1, 1] if small else [2, 2, 18, 2],
        num_heads=[1, 1, 2, 2] if small else [4, 8, 16, 32],
        window_size=4 if small else 12,
        out_features=["stage2", "stage3", "stage4"],
    )
    words = BertConfig()
    shape: dict[str, Any] = {}
    if small:
        words = BertConfig(
            vocab_size=1200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        shape = {
            "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 20,
        }  # fmt: skip
    config = GroundingDinoConfig(backbone_config=backbone, text_config=words, **shape)
    model = GroundingDinoForObjectDetection(config).eval().to(device)
    processor = ImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}) if small else ImageProcessor()
    tokenizer = bert_tokenizer()
    count = 2 if small else 4
    pictures, phrases = [picture(i) for i in range(count)], [["a red ball", "the dog"]] * count

    def ours(dtype: torch.dtype) -> Run:
        model.to(torch.float32)
        return partial(detect_phrases, Detector(model, processor, tokenizer, device, dtype), pictures, phrases)

    def bare(dtype: torch.dtype) -> Run:
        model.to(dtype)
        tokens = tokenizer(["a red ball . the dog ."] * count, return_tensors="pt").to(device)
        pixels = noise(device, dtype, count, 3, *((64, 85) if small else (800, 1066)))
        return inference(lambda: model(pixel_values=pixels, **tokens))

    return Step("Grounding DINO Swin-B", count, ours, bare)


def bert_tokenizer() -> BertTokenizerFast:
    """A tokenizer of a few words, with BERT's numbers for what the model looks for in its texts."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words = [special.get(i, f"[unused{i}]") for i in range(1200)]
    words[200 : 200 + len(WORDS)] = WORDS
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        tokenizer: BertTokenizerFast = BertTokenizerFast.from_pretrained(folder, do_lower_case=True)
    return tokenizer


def steps(device: str, *, small: bool) -> Iterator[Step]:
    """Yield the handlers; each model is built when its turn comes, and goes before the next one."""
    yield clip_step(device, small=small)
    yield clipseg_step(device, small=small)
    yield segmenter_step(device, small=small)
    yield from sam_steps(device, small=small)
    yield detector_step(device, small=small)


def rate(run: Run, count: int, device: str, threads: int = 1, seconds: float = 3.0) -> float:
    """Return how many pictures a second `threads` threads get through, each of them calling `run` again and again.

    With 0 `seconds` each calls it once, and nothing is warmed up.
    """
    if seconds:
        run()
    wait_for(device)

    def repeat(until: float) -> int:
        calls = 0
        while time.perf_counter() < until or not calls:
            run()
            calls += 1
        return calls

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        calls = sum(pool.map(repeat, [started + seconds] * threads))
    wait_for(device)
    return calls * count / (time.perf_counter() - started)


def wait_for(device: str) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: str, *, small: bool, threads: Sequence[int], seconds: float) -> Iterator[Row]:
    """Measure every handler, beside its model."""
    torch.manual_seed(0)
    yield Row("device", torch.cuda.get_device_name(device) if device.startswith("cuda") else device)
    for step in steps(device, small=small):
        bare = {}
        for dtype in (torch.float32, torch.bfloat16):
            run = step.bare(dtype)
            bare[dtype] = rate(run, step.count, device, seconds=seconds)
        run = step.ours(torch.bfloat16)
        ours = {number: rate(run, step.count, device, number, seconds) for number in threads}
        best = bare[torch.bfloat16]
        yield Row(
            f"{step.name}, {step.count} a call",
            f"{max(ours.values()) / best:.2f} of bare bf16",
            f"{', '.join(f'{value:.4g}/s in {number} threads' for number, value in ours.items())}; "
            f"bare bf16 {best:.4g}/s, bare fp32 {bare[torch.float32]:.4g}/s",
        )


def main(
    device: Annotated[str, typer.Option(help="torch's name of the device.")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="Take the sample models, to try the command out.")] = False,
    threads: Annotated[str, typer.Option(help="Numbers of threads that share a model.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 3.0,
    write: Write = False,
) -> None:
    """Measure how much of the models' own speed a build reaches."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here; --device cpu --small tries the command out")
    numbers = [int(number) for number in threads.split(",")]
    report("gpu", __doc__ or "", list(measure(device, small=small, threads=numbers, seconds=seconds)), write=write)


if __name__ == "__main__":
    typer.run(main)
