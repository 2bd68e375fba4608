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
"""Pictures that are segmented at a time."""

Picture = NDArray[np.uint8]
"""[H, W, 3] uint8 RGB."""


@dataclass(frozen=True)
class Judges:
    """The models that measure; `dino` is None where there is none."""

    clip: Clip
    segmenter: Segmenter
    dino: Dino | None = None


@dataclass(frozen=True)
class Judged:
    """A picture, and what it is compared with.

    Attributes:
        group: pictures of one group are not independent of each other: the bootstrap draws whole groups.
        picture: the picture.
        text: what it should show; "" for nothing.
        real: real pictures that it should be like.
        subjects: in each of `real`, the masks of its subjects, as many as the picture should show; none for a picture
            of no subjects.
    """

    group: str
    picture: Picture
    text: str
    real: Sequence[Picture]
    subjects: Sequence[Sequence[Mask]]


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
    pictures = [item.picture for item in items]
    real, counts = [picture for item in items for picture in item.real], [len(item.real) for item in items]
    subjects = embed_subjects(judges.clip, items)
    things = (
        embed_things(judges, pictures) if any(map(any_rows, subjects)) else [np.zeros((0, 0), np.float32)] * len(items)
    )
    embedded = embed_images(judges.clip, pictures)
    texts = embed_texts(judges.clip, [item.text for item in items])
    likeness = (embedded * texts).sum(1).astype(np.float64)
    likeness[[not item.text for item in items]] = np.nan
    values = {
        "identity": np.array([mean_of(identity, own, found) for own, found in zip(subjects, things, strict=True)]),
        "identity-others": np.array(
            [mean_of(identity_of_others, own, found) for own, found in zip(subjects, things, strict=True)]
        ),
        "clip-i": mean_cosines(embedded, embed_images(judges.clip, real), counts),
        "clip-t": likeness,
    }
    if judges.dino:
        values["dino"] = mean_cosines(embed_pictures(judges.dino, pictures), embed_pictures(judges.dino, real), counts)
    return values


def any_rows(embeddings: Sequence[NDArray[np.float32]]) -> bool:
    """Whether one of several arrays has a row."""
    return any(map(len, embeddings))


def embed_subjects(clip: Clip, items: Sequence[Judged]) -> list[list[NDArray[np.float32]]]:
    """Embed the cut-out subjects of each item's real pictures: [M, D] for each of them."""
    shown = [(picture, masks) for item in items for picture, masks in zip(item.real, item.subjects, strict=True)]
    embedded = iter(embed_segments(clip, [picture for picture, _ in shown], [masks for _, masks in shown]))
    return [[np.array([next(embedded) for _ in masks]) for masks in item.subjects] for item in items]


def embed_things(judges: Judges, pictures: Sequence[Picture]) -> list[NDArray[np.float32]]:
    """Embed the things that the segmenter finds in each picture, cut out: [N, D] for each."""
    masks: list[list[Mask]] = []
    for first in range(0, len(pictures), AT_ONCE):
        found = segment_images(judges.segmenter, pictures[first : first + AT_ONCE])
        masks += [[segment.mask for segment in row if segment.is_thing and segment.area] for row in found]
    embedded = iter(embed_segments(judges.clip, pictures, masks))
    return [np.array([next(embedded) for _ in row]) for row in masks]


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


def mean_cosines(
    pictures: NDArray[np.float32], real: NDArray[np.float32], counts: Sequence[int]
) -> NDArray[np.float64]:
    """Mean cosine of each of N pictures [N, D] with its own `counts` of the rows of `real` [K, D]: [N]."""
    ends = np.cumsum(counts)
    parts = [real[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return np.array([float((part @ row).mean()) for row, part in zip(pictures, parts, strict=True)])


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
