"""THOR's curvature factors compared with curvlinops' K-FAC, an independent implementation.

See ``benchmarks.peers.kfac_factors``. Run it in an environment that has both: after ``make peers``,
``.venv-peers/bin/pip install curvlinops-for-pytorch`` and use ``.venv-peers/bin/python``.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec

from benchmarks import results

LIMIT = 1e-4


def main() -> int:
    report = results.Report("thor_factors", results.parser("thor_factors").parse_args())
    if lacking := [name for name in ("torch", "curvlinops") if find_spec(name) is None]:
        report.missing("largest relative error", f"not installed: {', '.join(lacking)}")
        return report.finish()
    from benchmarks.peers.kfac_factors import factor_errors

    report.version("curvlinops", version("curvlinops-for-pytorch"))
    table = report.table(
        "Relative error (Frobenius) of the worst diagonal block",
        ("positions T", "dim A", "dim G", "blocks", "A", "G"),
        first="layer",
    )
    worst = 0.0
    for one in factor_errors():
        table.row(one.layer, one.positions, one.dim_a, one.dim_g, one.blocks, one.a, one.g)
        worst = max(worst, one.a, one.g)
    report.compare("largest relative error", worst, at_most=LIMIT)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
