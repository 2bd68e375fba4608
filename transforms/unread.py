"""Shards that are not finished, because records of theirs could not be read for a cause that may pass.

Each has a note in the folder of the dataset until it is written:

    OUT/.subjectloom/unread-000003.json       {"count": 2, "first": "dog: pictures/dog.jpg: Input/output error"}
"""

import json
from collections.abc import Iterable

from schemas.dataset import RejectRow
from schemas.errors import OutageError
from schemas.rejects import PASSING
from transforms.dataset import STATE
from transforms.files import exists, join, read_file, remove_files, replace_file


def note_unread(output: str, shard: int, rejects: Iterable[RejectRow]) -> bool:
    """Note which of a shard's rejects may pass; return whether there are any. An earlier note is removed."""
    unread = [row for row in rejects if row.reason in PASSING]
    path = join(output, STATE, _name(shard))
    if unread:
        note = {"count": len(unread), "first": f"{unread[0].key}: {unread[0].detail}"}
        replace_file(path, json.dumps(note).encode())
    else:
        remove_files([path])
    return bool(unread)


def refuse_unread(output: str, shards: Iterable[int]) -> None:
    """Check that none of `shards` waits for records that could not be read.

    Raises:
        OutageError: there are some.
    """
    paths = [path for path in (join(output, STATE, _name(shard)) for shard in shards) if exists(path)]
    notes = [json.loads(read_file(path)) for path in paths]
    if notes:
        count = sum(note["count"] for note in notes)
        raise OutageError(
            f"{count} records could not be read, first {notes[0]['first']}; {len(notes)} shards with such records are "
            "not finished: --resume reads them again, and --resume --unread leave-out leaves out those that still fail"
        )


def _name(shard: int) -> str:
    return f"unread-{shard:06d}.json"
