"""Bulk embedding over one bidirectional stream that survives its connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing

from multigrain.v1.embedding_pb2 import EmbedRequest
from multigrain_client import methods
from multigrain_client.answers import EmbeddedImage, EmbedOptions, embedded
from multigrain_client.batches import Batch
from multigrain_client.errors import MultigrainClientError, ServerError
from multigrain_client.retry import BulkRetries
from multigrain_client.sync.transport import Transport
from multigrain_client.window import ReplayWindow


class BulkEmbedding:
    """One run of ``embed_stream``.

    A reader thread fills the window from the source, gRPC's thread sends from the window, the
    caller's thread takes answers. Only the caller's thread changes connections, so the source
    is read exactly once whatever happens to them.
    """

    def __init__(
        self, transport: Transport, options: EmbedOptions, source: Iterator[Batch], window: int
    ) -> None:
        self._transport = transport
        self._options = options
        self._source = source
        self._window = ReplayWindow(max(window, 1))
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._failure: BaseException | None = None
        self._connection = 0
        # The connection ends because the window is stuck, and another one is to follow.
        self._resting = False

    def run(self) -> Generator[EmbeddedImage]:
        """Raises:
        MultigrainClientError: when the server refuses, or stays away (see ``BulkRetries``).
        """
        threading.Thread(target=self._read, name="multigrain-embed-stream", daemon=True).start()
        retries = BulkRetries(self._transport.policy)
        try:
            while True:
                try:
                    for answers in self._connect():
                        retries.answered()
                        yield from answers
                    if self._resting:
                        continue
                    break
                except MultigrainClientError as error:
                    delay = retries.delay(error)
                    if delay is None:
                        raise
                time.sleep(delay)
            if self._failure is not None:
                raise self._failure
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _connect(self) -> Iterator[list[EmbeddedImage]]:
        """Answers of one connection, batch by batch."""
        with self._changed:
            self._connection += 1
            self._resting = False
            requests = self._requests(self._connection, self._window.first)
        responses = self._transport.exchange(methods.EMBED_STREAM, requests)
        with closing(responses):
            for response in responses:
                yield from self._unsent()
                with self._changed:
                    batch = self._window.answered()
                    self._changed.notify_all()
                if batch is None:
                    raise ServerError("EmbedStream: the server sent more answers than requests")
                yield embedded(batch, response)
        yield from self._unsent()
        with self._changed:
            if self._window.at(self._window.first) is not None and not self._resting:
                raise ServerError("EmbedStream: the server ended the stream before its last answer")

    def _unsent(self) -> Iterator[list[EmbeddedImage]]:
        while True:
            with self._changed:
                batch = self._window.unsent()
                self._changed.notify_all()
            if batch is None:
                return
            yield embedded(batch, None)

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for batch in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or not self._window.full)
                    if self._closed:
                        return
                    self._window.add(batch)
                    self._changed.notify_all()
        # Whatever the caller's own iterable raises is raised again in the caller's thread.
        except BaseException as error:
            failure = error
        finally:
            with self._changed:
                self._failure = failure
                self._ended = True
                self._changed.notify_all()

    def _requests(self, connection: int, position: int) -> Iterator[EmbedRequest]:
        while True:
            with self._changed:
                while (
                    not self._closed
                    and not self._ended
                    and self._connection == connection
                    and not self._window.stuck
                    and self._window.at(position) is None
                ):
                    self._changed.wait()
                if self._closed or self._connection != connection:
                    return
                batch = self._window.at(position)
                if batch is None:
                    self._resting = not self._ended
                    return
            position += 1
            if batch.images:
                yield self._options.request(batch)
