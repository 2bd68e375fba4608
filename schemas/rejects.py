"""Why a record was left out: a closed list of reasons, and the record that carries one."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every reason for which a record can be rejected. Each is produced by at least one test."""

    # The picture
    MISSING_IMAGE = "missing-image"
    EMPTY_IMAGE = "empty-image"
    UNDECODABLE_IMAGE = "undecodable-image"
    ANIMATED_IMAGE = "animated-image"
    HUGE_IMAGE = "huge-image"
    # The caption
    MISSING_CAPTION = "missing-caption"
    EMPTY_CAPTION = "empty-caption"
    UNDECODABLE_CAPTION = "undecodable-caption"
    LONG_CAPTION = "long-caption"
    # The source
    DUPLICATE_KEY = "duplicate-key"
    TRUNCATED_ARCHIVE = "truncated-archive"
    UNREADABLE_FILE = "unreadable-file"
    HUGE_FILE = "huge-file"
    OUTSIDE_LINK = "outside-link"
    READ_FAILED = "read-failed"
    MISMATCHED_ANNOTATION = "mismatched-annotation"
    # The recipe
    NO_PHRASE = "no-phrase"
    NO_SEGMENT = "no-segment"
    NO_MATCH = "no-match"
    SMALL_IMAGE = "small-image"
    NO_SUBJECT = "no-subject"
    MANY_SUBJECTS = "many-subjects"
    SMALL_SUBJECT = "small-subject"
    LARGE_SUBJECT = "large-subject"
    PERSON_SUBJECT = "person-subject"
    SCATTERED_SUBJECT = "scattered-subject"
    CUT_SUBJECT = "cut-subject"
    OFF_CENTER_SUBJECT = "off-center-subject"
    UNSURE_SUBJECT = "unsure-subject"
    NO_BACKGROUND = "no-background"
    FEW_OBJECTS = "few-objects"
    LOW_SCORE = "low-score"
    OBJECT_ASPECT = "object-aspect"
    UNFILLED_BOX = "unfilled-box"
    SPILLED_MASK = "spilled-mask"
    CROWDED_BOX = "crowded-box"
    OVERLAPPING_OBJECTS = "overlapping-objects"
    LOW_QUALITY = "low-quality"
    GATED_PICTURE = "gated-picture"
    GATED_SUBJECTS = "gated-subjects"
    NEAR_DUPLICATE = "near-duplicate"
    BELOW_CUT = "below-cut"
    NO_PARTNER = "no-partner"
    MISSING_MAP = "missing-map"
    INVALID_MAP = "invalid-map"
    FLAT_MAP = "flat-map"
    NO_PERSON = "no-person"
    # A person's choice, in a dataset made from another one
    FILTERED_OUT = "filtered-out"
    EXCLUDED = "excluded"
    NOT_SAMPLED = "not-sampled"
    # The run
    OUT_OF_MEMORY = "out-of-memory"
    KILLED_WORKER = "killed-worker"
    STEP_FAILED = "step-failed"


PASSING = frozenset({Reason.READ_FAILED})
"""Reasons that lie in the world, and not in the record: a disk, a server or the network failed. A shard with such a
reject is not finished, and `--resume` reads it again.

All other reasons are the record's own, and final: the same source gives the same reject, on any day. Three of them
deserve a word. `unreadable-file` is what is wrong when the source is listed (a broken link, a named pipe, no
permission) or with the content of a file (no tar, no Parquet); a plain file that was listed and cannot be read is
`read-failed`. `out-of-memory` is a record that did not fit by itself, in a batch of one. `killed-worker` is a record on
which two processes died, the second while it worked on this record alone.
"""


@dataclass(frozen=True)
class Reject:
    """A record that was read and not written.

    `stage` is the step that refused it, `detail` one line for people.
    """

    key: str
    source: str
    stage: str
    reason: Reason
    detail: str
