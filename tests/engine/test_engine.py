"""An engine process, tested through its socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from multigrain.engine.protocol import EmbeddingOptions, LoadFailed, Ready, Submit, encode
from multigrain.engine.settings import EngineSettings
from multigrain.engine.shared_images import StoredImage
from multigrain.errors import ErrorKind
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.memory import EXIT_OUT_OF_MEMORY
from tests.engine.bundles import EMBEDDING, SIZE, TinyNetwork, write_bundle
from tests.engine.client import EngineClient
from tests.engine.pictures import invalid_images, picture, unusual_images

pytestmark = pytest.mark.process

RAW = EmbeddingOptions(normalize=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[EngineClient]:
    with EngineClient(bundle, max_batch=8) as client:
        yield client


@pytest.fixture(scope="module")
def ids() -> Iterator[int]:
    return iter(range(1, 1_000_000))


def test_an_engine_reports_its_runtime_and_why(engine: EngineClient) -> None:
    assert isinstance(engine.first, Ready)
    assert engine.first.runtime.startswith("openvino ")
    assert engine.first.reason.startswith("auto")
    assert engine.first.embedding_size == EMBEDDING
    assert engine.first.resolutions == (SIZE,)


def test_embeddings_and_classes_are_those_of_the_network(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    network = TinyNetwork(seed=1)
    data = picture(7)
    number = next(ids)
    engine.submit(number, data, vector=RAW, top_k=3)
    frame = engine.frame(number)
    result = engine.result(number)
    image = preprocess(data, Preprocessing(size=SIZE, resize_short=SIZE))
    expected = network.embed(image)
    logits = network.logits(expected)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()

    got = np.frombuffer(frame.payload[: result.vector_bytes], "<f4")
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    classes = frame.payload[result.vector_bytes :]
    assert result.classes == 3
    best = np.frombuffer(classes[:12], "<i4")
    assert best.tolist() == np.argsort(-probabilities)[:3].tolist()
    np.testing.assert_allclose(np.frombuffer(classes[12:], "<f4"), probabilities[best], rtol=1e-4)


def test_waiting_images_share_a_batch_and_a_single_image_does_not_wait(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    lone = next(ids)
    engine.submit(lone, picture(1), vector=RAW)
    assert engine.result(lone).batch_items == 1

    engine.hold(5)
    five = [next(ids) for _ in range(5)]
    for number in five:
        engine.submit(number, picture(number), vector=RAW)
    results = [engine.result(number) for number in five]
    assert [result.batch_items for result in results] == [5] * 5
    assert sum(result.first_in_batch for result in results) == 1


def test_a_batch_is_never_larger_than_the_limit(engine: EngineClient, ids: Iterator[int]) -> None:
    engine.hold(11)
    many = [next(ids) for _ in range(11)]
    for number in many:
        engine.submit(number, picture(number), vector=RAW)
    assert sorted(engine.result(number).batch_items for number in many) == [3] * 3 + [8] * 8


def test_every_image_of_a_batch_gets_its_own_result(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    pictures = [picture(seed) for seed in range(6)]
    alone = []
    for data in pictures:
        number = next(ids)
        engine.submit(number, data, vector=RAW)
        alone.append(np.frombuffer(engine.frame(number).payload, "<f4"))
    engine.hold(6)
    numbers = [next(ids) for _ in pictures]
    for number, data in zip(numbers, pictures, strict=True):
        engine.submit(number, data, vector=RAW)
    for number, expected in zip(numbers, alone, strict=True):
        got = np.frombuffer(engine.frame(number).payload, "<f4")
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len({tuple(vector) for vector in alone}) == 6


@pytest.mark.parametrize("name", list(unusual_images()))
def test_an_unusual_image_is_computed(engine: EngineClient, ids: Iterator[int], name: str) -> None:
    number = next(ids)
    engine.submit(number, unusual_images()[name], vector=RAW)
    assert engine.result(number).error is None, engine.result(number).message
    assert np.isfinite(np.frombuffer(engine.frame(number).payload, "<f4")).all()


@pytest.mark.parametrize("name", list(invalid_images()))
def test_an_invalid_image_does_not_affect_others(
    engine: EngineClient, ids: Iterator[int], name: str
) -> None:
    good, bad, also_good = next(ids), next(ids), next(ids)
    engine.submit(good, picture(1), vector=RAW)
    engine.submit(bad, invalid_images()[name], vector=RAW)
    engine.submit(also_good, picture(2), vector=RAW)
    assert engine.result(good).error is None
    assert engine.result(also_good).error is None
    kind = engine.result(bad).error
    assert kind is not None
    assert kind.name.startswith("IMAGE_")
    assert engine.result(bad).message


def test_an_unknown_resolution_is_refused_and_named(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    number = next(ids)
    engine.submit(number, picture(1), vector=RAW, resolution=64)
    assert engine.result(number).error is ErrorKind.INVALID_FIELD
    assert "64" in engine.result(number).message
    assert str(SIZE) in engine.result(number).message


def test_an_expired_image_never_reaches_the_network(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    engine.hold(3)
    late, first, second = next(ids), next(ids), next(ids)
    engine.submit(late, picture(1), vector=RAW, deadline_ns=time.monotonic_ns() + 50_000_000)
    time.sleep(0.2)
    engine.submit(first, picture(2), vector=RAW)
    engine.submit(second, picture(3), vector=RAW)
    assert engine.result(late).error is ErrorKind.DEADLINE
    assert engine.result(late).where == "queue"
    assert engine.result(first).batch_items == 2


def test_a_canceled_image_never_reaches_the_network(
    engine: EngineClient, ids: Iterator[int]
) -> None:
    engine.hold(2)
    gone, first, second = next(ids), next(ids), next(ids)
    engine.submit(gone, picture(1), vector=RAW)
    engine.cancel(gone)
    assert engine.result(gone).error is ErrorKind.CANCELLED
    engine.submit(first, picture(2), vector=RAW)
    engine.submit(second, picture(3), vector=RAW)
    assert engine.result(first).batch_items == 2


@pytest.mark.parametrize("tensor", [False, True])
def test_an_image_in_shared_memory_is_computed_like_one_in_the_socket(
    engine: EngineClient, ids: Iterator[int], tensor: bool
) -> None:
    # Bytes behind the picture's end do not matter.
    data = bytes(12 * SIZE**2) if tensor else picture(7) + bytes(100_000)
    first, second = next(ids), next(ids)
    engine.submit(first, data, vector=RAW, tensor=tensor)
    engine.submit_stored(second, data, vector=RAW, tensor=tensor)
    assert engine.result(second).error is None
    assert engine.frame(second).payload == engine.frame(first).payload


def test_an_engine_accepts_no_image_in_shared_memory_that_is_too_large(bundle: Path) -> None:
    with EngineClient(bundle) as client:
        client.submit_stored(1, b"small")
        assert client.result(1).error is ErrorKind.IMAGE_FORMAT
        message = Submit(id=2, stored=StoredImage(0, 1 << 40))
        client.socket.sendall(encode(message))
        assert client.process.wait(timeout=60) == 0


def test_an_engine_exits_when_the_socket_closes(bundle: Path) -> None:
    client = EngineClient(bundle)
    client.socket.close()
    assert client.process.wait(timeout=60) == 0


def test_an_engine_exits_after_an_invalid_message(bundle: Path) -> None:
    with EngineClient(bundle) as client:
        client.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.process.wait(timeout=60) == 0


def test_an_engine_dies_with_its_parent(bundle: Path, tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from tests.engine.client import EngineClient
client = EngineClient(Path({str(bundle)!r}))
Path({str(tmp_path / "pid")!r}).write_text(str(client.process.pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while time.monotonic() < deadline and _running(pid):
        time.sleep(0.02)
    assert not _running(pid)


def test_an_engine_that_runs_out_of_memory_while_loading_exits_with_its_code(bundle: Path) -> None:
    script = """
from multigrain.engine import __main__ as engine, serve

def load(*_):
    raise RuntimeError("Device(id:0) memory isn't enough and alloc failed")

serve.load = load
engine.main()
"""
    ours, theirs = socket.socketpair()
    settings = EngineSettings(bundle=bundle, socket_fd=theirs.fileno())
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", script, *settings.arguments()],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == EXIT_OUT_OF_MEMORY
    assert "out of memory: Device(id:0)" in done.stderr


def test_a_bundle_without_a_graph_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["heads"][0]["onnx"] = ""
    (folder / "model.json").write_text(json.dumps(manifest))
    with EngineClient(folder, runtime="onnxruntime") as client:
        assert isinstance(client.first, LoadFailed)
        assert "no ONNX graph" in client.first.message
        assert client.process.wait(timeout=60) == 1


def test_a_bundle_that_declares_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["embedding_size"] = 99
    (folder / "model.json").write_text(json.dumps(manifest))
    with EngineClient(folder) as client:
        assert isinstance(client.first, LoadFailed)
        assert "99" in client.first.message


def test_damaged_weights_are_found_by_the_warm_up(tmp_path: Path) -> None:
    network = TinyNetwork()
    network.bias[0] = np.nan
    folder = write_bundle(tmp_path, network=network)
    with EngineClient(folder) as client:
        assert isinstance(client.first, LoadFailed)
        assert "non-finite" in client.first.message


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        assert pid != os.getpid()
