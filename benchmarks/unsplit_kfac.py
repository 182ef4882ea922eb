"""Losses of 200 steps of THOR with blocks and of K-FAC with full factors, on real images.

See ``benchmarks.peers.kfac_training``. Run it in the environment of ``benchmarks.thor_factors``.
With ``--out`` it keeps ``seed-N.csv`` (step, loss of THOR, loss of K-FAC) and computes only the
seeds that are missing.
"""

from __future__ import annotations

import csv
import math
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import results

WINDOWS = ((1, 20), (21, 40), (41, 60), (91, 110), (141, 160), (181, 200))


def losses(path: Path, seed: int) -> NDArray[np.float64]:
    """(steps, 2): of THOR and of K-FAC; trains if the file is missing."""
    if not path.exists():
        from benchmarks.peers.kfac_training import train

        curves = train(seed)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("step", "thor", "kfac"))
            for step, (one, two) in enumerate(zip(curves.thor, curves.kfac, strict=True), 1):
                rows.writerow((step, f"{one:.6g}", f"{two:.6g}"))
    with path.open(newline="") as file:
        return np.array([(float(r["thor"]), float(r["kfac"])) for r in csv.DictReader(file)])


def main() -> int:
    parser = results.parser("unsplit_kfac")
    parser.add_argument("--out", type=Path, help="folder to keep the CSV files in between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    report = results.Report("unsplit_kfac", options)
    if lacking := [name for name in ("torch", "curvlinops") if find_spec(name) is None]:
        report.missing("training loss", f"not installed: {', '.join(lacking)}")
        return report.finish()
    report.version("curvlinops", version("curvlinops-for-pytorch"))
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        every = np.stack([losses(out / f"seed-{seed}.csv", seed) for seed in options.seeds])
    table = report.table(
        "Mean training loss over 20 steps, all seeds", ("THOR", "K-FAC"), first="steps"
    )
    for first, last in WINDOWS:
        means = every[:, first - 1 : last].mean(axis=(0, 1))
        table.row(f"{first} to {last}", float(means[0]), float(means[1]))
    final = every[:, WINDOWS[-1][0] - 1 :].mean(axis=1)
    excess = final[:, 0] - final[:, 1]
    noise = float(excess.std(ddof=1) / math.sqrt(len(excess))) if len(excess) > 1 else 0.0
    report.compare(
        f"final loss of THOR minus that of K-FAC; the standard error over the seeds is {noise:.3f}",
        float(excess.mean()), at_most=round(noise, 6),
    )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
