"""Files from elsewhere: what they must not make this program do. docs/security.md names a test for each."""

import ast
import json
import re
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from jobs.exports import export_dataset
from jobs.settings import read_config
from pipelines.recipe import BuildConfig
from schemas.errors import ConfigError, InputError
from schemas.rejects import PASSING, Reason
from schemas.shards import Sample, read_tar, write_tar
from tests.datasets import example, write_dataset
from tests.paths import ROOT

PACKAGES = ("schemas", "transforms", "pipelines", "training", "jobs", "subjectloom")


@pytest.mark.parametrize("key", ["../../evil", "/tmp/evil", "other", "", None, 7])
@pytest.mark.parametrize("form", ["fastcomposer", "coco"])
def test_a_key_in_a_dataset_from_elsewhere_names_no_file_outside(tmp_path: Path, form: str, key: object) -> None:
    write_dataset(tmp_path / "data", [[example("a"), example("b")]])
    path = tmp_path / "data" / "fastcomposer-000000.tar"
    with path.open("rb") as stream:
        samples = [sample for _, sample in read_tar(stream)]
    record = json.loads(samples[1].members["json"]) | {"key": key}
    samples[1] = Sample("b", {**samples[1].members, "json": json.dumps(record).encode()})
    with path.open("wb") as stream:
        write_tar(stream, samples)
    (tmp_path / "deep").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"fastcomposer-000000\.tar: the sample 'b' has the key "):
        export_dataset(form, str(tmp_path / "data"), tmp_path / "deep" / "export", {})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "text", ["seed: !!python/object/apply:os.system ['touch evil']", "!!python/name:os.system", "&a [*a, *a]"]
)
def test_a_config_file_makes_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_config(BuildConfig, tmp_path / "config.yaml", [])
    with pytest.raises(ConfigError):
        read_config(BuildConfig, None, [f"seed={text}"])
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def calls() -> list[tuple[str, ast.Call]]:
    """The calls in our packages, with the files that they are in."""
    return [
        (str(path.relative_to(ROOT)), node)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_unpickled_but_what_our_own_processes_send() -> None:
    # A parent and its child, through a pipe or a temporary folder; and a file whose digest is known.
    trusted = {"jobs/run.py", "jobs/likeness.py", "jobs/preview.py", "jobs/references.py", "transforms/spool.py"}
    for path, call in calls():
        name = ast.unparse(call.func)
        if name in ("pickle.load", "pickle.loads", "pickler.loads", "dill.load", "dill.loads"):
            assert path in trusted
        if name == "torch.load":
            assert "weights_only=True" in ast.unparse(call)
        if name == "np.load":
            assert "allow_pickle=True" not in ast.unparse(call)
        assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "marshal.loads")
        assert not name.endswith((".extract", ".extractall", ".unpack_archive"))  # of a tar, into the file system
        if name.startswith("subprocess."):
            assert "shell=True" not in ast.unparse(call)


def test_every_test_that_the_document_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", text)
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_every_reason_for_a_reject_is_final_or_passing_in_the_document() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.partition("## Reasons of rejects")[2].splitlines() if line[:3] == "| `"]
    retried = {name for row in rows if "again" in row[3] for name in re.findall(r"`([a-z-]+)`", row[1])}
    final = {name for row in rows if "keeps" in row[3] for name in re.findall(r"`([a-z-]+)`", row[1])}
    assert retried == set(PASSING)
    assert final < set(Reason) - PASSING
    gates = list(Reason)[list(Reason).index(Reason.NO_PHRASE) : list(Reason).index(Reason.OUT_OF_MEMORY)]
    assert final | {*gates} == set(Reason) - PASSING  # "all others" are the gates of the recipes


FOUND = [
    {"name": "a", "version": "1", "vulns": []},
    {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]},
    {"name": "c", "skip_reason": "unknown"},
]


@pytest.mark.parametrize(("found", "passes"), [(FOUND, False), (FOUND[::2], True), (None, True)])
def test_the_audit_fails_for_a_vulnerability_and_passes_without_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: object, passes: bool
) -> None:
    def answer(command: list[object], **_: object) -> subprocess.CompletedProcess[str]:
        if found is not None:
            Path(str(command[command.index("--output") + 1])).write_text(json.dumps({"dependencies": found}))
        return subprocess.CompletedProcess([], 1, "", "\nno network\n")

    spec = spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(subprocess, "run", answer)
    assert module.audit("pins.txt") is passes
    printed = capsys.readouterr().out
    assert ("CVE-1, mended in ['3']" in printed) is not passes
    assert ("SKIPPED 1 of" in printed) is (found is not None)
    assert ("SKIPPED the audit of pins.txt: no network" in printed) is (found is None)
