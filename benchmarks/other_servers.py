"""multigrain compared with a plain grpc.aio server and with PyTriton.

All serve the same ResNet-50 with ONNX Runtime in float32, so that the servers are compared and not
the runtimes; multigrain also with the runtime that it chooses by itself.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

from benchmarks import results
from benchmarks.callers import call
from benchmarks.servers import Server, multigrain, plain_grpc, pytriton, write_resnet50

_COLUMNS = (
    *("16 callers, images/s", "x plain grpc.aio", "one caller, p50 ms"),
    *("256 callers, 2 s: in time/s", "failed for each answer", "start, s", "memory, MB"),
)


def measured(server: Server, seconds: float) -> tuple[float, ...]:
    """The cells of a row, without the ratio."""
    sixteen, one = (
        call(server.address, protocol=server.protocol, callers=callers, seconds=seconds)
        for callers in (16, 1)
    )
    many = call(
        server.address, protocol=server.protocol,
        callers=256, warm_up=5.0, seconds=30.0, deadline=2.0,
    )  # fmt: skip
    failed = sum(many.codes.values()) / max(1, many.answered)
    memory = server.rss_mb()
    return sixteen.rate, one.p50_ms, many.rate, failed, server.cold_seconds, memory


def main() -> int:
    parser = results.parser("other_servers")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument(
        "--pytriton", type=Path, default=results.ROOT / ".venv-triton" / "bin" / "python",
        help="interpreter with PyTriton; default that of make peers-serving",
    )  # fmt: skip
    options = parser.parse_args()
    with results.data_folder(options) as data:
        bundle = write_resnet50(data)
        report = results.Report("other_servers", options)
        table = report.table("", _COLUMNS, first="server")
        base = 0.0

        def add(name: str, serving: AbstractContextManager[Server]) -> float:
            with serving as server:
                rate, *others = measured(server, options.seconds)
            over = rate / base if base else "" if name != "plain grpc.aio" else 1.0
            table.row(name, rate, over, *others)
            return rate

        if find_spec("onnxruntime") is None:
            for name in ("plain grpc.aio", "multigrain, onnxruntime"):
                table.missing(name, "onnxruntime is not installed")
        else:
            base = add("plain grpc.aio", plain_grpc(bundle, data))
            add("multigrain, onnxruntime", multigrain(data, "resnet50@1", runtime="onnxruntime"))
        if options.pytriton.is_file():
            add("PyTriton, onnxruntime", pytriton(bundle, data, options.pytriton))
        else:
            table.missing("PyTriton, onnxruntime", "PyTriton is not installed: make peers-serving")
        add("multigrain, auto", multigrain(data, "resnet50@1"))
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())
