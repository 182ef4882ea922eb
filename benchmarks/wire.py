"""What a message between processes costs: ``python -m benchmarks.wire``.

Prints the best time of encoding and of decoding each message, in microseconds: those between the
daemon and an engine, those between a worker and its runner, and the lines of an event log. Writing
a loss to the event log includes the system call. ``RESULTS.md`` has the bars.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from multigrain.engine.protocol import EmbeddingOptions, FrameParser, Message, Result, Submit
from multigrain.engine.protocol import encode as encode_frame
from multigrain.events.log import Event, EventWriter
from multigrain.events.records import LossRecord
from multigrain.jobs.ipc import Emit, decode, encode

CALLS, REPEATS = 500, 40

SUBMIT = Submit(
    123_456, caller=77, resolution=224, deadline_ns=10**15, vector=EmbeddingOptions(), top_k=5
)
RESULT = Result(
    123_456,
    decode_ns=1_234_567,
    queue_ns=2_345_678,
    compute_ns=3_456_789,
    batch_items=8,
    first_in_batch=True,
    vector_bytes=8192,
    classes=5,
)
LOSS = LossRecord(
    step=12_345,
    total_steps=100_000,
    epoch=7,
    total_epochs=90,
    loss=6.9123456,
    classification_loss=6.81234,
    instance_loss=0.123456,
    learning_rate=0.0123,
    damping=0.03,
    images_per_second=123.4,
    eta_seconds=12_345.6,
)


def best_us(call: Callable[[], object]) -> float:
    """The shortest average of ``CALLS`` calls, in microseconds: other programs only add time."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / CALLS


def report(name: str, encode_call: Callable[[], object], decode_call: Callable[[], object]) -> None:
    print(f"{name:24} encode {best_us(encode_call):6.2f} µs  decode {best_us(decode_call):6.2f} µs")


def report_frame(name: str, message: Message) -> None:
    parser = FrameParser(1 << 20)
    data = encode_frame(message)
    report(name, lambda: encode_frame(message), lambda: list(parser.feed(data)))


def main() -> None:
    """Prints a line for each message."""
    report_frame("engine: image", SUBMIT)
    report_frame("engine: result", RESULT)
    emit = Emit(LOSS)
    line = encode(emit)
    report("runner: loss", lambda: encode(emit), lambda: decode(line))
    event = Event(12_345, "2026-01-31T12:00:00.123456Z", "job-1", 1, LOSS)
    data = event.encode()
    report("event log: loss", event.encode, lambda: Event.decode(data))
    with (
        tempfile.TemporaryDirectory() as folder,
        EventWriter(Path(folder, "events.jsonl"), "job-1") as writer,
    ):
        print(f"{'event log: write a loss':24} {best_us(lambda: writer.append(LOSS, 1)):6.2f} µs")


if __name__ == "__main__":
    main()
