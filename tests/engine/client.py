"""A blocking client of one engine process, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from multigrain.engine.protocol import Cancel, Connection, Frame, LoadFailed, Ready, Result, Submit
from multigrain.engine.settings import EngineSettings
from multigrain.engine.shared_images import SharedImages
from tests.engine import held


class EngineClient:
    """Starts an engine on a bundle and speaks its protocol.

    Args:
        bundle: its folder.
        decode_seconds: that decoding an image may take; 0 = as usual.
        options: fields of ``EngineSettings``.
    """

    def __init__(self, bundle: Path, *, decode_seconds: float = 0, **options: object) -> None:
        ours, theirs = socket.socketpair()
        self.images = SharedImages()
        settings = EngineSettings(
            bundle=bundle,
            socket_fd=theirs.fileno(),
            images_fd=self.images.engine_fd,
            parent_pid=os.getpid(),
            **options,
        )
        self.process = subprocess.Popen(
            [*held.COMMAND, *settings.arguments()],
            env=held.holdable(os.environ) | {held.DECODE_SECONDS: str(decode_seconds or "")},
            pass_fds=(theirs.fileno(), self.images.engine_fd),
        )
        theirs.close()
        self.socket = ours
        self._connection = Connection(ours, 1 << 24)
        self._frames = self._connection.frames()
        self._results: dict[int, Frame] = {}
        first = next(self._frames).message
        assert isinstance(first, Ready | LoadFailed)
        self.first = first

    def submit(self, item_id: int, data: bytes, **fields: object) -> None:
        self._connection.send(Submit(id=item_id, **fields), data)

    def submit_stored(self, item_id: int, data: bytes, **fields: object) -> None:
        """Sends an image through the shared memory."""
        stored = self.images.put(data)
        assert stored is not None
        self._connection.send(Submit(id=item_id, stored=stored, **fields))

    def cancel(self, item_id: int) -> None:
        self._connection.send(Cancel(id=item_id))

    def hold(self, items: int) -> None:
        """Keeps batches back until ``items`` later images are decoded; 0 releases them."""
        held.hold(self.process, items)

    def frame(self, item_id: int) -> Frame:
        """Waits for the result of ``item_id``; others that come first are kept."""
        while item_id not in self._results:
            frame = next(self._frames)
            assert isinstance(frame.message, Result)
            assert frame.message.id not in self._results, "answered twice"
            self._results[frame.message.id] = frame
        return self._results[item_id]

    def result(self, item_id: int) -> Result:
        message = self.frame(item_id).message
        assert isinstance(message, Result)
        return message

    def close(self) -> None:
        self.socket.close()
        self.images.close()
        deadline = time.monotonic() + 5
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
