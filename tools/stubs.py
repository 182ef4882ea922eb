"""Writes the Python stubs of protos/, or checks that the committed ones are up to date.

The code comes from an old compiler (requirements/stubs.in says why), which has an environment of
its own because it needs an older protobuf; the type stubs come from today's. The descriptor set is
for programs that read the contract without protoc.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
STUBS = ROOT / "multigrain" / "v1"
LOCK = ROOT / "requirements" / "stubs.txt"
DESCRIPTORS = "multigrain.binpb"


def old_compiler() -> Path:
    """The interpreter of the environment that has ``LOCK``'s packages, created if need be."""
    environment = ROOT / ".venv-stubs"
    python, lock, stamp = environment / "bin" / "python", LOCK.read_bytes(), environment / "lock"
    if not stamp.exists() or stamp.read_bytes() != lock:
        venv.create(environment, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([str(python), *install, "--requirement", str(LOCK)], check=True)
        stamp.write_bytes(lock)
    return python


def generate(out: Path, compiler: Path) -> None:
    """Writes the stubs of every proto file below ``protos/`` to ``out`` (package layout kept).

    Args:
        out: an existing folder.
        compiler: the interpreter that has the old grpcio-tools.
    """
    files = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    # protoc searches PATH for its plugins, which are next to the interpreter.
    plugins = Path(sys.executable).parent
    os.environ["PATH"] = f"{plugins}{os.pathsep}{os.environ.get('PATH', '')}"
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    old = [str(compiler), "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    old += [f"--python_out={out}", f"--grpc_python_out={out}", *files]
    done = subprocess.run(old, check=False)
    if done.returncode != 0:
        sys.exit(f"protoc failed with exit code {done.returncode}")
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{well_known}",
            "--include_imports",
            f"--descriptor_set_out={out / 'multigrain' / 'v1' / DESCRIPTORS}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *files,
        ]
    )
    if code != 0:
        sys.exit(f"protoc failed with exit code {code}")


def _files(folder: Path) -> set[str]:
    """Names of the files below a folder, relative to it."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), old_compiler())
        made = Path(folder) / "multigrain" / "v1"
        for package in (made, made / "inference"):
            (package / "__init__.py").write_text(
                '"""Generated stubs of protos/; see `make stubs`."""\n'
            )
        if arguments.write:
            shutil.rmtree(STUBS, ignore_errors=True)
            shutil.copytree(made, STUBS)
            return
        names = _files(made)
        committed = _files(STUBS)
        _, differ, errors = filecmp.cmpfiles(made, STUBS, sorted(names & committed), shallow=False)
        stale = sorted((names ^ committed) | set(differ) | set(errors))
        if stale:
            sys.exit(f"stubs are out of date, run `make stubs`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
