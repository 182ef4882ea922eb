"""Child processes take nothing in from the folder in which they, or the daemon, were started."""

from __future__ import annotations

import ast
import functools
import os
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest

from multigrain.events.records import JobState
from multigrain.jobs.launchers import RankCommand, RankTableLauncher
from multigrain.processes import child_environment, find_program, python_command
from multigrain.specs.base import DeviceSpec
from multigrain_server.app import RUNNER_COMMAND
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.images import Quarantine
from multigrain_server.engines.launch import ENGINE_COMMAND, EngineSpec, launch
from tests.engine.bundles import write_bundle
from tests.jobs.harness import Job, make_job

ROOT = Path(__file__).resolve().parents[1]
MARKER = "imported-from-the-working-folder"
# Files that a library's search path, or a Python that embeds this one, would find there.
LIBRARIES = ("libgomp.so.1", "libstdc++.so.6", "libz.so.1", "libge_runner.so", "pyvenv.cfg")


@functools.cache
def shadowing_names() -> set[str]:
    """Top-level modules of Python, of every installed distribution, and of this project."""
    packages = {
        entry.name.partition(".")[0]
        for folder in site.getsitepackages()
        if os.path.isdir(folder)  # Debian's Python names folders that a virtual environment lacks
        for entry in os.scandir(folder)
        if not entry.name.endswith((".dist-info", ".pth"))
    }
    own = {"multigrain", "multigrain_client", "multigrain_server", "tests"}
    startup = {"sitecustomize", "usercustomize", "_virtualenv"}
    return {
        name
        for name in {*sys.stdlib_module_names, *packages, *own, *startup}
        if name.isidentifier() and name != "__main__"
    }


def fill(folder: Path, marker: Path) -> Path:
    """A folder of modules that leave a mark when they are imported, and of unusable libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(99)\n"
    for name in shadowing_names():
        (folder / f"{name}.py").write_text(program)
    for name in ("google", "grpc", "multigrain"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(program)
    for name in LIBRARIES:
        (folder / name).write_text("not a library")
    for name in ("python", "python3", "msrun", "nvidia-smi", "npu-smi", "lscpu", "sh"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {marker}\nexit 99\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder as described by :func:`fill`, and the file that exists once a part of it has run."""
    folder = tmp_path_factory.mktemp("hostile")
    marker = folder.parent / MARKER
    return fill(folder, marker), marker


@pytest.fixture
def marker(prepared: tuple[Path, Path]) -> Iterator[Path]:
    """A file that exists once something of a hostile folder has run."""
    path = prepared[1]
    path.unlink(missing_ok=True)
    yield path
    assert not path.exists(), f"run from the working folder: {path.read_text()}"


@pytest.fixture
def hostile(prepared: tuple[Path, Path], marker: Path) -> Path:
    """A folder of which nothing may run."""
    return prepared[0]


def hostile_environment(search_path: str) -> dict[str, str]:
    """This process's, with search paths that mean the working folder."""
    return {
        **os.environ,
        "PYTHONPATH": search_path,
        "LD_LIBRARY_PATH": search_path,
        "PATH": f"{search_path}:{os.environ['PATH']}",
        "PYTHONSTARTUP": "types.py",
        "PYTHONPYCACHEPREFIX": "cache",
        "PYTHONUSERBASE": ".",
    }


# The environment


@pytest.mark.parametrize(
    ("inherited", "kept"),
    [
        ({}, {}),
        ({"PYTHONPATH": ""}, {}),
        ({"PYTHONPATH": ":"}, {}),
        ({"PYTHONPATH": ".:lib:../x"}, {}),
        ({"PYTHONPATH": ":/opt/cann/python:"}, {"PYTHONPATH": "/opt/cann/python"}),
        ({"PYTHONPATH": "/b:/a:./c:/b"}, {"PYTHONPATH": "/b:/a:/b"}),
        (
            {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64:"},
            {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64"},
        ),
        ({"LD_LIBRARY_PATH": ":"}, {}),
        ({"PYTHONHOME": "python"}, {}),
        ({"PYTHONHOME": "/opt/python"}, {"PYTHONHOME": "/opt/python"}),
        ({"PYTHONSTARTUP": "/etc/start.py", "PYTHONINSPECT": "1"}, {}),
        ({"PYTHONUSERBASE": "user"}, {}),
        ({"PYTHONUSERBASE": "/home/user"}, {"PYTHONUSERBASE": "/home/user"}),
        ({"PYTHONPYCACHEPREFIX": "cache"}, {}),
        ({"PYTHONSAFEPATH": ""}, {}),
        ({"PYTHONUNBUFFERED": "1", "HOME": "."}, {"PYTHONUNBUFFERED": "1", "HOME": "."}),
    ],
)
def test_only_what_cannot_mean_the_working_folder_is_inherited(
    inherited: Mapping[str, str], kept: Mapping[str, str]
) -> None:
    before = dict(inherited)
    found = child_environment(inherited)
    always = {"PYTHONSAFEPATH": "1", "ORT_DISABLE_TELEMETRY": "1"}
    assert found == {"PATH": os.defpath, **always, **kept}
    assert inherited == before
    assert child_environment(found) == found


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (":/usr/bin:.:bin:/bin:", "/usr/bin:/bin"),
        ("", os.defpath),
        (".", os.defpath),
        ("/usr/bin", "/usr/bin"),
    ],
)
def test_programs_are_not_looked_for_in_the_working_folder(path: str, kept: str) -> None:
    assert child_environment({"PATH": path})["PATH"] == kept


def test_a_program_in_the_working_folder_is_not_found(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PATH", f".::{os.environ['PATH']}")
    assert find_program("npu-smi") is None
    assert find_program("ls") is not None


# Processes


def test_the_hostile_folder_does_stop_a_python_that_is_not_isolated(
    hostile: Path, marker: Path
) -> None:
    run = partial(subprocess.run, cwd=hostile, capture_output=True)
    code = "import random, numpy"
    assert run([sys.executable, "-c", code]).returncode == 99
    assert run([sys.executable, "-P", "-c", code], env=hostile_environment(":")).returncode != 0
    assert marker.exists()
    marker.unlink()
    environment = child_environment(hostile_environment(":"))
    assert run([sys.executable, "-P", "-c", code], env=environment).returncode == 0


@pytest.mark.process
@pytest.mark.parametrize("search_path", [":", "/nonexistent:.:"])
def test_an_isolated_python_starts_isolated_pythons(
    hostile: Path, tmp_path: Path, search_path: str
) -> None:
    """As multiprocessing does, and libraries that start ``python`` from PATH."""
    program = """
import json, multiprocessing, os, subprocess, sys
def child(): import random, types, numpy
if __name__ == "__main__":
    python = os.path.join(os.path.dirname(sys.executable), "python")
    subprocess.run([python, "-m", "json.tool", "--help"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([python, "-c", "import random, types, numpy"], check=True)
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start(); process.join()
    sys.exit(process.exitcode)
"""
    script = tmp_path / "starts.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=hostile,
        env=child_environment(hostile_environment(search_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _rank_table(folder: Path) -> tuple[str, ...]:
    table = folder / "table.json"
    table.write_text('{"server_list": [{"device": [{"device_id": 0, "rank_id": 0}]}]}')
    devices = DeviceSpec(target="ascend", launcher="rank-table", rank_table=str(table))
    rank = RankCommand(Path("/job"), attempt=1, world=1, devices=devices)
    return (*RankTableLauncher().plan(rank, folder).processes[0].command, "-h")


@pytest.mark.process
@pytest.mark.parametrize("kind", ["engine", "runner", "rank table", "rank"])
def test_every_command_runs_in_a_hostile_folder(hostile: Path, tmp_path: Path, kind: str) -> None:
    rank = RankCommand(Path("/job"), attempt=1, world=1, devices=DeviceSpec())
    commands = {
        "engine": lambda: (*ENGINE_COMMAND, "--help"),
        "runner": lambda: (*RUNNER_COMMAND, "--help"),
        "rank table": lambda: _rank_table(tmp_path),
        "rank": lambda: (*rank.command(clustered=False), "--help"),
    }
    done = subprocess.run(
        commands[kind](),
        cwd=hostile,
        env=child_environment(hostile_environment(":")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def _seen_from(folder: Path, path: Path) -> Path:
    """A relative path, as in a daemon with a relative data directory."""
    return Path(os.path.relpath(path, folder))


@pytest.mark.process
@pytest.mark.parametrize(("search_path", "inside"), [(":", True), ("", False)])
async def test_an_engine_of_a_daemon_in_a_hostile_folder_loads(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search_path: str, inside: bool
) -> None:
    bundle = _seen_from(hostile, write_bundle(tmp_path / "models"))
    monkeypatch.chdir(hostile)
    for name, value in hostile_environment(search_path).items():
        monkeypatch.setenv(name, value)
    folder = hostile if inside else tmp_path
    engine = await EngineProcess.start(
        EngineSpec("tiny@1", bundle, "openvino-f32"),
        ServingConfig(),
        lambda _: None,
        partial(launch, folder=folder),
        Quarantine(),
    )
    try:
        assert psutil.Process(engine.pid).cwd() == str(folder)
    finally:
        await engine.stop()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = make_job(tmp_path, count=2)
    yield job
    job.end()


@pytest.mark.process
def test_runner_and_workers_run_in_hostile_folders(
    job: Job, hostile: Path, marker: Path, tmp_path: Path
) -> None:
    """As a job's: the runner starts the scheduler and the workers."""
    fill(job.folder.logs / "attempt-1", marker)
    # The runner itself starts safely, with what a daemon could have inherited.
    environment = {**hostile_environment(f":{ROOT}:."), "PYTHONPYCACHEPREFIX": str(tmp_path / "c")}
    for name in ("PYTHONUSERBASE", "LD_LIBRARY_PATH"):
        del environment[name]
    runner = subprocess.Popen(
        [
            *python_command("tests.jobs.light_runner", str(job.folder.path)),
            *("--work", "tests.jobs.work:succeed", "--cluster", "scheduler"),
        ],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    job.runners.append(runner)
    assert runner.wait(60) == 0
    assert job.states()[-1].state is JobState.SUCCEEDED, job.states()


@pytest.mark.process
@pytest.mark.parametrize("how", ["command", "isolated module"])
def test_the_daemon_itself_starts_in_a_hostile_folder(hostile: Path, how: str) -> None:
    command = {
        "command": (str(Path(sys.executable).with_name("multigrain-server")),),
        "isolated module": python_command("multigrain_server"),
    }[how]
    done = subprocess.run([*command, "--print-config"], cwd=hostile, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("search_path", ["", ":"])
def test_python_m_imports_only_what_python_itself_needs_from_the_working_folder(
    tmp_path: Path, marker: Path, search_path: str
) -> None:
    """``python -m`` imports parts of Python before the daemon can do anything about it."""
    hostile = fill(tmp_path / "hostile", marker)
    needed = {"grpc", "pydantic", "structlog", "psutil", "yaml", "prometheus_client", "numpy"}
    for path in hostile.glob("*.py"):
        if path.stem not in needed:
            path.unlink()
    (hostile / "multigrain" / "__init__.py").unlink()
    (hostile / "multigrain").rmdir()
    done = subprocess.run(
        [sys.executable, "-m", "multigrain_server", "--print-config"],
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# The sources

SOURCES = ("multigrain", "server", "client", "examples")
STARTS = {
    *("Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"),
    *("create_subprocess_exec", "create_subprocess_shell"),
}
# Replace this process, run a shell, or start a Python of their own.
FORBIDDEN = {
    *("system", "popen", "execv", "execve", "execvp", "execvpe", "execl", "execle", "execlp"),
    *("execlpe", "spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp"),
    *("spawnvpe", "posix_spawn", "posix_spawnp", "ProcessPoolExecutor", "create_subprocess_shell"),
    *("getoutput", "getstatusoutput"),
}
# msrun needs the folder of this interpreter on PATH; the demo, a command beside it.
MAY_NAME_THE_INTERPRETER = {
    "multigrain/processes.py": 1,
    "multigrain/jobs/launchers.py": 1,
    "examples/demo/daemon.py": 1,
}


@functools.cache
def _trees() -> list[tuple[str, ast.Module]]:
    """Every module that could start a process; generated ones are left out."""
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
        for source in SOURCES
        for path in sorted((ROOT / source).rglob("*.py"))
        if "_pb2" not in path.stem
    ]


def _starts(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls that start a process: ``subprocess.X(...)``, ``asyncio.create_subprocess_X(...)``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="subprocess" | "asyncio"), attr=name):
                pass
            case ast.Attribute(value=ast.Name(id="loop"), attr=name) if "subprocess" in name:
                yield node
                continue
            case _:
                continue
        if name in STARTS and ast.unparse(node.func) != "asyncio.run":
            yield node


def test_every_start_of_a_process_has_a_clean_environment_and_a_folder_of_its_own() -> None:
    found, wrong = 0, []
    for file, tree in _trees():
        for call in _starts(tree):
            found += 1
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            environment = keywords.get("env")
            clean = (
                isinstance(environment, ast.Call)
                and isinstance(environment.func, ast.Name)
                and environment.func.id == "child_environment"
            )
            if not clean or "cwd" not in keywords:
                wrong.append(f"{file}:{call.lineno}: use child_environment(...) and cwd=")
    assert found >= 6
    assert not wrong, "\n".join(wrong)


def test_python_is_started_in_one_way_only() -> None:
    wrong = []
    named: dict[str, int] = {}
    for file, tree in _trees():
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id="sys"), attr="executable"):
                    named[file] = named.get(file, 0) + 1
                case ast.Import(names=names):
                    wrong += [
                        f"{file}:{node.lineno}: import {alias.name}"
                        for alias in names
                        if alias.name.split(".")[0] in ("multiprocessing", "pty", "runpy")
                    ]
                case ast.ImportFrom(module=str(module), names=names):
                    taken = {alias.name for alias in names}
                    if module.split(".")[0] in ("multiprocessing", "pty", "runpy", "subprocess"):
                        wrong.append(f"{file}:{node.lineno}: from {module} import")
                    if taken & FORBIDDEN or (module == "sys" and "executable" in taken):
                        wrong.append(f"{file}:{node.lineno}: from {module} import {taken}")
                case ast.Call(func=ast.Attribute(value=ast.Name(id="os" | "asyncio"), attr=name)):
                    if name in FORBIDDEN:
                        wrong.append(f"{file}:{node.lineno}: {name}")
    wrong += [
        f"{file}: names sys.executable: use multigrain.processes.python_command"
        for file, count in named.items()
        if count > MAY_NAME_THE_INTERPRETER.get(file, 0)
    ]
    assert not wrong, "\n".join(wrong)
