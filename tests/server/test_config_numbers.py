"""Numbers of the configuration are read by one rule, wherever they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from multigrain_server.config import ServerConfig
from multigrain_server.settings_sources import ConfigError, Option, options, parse

WHOLE, DECIMAL = "serving.queue_items", "serving.drain_seconds"
OPTION = {option.key: option for option in options()}
Given = Callable[[Option, str], ServerConfig]


@pytest.fixture(params=["file", "quoted in the file", "environment", "flag"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Given:
    """Reads one key that is given in one way."""

    def read(option: Option, text: str) -> ServerConfig:
        if request.param == "environment":
            return parse([], {option.variable: text}).config
        if request.param == "flag":
            return parse([f"{option.flag}={text}"], {}).config
        file = tmp_path / "config.yaml"
        section, key = option.path
        if request.param == "file":
            file.write_text(f"{section}:\n  {key}: {text}\n")
        else:
            file.write_text(yaml.safe_dump({section: {key: text}}, default_style='"'))
        return parse(["--config", str(file)], {}).config

    return read


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("+600", 600), ("1000000", 1_000_000)])
def test_whole_numbers_are_read(given: Given, text: str, value: int) -> None:
    assert given(OPTION[WHOLE], text).serving.queue_items == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5.0), ("0.25", 0.25), (".5", 0.5), ("5.", 5.0), ("1e-1", 0.1), ("2.5E+1", 25.0)],
)
def test_decimal_numbers_are_read(given: Given, text: str, value: float) -> None:
    assert given(OPTION[DECIMAL], text).serving.drain_seconds == value


@pytest.mark.parametrize("key", [WHOLE, DECIMAL])
@pytest.mark.parametrize(
    "text",
    ["1_000", "0x200", "0o17", "0b11", "0600", "00", "\uff16\uff10", "\u0666\u0660", "6\u00b2",
     "true", "1d3", "1,000", "inf", "nan", "infinity", "NaN", "6 00", "--6", "1e", "e3", ".",
     "1_0e1", "9" * 5000],
)  # fmt: skip
def test_other_forms_are_refused(given: Given, key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        given(OPTION[key], text)


@pytest.mark.parametrize("text", ["1e3", "1000.0", "64.5", "-1", "0", "1000001", "9" * 400])
def test_whole_numbers_are_digits_within_the_bounds(given: Given, text: str) -> None:
    with pytest.raises(ConfigError, match="queue_items"):
        given(OPTION[WHOLE], text)


@pytest.mark.parametrize("text", [" 600", "600 ", " 600 ", "\t600", "600\n", "\u00a0600", ""])
@pytest.mark.parametrize("key", [WHOLE, DECIMAL])
def test_spaces_are_refused_in_texts(key: str, text: str) -> None:
    option = OPTION[key]
    for arguments, environment in (([], {option.variable: text}), ([f"{option.flag}={text}"], {})):
        with pytest.raises(ConfigError, match="in plain digits") as caught:
            parse(arguments, environment)
        assert repr(text) in str(caught.value)


def test_every_number_of_the_configuration_is_read_by_the_rule() -> None:
    numbers = [option for option in options() if option.info.annotation in (int, float)]
    assert len(numbers) > 20
    for option in numbers:
        for text in ("1_0", " 10", "010", "true"):
            with pytest.raises(ConfigError, match="in plain digits"):
                parse([], {option.variable: text})


def test_every_whole_number_has_an_upper_bound() -> None:
    for option in options():
        if option.info.annotation is int:
            with pytest.raises(ConfigError, match="less than or equal to"):
                parse([], {option.variable: str(10**30)})


@pytest.mark.parametrize("empty", ["", " ~", " null", " {}", "\n  # queue_items: 5"])
def test_an_empty_section_has_the_defaults(tmp_path: Path, empty: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"serving:{empty}\nlog:{empty}\ndevices: cpu:2\n")
    config = parse(["--config", str(file)], {}).config
    assert config == parse(["--devices", "cpu:2"], {}).config
    changed = parse(["--config", str(file), "--serving-queue-items", "600"], {}).config
    assert changed.serving.queue_items == 600


@pytest.mark.parametrize("wrong", ["5", "text", "[]", "true"])
def test_a_section_that_is_no_section_is_refused(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"serving: {wrong}\n")
    with pytest.raises(ConfigError, match="serving must contain keys and values"):
        parse(["--config", str(file)], {})
