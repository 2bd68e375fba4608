import gc
import pickle
from pathlib import Path

import pytest

from schemas.errors import SubjectloomError
from transforms.spool import Shelf, Shelved, Sorted


def test_more_values_than_fit_into_memory_are_sorted_and_equal_ones_keep_their_order() -> None:
    values = [(i * i % 23, i) for i in range(500)]
    ordered = Sorted(iter(values), key=lambda pair: pair[0], in_memory=7)
    assert not ordered.is_in_memory
    assert len(ordered) == 500
    again = iter(ordered)
    first = next(again)
    assert [first, *again] == list(ordered) == sorted(values, key=lambda pair: pair[0])


def test_the_files_stay_while_somebody_reads() -> None:
    reading = iter(Sorted(range(20), key=lambda value: -value, in_memory=3))
    assert next(reading) == 19
    gc.collect()
    assert list(reading) == [*range(18, -1, -1)]


def test_few_values_need_no_file() -> None:
    ordered = Sorted([3, 1, 2], key=lambda value: value, in_memory=3)
    assert ordered.is_in_memory
    assert list(ordered) == [1, 2, 3]


def test_a_shelf_gives_back_what_was_put_and_is_removed_after_its_last_user() -> None:
    shelf = Shelf[str]()
    stored = [shelf.put(("a", "b")), shelf.put(()), shelf.put(("c",))]
    shelf.close()
    del shelf
    assert [list(values) for values in stored] == [["a", "b"], [], ["c"]]
    assert (len(stored[0]), stored[0][1]) == (2, "b")
    travelled: Shelved[str] = pickle.loads(pickle.dumps(stored[0]))
    assert travelled == stored[0]
    assert list(travelled) == ["a", "b"]
    path = Path(stored[0].path)
    assert path.exists()
    del stored
    gc.collect()
    assert not path.parent.exists()


def test_a_list_that_others_changed_is_refused(tmp_path: Path) -> None:
    shelf = Shelf[str]()
    shelved = shelf.put(["a", "b"])
    shelf.close()
    copy = tmp_path / "plan"
    copy.write_bytes(shelf.path.read_bytes())
    assert list(shelved.at(str(copy))) == ["a", "b"]
    copy.write_bytes(shelf.path.read_bytes().replace(b"b", b"c"))
    with pytest.raises(SubjectloomError, match=f"^{copy} was changed while the build ran: run it again"):
        list(shelved.at(str(copy)))
