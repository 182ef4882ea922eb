"""Where results of commands go: lines and tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from google.protobuf.message import Message

from multigrain_client.json_format import to_plain


class Output:
    """Standard output. Only what was asked for is written here; errors go to standard error."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        self.stream = stream
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """One line for people. With --json nothing."""
        if not self.as_json:
            print(text, file=self.stream, flush=True)

    def data(self, value: Message | Mapping[str, Any] | Sequence[Any]) -> None:
        """One JSON value on one line. Without --json nothing."""
        if self.as_json:
            self.json(value)

    def json(self, value: Message | Mapping[str, Any] | Sequence[Any]) -> None:
        """One JSON value on one line, whatever was asked for."""
        plain = to_plain(value) if isinstance(value, Message) else value
        print(json.dumps(plain, ensure_ascii=False), file=self.stream, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns as wide as their content. With --json nothing."""
        if self.as_json:
            return
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line("  ".join(cells).rstrip())
