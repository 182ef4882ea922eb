"""Log lines cannot be forged and carry their ids."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from multigrain_server import main
from multigrain_server.config import LogConfig, ServerConfig
from multigrain_server.log import setup_logging


class Disk(io.RawIOBase):
    """A file on a disk that can be full."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        self.full = False

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


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
    logging.getLogger("library").warning("one\ntwo\u202e")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\\x0aforged" in lines[0]
    assert "\x1b" not in lines[0]
    assert "two\\u202e" in lines[1]


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


def test_a_client_that_leaves_during_a_response_causes_no_traceback() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(format="text"), stream)
    log = logging.getLogger("grpc._cython.cygrpc")
    log.exception("ExecuteBatchError raised in core by servicer method [%s]", "/s/m")
    log.error("another error of gRPC")
    assert stream.getvalue().count("\n") == 1
    assert "another error of gRPC" in stream.getvalue()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(level="error"), stream)
    structlog.get_logger().warning("no")
    structlog.get_logger().error("yes")
    assert "yes" in stream.getvalue()
    assert "no\n" not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_goes_on_after_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    disk = Disk(tmp_path / "log")
    stream = io.TextIOWrapper(io.BufferedWriter(disk), line_buffering=True)

    async def serve(_config: ServerConfig) -> None:
        log = structlog.get_logger()
        log.info("before")
        disk.full = True
        for _ in range(100):
            log.info("while full")
        disk.full = False
        log.info("after")
        print("of a library", file=sys.stderr)

    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr(sys, "stderr", stream)
    with stream:
        assert main.main(["--data-dir", str(tmp_path / "data"), "--log-format", form]) == 0
    written = (tmp_path / "log").read_text()
    lines = written.splitlines()
    assert "before" in lines[0]
    assert "after" in lines[-2]
    assert lines[-1] == "of a library"
    assert "Traceback" not in written
