"""Time and memory of a THOR step relative to an SGD step with momentum, ResNet-50 at 224 px.

Both run alternately on the same batch. Steps with and without a refresh are timed separately; the
mean over a refresh period follows from the frequency. The size of the state is exact, the largest
resident memory is of the whole process.
"""

from __future__ import annotations

import sys

from benchmarks import results
from benchmarks.alternating import MIB, BenchmarkProcess, median_ms
from multigrain.specs.training import ThorSpec

MODULE = "benchmarks.mindspore_step"
MEAN_LIMIT, REFRESH_LIMIT, STATE_LIMIT_MIB = 1.15, 3.0, 100
# In training, refreshes are rarer; here there are enough of them to measure.
FREQUENCY = 4


def main() -> int:
    parser = results.parser("step_time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--periods", type=int, default=5)
    options = parser.parse_args()
    report = results.Report("step_time", options)
    common = ["--batch", str(options.batch), "--warm-up", str(2 * FREQUENCY)]
    momentum_s: list[float] = []
    thor_s: list[float] = []
    refresh_s: list[float] = []
    with (
        BenchmarkProcess(MODULE, ["--kind", "momentum", *common]) as momentum,
        BenchmarkProcess(
            MODULE, ["--kind", "thor", "--frequency", str(FREQUENCY), *common]
        ) as thor,
    ):
        for _ in range(options.periods):
            for _ in range(FREQUENCY):
                momentum_s += momentum.measure(1).seconds
                result = thor.measure(1)
                (refresh_s if result.refreshed[0] else thor_s).extend(result.seconds)
        memory = momentum.measure(1)
        parts = thor.measure(1, parts=True)

    base, plain, refresh = median_ms(momentum_s), median_ms(thor_s), median_ms(refresh_s)
    reference = "momentum"
    report.compare("step between refreshes", plain, unit="ms", over=base, reference=reference)
    report.compare(
        "refresh step", refresh, unit="ms", over=base, reference=reference, at_most=REFRESH_LIMIT
    )
    period = ThorSpec().frequency
    mean = (refresh + (period - 1) * plain) / period
    report.compare(
        f"mean over a period of {period} steps", mean, unit="ms",
        over=base, reference=reference, at_most=MEAN_LIMIT,
    )  # fmt: skip
    for name, seconds in parts.parts.items():
        report.compare(f"one refresh, profiled: {name}", seconds * 1000, unit="ms")
    state = (sum(parts.bytes.values()) - sum(memory.bytes.values())) / MIB
    report.compare("state beyond momentum's", state, unit="MiB", at_most=STATE_LIMIT_MIB)
    report.compare(
        "largest resident memory", parts.peak_mib, unit="MiB",
        over=memory.peak_mib, reference=reference,
    )  # fmt: skip
    report.note(f"ResNet-50 at 224 px, batches of {options.batch}, float32.")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
