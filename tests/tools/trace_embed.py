"""Prints the product files and functions that one ``client.embed`` of one image runs through.

``python -m tests.tools.trace_embed [-v] [load]`` starts a daemon with a tiny bundle, as the tests
do, and profiles the client, the daemon and the engine; with ``load``, of a ``client.load_model``.
Several calls are traced and only what all of them have in common counts, so that work in the
background does not. With ``-v`` the functions are listed as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from multigrain_client import Client
from tests.e2e.daemon import Daemon
from tests.engine.bundles import write_bundle
from tests.engine.pictures import picture

ROLES = ("client", "daemon", "engine")
_WINDOWS = 5
_SITE = Path(__file__).parent / "trace_site"

Calls = list[tuple[str, str]]


def trace(operation: str) -> dict[str, Calls]:
    """The calls of each process: file and function, in their order."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "window").write_bytes(b"\0")
        paths = (str(_SITE), os.environ.get("PYTHONPATH", ""))
        traced = {
            "MULTIGRAIN_TRACE": str(folder),
            # The engine writes its trace there.
            "MULTIGRAIN_SERVING__ENGINE_ENVIRONMENT": "MULTIGRAIN_TRACE",
            "MULTIGRAIN_SERVING__SANDBOX": "off",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        write_bundle(folder / "data" / "models")
        with _environment(traced):
            daemon = Daemon(folder).start()
            try:
                command = [sys.executable, "-m", __spec__.name, "--call", daemon.address]
                subprocess.run([*command, str(folder / "window"), operation], check=True)
            finally:
                daemon.end()
        return {role: _common(folder, role) for role in ROLES}


def call(address: str, window: Path, operation: str) -> None:
    """Embeds an image or loads the model once in each window. Runs in a process of its own."""
    with Client(address) as client:
        client.load_model("tiny")
        client.embed([picture(1)])
        for number in range(1, _WINDOWS + 1):
            if operation == "load":
                client.unload_model("tiny")
            with window.open("r+b", buffering=0) as file:
                file.write(bytes([number]))
                if operation == "load":
                    client.load_model("tiny")
                else:
                    client.embed([picture(1)])
                time.sleep(0.01)  # for what comes after the answer
                file.seek(0)
                file.write(b"\0")
            time.sleep(0.2)  # for the processes to write what they recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="list the functions")
    parser.add_argument("operation", nargs="?", choices=["embed", "load"], default="embed")
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.call:
        address, window, operation = options.call
        call(address, Path(window), operation)
        return 0
    traced = trace(options.operation)
    for role, calls in traced.items():
        files = sorted({name for name, _ in calls})
        print(f"{role}: {len(calls)} calls, {len(set(calls))} functions, {len(files)} files")
        for name in files:
            functions = [function for file, function in dict.fromkeys(calls) if file == name]
            print(f"  {name}" + (f": {', '.join(functions)}" if options.verbose else ""))
    everything = {name for calls in traced.values() for name, _ in calls}
    print(f"together: {len(everything)} files")
    return 0


def _common(folder: Path, role: str) -> Calls:
    """What every window of a process has."""
    windows: dict[int, Calls] = {}
    for path in sorted(folder.glob("*-*.json")):
        saved = json.loads(path.read_text())
        if saved["role"] == role and saved["calls"]:
            windows[saved["window"]] = [(name, function) for name, function in saved["calls"]]
    assert len(windows) == _WINDOWS, f"{role}: {len(windows)} of {_WINDOWS} windows were recorded"
    common = set.intersection(*(set(calls) for calls in windows.values()))
    return [call for call in min(windows.values(), key=len) if call in common]


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    sys.exit(main())
