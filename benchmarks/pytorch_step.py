"""Training step of ResNet-50, batch 16, 224 px: MindSpore compared with PyTorch.

``.venv-peers/bin/python -m benchmarks.pytorch_step`` after ``make peers``, or set ``--pytorch`` to
an interpreter that has PyTorch. Both run alternately on all cores: cross-entropy only, SGD with
momentum and weight decay, float32; PyTorch with channels last. Exits with 1 if MindSpore takes
more than 1.2 times as long.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.alternating import BenchmarkProcess, median_ms

LIMIT = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pytorch", default=sys.executable, help="interpreter with PyTorch")
    options = parser.parse_args()
    batch = ["--batch", str(options.batch)]
    ours: list[float] = []
    theirs: list[float] = []
    with (
        # MindSpore tunes the number of threads per kernel in its first 15 steps or so.
        BenchmarkProcess(
            "benchmarks.mindspore_step", ["--kind", "momentum", "--warm-up", "16", *batch]
        ) as mindspore,
        BenchmarkProcess("benchmarks.pytorch_training", batch, python=options.pytorch) as pytorch,
    ):
        for _ in range(options.rounds):
            ours += mindspore.measure(1).seconds
            theirs += pytorch.measure(1).seconds
    ratio = median_ms(ours) / median_ms(theirs)
    print(f"MindSpore {median_ms(ours):.0f} ms, PyTorch {median_ms(theirs):.0f} ms")
    print(f"ratio {ratio:.2f}, limit {LIMIT}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
