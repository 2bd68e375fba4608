"""Configs read from the command line, a file and a preset."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from jobs.settings import expand_field_options, read_config
from schemas.errors import ConfigError
from schemas.strict import StrictModel


class Config(StrictModel):
    count: int = Field(default=3, ge=1)
    share: float | None = None
    mode: Literal["no", "bf16"] = "no"
    scale: tuple[float, float] = (1.0, 1.0)
    names: tuple[str, ...] = ()
    folder: str = ""
    expand: bool = Field(default=True, json_schema_extra={"negative": "keep"})
    move: bool = False


FIELDS = Config.model_fields
OPTIONS = ("--input", "--limit")


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("count=7", "count", 7),
        ("share=0.25", "share", 0.25),
        ("share=none", "share", None),
        ("mode=no", "mode", "no"),  # YAML would read it as false
        ("scale=[0.5, 2]", "scale", (0.5, 2.0)),
        ("names=[a, b]", "names", ("a", "b")),
        ("folder=a=b", "folder", "a=b"),
        ("folder=5", "folder", "5"),
        ("folder=", "folder", ""),
        ("expand=false", "expand", False),
        ("move=true", "move", True),
    ],
)
def test_a_setting_is_read_as_the_type_of_its_field(setting: str, field: str, value: object) -> None:
    assert getattr(read_config(Config, None, [setting]), field) == value


def test_the_command_line_goes_before_the_file_and_the_file_before_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("count: 5\nshare: 0.5\n")
    config = read_config(Config, path, ["count=6", "count=7"], {"count": 4, "share": 0.4, "folder": "preset"})
    assert (config.count, config.share, config.folder, config.mode) == (7, 0.5, "preset", "no")


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        (["count=0"], "", "the command line: --count = '0': Input should be greater than or equal to 1"),
        ([], "count: many\n", "c.yaml: count = 'many'"),
        (["cuont=4"], "", "the config has no field 'cuont', did you mean 'count'"),
        (["count=0", "share=x"], "", "--share = 'x'"),
        (["count"], "", "--set count: write FIELD=VALUE"),
        ([], "- a\n", "must hold one `field: value` on each line"),
        ([], "a: [\n", "c.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_origin(tmp_path: Path, settings: list[str], text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_config(Config, path, settings)
    assert message in str(raised.value)


def test_several_wrong_fields_are_all_named() -> None:
    with pytest.raises(ConfigError) as raised:
        read_config(Config, None, ["count=0", "share=x", "nothing=1"])
    assert all(name in str(raised.value) for name in ("--count", "--share", "'nothing'"))


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        (["--count", "5", "r"], ["--set", "count=5", "r"]),
        (["r", "--count=5", "--input", "x"], ["r", "--set", "count=5", "--input", "x"]),
        (["--share", "-1"], ["--set", "share=-1"]),
        (["--move"], ["--set", "move=true"]),
        (["--move", "--input", "x"], ["--set", "move=true", "--input", "x"]),
        (["--no-move"], ["--set", "move=false"]),
        (["--keep"], ["--set", "expand=false"]),
        (["--input=--count", "--limit", "3"], ["--input=--count", "--limit", "3"]),
    ],
)
def test_options_named_after_fields_become_settings(arguments: list[str], expanded: list[str]) -> None:
    assert expand_field_options(arguments, OPTIONS, FIELDS) == expanded


def test_an_option_that_is_no_field_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="No such option: --conut, did you mean '--count'"):
        expand_field_options(["--conut", "5"], OPTIONS, FIELDS)
    with pytest.raises(ConfigError, match="No such option: --imput, did you mean '--input'"):
        expand_field_options(["--imput", "x"], OPTIONS, FIELDS)
    assert expand_field_options(["--conut", "5"], OPTIONS) == ["--set", "conut=5"]
