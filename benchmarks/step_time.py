"""Time of a THOR step relative to an SGD step with momentum, ResNet-50 at 224 px.

``python -m benchmarks.step_time``. Both run alternately on the same batch. Steps with and without
a refresh are timed separately; the mean over a refresh period follows from the frequency. Exits
with 1 if the mean is above 1.15 momentum steps or a refresh step above 3.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.alternating import BenchmarkProcess, median_ms
from multigrain.specs.training import ThorSpec

MODULE = "benchmarks.mindspore_step"
MEAN_LIMIT, REFRESH_LIMIT = 1.15, 3.0
# In training, refreshes are rarer; here there are enough of them to measure.
FREQUENCY = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--periods", type=int, default=5)
    options = parser.parse_args()
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
        parts = thor.measure(1, parts=True)

    base, plain, refresh = median_ms(momentum_s), median_ms(thor_s), median_ms(refresh_s)
    print(f"momentum {base:.0f} ms, THOR {plain:.0f} ms = {plain / base:.3f}")
    print(f"refresh {refresh:.0f} ms = {refresh / base:.2f}, of which (one refresh, profiled):")
    for name, seconds in parts.parts.items():
        print(f"  {name}: {seconds * 1000:.0f} ms")
    period = ThorSpec().frequency
    mean = (refresh + (period - 1) * plain) / period / base
    print(f"mean over a period of {period} steps: {mean:.3f}, limit {MEAN_LIMIT}")
    return 0 if mean <= MEAN_LIMIT and refresh / base <= REFRESH_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
