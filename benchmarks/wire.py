"""What a message between processes costs, and the same fields through Python's ``json``.

Messages between the daemon and an engine, between a worker and its runner, and lines of an event
log. Writing a loss to the event log includes the system call.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import results
from multigrain.engine.protocol import EmbeddingOptions, FrameParser, Result, Submit
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


def main() -> int:
    report = results.Report("wire", results.parser("wire").parse_args())

    def compare(
        name: str,
        message: object,
        encode_call: Callable[[], object],
        decode_call: Callable[[], object],
    ) -> None:
        fields = msgspec.to_builtins(message)
        text = json.dumps(fields)
        for what, call, plain in (
            ("encode", encode_call, lambda: json.dumps(fields)),
            ("decode", decode_call, lambda: json.loads(text)),
        ):
            report.compare(
                f"{name}: {what}", best_us(call), unit="µs",
                over=best_us(plain), reference=f"json.{'dumps' if what == 'encode' else 'loads'}",
            )  # fmt: skip

    def compare_frame(name: str, message: Submit | Result) -> None:
        frames, frame = FrameParser(1 << 20), encode_frame(message)
        compare(name, message, lambda: encode_frame(message), lambda: list(frames.feed(frame)))

    compare_frame("daemon to engine: an image", SUBMIT)
    compare_frame("engine to daemon: a result", RESULT)
    emit = Emit(LOSS)
    line = encode(emit)
    compare("worker to runner: a loss", emit, lambda: encode(emit), lambda: decode(line))
    event = Event(12_345, "2026-01-31T12:00:00.123456Z", "job-1", 1, LOSS)
    data = event.encode()
    compare("a line of the event log: a loss", event, event.encode, lambda: Event.decode(data))
    with (
        tempfile.TemporaryDirectory() as folder,
        EventWriter(Path(folder, "events.jsonl"), "job-1") as writer,
    ):
        report.compare(
            "writing a loss to the event log", best_us(lambda: writer.append(LOSS, 1)), unit="µs"
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
