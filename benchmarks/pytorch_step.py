"""Training step of ResNet-50 at 224 px in MindSpore and in PyTorch.

Both run alternately on all cores: cross-entropy only, SGD with momentum and weight decay, float32;
PyTorch with channels last.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.alternating import BenchmarkProcess

LIMIT = 1.2
PEERS = results.ROOT / ".venv-peers" / "bin" / "python"


def torch_version(python: Path) -> str:
    """Version of PyTorch of an interpreter; empty if it has none."""
    program = "import torch; print(torch.__version__)"
    if not python.is_file():
        return ""
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> int:
    parser = results.parser("pytorch_step")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--pytorch", type=Path, default=PEERS if PEERS.is_file() else Path(sys.executable),
        help="interpreter with PyTorch; default that of make peers",
    )  # fmt: skip
    options = parser.parse_args()
    report = results.Report("pytorch_step", options)
    found = torch_version(options.pytorch)
    if not found:
        report.missing("training step in MindSpore", "PyTorch is not installed: make peers")
        return report.finish()
    report.version("torch", found)
    batch = ["--batch", str(options.batch)]
    ours: list[float] = []
    theirs: list[float] = []
    with (
        # MindSpore tunes the number of threads per kernel in its first 15 steps or so.
        BenchmarkProcess(
            "benchmarks.mindspore_step", ["--kind", "momentum", "--warm-up", "16", *batch]
        ) as mindspore,
        BenchmarkProcess(
            "benchmarks.pytorch_training", batch, python=str(options.pytorch)
        ) as pytorch,
    ):
        for _ in range(options.rounds):
            ours += mindspore.measure(1).seconds
            theirs += pytorch.measure(1).seconds
    report.compare(
        f"training step in MindSpore, batch {options.batch}", [1000 * one for one in ours],
        unit="ms", over=[1000 * one for one in theirs],
        reference="the same in PyTorch", at_most=LIMIT,
    )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
