import sys
from pathlib import Path

import pytest

from benchmarks.startup import cases, processor_seconds


def test_processor_time_is_that_of_the_child_without_waiting() -> None:
    idle = processor_seconds((sys.executable, "-c", "import time; time.sleep(0.5)"))
    busy = processor_seconds((sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"))
    assert idle < 0.4 < busy < 2


def test_an_unexpected_exit_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: oh"):
        processor_seconds((sys.executable, "-c", "import sys; print('oh', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(RuntimeError, match=r"ended with 0"):
        processor_seconds((sys.executable, "-c", ""), fails=True)


def test_every_case_has_a_bound_and_writes_into_its_folder(tmp_path: Path) -> None:
    listed = cases(tmp_path)
    assert {case.bound for case in listed} <= {0.5, 3.0}
    outputs = [case.arguments[case.arguments.index("--output") + 1] for case in listed if "--output" in case.arguments]
    assert all(Path(output).is_relative_to(tmp_path) for output in outputs)
