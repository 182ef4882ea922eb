"""Python, packages, and MindSpore in a process of its own (the daemon never imports it)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from multigrain_server.doctor.finding import Finding, fail, ok, warn

_PROBE = "multigrain.probe"
_PROBE_SECONDS = 120
# A quiet core takes about 10 ms for it.
_SLOW = 1.0


def packages(distribution: str = "multigrain", extra: str = "server") -> Iterator[Finding]:
    """Versions of what the daemon needs, against the ranges that it was installed with."""
    yield ok("python", sys.version.split()[0])
    wrong = []
    for text in metadata.requires(distribution) or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
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
        yield ok("packages", f"as {distribution}[{extra}] wants them")


def mindspore(python: str = sys.executable) -> Iterator[Finding]:
    """Whether MindSpore can be loaded and computes a convolution's gradient, and how fast."""
    fix = "pip install 'multigrain[server]' brings the version that was tested"
    try:
        # In a folder of its own: MindSpore leaves notes of a failure where it is.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [python, "-P", "-m", _PROBE],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
            )
    except subprocess.TimeoutExpired:
        yield fail("mindspore", f"no answer within {_PROBE_SECONDS} s", fix)
        return
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield fail("mindspore", f"ended with code {done.returncode}: {last}", fix)
        return
    version, seconds = answer["version"], answer["seconds"]
    gradient, expected = answer["gradient"], answer["expected"]
    if gradient != expected:
        yield fail("mindspore", f"{version} computes {gradient}, not {expected}", fix)
    elif seconds > _SLOW:
        yield warn(
            "mindspore",
            f"{version} takes {seconds:.1f} s for a convolution that a core does in 0.01 s",
            f"this wheel has no fast kernels for this CPU, or the machine is busy; {fix}",
        )
    else:
        yield ok("mindspore", f"{version}, a convolution's gradient in {1000 * seconds:.0f} ms")


def launcher() -> Iterator[Finding]:
    """Whether the program is there that starts several workers."""
    if shutil.which("msrun", path=None) or shutil.which("msrun", path=f"{sys.prefix}/bin"):
        yield ok("msrun", "found")
    else:
        yield fail(
            "msrun",
            "not found, so that no job can have several workers",
            "it comes with mindspore: start multigrain-server from the same environment",
        )
