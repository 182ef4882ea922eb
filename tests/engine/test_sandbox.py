"""Engines are restricted, and code that has taken one over reaches nothing outside."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from multigrain.engine.protocol import Connection, LoadFailed, Ready, Result, Submit
from multigrain.engine.serve import check_sandbox
from multigrain.engine.settings import EngineSettings
from multigrain.engine.shared_images import SharedImages
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.memory import EXIT_OUT_OF_MEMORY
from multigrain.processes import child_environment, python_command
from multigrain.sandbox.apply import MEASURES, Measure, SandboxReport, probe
from multigrain.storage import describe
from tests.engine.bundles import write_bundle
from tests.engine.client import EngineClient
from tests.engine.pictures import picture
from tests.sandbox.attack import chosen, memory_attacks
from tests.sandbox.test_attacks import ROOT, folder

__all__ = ["folder"]  # a fixture

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        bool(probe().missing), reason="; ".join(map(str, probe().missing)) or "complete"
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"), referenced=True)


def statuses(pid: int) -> list[dict[str, str]]:
    """/proc/PID/status of a process and its descendants."""
    engine = psutil.Process(pid)
    found = []
    for process in (engine, *engine.children(recursive=True)):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    return found


@pytest.mark.parametrize("runtime", ["openvino-f32", "onnxruntime"])
def test_an_engine_answers_in_a_sandbox(bundle: Path, runtime: str) -> None:
    with EngineClient(bundle, runtime=runtime, sandbox="required") as engine:
        assert isinstance(engine.first, Ready), engine.first
        assert {one.name for one in engine.first.sandbox if one.active} == set(MEASURES)
        engine.submit(1, picture(1), top_k=1)
        assert engine.result(1).error is None
        processes = statuses(engine.process.pid)
        assert len(processes) >= 3  # the engine, the template, a decoder process
        for status in processes:
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status["Name"]
            # DAC_OVERRIDE, DAC_READ_SEARCH and SYS_NICE at most.
            assert not int(status["CapPrm"], 16) & ~0x800006


def test_an_engine_without_a_sandbox_says_so(bundle: Path) -> None:
    with EngineClient(bundle, runtime="onnxruntime", sandbox="off") as engine:
        assert isinstance(engine.first, Ready)
        assert engine.first.sandbox == ()
        engine.submit(1, picture(1), top_k=1)
        assert engine.result(1).error is None
        assert {status["NoNewPrivs"] for status in statuses(engine.process.pid)} == {"0"}


def greedy_graph(path: Path, size: int) -> None:
    """Adds to a graph a tensor of ``size`` bytes, which the graph has in a few bytes."""
    model = onnx.load(path)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    shape = numpy_helper.from_array(np.array([size // 4], np.int64), "shape")
    index = numpy_helper.from_array(np.array([0], np.int64), "index")
    model.graph.initializer.extend([shape, index])
    (last,) = [node for node in model.graph.node if "embedding" in node.output]
    last.output[0] = "true_embedding"
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["large"], value=value),
            helper.make_node("Gather", ["large", "index"], ["zero"]),
            helper.make_node("Add", ["true_embedding", "zero"], ["embedding"]),
        ]
    )
    # In the order of their use.
    nodes = sorted(model.graph.node, key=lambda node: "logits" in node.output)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("runtime", ["openvino-f32", "onnxruntime"])
@pytest.mark.parametrize(("gib", "loads"), [(0.25, True), (3, False)])
def test_a_graph_that_wants_more_memory_than_there_is_ends_its_engine_only(
    tmp_path: Path, runtime: str, gib: float, loads: bool
) -> None:
    bundle = write_bundle(tmp_path)
    greedy_graph(bundle / "model.onnx", int(gib * (1 << 30)))
    manifest = json.loads((bundle / "model.json").read_text())
    manifest["files"]["model.onnx"] = describe(bundle / "model.onnx").model_dump()
    (bundle / "model.json").write_text(json.dumps(manifest))
    options: dict[str, Any] = {"runtime": runtime, "max_batch": 1, "memory_bytes": 2 << 30}
    if loads:
        with EngineClient(bundle, **options) as engine:
            assert isinstance(engine.first, Ready), engine.first
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        settings = EngineSettings(bundle=bundle, socket_fd=theirs.fileno(), **options)
        done = subprocess.run(
            [*python_command("multigrain.engine"), *settings.arguments()],
            env=child_environment(os.environ),
            cwd="/",
            pass_fds=(theirs.fileno(),),
            timeout=60,
        )
    assert done.returncode == EXIT_OUT_OF_MEMORY


# Code that has taken over a process of an engine

_CAPTURED = """
import json, sys
from pathlib import Path
from multigrain.engine import __main__ as engine, decoder_process
from multigrain.errors import ErrorKind, MultigrainError
from tests.sandbox.attack import chosen, memory_attacks, outcome

def attack(*_):
    attempts = chosen(NAME, Path(FOLDER))
    if NAME == "engine":
        attempts |= memory_attacks(IMAGES)
    found = {title: outcome(attempt) for title, attempt in attempts.items()}
    raise MultigrainError(ErrorKind.UNSUPPORTED, json.dumps(found))

if NAME == "decoder":
    decoder_process.image_decoder = lambda parameters: attack
else:
    # Imported by the engine after its sandbox.
    original = engine.apply
    def apply(sandbox):
        report = original(sandbox)
        from multigrain.engine import serve
        serve.load = attack
        return report
    engine.apply = apply
sys.exit(engine.main())
"""


@pytest.fixture
def captured(folder: Path, bundle: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that the test starts."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["engine", "decoder"])
def test_a_captured_process_of_an_engine_reaches_nothing_outside(
    name: str, folder: Path, bundle: Path, captured: list[subprocess.Popen[bytes]]
) -> None:
    """The runtime, or the decoder, does what an attacker would."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(SharedImages()) as images:
        images_fd = images.engine_fd
        script = f"NAME, FOLDER, IMAGES = {name!r}, {str(folder)!r}, {images_fd}\n{_CAPTURED}"
        settings = EngineSettings(
            bundle=bundle,
            socket_fd=theirs.fileno(),
            images_fd=images_fd,
            runtime="onnxruntime",
            parent_pid=os.getpid(),
        )
        captured.append(
            subprocess.Popen(
                [*python_command("unused")[:2], "-c", script, *settings.arguments()],
                env=child_environment({**os.environ, "PYTHONPATH": str(ROOT)}),
                cwd="/",
                pass_fds=(theirs.fileno(), images_fd),
            )
        )
        theirs.close()
        ours.settimeout(60)
        connection = Connection(ours, 1 << 24)
        frames = connection.frames()
        answer = next(frames).message
        if name == "decoder":
            assert isinstance(answer, Ready), answer
            connection.send(Submit(id=1, top_k=1), picture(1))
            answer = next(frames).message
        assert isinstance(answer, LoadFailed | Result)
        assert not os.fstat(images.fd).st_blocks  # of the memory that the engine could fill
    attempts = chosen(name, folder) | (memory_attacks(-1) if name == "engine" else {})
    assert json.loads(answer.message) == dict.fromkeys(attempts, "refused")
    assert (folder / "outside").read_text() == "secret"


# A machine that lacks a measure


def test_a_model_is_refused_only_if_a_sandbox_is_required(bundle: Path) -> None:
    report = SandboxReport((Measure("files", False, "the kernel has no Landlock"),))
    settings = EngineSettings(bundle=bundle, socket_fd=0)
    check_sandbox(settings, report)
    required = settings.model_copy(update={"sandbox": "required"})
    check_sandbox(required, SandboxReport())
    with pytest.raises(MultigrainError, match="no Landlock") as raised:
        check_sandbox(required, report)
    assert raised.value.kind is ErrorKind.UNSUPPORTED
