"""What a Composer sample is: picture, caption, local maps (`schemas.samples.mapped`), CLIP embedding and colours.

KEY.embedding.npy      [D] float32, the picture's CLIP embedding, of length 1
KEY.json               a `Record`: also the picture's colours
"""

import io
from collections.abc import Iterator, Mapping
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from schemas.errors import RecordError
from schemas.example import Example
from schemas.rejects import Reason
from schemas.samples import mapped
from schemas.samples.base import Decoder, Pictures, SampleFormat

Share = Annotated[float, AfterValidator(lambda share: round(share, 6))]


class Record(mapped.Record):
    """The contents of `KEY.json`.

    `palette` holds the share of each of 180 colours, which add up to 1 (`transforms.maps.palette`). `embedding_size` is
    the length of the CLIP embedding.
    """

    palette: Annotated[list[Share], Field(min_length=1)]
    embedding_size: int

    @classmethod
    def from_example(cls, example: Example) -> Self:
        """Return the record of an example that went through the whole recipe.

        Raises:
            RecordError: FLAT_MAP, none of its maps shows anything.
        """
        assert example.palette is not None
        assert example.embedding is not None
        return cls(
            **cls.common_fields(example),
            **mapped.map_fields(example),
            palette=example.palette.tolist(),
            embedding_size=len(example.embedding),
        )

    def decoders(self) -> Mapping[str, Decoder]:
        """The maps; the embedding is a member of every sample, and checked."""
        return {**super().decoders(), "embedding.npy": self._check_embedding}

    def problems(self, pictures: Pictures) -> Iterator[str]:
        """Yield what is wrong with the maps, and with the sum of the palette."""
        yield from super().problems(pictures)
        if abs(sum(self.palette) - 1) > 1e-3:
            yield f"has a palette whose shares add up to {sum(self.palette):.4f}"

    def _check_embedding(self, content: bytes) -> None:
        embedding = decode_embedding(content)
        if embedding.shape != (self.embedding_size,):
            raise RecordError(
                Reason.UNDECODABLE_IMAGE, f"it has the shape {embedding.shape}, its JSON says {self.embedding_size}"
            )


def encode_embedding(embedding: NDArray[np.float32]) -> bytes:
    """Encode an embedding, [D] float32, as numpy's .npy."""
    stored = io.BytesIO()
    np.save(stored, embedding.astype("<f4"), allow_pickle=False)
    return stored.getvalue()


def decode_embedding(content: bytes) -> NDArray[np.float32]:
    """Decode a .npy of finite float32.

    Raises:
        RecordError: UNDECODABLE_IMAGE, it is none.
    """
    try:
        embedding: NDArray[np.float32] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RecordError(Reason.UNDECODABLE_IMAGE, f"it is no .npy: {error}") from error
    if embedding.dtype != np.float32 or not np.isfinite(embedding).all():
        raise RecordError(Reason.UNDECODABLE_IMAGE, f"it holds {embedding.dtype} or numbers that are not finite")
    return embedding


def _embedding(example: Example) -> bytes:
    assert example.embedding is not None
    return encode_embedding(example.embedding)


FORMAT = SampleFormat(
    recipe="composer",
    record=Record,
    members={"jpg": lambda example: example.image, "embedding.npy": _embedding},
    columns=mapped.COLUMNS,
    index_only=mapped.INDEX_ONLY,
    more=mapped.map_members,
)
