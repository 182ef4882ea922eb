"""More callers than the processor can serve.

256 callers that follow the server's delays, compared with 16; then calls at five times the rate of
16 callers, regardless of the answers. Windows are longer than any delay between two tries.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import results
from benchmarks.callers import call
from benchmarks.servers import Server, multigrain, write_resnet50

_SHORTEST = 30.0


def measure(report: results.Report, server: Server, options: argparse.Namespace) -> None:
    """Adds the comparisons."""
    at = server.address
    rss, sixteens, manys, fives = server.rss_mb(), [], [], []
    sixteens.append(call(at, callers=16, seconds=options.seconds / 2))
    manys.append(
        call(at, callers=256, warm_up=10.0, seconds=options.seconds, deadline=options.deadline)
    )
    sixteens.append(call(at, callers=16, seconds=options.seconds / 2))
    normal = sum(one.answered for one in sixteens) / sum(one.seconds for one in sixteens)
    many = manys[-1]
    report.compare(
        "256 callers that follow the delays: answered in time", many.rate,
        unit="images/s", over=normal, reference="16 callers", at_least=0.9,
    )  # fmt: skip
    report.compare(
        "256 callers: p99", many.p99_ms / 1000, unit="s",
        over=options.deadline, reference="their timeout", at_most=1.0,
    )  # fmt: skip
    failed = sum(many.codes.values())
    report.compare(
        "256 callers: refusals and failures for each answer", failed / max(1, many.answered)
    )
    report.compare("256 callers: failures without a delay", failed - many.retry_delays, at_most=0)
    used = server.parts()
    fives.append(
        call(at, rate=5 * normal, warm_up=5.0, seconds=options.seconds, deadline=options.deadline)
    )
    took = {part: now - used[part] for part, now in server.parts().items()}
    five, after = fives[-1], call(at, callers=16, warm_up=0.0, seconds=options.seconds / 2)
    report.compare(
        "five times the rate, no delays: answered in time", five.rate,
        unit="images/s", over=normal, reference="16 callers",
    )  # fmt: skip
    report.compare("five times the rate: p99", five.p99_ms / 1000, unit="s")
    report.compare(
        "five times the rate: cores that the daemon uses", took["daemon"] / (five.seconds + 5.0)
    )
    report.compare(
        "five times the rate: cores that the callers use", five.cpu_seconds / five.seconds
    )
    report.compare(
        "16 callers directly afterwards", after.rate, unit="images/s",
        over=normal, reference="16 callers before",
    )  # fmt: skip
    report.compare(
        "memory of daemon and engine afterwards", server.rss_mb(), unit="MB",
        over=rss, reference="before", at_most=1.1,
    )  # fmt: skip
    report.note(
        f"Runtime {server.runtime_name}. Failures of the 256 callers: {json.dumps(many.codes)}; "
        f"at five times the rate: {json.dumps(five.codes)}."
    )


def main() -> int:
    parser = results.parser("overload")
    parser.add_argument(
        "--seconds", type=float, default=_SHORTEST, help="of each window, 30 or more"
    )
    parser.add_argument("--deadline", type=float, default=2.0, help="timeout of a call in seconds")
    parser.add_argument("--runtime", default="", help="runtime of LoadModel; default auto")
    options = parser.parse_args()
    if options.seconds < _SHORTEST:
        parser.error("--seconds: refused callers wait up to several seconds, use 30 or more")
    with results.data_folder(options) as data:
        write_resnet50(data)
        report = results.Report("overload", options)
        with multigrain(data, "resnet50@1", runtime=options.runtime) as server:
            measure(report, server, options)
        return report.finish()


if __name__ == "__main__":
    sys.exit(main())
