"""Walks the tutorial on photographs from a fresh clone, as a stranger would: ``make bare-clone``.

Clones this repository, makes an environment as the tutorial says, and runs the tutorial's commands
as they are written, with full training, on the example's photographs or on a folder of your own.
Fails at the first command that needs more than itself, and prints how long each took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.docs.blocks import script
from tests.e2e.daemon import processes_below
from tools.docs.markdown import ROOT

PAGE = Path("docs", "tutorials", "your-own-photographs.md")
_EXAMPLE = "python -m examples.photographs --out photos"
_ADDRESS = "127.0.0.1:50051"


def walk(folder: Path, photographs: Path | None, environment: Path | None, steps: int) -> None:
    """Walks the tutorial in a folder.

    Args:
        folder: an empty folder.
        photographs: a dataset instead of the example's.
        environment: a virtual environment to use instead of installing packages.
        steps: of the training; 0 = all.

    Raises:
        SystemExit: naming the command that failed, and what it printed.
    """
    clone = folder / "clone"
    subprocess.check_call(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)])
    also = () if environment is not None else ("installs packages",)
    text = script([clone / PAGE], also=also)
    if environment is not None:
        (clone / ".venv").symlink_to(environment.absolute())
    if photographs is not None:
        shutil.copytree(photographs, clone / "photos")
        text = text.replace(_EXAMPLE, "ls photos")
    if steps:
        text = text.replace("--train photos", f"--train photos --set schedule.max_steps={steps}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY")
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    variables |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    variables |= {
        "HOME": str(folder),
        "MULTIGRAIN_LISTEN": address,
        "MULTIGRAIN_HTTP_LISTEN": "127.0.0.1:0",
        "MULTIGRAIN_SERVER": address,
    }
    errors = folder / "errors"
    with (folder / "output").open("w") as output, errors.open("w") as failed:
        code = subprocess.call(
            ["bash", "-euo", "pipefail", "-c", text.replace(_ADDRESS, address)],
            cwd=clone,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=failed,
        )
    for line in errors.read_text().splitlines():
        if line.startswith("--- "):
            print(line)
    if code:
        sys.exit(f"the last of these commands failed with {code}:\n{errors.read_text()[-4000:]}")
    _check(clone, (folder / "output").read_text())


def _check(clone: Path, output: str) -> None:
    """Whether a user would find what the tutorial promises."""
    (record,) = clone.glob("multigrain-data/jobs/train-*/held_out.json")
    held_out = json.loads(record.read_text())["images"]
    found = re.findall(r"^(-?\d\.\d{3})  (photos/.*)$", output, re.MULTILINE)
    scores = re.findall(r"SUCCEEDED  (.*top1.*)$", output, re.MULTILINE)
    for what, there in (
        ("held-out photographs", held_out),
        ("a vector", (clone / "vector.npy").exists()),
        ("a score of the training and of the evaluation", len(scores) >= 2),
        ("five neighbors", len(found) == 5),
        ("the photograph itself as the first neighbor", found and float(found[0][0]) > 0.99),
    ):
        if not there:
            sys.exit(f"the commands ran, but there is not {what}:\n{output[-4000:]}")
    for line in scores:
        print(line)
    print(f"walked: {len(held_out)} photographs held out, nearest {found[0][1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, help="one sub-folder for each class")
    parser.add_argument("--venv", type=Path, help="use this environment, install nothing")
    parser.add_argument("--steps", type=int, default=0, help="of the training; default: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="multigrain-bare-clone-") as name:
        try:
            walk(Path(name), arguments.photographs, arguments.venv, arguments.steps)
        finally:
            # All that the commands started has this folder as its home.
            for process in processes_below(Path(name)):
                process.kill()


if __name__ == "__main__":
    main()
