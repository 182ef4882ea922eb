"""What every test needs, and ``--quick``, which runs the tests that need no other process."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.environment import NO_FORK_SUPPORT

# MindSpore 2.8's generated messages need protobuf's pure-Python implementation, which a process
# chooses at its first import of protobuf. Only pytest loads both MindSpore and gRPC; the variable
# is restored below, so that child processes choose for themselves.
_VARIABLE = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
_before = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = "python"
from google.protobuf.internal import api_implementation  # noqa: E402

assert api_implementation.Type() == "python"
if _before is None:
    del os.environ[_VARIABLE]
else:
    os.environ[_VARIABLE] = _before

# gRPC and urllib would ask a proxy in the environment to connect to this machine.
_LOOPBACK = "127.0.0.1,localhost,::1"
for _variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
    if _variable != "no_grpc_proxy" or _variable in os.environ:
        os.environ[_variable] = ",".join(filter(None, (os.environ.get(_variable), _LOOPBACK)))

os.environ.setdefault(NO_FORK_SUPPORT, "0")

# Training jobs of all tests share their compiled graphs: many train the same small network.
GRAPHS = "MULTIGRAIN_JOBS__COMPILE_CACHE_DIR"

# A test with one of these markers does not run with --quick (see CONTRIBUTING.md).
NOT_QUICK = ("mindspore", "process", "slow")
# Importing a file with this line would import MindSpore.
MINDSPORE_FILE = re.compile(r"^pytestmark = .*pytest\.mark\.mindspore", re.MULTILINE)
# What only tests with the marker `process` start: programs, and modules with `python -m`.
PROGRAMS = {"chromedriver", "msrun", "multigrain-server", "prometheus", "promtool"}
MODULES = re.compile(
    r"(benchmarks|multigrain\.(engine|jobs|probe)|multigrain_server|pip"
    r"|tests\.(engine\.held|server\.fake_daemon))\b"
)
# These take minutes each and start first: whoever took one last would keep the others waiting.
LONGEST = (
    *("e2e/test_demo.py", "e2e/test_main_path.py", "docs/test_commands.py"),
    *("e2e/test_job_faults.py", "e2e/test_resolutions.py"),
)
_started: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help=f"run only tests without the markers {', '.join(NOT_QUICK)}",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The other processes of pytest-xdist inherit it.
    if GRAPHS not in os.environ:
        folder = tempfile.mkdtemp(prefix="multigrain-graphs-")
        os.environ[GRAPHS] = folder
        config.add_cleanup(partial(_remove_graphs, folder))
    if config.getoption("--quick"):
        subprocess.Popen = _RecordedPopen  # type: ignore[misc]
        sys.meta_path.insert(0, _NoMindSpore())


def _remove_graphs(folder: str) -> None:
    del os.environ[GRAPHS]
    shutil.rmtree(folder, ignore_errors=True)


class _NoMindSpore(MetaPathFinder, Loader):
    """Finds MindSpore but refuses to import it."""

    def find_spec(self, fullname: str, *rest: Any) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == "mindspore" else None

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError("MindSpore is imported: the test needs the marker `mindspore`")


class _RecordedPopen(subprocess.Popen[Any]):
    """Remembers the processes that only tests with the marker `process` may start."""

    def __init__(self, args: Any, *rest: Any, **keywords: Any) -> None:
        words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        program, *options = map(os.fsdecode, words)
        modules = [module for word, module in pairwise(options) if word == "-m"]
        if Path(program).name in PROGRAMS or any(map(MODULES.match, modules)):
            _started.append(" ".join((program, *options)))
        super().__init__(args, *rest, **keywords)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return bool(MINDSPORE_FILE.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    first = {folder / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))
    if not config.getoption("--quick"):
        return
    quick = [item for item in items if not any(map(item.get_closest_marker, NOT_QUICK))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(quick)])
    items[:] = quick


@pytest.fixture(autouse=True)
def _process_marker(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --quick, fails a test that starts a process without the marker `process`."""
    yield
    started, _started[:] = list(_started), []
    assert not started, f"{started} started: the test needs the marker `process`"


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Restores the umask, which programs that a test calls in this process make private."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def csv_limit() -> Iterator[None]:
    """The csv module's usual limit of a field, which libraries that tests import may raise."""
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """As ``tmp_path``, but every user may enter the folders above it (see tests.unprivileged)."""
    path = Path(tempfile.mkdtemp(prefix="multigrain-test-"))
    path.chmod(0o755)
    yield path
    for folder in (path, *(p for p in path.rglob("*") if p.is_dir())):
        folder.chmod(0o700)
    shutil.rmtree(path)
