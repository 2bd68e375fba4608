"""What pictures are measured by: identity, CLIP-I, CLIP-T, DINO, and the confidence intervals of their means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.masks import Mask
from transforms.models.clip import Clip, embed_images, embed_segments, embed_texts
from transforms.models.dino import Dino, embed_pictures
from transforms.models.segmenter import Segmenter, segment_images
from transforms.regions.match import greedy_match

RESAMPLES = 2000
"""Bootstrap resamples, for the confidence intervals."""
AT_ONCE = 16
"""Pictures that are measured at a time."""

Picture = NDArray[np.uint8]
"""[H, W, 3] uint8 RGB."""


@dataclass(frozen=True)
class Judges:
    """The models that measure; `dino` is None where there is none."""

    clip: Clip
    segmenter: Segmenter
    dino: Dino | None = None


@dataclass(frozen=True, eq=False)
class Real:
    """Real pictures of the same subjects, which several drawn pictures may be compared with.

    Attributes:
        pictures: K of them.
        subjects: in each, the masks of its M subjects; M may be 0.
    """

    pictures: Sequence[Picture]
    subjects: Sequence[Sequence[Mask]]


@dataclass(frozen=True)
class Judged:
    """A picture, and what it is compared with.

    Attributes:
        group: pictures of one group are not independent of each other: the bootstrap draws whole groups.
        picture: the picture.
        text: what it should show; "" for nothing.
        real: what it should be like. It should show as many subjects.
    """

    group: str
    picture: Picture
    text: str
    real: Real


@dataclass(frozen=True)
class Embedded:
    """Embeddings of K real pictures, unit rows: of their subjects [M, D] each, and of the whole pictures [K, D]."""

    subjects: Sequence[NDArray[np.float32]]
    clip: NDArray[np.float32]
    dino: NDArray[np.float32] | None


@dataclass(frozen=True)
class Score:
    """A measure of some pictures.

    Attributes:
        measure: its name.
        pictures: which ones, as "drawn".
        mean: over the pictures.
        low: lower end of the mean's 95 % confidence interval.
        high: its upper end.
    """

    measure: str
    pictures: str
    mean: float
    low: float
    high: float


def measure(judges: Judges, items: Sequence[Judged]) -> dict[str, NDArray[np.float64]]:
    """Measure N pictures: values [N] by the measure's name, NaN where a picture has none."""
    embedded = {real: embed_real(judges, real) for real in dict.fromkeys(item.real for item in items)}
    parts = [measure_part(judges, items[first : first + AT_ONCE], embedded) for first in range(0, len(items), AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def embed_real(judges: Judges, real: Real) -> Embedded:
    """Embed real pictures, and their subjects, cut out."""
    rows = iter(embed_segments(judges.clip, real.pictures, real.subjects))
    subjects = [np.array([next(rows) for _ in masks]) for masks in real.subjects]
    dino = embed_pictures(judges.dino, real.pictures) if judges.dino else None
    return Embedded(subjects, embed_images(judges.clip, real.pictures), dino)


def measure_part(
    judges: Judges, items: Sequence[Judged], embedded: Mapping[Real, Embedded]
) -> dict[str, NDArray[np.float64]]:
    """Measure a few pictures together; see `measure`."""
    pictures, reals = [item.picture for item in items], [embedded[item.real] for item in items]
    things, rows = embed_things(judges, pictures), embed_images(judges.clip, pictures)
    likeness = (rows * embed_texts(judges.clip, [item.text for item in items])).sum(1).astype(np.float64)
    pairs = list(zip([real.subjects for real in reals], things, strict=True))
    values = {
        "identity": np.array([mean_of(identity, *pair) for pair in pairs]),
        "identity-others": np.array([mean_of(identity_of_others, *pair) for pair in pairs]),
        "clip-i": np.array([mean_cosine(row, real.clip) for row, real in zip(rows, reals, strict=True)]),
        "clip-t": np.where([bool(item.text) for item in items], likeness, np.nan),
    }
    if judges.dino:
        shown = zip(embed_pictures(judges.dino, pictures), reals, strict=True)
        values["dino"] = np.array([mean_cosine(row, real.dino) for row, real in shown if real.dino is not None])
    return values


def embed_things(judges: Judges, pictures: Sequence[Picture]) -> list[NDArray[np.float32]]:
    """Embed the things that the segmenter finds in each picture, cut out: [N, D] for each."""
    found = segment_images(judges.segmenter, pictures)
    masks = [[segment.mask for segment in row if segment.is_thing and segment.area] for row in found]
    rows = iter(embed_segments(judges.clip, pictures, masks))
    return [np.array([next(rows) for _ in row]) for row in masks]


def mean_of(
    score: Callable[[NDArray[np.float32], NDArray[np.float32]], float],
    alternatives: Sequence[NDArray[np.float32]],
    things: NDArray[np.float32],
) -> float:
    """Mean of `score` over alternative sets of subjects."""
    return float(np.mean([score(subjects, things) for subjects in alternatives])) if alternatives else float("nan")


def identity(references: NDArray[np.float32], things: NDArray[np.float32]) -> float:
    """The lowest cosine of references [M, D] with things [N, D], matched one to one, greedily; unit rows.

    It is 0 if there are fewer things than references, and NaN without references. FastComposer's multi-subject score
    (Xiao et al. 2023, section 5.1).
    """
    if not len(references):
        return float("nan")
    if len(things) < len(references):
        return 0.0
    return min(match.score for match in greedy_match(references @ things.T, -1.1))


def identity_of_others(references: NDArray[np.float32], things: NDArray[np.float32]) -> float:
    """Mean cosine of the things matched to references with the other references; NaN if there are no such pairs."""
    if len(references) < 2 or len(things) < len(references):
        return float("nan")
    cosines = references @ things.T
    matches = greedy_match(cosines, -1.1)
    return float(np.mean([np.delete(cosines[:, match.segment], match.phrase).mean() for match in matches]))


def mean_cosine(picture: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """Mean cosine of a picture [D] with real ones [K, D]; unit rows."""
    return float((real @ picture).mean())


def interval(values: NDArray[np.float64], groups: Sequence[str] | None = None) -> tuple[float, float, float]:
    """The mean of values [N], NaN left out, and its 95 % confidence interval by bootstrap over groups.

    Args:
        values: one of them at least is no NaN.
        groups: of each value; None: each is a group by itself.
    """
    known = ~np.isnan(values)
    names = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _, owner = np.unique(names[known], return_inverse=True)
    sums, sizes = np.bincount(owner, values[known]), np.bincount(owner)
    chosen = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(sums[chosen].sum(1) / sizes[chosen].sum(1), [2.5, 97.5])
    return float(values[known].mean()), float(low), float(high)


def scores_of(values: Mapping[str, NDArray[np.float64]], pictures: str, groups: Sequence[str]) -> list[Score]:
    """Summarize measures [N] of pictures of these groups; one that no picture has is left out."""
    known = {name: row for name, row in values.items() if not np.isnan(row).all()}
    return [Score(name, pictures, *interval(row, groups)) for name, row in known.items()]
