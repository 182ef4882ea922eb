"""multigrain-server doctor."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tarfile
from io import StringIO
from pathlib import Path

import pytest

from multigrain.sandbox.apply import Measure, SandboxReport
from multigrain_server.config import ServerConfig
from multigrain_server.data_dir import DataDir
from multigrain_server.doctor import interpreter, machine, network, report, software
from multigrain_server.doctor.finding import Level, fail, ok, warn
from multigrain_server.main import main
from multigrain_server.models.registry import ModelVersion
from multigrain_server.models.state import LoadedRow, ServingState


def config(tmp_path: Path, **values: object) -> ServerConfig:
    return ServerConfig.model_validate(
        {"data_dir": tmp_path / "data", "listen": "127.0.0.1:0", "http_listen": "", **values}
    )


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_exit_code_is_1_if_a_check_fails() -> None:
    out = StringIO()
    assert report.run([lambda: [ok("a", "b"), warn("c", "d", "e")]], out) == 0
    assert report.run([lambda: [ok("a", "b")], lambda: [fail("c", "d", "fix it")]], out) == 1
    assert "FAIL  c: d\n      -> fix it\n" in out.getvalue()


def test_installed_packages_satisfy_the_requirements() -> None:
    assert {finding.level for finding in software.packages()} == {Level.OK}


def test_a_python_with_known_holes_is_named_with_what_to_do() -> None:
    holes = [
        interpreter.Hole("CVE-1", "tarfile", "an archive can stop it", lambda: False),
        interpreter.Hole("CVE-2", "ssl", "not here", lambda: True),
    ]
    (finding,) = interpreter.python(holes)
    assert finding.level is Level.WARN
    assert "known holes: CVE-1 in tarfile (an archive can stop it)" in finding.message
    assert "CVE-2" not in finding.message
    assert "newest patch release" in finding.fix
    (finding,) = interpreter.python(holes[1:])
    assert finding.level is Level.OK


def test_fixes_are_recognized_by_what_they_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile, "_header_length_prefix_re", object(), raising=False)
    assert "CVE-2024-6232" not in next(iter(interpreter.python())).message
    monkeypatch.delattr(tarfile, "_header_length_prefix_re")
    assert "CVE-2024-6232 in tarfile" in next(iter(interpreter.python())).message


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=99", 'surely-not-there>=1; extra == "server"', 'x; extra == "demo"']
    monkeypatch.setattr(software.metadata, "requires", lambda name: wanted)
    (finding,) = [f for f in software.packages() if f.subject == "packages"]
    assert finding.level is Level.FAIL
    assert "numpy" in finding.message
    assert ">=99" in finding.message
    assert "surely-not-there is not installed" in finding.message
    assert "x " not in finding.message


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "level", "message"),
    [
        ("echo noise; echo '{}'", Level.OK, "9.9, gradient of a convolution in 5 ms"),
        ("echo '{}' | sed s/0.005/7/", Level.WARN, "takes 7.0 s"),
        ("echo '{}' | sed s/576.0/5/", Level.FAIL, "computes 5"),
        ("echo no such library >&2; exit 3", Level.FAIL, "exited with code 3: no such library"),
        ("kill -4 $$", Level.FAIL, "exited with code -4: SIGILL (signal 4): a library uses an"),
    ],
)
def test_mindspore_results(tmp_path: Path, script: str, level: Level, message: str) -> None:
    answer = '{"version": "9.9", "gradient": 576.0, "expected": 576, "seconds": 0.005}'
    tool(tmp_path, "python", script.replace("{}", answer))
    (finding,) = software.mindspore([str(tmp_path / "python")])
    assert finding.level is level
    assert message in finding.message


@pytest.mark.process
def test_installed_mindspore_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is imported from the working folder.
    for name in ("types", "random", "numpy", "mindspore", "multigrain", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(99)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":")
    (finding,) = software.mindspore()
    # The speed depends on what else the machine does.
    assert finding.level is not Level.FAIL, finding


def test_missing_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    wanted = config(tmp_path, devices="cpu:1,gpu:0-3")
    assert [f.level for f in machine.devices(wanted)] == [Level.OK, Level.FAIL]
    tool(tmp_path, "nvidia-smi", "echo 'GPU 0: a'; echo 'GPU 1: b'")
    *_, gpu = machine.devices(wanted)
    assert gpu.level is Level.FAIL
    assert "lists 2, which does not include [2, 3]" in gpu.message
    *_, gpu = machine.devices(config(tmp_path, devices="gpu:0-1"))
    assert gpu.level is Level.OK


def test_disk_is_checked_before_the_data_directory_exists(tmp_path: Path) -> None:
    findings = list(machine.disk(config(tmp_path)))
    assert findings[0].level is not Level.FAIL
    assert "GiB free" in findings[0].message
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.iterdir())


def test_unwritable_data_directory_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refuse)
    (finding,) = machine.disk(config(tmp_path))
    assert finding.level is Level.FAIL
    assert "Permission denied" in finding.message


def test_data_roots_must_be_folders(tmp_path: Path) -> None:
    roots = [str(tmp_path), str(tmp_path / "nowhere")]
    levels = [f.level for f in machine.roots(config(tmp_path, data_root=roots))]
    assert levels == [Level.OK, Level.FAIL]


def test_address_used_by_another_program_fails(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        held = f"127.0.0.1:{other.getsockname()[1]}"
        (finding,) = network.addresses(config(tmp_path, listen=held))
    assert finding.level is Level.FAIL
    assert "in use" in finding.message


def test_address_used_by_the_daemon_itself_is_ok(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    try:
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            own.listen()
            held = f"127.0.0.1:{own.getsockname()[1]}"
            findings = list(network.addresses(config(tmp_path, listen=held)))
    finally:
        data.close()
    assert [f.level for f in findings] == [Level.OK, Level.OK]
    assert f"pid {os.getpid()}" in findings[0].message


def test_command_prints_every_check_and_starts_no_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "mindspore", lambda: [ok("mindspore", f"by {sys.executable}")])
    code = main(["doctor", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"])
    out = capsys.readouterr().out
    assert code == (1 if "FAIL" in out else 0)
    for subject in ("python", "packages", "mindspore", "cpu", "devices", "clock"):
        assert f"  {subject}: " in out
    assert not (tmp_path / "data").exists()


MISSING = Measure("files", False, "Landlock is disabled: add landlock to the parameter lsm=")
ACTIVE = Measure("system_calls", True, "seccomp")


@pytest.mark.parametrize(
    ("serving", "measures", "level", "text"),
    [
        ({}, (ACTIVE,), Level.OK, "engines are restricted by system_calls"),
        ({}, (ACTIVE, MISSING), Level.WARN, "not restricted by files: Landlock is disabled"),
        ({"sandbox": "required"}, (MISSING,), Level.FAIL, "not restricted by files"),
        ({"sandbox": "off"}, (ACTIVE,), Level.WARN, "serving.sandbox is off"),
        ({"device": "gpu"}, (ACTIVE,), Level.OK, "the driver of gpu"),
    ],
)
def test_the_measures_that_restrict_engines_are_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    serving: dict[str, object],
    measures: tuple[Measure, ...],
    level: Level,
    text: str,
) -> None:
    monkeypatch.setattr(machine, "probe", lambda: SandboxReport(measures))
    (finding,) = machine.sandbox(config(tmp_path, serving=serving))
    assert finding.level is level
    assert text in finding.message
    assert bool(finding.fix) == (level is not Level.OK)


def test_the_runtimes_of_loaded_models_are_listed(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert list(machine.runtimes(found)) == []
    served = "openvino 2026.4.1 cpu int8 (auto: measured images/s: openvino-int8 26.6)"
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "serving.json"
    state = ServingState(path)
    state.add_loaded(LoadedRow(version=ModelVersion("m", 2), runtime="auto", served=served))
    state.add_loaded(LoadedRow(version=ModelVersion("n", 1), runtime="auto"))
    assert [str(finding) for finding in machine.runtimes(found)] == [
        f"ok    runtime of m@2: {served}",
        "ok    runtime of n@1: not loaded yet",
    ]
    # Unlike the daemon, which moves a damaged file aside.
    path.write_text("{")
    assert list(machine.runtimes(found)) == []
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("sse avx avx2", "float32; the CPU has no bfloat16; 8 bits (avx2)"),
        ("avx2 avx512_vnni", "float32; the CPU has no bfloat16; 8 bits (avx512_vnni)"),
        ("avx2 avx512_vnni amx_bf16 amx_int8", "bfloat16 (amx_bf16); 8 bits (amx_int8)"),
        ("sse", "float32; the CPU has no bfloat16; no 8 bits"),
    ],
)
def test_the_precisions_of_the_processor_are_named(flags: str, shown: str) -> None:
    assert machine.precisions(flags) == shown
