"""Command line of the demo: ``python -m examples.demo --out demo-out``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from multigrain.streams import standard_streams
from multigrain_client.cli.output import Output
from multigrain_client.errors import InvalidRequest, MultigrainClientError

FAILED = 1
USAGE = 2
INTERRUPTED = 130

PACKAGES = ("mindspore", "sklearn", "PIL", "matplotlib", "psutil", "structlog")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns its exit code: 0 if the model reached its accuracy, 1 if it did
    not or something failed, 2 for wrong options, 130 after Ctrl-C or SIGTERM.

    Its results are files, so it goes on without an output, as when the reader of a pipe leaves.
    """
    with standard_streams():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Trains, evaluates, exports and serves a model of real digits on this machine.",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="demo-out", help="folder to write to (default demo-out)"
    )
    parser.add_argument("--size", type=int, help="side of images and model input (default 32)")
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    parser.add_argument("--workers", type=int, default=2, help="training processes (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parsed = parser.parse_args(arguments)
    # find_spec does not import: MindSpore alone takes seconds.
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"demo: {', '.join(missing)} not installed: pip install '.[server,demo]'",
            file=sys.stderr,
        )
        return FAILED
    from examples.demo.run import DemoOptions, run_demo

    options = DemoOptions(
        out=Path(parsed.out), size=parsed.size, epochs=parsed.epochs, workers=parsed.workers
    )
    try:
        output = Output(sys.stdout, sys.stderr, as_json=parsed.json, progress_only=True)
        return run_demo(options, output)
    except InvalidRequest as error:
        print(f"demo: {error}", file=sys.stderr)
        return USAGE if error.code is None else FAILED
    except MultigrainClientError as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
