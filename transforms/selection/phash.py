"""Perceptual hashes, by which near-identical pictures are found.

The picture is shrunk to 32 x 32 grey values and transformed (DCT); of the 8 x 8 lowest frequencies, each gives one bit:
whether it is above their median. Another size, another JPEG quality or a little more light leave most bits unchanged.
The method is pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions") in the variant
of the library ImageHash, with the same bits.
"""

import hashlib
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from schemas.example import Example
from transforms.batch import Batch, each
from transforms.step import Step, map_batches

STAGE = "look"
"""The step's name in the seconds of `dataset.json`, where datasets already written have it."""

SIDE, LOW = 32, 8
"""Side of the shrunk picture in pixels, and number of frequencies kept along each axis."""


def phash_of(image: NDArray[np.uint8]) -> int:
    """Return the hash of a picture, [H, W, 3] uint8 RGB: 64 bits, row by row of the low frequencies, highest bit first.

    All pictures of a single colour have the same hash, except black ones.
    """
    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    # Rounded, so that for a frequency that is absent the bit does not depend on rounding errors.
    low = dctn(np.asarray(grey, np.float64))[:LOW, :LOW].round(6)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def exact_hash_of(image: bytes) -> int:
    """Return 64 bits of a hash of a picture's stored bytes: only the same bytes have the same one."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "big")


def add_phash(example: Example) -> Example:
    """Fill the example's `phash`."""
    return replace(example, phash=phash_of(example.pixels()))


@dataclass(eq=False)
class HashPictures(Step):
    """Fill `phash`: with a perceptual hash, or if `exact`, with one of the stored bytes."""

    exact: bool = False

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Hash each picture by itself."""
        if self.exact:
            return map_batches(batches, STAGE, each(lambda e: replace(e, phash=exact_hash_of(e.image))))
        return map_batches(batches, STAGE, each(add_phash))
