"""A training step of ResNet-50, batch 16, 224 px: MindSpore against PyTorch.

``.venv-peers/bin/python -m benchmarks.pytorch_step`` after ``make peers`` (or name an interpreter
that has PyTorch with ``--pytorch``). Both take turns with all cores: cross-entropy alone, SGD with
momentum and weight decay, float32; PyTorch with channels last. Ends with status 1 if MindSpore
needs more than 1.2 times PyTorch's time.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.contestant import Contestant, median_ms

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
        # MindSpore tries out how many threads each kernel gets in its first 15 steps or so.
        Contestant(
            "benchmarks.mindspore_step", ["--kind", "momentum", "--warm-up", "16", *batch]
        ) as mindspore,
        Contestant("benchmarks.pytorch_contestant", batch, python=options.pytorch) as pytorch,
    ):
        for _ in range(options.rounds):
            ours += mindspore.turn(1).seconds
            theirs += pytorch.turn(1).seconds
    ratio = median_ms(ours) / median_ms(theirs)
    print(f"MindSpore {median_ms(ours):.0f} ms, PyTorch {median_ms(theirs):.0f} ms")
    print(f"ratio {ratio:.2f}, allowed {LIMIT}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
