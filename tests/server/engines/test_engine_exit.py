"""What is said of an engine that ended: memory, a signal, or its own last words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.machine import Memory
from multigrain.memory import EXIT_OUT_OF_MEMORY
from multigrain_server.engines.launch import EngineExit
from tests.cgroups import real_cgroup
from tests.engine.bundles import write_bundle
from tests.server.engines.test_engine import DeafChild, start

MIB = 1 << 20
LIMITED = Memory(24 << 30, 130 * MIB)
NEWS = "INFO multigrain.engine: openvino-bf16 is not used: this CPU has no bfloat16 instructions"


@pytest.mark.parametrize(
    ("end", "text", "out_of_memory", "reason_in_output"),
    [
        (
            EngineExit(-9, NEWS, oom_killer=True, memory=LIMITED),
            "out of memory: killed by the kernel; "
            "its cgroup may use 130 MiB of the machine's 24 GiB",
            True,
            False,
        ),
        (
            EngineExit(-9, NEWS, oom_killer=True, memory=Memory(24 << 30)),
            "out of memory: killed by the kernel; the machine has 24 GiB",
            True,
            False,
        ),
        (EngineExit(-9, NEWS, oom_killer=False), "SIGKILL (signal 9): from outside", False, False),
        (
            EngineExit(-9, NEWS),
            "SIGKILL (signal 9): from outside, or by the kernel for lack of memory",
            False,
            False,
        ),
        # The daemon itself has killed it, while something else ran out of memory.
        (EngineExit(-9, stopped=True, oom_killer=True), "SIGKILL (signal 9)", False, False),
        (EngineExit(-15, NEWS), "SIGTERM (signal 15): terminated from outside", False, False),
        (EngineExit(EXIT_OUT_OF_MEMORY, "ERROR"), "out of memory", True, True),
        (EngineExit(1, "ValueError: no"), "exit code 1", False, True),
        (EngineExit(1, "MemoryError"), "exit code 1", True, True),
        (
            EngineExit(1, "ImportError: libx.so: failed to map: Cannot allocate memory"),
            "exit code 1",
            True,
            True,
        ),
        (EngineExit(0, "out of memory"), "exit code 0", False, True),
        (
            EngineExit(-6, "  what():  std::bad_alloc"),
            "SIGABRT (signal 6): aborted by native code",
            True,
            True,
        ),
        (EngineExit(-11, NEWS), "SIGSEGV (signal 11): a crash in native code", False, True),
        (
            EngineExit(-11, NEWS, oom_killer=True),
            "SIGSEGV (signal 11): a crash in native",
            False,
            True,
        ),
        (EngineExit(-4), "SIGILL (signal 4): a library uses an instruction", False, True),
        (EngineExit(-7), "SIGBUS (signal 7): usually because /dev/shm is full", False, True),
        (EngineExit(-8), "SIGFPE (signal 8): an arithmetic error", False, True),
        (EngineExit(-31), "SIGSYS (signal 31): a system call that a seccomp", False, True),
        (EngineExit(-24), "SIGXCPU (signal 24): its limit of CPU time", False, True),
        (EngineExit(-25), "SIGXFSZ (signal 25): its limit of file size", False, True),
        (EngineExit(-40), "signal 40", False, True),
    ],
)
def test_the_end_of_an_engine_is_explained(
    end: EngineExit, text: str, out_of_memory: bool, reason_in_output: bool
) -> None:
    assert str(end).startswith(text)
    assert end.out_of_memory is out_of_memory
    assert end.has_reason_in_output is reason_in_output
    assert end.maybe_out_of_memory is (out_of_memory or end == EngineExit(-9, NEWS))


@pytest.mark.parametrize("out_of_memory", [True, False])
async def test_a_load_that_runs_out_of_memory_is_refused_without_a_retry(
    out_of_memory: bool,
) -> None:
    child = DeafChild()
    child.out_of_memory = out_of_memory
    child.last_output = "" if out_of_memory else "ValueError: no"
    asyncio.get_running_loop().call_later(0.05, child.kill)
    with pytest.raises(MultigrainError) as caught:
        await start(child)
    error = caught.value
    assert error.retry_after is None
    assert error.kind is (ErrorKind.OVERLOADED if out_of_memory else ErrorKind.UNAVAILABLE)
    assert ("raise the memory limit" in error.message) is out_of_memory
    assert ("its last output: ValueError: no" in error.message) is not out_of_memory


PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from multigrain.errors import MultigrainError
from multigrain_server.engines.config import ServingConfig
from multigrain_server.engines.engine import EngineProcess
from multigrain_server.engines.images import Quarantine
from multigrain_server.engines.launch import EngineSpec, launch

async def main():
    spec = EngineSpec("tiny@1", Path(sys.argv[1]), "openvino-f32")
    try:
        await EngineProcess.start(spec, ServingConfig(), print, launch, Quarantine())
    except MultigrainError as error:
        print(json.dumps([error.kind.name, error.message, error.retry_after]))

{enter}
asyncio.run(main())
"""


@pytest.mark.process
def test_the_oom_killer_is_named_with_the_limit(tmp_path: Path) -> None:
    """The pages that the daemon had before it entered the cgroup do not count there.

    With 30 MiB the daemon itself is the larger of the two at times, and is killed.
    """
    bundle = write_bundle(tmp_path)
    with real_cgroup() as cgroup:
        cgroup.limit_memory(40 * MIB)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(enter=cgroup.program), str(bundle)],
            capture_output=True,
            text=True,
            check=True,
        )
    kind, message, retry_after = json.loads(done.stdout)
    assert (kind, retry_after) == ("OVERLOADED", None), message
    assert message.startswith(
        "the engine of tiny@1 ended while loading (out of memory: killed by the kernel; "
        "its cgroup may use 40 MiB of the machine's "
    )
    assert "raise the memory limit" in message
    assert "last output" not in message


SERVING = """
import asyncio, json, sys
from pathlib import Path
from tests.images.files import encode
from tests.server.serving.harness import harness, small_config, until
from multigrain_server import service_names
from PIL import Image

def limit(size):
    for path in {limits}:
        if Path(path).exists():
            Path(path).write_text(str(size))

async def main():
    large = encode(Image.new("RGB", (7000, 7000)), "PNG")
    small = encode(Image.new("RGB", (64, 64)), "PNG")
    async with harness(Path(sys.argv[1]), small_config(), launch) as h:
        await h.manager.load("tiny")
        limit(memory().used + (30 << 20))
        answers = await h.embed(small, large, small)
        limit(1 << 30)
        # The callers are answered before the next engine is ready.
        await until(lambda: h.health[service_names.EMBEDDING])
        answers = [*answers.results, *(await h.embed(large)).results]
        restarts = h.manager.catalog.view("tiny").restarts
    errors = [item.error and [item.error.kind.name, item.error.message] for item in answers]
    print(json.dumps([restarts, errors]))

from multigrain.machine import memory
from multigrain_server.engines.launch import launch
{enter}
limit(1 << 30)
asyncio.run(main())
"""


@pytest.mark.process
def test_an_image_that_needs_more_than_the_limit_is_refused_until_it_is_raised(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "models")
    with real_cgroup() as cgroup:
        limits = [str(cgroup.memory / name) for name in ("memory.limit_in_bytes", "memory.max")]
        done = subprocess.run(
            [sys.executable, "-c", SERVING.format(enter=cgroup.program, limits=limits), tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    restarts, errors = json.loads(done.stdout.splitlines()[-1])
    assert restarts == 0  # a decoder process ends, not the engine
    assert [error is None for error in errors] == [True, False, True, True], errors
    kind, message = errors[1]
    assert kind == "OVERLOADED"
    assert "killed by the kernel; its cgroup may use " in message
