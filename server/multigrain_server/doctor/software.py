"""Checks of packages and MindSpore."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement

from multigrain.files import parse_json
from multigrain.kernels import mindspore_version
from multigrain.memory import OomWatch
from multigrain.processes import (
    child_environment,
    describe_signal,
    explain_signal,
    python_command,
)
from multigrain_server.doctor.finding import Finding, fail, ok, warn
from multigrain_server.jobs import training_packages

_PROBE: Final = python_command("multigrain.probe")
_PROBE_SECONDS = 120
# An idle core takes about 10 ms.
_SLOW = 1.0


def packages(distribution: str = "multigrain", extra: str = "") -> Iterator[Finding]:
    """Installed versions against the ranges that the distribution requires.

    Args:
        distribution: the installed project.
        extra: of the project; "" = ``serve`` without MindSpore, else ``server``.
    """
    extra = extra or ("server" if mindspore_version() else "serve")
    wrong = []
    for requirement in _required(distribution, {extra}):
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        yield fail("packages", "; ".join(wrong), f"pip install '{distribution}[{extra}]'")
    else:
        yield ok("packages", f"satisfy {distribution}[{extra}]")


def _required(distribution: str, extras: Collection[str]) -> Iterator[Requirement]:
    """What a project requires with some extras; an extra may name others of the same project."""
    texts = metadata.requires(distribution) or ()
    waiting, seen = list(extras), set(extras) | {""}
    wanted = [""]
    while waiting:
        wanted.append(waiting.pop())
        for text in texts:
            requirement = Requirement(text)
            marker = requirement.marker
            if (
                marker is not None
                and marker.evaluate({"extra": wanted[-1]})
                and (requirement.name == distribution)
            ):
                waiting += requirement.extras - seen
                seen |= requirement.extras
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if requirement.name != distribution and (
            marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted)
        ):
            yield requirement


def mindspore(command: Sequence[str] = _PROBE) -> Iterator[Finding]:
    """Whether MindSpore computes the gradient of a convolution, and how fast.

    In a process of its own: the daemon never imports MindSpore.

    Args:
        command: runs ``multigrain.probe``.
    """
    if command is _PROBE and (missing := training_packages.missing()):
        yield ok(
            "training",
            f"none: {', '.join(missing)} not installed, so this daemon serves models and refuses "
            f"jobs ({training_packages.how_to_add()} adds them)",
        )
        return
    fix = "install the tested version: pip install 'multigrain[server]'"
    try:
        # MindSpore writes files about failures into the working directory.
        watch = OomWatch()
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command,
                env=child_environment(os.environ),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
            )
    except subprocess.TimeoutExpired:
        yield fail("mindspore", f"no result within {_PROBE_SECONDS} s", fix)
        return
    try:
        answer = parse_json(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["(no output)"])[-1]
        if done.returncode < 0:
            meaning = explain_signal(-done.returncode) or last
            if watch.killed() and done.returncode == -signal.SIGKILL:
                meaning = f"out of memory: the kernel allows {watch.memory()}"
                fix = "raise the memory limit"
            last = f"{describe_signal(-done.returncode)}: {meaning}"
        yield fail("mindspore", f"exited with code {done.returncode}: {last}", fix)
        return
    version, seconds = answer["version"], answer["seconds"]
    gradient, expected = answer["gradient"], answer["expected"]
    limited = f" ({answer['limited']})" if answer.get("limited") else ""
    if gradient != expected:
        yield fail("mindspore", f"{version} computes {gradient} instead of {expected}", fix)
    elif seconds > _SLOW:
        yield warn(
            "mindspore",
            f"{version} takes {seconds:.1f} s for a convolution that usually takes 0.01 s{limited}",
            f"the wheel has no fast kernels for this CPU, or the machine is busy; {fix}",
        )
    else:
        yield ok(
            "mindspore",
            f"{version}, gradient of a convolution in {1000 * seconds:.0f} ms{limited}",
        )
