"""Engines and bundles on a host with faults: no memory, unreadable files, native crashes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image
from structlog.testing import capture_logs

from multigrain import files
from multigrain.bundle import folder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.models.catalog import ModelView
from tests.engine.bundles import write_bundle
from tests.engine.pictures import encoded, picture
from tests.server.serving.harness import harness, until

pytestmark = pytest.mark.process

# Runs an engine that has a child with the engine's output, as compilers of kernels are.
_WITH_CHILD = "import os, subprocess, sys; subprocess.Popen(['sleep', '30']); os.execv(*%r)"
# Runs an engine in which one image causes a native fault: in its decoder, or in the network.
_WITH_FAULT = """
import os, runpy, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from multigrain.engine import worker
from multigrain.images import preprocess
whole, run = preprocess.crop, worker._run
def faulty(data, *rest):
    return os.abort() if data == {in_decoder!r} else whole(data, *rest)
def faulty_run(runtime, items):
    return os.abort() if any((item.pixels == 255).all() for item in items) else run(runtime, items)
preprocess.crop, worker._run = faulty, faulty_run
sys.argv = {command!r}
runpy.run_module("multigrain.engine", run_name="__main__")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models")
    return tmp_path


def state(view: ModelView) -> str:
    return view.state.value


async def test_an_engine_is_replaced_once_the_host_can_start_one_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = asyncio.create_subprocess_exec
    failures = 0

    async def short_of_memory(*command: str, **options: object) -> asyncio.subprocess.Process:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return await spawn(*command, **options)  # type: ignore[arg-type]

    with capture_logs() as lines:
        async with harness(root) as h:
            await h.manager.load("tiny@1")
            monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_memory)
            os.kill(h.manager.catalog.route("tiny@1").engine.pid, signal.SIGKILL)
            await until(
                lambda: failures == 2 and state(h.manager.catalog.view("tiny@1")) == "ready"
            )
            assert (await h.embed(picture(1))).model == "tiny@1"
            await h.manager.unload("tiny@1")
    events = [line["event"] for line in lines if line.get("model") == "tiny@1"]
    assert [event for event in events if event != "engine output"] == [
        "model loaded",
        "engine ended",
        "engine restart failed",
        "engine restart failed",
        "engine replaced",
        "model unloaded",
    ]


async def test_a_replaced_engine_takes_the_runtime_of_the_one_before(root: Path) -> None:
    """What is the fastest might be measured differently, and vectors would change."""
    async with harness(root) as h:
        view = await h.manager.load("tiny@1", "auto")
        # Whatever "auto" would choose now.
        model = h.manager.catalog.loaded[view.entry.version]
        assert model.engine.ready is not None
        assert view.runtime_name.startswith("openvino-")
        model.engine.ready.runtime_name = "onnxruntime"
        os.kill(model.engine.pid, signal.SIGKILL)
        await until(
            lambda: model.restarts == 1 and state(h.manager.catalog.view("tiny@1")) == "ready"
        )
        after = h.manager.catalog.view("tiny@1")
        assert after.runtime.startswith("onnxruntime")
        assert "requested" in after.runtime
        # What was requested counts for the next start of the daemon.
        assert model.runtime == "auto"


async def test_a_load_on_a_host_without_memory_is_unavailable(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def short_of_files(*_command: str, **_options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_files)
    async with harness(root) as h:
        with pytest.raises(MultigrainError, match=r"Too many open files") as caught:
            await h.manager.load("tiny@1")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after
        assert state(h.manager.catalog.view("tiny@1")) == "unloaded"


async def test_an_unreadable_file_does_not_stop_other_models_from_being_restored(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(root / "models", "other")
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        await h.manager.load("other")
    opened = files.open_regular

    def denied(path: Path, roots: files.Roots = None) -> BinaryIO:
        if path.match("tiny/1/model.onnx"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, roots)

    monkeypatch.setattr(folder, "open_regular", denied)
    async with harness(root) as h:
        await until(lambda: state(h.manager.catalog.view("other")) == "ready")
        view = h.manager.catalog.view("tiny@1")
        assert state(view) == "failed"
        assert "Permission denied" in view.message


async def test_an_engine_that_leaves_a_child_process_behind_is_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = asyncio.create_subprocess_exec

    async def with_child(*command: str, **options: object) -> asyncio.subprocess.Process:
        program = _WITH_CHILD % ((command[0], command),)
        return await spawn(sys.executable, "-c", program, **options)  # type: ignore[arg-type]

    async with harness(root) as h:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", with_child)
        await h.manager.load("tiny@1")
        monkeypatch.undo()
        os.kill(h.manager.catalog.route("tiny@1").engine.pid, signal.SIGKILL)
        await until(lambda: h.manager.catalog.view("tiny@1").restarts == 1, seconds=5)
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "ready")


def start_with_fault(monkeypatch: pytest.MonkeyPatch, in_decoder: bytes = b"") -> None:
    """Engines that start later crash at white pixels, and their decoders at an image."""
    spawn = asyncio.create_subprocess_exec

    async def with_fault(*command: str, **options: object) -> asyncio.subprocess.Process:
        program = _WITH_FAULT.format(in_decoder=in_decoder, command=list(command[2:]))
        return await spawn(sys.executable, "-c", program, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", with_fault)


async def test_an_image_that_crashes_a_decoder_process_leaves_the_engine_running(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = picture(2)
    start_with_fault(monkeypatch, deadly)
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        for _ in range(2):
            answer = await h.embed(picture(1), deadly, picture(3))
            errors = [item.error for item in answer.results]
            assert errors[0] is None
            assert errors[2] is None
            assert errors[1] is not None
            assert errors[1].kind is ErrorKind.IMAGE_HARMFUL
            assert "crashed its process" in errors[1].message
        assert h.manager.catalog.view("tiny@1").restarts == 0


async def test_an_image_that_crashes_a_real_engine_is_quarantined_and_its_neighbors_are_answered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_with_fault(monkeypatch)
    deadly = encoded(Image.new("RGB", (48, 48), "white"))
    async with harness(root) as h:
        await h.manager.load("tiny@1")
        answer = await h.embed(picture(1), deadly, picture(3))
        errors = [item.error for item in answer.results]
        assert errors[0] is None
        assert errors[2] is None
        assert errors[1] is not None
        assert errors[1].kind is ErrorKind.IMAGE_HARMFUL
        assert h.manager.catalog.view("tiny@1").restarts == 2
        await until(lambda: state(h.manager.catalog.view("tiny@1")) == "ready")
        assert (await h.embed(picture(1))).results[0].error is None
