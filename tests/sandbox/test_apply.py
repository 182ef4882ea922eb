"""What is reported where a kernel, a container or an architecture lacks a measure."""

from __future__ import annotations

import errno
import os

import pytest

from multigrain.sandbox import apply as module
from multigrain.sandbox import landlock, seccomp
from multigrain.sandbox.apply import MEASURES, Files, Sandbox, apply, probe

BARE = Sandbox(files=Files())


@pytest.fixture(autouse=True)
def harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's process itself must not be restricted."""
    monkeypatch.setattr(module, "_set_no_new_privs", lambda _: "")
    monkeypatch.setattr(landlock, "restrict", lambda *_, **__: 7)
    monkeypatch.setattr(seccomp, "install", lambda _: None)


def fails(code: int) -> object:
    def attempt(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return attempt


def test_on_a_kernel_that_has_everything_every_measure_holds() -> None:
    report = apply(BARE)
    assert [one.name for one in report.measures] == list(MEASURES)
    assert not report.missing


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.ENOSYS, "5.13"),
        (errno.EOPNOTSUPP, "lsm="),
        (errno.EPERM, "container"),
        (errno.EIO, "Input/output"),
    ],
)
def test_without_landlock_the_other_measures_hold(
    monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    for name in ("restrict", "abi"):
        monkeypatch.setattr(landlock, name, fails(code))
    for report in (apply(BARE), probe()):
        assert [one.name for one in report.missing] == ["files", "signals"]
        assert why in str(report.missing[0])
        assert report.active("system_calls")


@pytest.mark.parametrize(
    ("code", "why"),
    [(errno.ENOSYS, "no seccomp"), (errno.EINVAL, "no seccomp"), (errno.EPERM, "container")],
)
def test_without_seccomp_the_other_measures_hold(
    monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    for name in ("install", "check"):
        monkeypatch.setattr(seccomp, name, fails(code))
    for report in (apply(BARE), probe()):
        assert [one.name for one in report.missing] == ["network", "system_calls"]
        assert why in str(report.missing[0])
        assert report.active("files")


def test_an_early_landlock_restricts_files_and_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "restrict", lambda *_, **__: 1)
    report = apply(BARE)
    assert [one.name for one in report.missing] == ["signals"]
    assert "6.12" in str(report.missing[0])


def test_a_limit_that_cannot_be_set_is_named() -> None:
    report = apply(Sandbox(files=Files(), limits={"RLIMIT_NOFILE": -7, "RLIMIT_UNKNOWN": 1}))
    assert [one.name for one in report.missing] == ["limits"]
    assert "RLIMIT_NOFILE" in str(report.missing[0])


def test_measures_that_do_not_suit_a_process_are_not_missing() -> None:
    report = apply(Sandbox(filter=False, reasons={"files": "not with this driver"}))
    assert not report.missing
    assert [one.name for one in report.measures if one.active] == ["no_new_privs", "limits"]
    assert "files: not with this driver" in map(str, report.measures)
