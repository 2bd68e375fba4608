"""The training loop, for any model and its batches.

A run's folder holds

    RUN/config.json       the config, and where data and model came from
    RUN/metrics.jsonl     a line per step: losses, gradient norm, learning rate, samples per second
    RUN/tensorboard/      the same curves, and the sample pictures; only if tensorboard is installed
    RUN/samples/          pictures drawn for some samples, beside their own pictures and references
    RUN/skipped.txt       samples that could not be read, and why; absent if there are none
    RUN/checkpoints/      what a run is resumed from
    RUN/model/            the trained model (moving average of its weights), in Stable Diffusion's layout; if a LoRA is
                          trained, the U-Net has it merged in, and pytorch_lora_weights.safetensors is the LoRA alone

Everything random in a step is drawn from (seed, step, process), and the batches are a function of (seed, epoch): a
resumed run yields the same numbers as one that was never interrupted. Weights, their average, the optimizer's
moments and the scale of fp16's losses are the only state.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from schemas.errors import ConfigError, InputError
from schemas.machine import DEVICE
from training.checkpoint import CheckpointWriter
from training.config import RunConfig
from training.diffusion import Batch
from training.latents import LatentCache
from training.log import Log, Metrics, installed
from training.lora import has_lora, lora_merged, save_lora
from training.optimize import averaged
from training.resume import (
    check_run,
    defaults_of,
    describe_change,
    read_note,
    samples_per_step,
    samples_read,
    write_note,
)
from training.setup import set_up
from training.sharding import whole_weights
from training.trainer import Trainable, Trainer

Batches = Callable[[int], Iterator[Batch]]
"""Called with the number of samples that all processes have read so far; yields the next batches of this process,
without end."""

logger = logging.getLogger(__name__)


def train(  # noqa: C901, PLR0913 - a list of what happens in turn
    model: Trainable,
    batches: Batches,
    config: RunConfig,
    output: Path,
    *,
    resume: bool = False,
    show: Batch | None = None,
    held_out: Sequence[Batch] = (),
    latents: LatentCache | None = None,
    origin: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = logger.warning,
) -> Generator[Metrics]:
    """Train `model`, and yield the metrics of each step when it is done.

    Several processes may run it together (`torchrun`): each uses batches of its own, all yield the same metrics.

    Args:
        model: trained in place; at the start it is the same in every process.
        batches: where the data comes from.
        config: how to train.
        output: the run's folder.
        resume: continue from the newest checkpoint with moments; from the start if there is none.
        show: the samples that sample pictures are drawn for; None for no pictures.
        held_out: samples that are not trained on, in batches, the same in every process. Every `held_out_every` steps
            the metrics hold their mean loss as "held_out".
        latents: keeps the latents of the pictures that `batches` has not found in it.
        origin: further values that must be the same when the run is resumed, such as its data.
        report: called with a line about a picture that cannot be drawn, or if a resumed run reads another number of
            samples in a step.

    Raises:
        InputError: `output` holds a run and `resume` is false, or that run has another config or more steps; or it
            holds other files; or a checkpoint cannot be written.
        ConfigError: what the config asks for is not installed or not possible on this machine.
        ModelError: a loss is not finite: the message names the step, the samples and the last good checkpoint.
    """
    accelerator = new_accelerator(config)
    note = {"processes": accelerator.num_processes, **(origin or {}), **config.model_dump(mode="json")}
    installed(config.trackers)
    before = read_note(output)
    if accelerator.is_main_process:
        check_run(output, note, resume, defaults_of(config))
    accelerator.wait_for_everyone()
    set_up(model, config)
    trainer = Trainer.of(model, config, accelerator, latents)
    start = trainer.restore(output)
    if start > config.steps:
        raise InputError(f"{output} has finished {start} steps: it cannot be resumed with --steps {config.steps}")
    per_step = samples_per_step(before, start, accelerator.num_processes * config.batch * config.accumulation)
    stream = batches(samples_read(per_step, start))
    with contextlib.ExitStack() as stack:
        log = writer = None
        if accelerator.is_main_process:
            write_note(output, {**note, "samples_per_step": per_step})
            if change := describe_change(per_step, start, accelerator.num_processes):
                report(change)
            log = stack.enter_context(Log(output, start, config.trackers, note))
            writer = stack.enter_context(CheckpointWriter(output, config.keep))
        for step in range(start, config.steps):
            metrics = trainer.step(step, stream, output, writer)
            done = step + 1
            if held_out and _due(done, config.held_out_every, config):
                metrics["held_out"] = trainer.held_out_loss(held_out)
            if log:
                log.add(metrics)
            if _due(done, config.checkpoint_every, config):
                moments = _due(done, config.checkpoint_every * config.moments_every, config)
                trainer.save(writer, done, moments=moments)
            if show is not None and _due(done, config.sample_every, config):
                _draw(trainer, show, log, done, report)
            yield metrics
    with averaged(trainer.names, trainer.average), whole_weights(model):
        if accelerator.is_main_process:
            save_model(model, output / "model")
    accelerator.wait_for_everyone()


def _draw(trainer: Trainer, show: Batch, log: Log | None, done: int, report: Callable[[str], None]) -> None:
    try:
        picture = trainer.draw_samples(show)
        if log and picture is not None:
            log.add_picture(done, picture)
    except Exception as error:  # whatever it is, the run is worth more than a picture
        report(f"no sample pictures at step {done}: {' '.join(f'{error!r}'.split())}")


def _due(done: int, interval: int, config: RunConfig) -> bool:
    return done % interval == 0 or done == config.steps


def this_process() -> PartialState:
    """Join the other processes of a launch, and return this one's rank, device and so on."""
    # On a machine without an accelerator, several processes join only if accelerate is set to use the CPU.
    return PartialState(cpu=os.environ.get(DEVICE) == "cpu" or not torch.accelerator.is_available())


def new_accelerator(config: RunConfig) -> Accelerator:
    """Make what spreads a run over devices and processes.

    Raises:
        ConfigError: the device cannot compute in the config's precision.
    """
    on_cpu = this_process().device.type == "cpu"
    if on_cpu and config.precision == "fp16":
        raise ConfigError("precision fp16 needs a GPU: set precision to bf16, or to no")
    return Accelerator(mixed_precision=config.precision, cpu=on_cpu)


def save_model(model: Trainable, folder: Path) -> None:
    """Write a model to `folder`, in place of what is there; with a LoRA as RUN/model/ holds it."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with lora_merged(model):
        model.save(aside)
    if has_lora(model.unet):
        save_lora(model.unet, aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
