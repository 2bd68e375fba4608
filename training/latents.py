"""Latents that are kept on disk: the autoencoder is frozen, so that a picture need be encoded only once.

    FOLDER/FINGERPRINT/ab/ab34....latent

FINGERPRINT identifies the autoencoder's weights and configuration and the precision it runs in. The file's name is the
SHA-256 of the pixels that are encoded, as the view cropped, mirrored and scaled them: another crop, flip or size, or
another picture under the same key, has another name. A file holds mean and log-variance of the posterior, in the
type that the autoencoder returned them in, so that latents are drawn from it as if it had just been computed.

The loader looks latents up; the training process encodes what is missing and writes it. A file is complete or absent,
several processes may share a folder, and nothing is ever deleted: at the limit, nothing more is added.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

if TYPE_CHECKING:  # reading batches needs no diffusers
    from diffusers import AutoencoderKL

CHECKSUM = 4
"""Bytes of the checksum at the start of a file."""
GIGABYTE = 10**9

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LatentCache:
    """A folder of latents.

    Attributes:
        folder: of one autoencoder in one precision.
        room: bytes that this process may still add.
        report: called with a line if a file cannot be written, which is tried no more then.
    """

    folder: Path
    room: float
    report: Callable[[str], None] = field(default=logger.warning, repr=False)

    def read(self, name: str) -> Tensor | None:
        """Return the posterior's parameters [2C, h, w] of the picture `name`; None if they are missing or damaged."""
        try:
            content = self._path(name).read_bytes()
            if zlib.crc32(content[CHECKSUM:]).to_bytes(CHECKSUM, "big") != content[:CHECKSUM]:
                return None
            return load(content[CHECKSUM:])["posterior"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, name: str, posterior: Tensor) -> None:
        """Keep the posterior's parameters [2C, h, w] of the picture `name`, if there is room."""
        if self.room <= 0:
            return
        path = self._path(name)
        content = save({"posterior": posterior.detach().cpu().contiguous()})
        aside = path.with_name(f".{name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(zlib.crc32(content).to_bytes(CHECKSUM, "big") + content)
            aside.replace(path)
        except OSError as error:
            self.room = 0
            self.report(f"latents are no longer kept in {self.folder}: {error}")
            return
        self.room -= CHECKSUM + len(content)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.latent"


def open_cache(
    folder: Path,
    vae: "AutoencoderKL",
    precision: str,
    gigabytes: float,
    processes: int = 1,
    report: Callable[[str], None] = logger.warning,
) -> LatentCache:
    """Open the latents of an autoencoder; its folder is created when the first of them is written.

    Args:
        folder: latents of several autoencoders.
        vae: the autoencoder.
        precision: describes everything besides that changes its outputs.
        gigabytes: 10^9 bytes that `folder` may hold at most.
        processes: that share what is left of it.
        report: called with a line if a file cannot be written.
    """
    used = sum(path.stat().st_size for path in folder.glob("*/*/*.latent"))
    return LatentCache(folder / fingerprint(vae, precision), (gigabytes * GIGABYTE - used) / processes, report)


def fingerprint(vae: "AutoencoderKL", precision: str) -> str:
    """Identify an autoencoder and the precision it runs in: 32 hexadecimal digits of a SHA-256."""
    settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps([precision, settings], sort_keys=True, default=str).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def name_of(pixels: Tensor) -> str:
    """Identify a picture [3, H, W] uint8 by the SHA-256 of its size and pixels."""
    digest = hashlib.sha256(f"{list(pixels.shape)}\n".encode())
    digest.update(pixels.contiguous().numpy().data)
    return digest.hexdigest()


def look_up(cache: LatentCache, pixels: Tensor) -> dict[str, Any]:
    """Return what a batch of pictures [B, 3, H, W] uint8 holds besides: their names, and what is known of them."""
    names = [name_of(picture) for picture in pixels]
    return {"latent_names": names, "posteriors": [cache.read(name) for name in names]}


@torch.no_grad()
def complete(cache: LatentCache, batch: dict[str, Any], encode: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Encode the pictures of a batch that `look_up` did not find, and keep them.

    Args:
        cache: where they are kept.
        batch: on its device, with the entries of `look_up`.
        encode: encodes pictures [N, 3, H, W] as the parameters of their posteriors, [N, 2C, h, w].

    Returns:
        The batch with `posterior` [B, 2C, h, w] in place of these entries.
    """
    pixels = batch["pixel_values"]
    found = [None if known is None else known.to(pixels.device, non_blocking=True) for known in batch["posteriors"]]
    missing = [number for number, known in enumerate(found) if known is None]
    if missing:
        for number, encoded in zip(missing, encode(pixels[missing]), strict=True):
            cache.write(batch["latent_names"][number], encoded)
            found[number] = encoded
    rest = {name: value for name, value in batch.items() if name not in ("latent_names", "posteriors")}
    return {**rest, "posterior": torch.stack([known for known in found if known is not None])}
