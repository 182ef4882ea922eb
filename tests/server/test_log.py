"""Log lines cannot be forged and carry their ids."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from multigrain_server.config import LogConfig
from multigrain_server.log import setup_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_control_characters_are_escaped_in_text() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(format="text"), stream)
    structlog.get_logger().info("name", file="a\nforged line\x1b[31m\u2028")
    logging.getLogger("library").warning("one\ntwo")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\\x0aforged" in lines[0]
    assert "\x1b" not in lines[0]


def test_tracebacks_cannot_forge_lines() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(format="text"), stream)
    try:
        raise ValueError("bad\n2026-01-01T00:00:00Z [info] forged\x1b[2J\r")
    except ValueError:
        structlog.get_logger().exception("call failed", number=3)
    first, *trace = stream.getvalue().rstrip("\n").split("\n")
    assert "call failed" in first
    assert "number=3" in first
    assert trace
    assert all(line.startswith("  ") for line in trace if line)
    assert not set("\x1b\r") & set(stream.getvalue())


def test_json_lines_carry_the_bound_ids() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(format="json"), stream)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("a\nb", job_id="j1")
        logging.getLogger("library").error("c %s", "d")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["request_id"], first["job_id"]) == ("a\nb", "r1", "j1")
    assert (second["event"], second["request_id"], second["level"]) == ("c d", "r1", "error")
    assert first["timestamp"].endswith("Z")


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(level="error"), stream)
    structlog.get_logger().warning("no")
    structlog.get_logger().error("yes")
    assert "yes" in stream.getvalue()
    assert "no\n" not in stream.getvalue()
