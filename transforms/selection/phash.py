"""How a picture looks, in 64 bits: its perceptual hash, by which near-identical pictures are found.

The picture is shrunk to 32 x 32 grey values and taken apart into cosines (DCT); of the 8 x 8 lowest frequencies each is
one bit: whether it is above their median. Another size, another JPEG quality or a little more light leave most bits as
they are. The method is pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions") in the
form that the library ImageHash gave it, whose bits these are.
"""

from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from schemas.example import Example
from transforms.batch import Batch, advance, each

STAGE = "look"
SIDE, LOW = 32, 8
"""Pixels of the shrunk picture's side, and frequencies kept along each axis."""


def look_of(image: NDArray[np.uint8]) -> int:
    """Return the look of a picture, [H, W, 3] uint8 RGB: 64 bits, row by row of its low frequencies, highest bit first.

    A picture of one colour has one look, whichever the colour, black apart.
    """
    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    # Rounded: a frequency that is not there must not be a bit that the last digits decide.
    low = dctn(np.asarray(grey, np.float64))[:LOW, :LOW].round(6)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def hamming(a: int, b: int) -> int:
    """Count the bits in which two looks differ."""
    return (a ^ b).bit_count()


def add_look(example: Example) -> Example:
    """Fill the example's `look`."""
    return replace(example, look=look_of(example.pixels()))


@dataclass(eq=False)
class TakeLooks(beam.PTransform):
    """Fill `look`: PCollection[Batch] -> PCollection[Batch]."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        """Look at each picture by itself."""
        return batches | "look" >> beam.Map(self._look)

    def _look(self, batch: Batch) -> Batch:
        return advance(batch, STAGE, each(add_look))
