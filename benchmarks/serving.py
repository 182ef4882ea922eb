"""Serving compared with preprocessing and network alone, on the same cores.

ResNet-50 with GeM at 224 px, random weights, 64 photographs; callers and daemon share the machine.
The limit (``machine_limit``) is measured before and after each result that is compared with it:
the speed of a shared machine varies by a tenth, which then affects both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks import results
from benchmarks.callers import Counts, call
from benchmarks.machine_limit import Limits, Machine
from benchmarks.servers import Server, multigrain, write_calibrated, write_resnet50
from multigrain_client import MultigrainClientError

LIMIT = "preprocessing and network in one process"


def measure(
    report: results.Report, server: Server, machine: Machine, options: argparse.Namespace
) -> float:
    """Adds the comparisons of all rounds; returns the images per second of 16 callers."""
    limits: list[Limits] = []
    sixteens: list[Counts] = []
    ones: list[Counts] = []
    streams: list[Counts] = []
    parts: dict[str, float] = {}
    before = machine.measure()
    for _ in range(options.rounds):
        used = server.parts()
        sixteens.append(call(server.address, callers=16, seconds=options.seconds))
        parts = {part: now - used[part] for part, now in server.parts().items()}
        after = machine.measure()
        limits.append(before.between(after))
        ones.append(call(server.address, callers=1, seconds=options.seconds / 2))
        middle = machine.measure()
        limits.append(after.between(middle))
        count = int(options.seconds * middle.limit)
        streams.append(call(server.address, stream=count))
        before = machine.measure()
        limits.append(middle.between(before))

    report.compare(
        "16 callers", [one.rate for one in sixteens], unit="images/s",
        over=[limit.limit for limit in limits[::3]], reference=LIMIT, at_least=0.92,
    )  # fmt: skip
    report.compare(
        "EmbedStream", [one.rate for one in streams], unit="images/s",
        over=[limit.limit for limit in limits[2::3]], reference=LIMIT, at_least=0.95,
    )  # fmt: skip
    report.compare(
        "one caller, p50", [one.p50_ms for one in ones], unit="ms",
        over=[limit.alone_ms for limit in limits[1::3]],
        reference="one image in one process",
    )  # fmt: skip
    alone = zip(ones, limits[1::3], strict=True)
    report.compare(
        "one caller, what the server adds", [one.p50_ms - limit.alone_ms for one, limit in alone],
        unit="ms", at_most=1.5,
    )  # fmt: skip
    for stage, milliseconds in ones[-1].stages_ms.items():
        report.compare(f"one caller: {stage}", milliseconds, unit="ms")
    answered = sixteens[-1].answered_in_all
    for part, seconds in parts.items():
        report.compare(f"CPU time per image: {part}", 1000 * seconds / answered, unit="ms")
    cpu = 1000 * sixteens[-1].cpu_seconds / sixteens[-1].answered
    report.compare("CPU time per image: callers", cpu, unit="ms")
    report.compare(
        "limit: preprocessing on one core", [one.prepare_ms for one in limits], unit="ms"
    )
    report.compare("limit: network on all cores", [one.engine for one in limits], unit="images/s")
    report.compare("memory of daemon and engine", server.rss_mb(), unit="MB")
    grown = [max(one.rss_mb) - min(one.rss_mb) for one in streams]
    report.compare("growth of the client's memory during EmbedStream", grown, unit="MB")
    report.compare("start to the first answer", server.cold_seconds, unit="s")
    report.note(f"Runtime {server.runtime_name}, ResNet-50 at 224 px.")
    return statistics.median(one.rate for one in sixteens)


def measure_int8(report: results.Report, data: Path, normal: float, seconds: float) -> None:
    """Adds the comparisons of the 8-bit graph; ``normal`` is the rate of 16 callers without."""
    what, runtime = "16 callers, 8 bits", "openvino-int8"
    if find_spec("nncf") is None:
        report.missing(what, "NNCF, which makes 8-bit graphs, is not installed")
        return
    bundle = write_calibrated(data)
    try:
        with (
            multigrain(data, "calibrated@1", runtime=runtime) as server,
            Machine(bundle, runtime) as machine,
        ):
            before = machine.measure()
            rate = call(server.address, callers=16, seconds=seconds).rate
            limit = before.between(machine.measure()).limit
    except MultigrainClientError as error:
        report.missing(what, str(error))
        return
    report.compare(what, rate, unit="images/s", over=limit, reference=LIMIT, at_least=0.92)
    report.compare(
        what, rate, unit="images/s", over=normal, reference="16 callers, the runtime below"
    )


def main() -> int:
    parser = results.parser("serving")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--runtime", default="", help="runtime of LoadModel; default auto")
    parser.add_argument(
        "--daemon", default="", help='options of the daemon, such as "--serving-decode-threads 1"'
    )
    options = parser.parse_args()
    with results.data_folder(options) as data:
        bundle = write_resnet50(data)
        report = results.Report("serving", options)
        with (
            Machine(bundle, options.runtime) as machine,
            multigrain(
                data, "resnet50@1", *options.daemon.split(), runtime=options.runtime
            ) as server,
        ):
            normal = measure(report, server, machine, options)
        measure_int8(report, data, normal, options.seconds)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())
