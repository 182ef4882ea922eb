"""Structured log lines on standard error, as text or JSON."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from multigrain.text import printable
from multigrain_server.config import LogConfig

_GRPC = "grpc._cython.cygrpc"
_DISCONNECT = "ExecuteBatchError raised in core"


def setup_logging(config: LogConfig, stream: TextIO | None = None) -> None:
    """Formats the log lines of the whole process, including those of libraries.

    Fields bound with ``structlog.contextvars`` (``request_id``, ``job_id``) are in every line.

    Args:
        config: format and level.
        stream: where to write; None = standard error.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: list[Processor] = (
        [structlog.processors.JSONRenderer(default=str)]
        if config.format == "json"
        else [_escape, structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = _LogHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config.level.upper())
    logging.captureWarnings(True)
    logging.getLogger(_GRPC).addFilter(_is_no_disconnect)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _is_no_disconnect(record: logging.LogRecord) -> bool:
    """False for the traceback that gRPC logs when a client leaves while a response is written.

    Any client could fill the log with them. The call has its own line.
    """
    return not str(record.msg).startswith(_DISCONNECT)


class _LogHandler(logging.StreamHandler[TextIO]):
    """Drops lines that cannot be written, as on a full disk, and goes on with the next one."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # Python's own method prints a traceback to the same log, which fails too or follows later.
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escapes all strings: a file name or a header could forge lines or control a terminal.

    Tracebacks keep their lines, indented so that they cannot pass for log lines.
    """
    return {
        key: _indented(value) if key == "exception" else printable(value)
        for key, value in event.items()
        if isinstance(value, str)
    } | {key: value for key, value in event.items() if not isinstance(value, str)}


def _indented(trace: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in trace.split("\n"))
