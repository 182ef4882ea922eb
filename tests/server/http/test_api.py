"""The HTTP API gives the answers of the gRPC calls."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import grpc.aio
import numpy as np
import openapi_spec_validator
import pytest
import pytest_asyncio

from multigrain.v1.embedding_pb2 import ClassifyRequest, EmbedRequest
from multigrain.v1.embedding_pb2_grpc import EmbeddingServiceStub
from multigrain.v1.export_pb2 import StartExportRequest
from multigrain.v1.export_pb2_grpc import ExportServiceStub
from multigrain.v1.export_spec_pb2 import ExportSpec
from multigrain.v1.job_pb2 import CancelJobRequest
from multigrain.v1.job_pb2_grpc import JobServiceStub
from multigrain_server.http import bodies
from tests.engine.bundles import CLASSES, EMBEDDING
from tests.engine.pictures import picture
from tests.server.http.daemon import Answer, Daemon, daemon

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]

PNG = {"Content-Type": "image/png"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    async with daemon(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(served: Daemon) -> AsyncIterator[EmbeddingServiceStub]:
    async with grpc.aio.insecure_channel(served.app.address) as channel:
        yield EmbeddingServiceStub(channel)


def _form(*images: bytes, **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value)
    for number, data in enumerate(images):
        form.add_field("images", data, filename=f"{number}.png", content_type="image/png")
    return form


def _text(*images: bytes) -> list[str]:
    return [base64.b64encode(data).decode() for data in images]


def _vectors(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    return [base64.b64decode(result["embedding"]["data"]) for result in answer.json["results"]]


async def test_every_form_gives_the_vectors_of_grpc(
    served: Daemon, stub: EmbeddingServiceStub
) -> None:
    images = [picture(1), picture(2)]
    request = EmbedRequest(images=images, normalize=False)
    expected = [r.embedding.data for r in (await stub.Embed(request)).results]
    body = {"images": _text(*images), "normalize": False}
    assert _vectors(await served.post("/v1/embed", json=body)) == expected
    form = _form(*images, normalize="false")
    assert _vectors(await served.post("/v1/embed", data=form)) == expected
    for number, data in enumerate(images):
        answer = await served.post("/v1/embed?normalize=false", data=data, headers=PNG)
        assert _vectors(answer) == [expected[number]]


async def test_the_answer_is_the_json_form_of_the_message(served: Daemon) -> None:
    headers = {**PNG, "X-Request-Id": "mine"}
    path = "/v1/embed?model=tiny@1&request_id=r1&dtype=DTYPE_INT8"
    answer = await served.post(path, data=picture(1), headers=headers)
    assert answer.headers["X-Request-Id"] == "mine", answer
    assert answer.json["model"] == "tiny@1"
    assert answer.json["request_id"] == "r1"
    vector = answer.json["results"][0]["embedding"]
    assert vector["size"] == EMBEDDING
    assert vector["dtype"] == "DTYPE_INT8"
    assert len(base64.b64decode(vector["data"])) == EMBEDDING
    assert int(answer.json["timings"]["total_ns"]) > 0


async def test_classes_are_those_of_grpc(served: Daemon, stub: EmbeddingServiceStub) -> None:
    expected = (await stub.Classify(ClassifyRequest(images=[picture(3)], top_k=2))).results[0]
    answer = await served.post("/v1/classify?top_k=2", data=picture(3), headers=PNG)
    found = answer.json["results"][0]["classes"]
    assert [c.get("class_id", 0) for c in found] == [c.class_id for c in expected.classes]
    assert [c["probability"] for c in found] == pytest.approx(
        [c.probability for c in expected.classes]
    )


async def test_one_bad_image_fails_alone(served: Daemon) -> None:
    answer = await served.post("/v1/embed", data=_form(picture(1), b"no image"))
    good, bad = answer.json["results"]
    assert "embedding" in good
    assert bad["status"]["code"] == 3
    assert bad["status"]["kind"].startswith("ERROR_KIND_IMAGE_")


async def test_models_and_jobs_can_be_read(served: Daemon) -> None:
    assert [m["name"] for m in (await served.get("/v1/models")).json["models"]] == ["tiny"]
    assert (await served.get("/v1/models/tiny@1")).json["version"] == "1"
    assert (await served.get("/v1/jobs?states=JOB_STATE_RUNNING&page_size=5")).json == {
        "jobs": [],
        "next_page_token": "",
    }
    missing = await served.get("/v1/jobs/train-nothing")
    assert missing.status == 404
    assert missing.json["error"]["status"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("path", "options", "status", "words"),
    [
        ("/v1/embed", {"data": b"", "headers": PNG}, 400, "body is empty"),
        ("/v1/embed", {"data": b"x", "headers": {"Content-Type": "text/html"}}, 400, "text/html"),
        ("/v1/embed", {"json": {"images": [], "x": 1}}, 400, '"x"'),
        ("/v1/embed", {"json": {"images": "abc"}}, 400, "images"),
        ("/v1/embed", {"json": []}, 400, "parse"),
        ("/v1/embed", {"json": {"model": "none", "images": _text(picture(1))}}, 404, "none"),
        ("/v1/embed?top_k=1", {"data": picture(1), "headers": PNG}, 400, "top_k"),
        ("/v1/embed?whiten=maybe", {"data": picture(1), "headers": PNG}, 400, "true or false"),
        ("/v1/embed?resolution=-3", {"data": picture(1), "headers": PNG}, 400, "resolution"),
        ("/v1/embed?images=AAAA", {"data": picture(1), "headers": PNG}, 400, "images"),
        ("/v1/embed?model=no", {"json": {"images": _text(picture(1))}}, 400, "in the query"),
        ("/v1/embed?model=no", {"data": _form(picture(1))}, 400, "in the query"),
        ("/v1/jobs", {"data": b"x"}, 405, "GET"),
        ("/v1/nothing", {"data": b"x"}, 404, "openapi"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    served: Daemon, path: str, options: dict[str, Any], status: int, words: str
) -> None:
    answer = await served.post(path, **options)
    assert answer.status == status, answer.body
    assert answer.json["error"]["code"] == status
    assert words in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model":' * 2000,
        b'{"images": NaN}',
        b'{"images": ["AAAA", 1]}',
        b'{"resolution": 1e400}',
        b'{"model": "\\ud800", "images": ["AAAA"]}',
        b'{"model": "a", "model": "b"}',
        b"\xff\xfe{}",
        b"null",
    ],
)
async def test_odd_json_is_refused(served: Daemon, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/embed", "/v1/classify", "/v2/models/tiny/infer"):
        answer = await served.post(path, data=body, headers=headers)
        assert answer.status == 400, (path, answer.body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n",
        b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nabc',
        b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\n\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
        + b"x" * 100_000
        + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n' * 2 + b"--b--\r\n",
    ],
)
async def test_odd_forms_are_refused(served: Daemon, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert (await served.post("/v1/embed", data=body, headers=headers)).status == 400


@pytest.mark.parametrize("boundary", ["", '; boundary="ÿ"', "; boundary=;", '; boundary="a'])
async def test_a_form_without_a_boundary_is_refused(served: Daemon, boundary: str) -> None:
    head = (
        f"POST /v1/embed HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\nContent-Length: 1\r\n"
        f"Content-Type: multipart/form-data{boundary}\r\n\r\nx"
    )
    answer = await served.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"boundary" in answer


async def test_a_file_under_another_name_is_told_the_right_one(served: Daemon) -> None:
    form = aiohttp.FormData()
    form.add_field("image", picture(1), filename="a.jpg")
    answer = await served.post("/v1/embed", data=form)
    assert answer.status == 400
    assert "image: is a file: name the parts with files images" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
async def test_bodies_may_be_compressed(
    served: Daemon, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    plain = await served.post("/v1/embed", data=picture(1), headers=PNG)
    answer = await served.post(
        "/v1/embed", data=encode(picture(1)), headers={**PNG, "Content-Encoding": coding}
    )
    assert answer.status == 200, answer.body
    assert _vectors(answer) == _vectors(plain)


@pytest.mark.parametrize(
    ("coding", "body", "words"),
    [
        ("gzip", b"no gzip", "damaged"),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-9], "end is missing"),
        ("gzip", gzip.compress(b"x", mtime=0) + b"y", "follows"),
        ("deflate", gzip.compress(b"x", mtime=0), "damaged"),
        ("br", b"x", "'br' is not accepted"),
        ("gzip, gzip", b"x", "is not accepted"),
        ("gzip", gzip.compress(bytes(100 << 20), mtime=0), "is larger than"),
    ],
    ids=["no gzip", "cut", "followed", "other format", "brotli", "two codings", "large"],
)
async def test_a_wrong_coding_is_refused(
    served: Daemon, coding: str, body: bytes, words: str
) -> None:
    for path in ("/v1/embed", "/v2/models/tiny/infer"):
        headers = {**PNG, "Content-Encoding": coding}
        answer = await served.post(path, data=body, headers=headers)
        assert answer.status == 400, answer.body
        assert words in answer.body.decode()


async def test_a_form_has_a_bounded_number_of_parts(served: Daemon) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = part * 100_000 + b"--b--\r\n"
    assert (await served.post("/v1/embed", data=body, headers=headers)).status == 400


async def test_several_requests_use_one_connection(served: Daemon) -> None:
    data = picture(1)
    one = (
        f"POST /v1/embed HTTP/1.1\r\nHost: daemon\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data
    last = one.replace(b"Host: daemon", b"Host: daemon\r\nConnection: close", 1)
    answer = await served.raw(one + one + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 3


async def test_a_page_of_another_site_may_not_call(served: Daemon) -> None:
    for origin in ("https://evil.example", "null", f"https://{served.app.http_address}0"):
        headers = {**PNG, "Origin": origin}
        answer = await served.post("/v1/embed", data=picture(1), headers=headers)
        assert answer.status == 403
        assert "other sites" in answer.json["error"]["message"]
    headers = {**PNG, "Origin": f"http://{served.app.http_address}"}
    assert (await served.post("/v1/embed", data=picture(1), headers=headers)).status == 200


async def test_a_client_that_waits_for_100_continue_gets_it(served: Daemon) -> None:
    data = picture(1)
    answer = await served.post("/v1/embed", data=data, headers=PNG, expect100=True)
    assert answer.status == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "1e9"])
async def test_a_wrong_timeout_is_refused(served: Daemon, seconds: str) -> None:
    headers = {**PNG, "X-Request-Timeout": seconds}
    answer = await served.post("/v1/embed", data=picture(1), headers=headers)
    assert answer.status == 400
    assert "X-Request-Timeout" in answer.json["error"]["message"]


async def test_a_stream_ends_at_its_timeout(served: Daemon) -> None:
    weights = served.root / "weights.ckpt"
    weights.touch()
    spec = ExportSpec(model_name="other")
    spec.weights.checkpoint_path = str(weights)
    async with grpc.aio.insecure_channel(served.app.address) as channel:
        request = StartExportRequest(spec=spec, labels={"events": "1000", "pause": "0.5"})
        job_id = (await ExportServiceStub(channel).StartExport(request)).job_id
        path = f"/v1/jobs/{job_id}/events?follow=true"
        answer = await served.get(path, headers={"X-Request-Timeout": "0.5"})
        await JobServiceStub(channel).CancelJob(CancelJobRequest(job_id=job_id))
    first, *_, last = [json.loads(line) for line in answer.body.splitlines()]
    assert first["seq"] == "1"
    assert last["error"]["status"] == "DEADLINE_EXCEEDED"
    # A body after the response to HEAD would be the next response on its connection.
    head = await served.request("HEAD", path)
    assert (head.status, head.headers["Allow"]) == (405, "GET")


async def test_a_call_ends_at_its_timeout(served: Daemon) -> None:
    request = b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    request += b"X-Request-Timeout: 0.2\r\nContent-Length: 100\r\n\r\nabc"
    assert (await served.raw(request)).startswith(b"HTTP/1.1 504")


async def test_the_metrics_count_the_calls(served: Daemon) -> None:
    def count() -> float:
        labels = {"rpc": "EmbeddingService/Embed", "code": "OK"}
        return served.app.registry.get_sample_value("multigrain_requests_total", labels) or 0

    before = count()
    assert (await served.post("/v1/embed", data=picture(1), headers=PNG)).status == 200
    assert count() == before + 1


async def test_the_protocol_describes_the_server_and_its_models(served: Daemon) -> None:
    assert (await served.get("/v2")).json["name"] == "multigrain"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
        assert (await served.get(path)).status == 200
    assert (await served.get("/v2/models/tiny/versions/7/ready")).status == 503
    found = (await served.get("/v2/models/tiny/versions/1")).json
    assert found["name"] == "tiny"
    assert [tensor["name"] for tensor in found["inputs"]] == ["images", "pixels"]
    assert found["inputs"][0]["shape"] == [-1, 1]


async def test_tensors_may_stand_in_the_json(served: Daemon, stub: EmbeddingServiceStub) -> None:
    images = [picture(1), picture(2)]
    request = {
        "id": "7",
        "inputs": [
            {"name": "images", "shape": [2, 1], "datatype": "BYTES", "data": _text(*images)}
        ],
        "outputs": [{"name": "embedding"}],
    }
    answer = await served.post("/v2/models/tiny/infer", json=request)
    assert answer.status == 200, answer.body
    assert answer.json["id"] == "7"
    (output,) = answer.json["outputs"]
    assert output["shape"] == [2, EMBEDDING]
    found = np.array(output["data"], np.float32).reshape(2, EMBEDDING)
    expected = [r.embedding.data for r in (await stub.Embed(EmbedRequest(images=images))).results]
    assert [row.tobytes() for row in found] == expected


async def test_pixels_may_be_nested(served: Daemon) -> None:
    side = 8
    metadata = (await served.get("/v2/models/tiny")).json
    shape = next(t["shape"] for t in metadata["inputs"] if t["name"] == "pixels")
    side = shape[2]
    pixels = np.zeros((1, 3, side, side))
    tensor = {"name": "pixels", "shape": [1, 3, side, side], "datatype": "FP32"}
    flat = {"inputs": [{**tensor, "data": pixels.ravel().tolist()}]}
    nested = {"inputs": [{**tensor, "data": pixels.tolist()}]}
    first = await served.post("/v2/models/tiny/infer", json=flat)
    assert first.status == 200, first.body
    assert first.json == (await served.post("/v2/models/tiny/infer", json=nested)).json
    scores = next(o for o in first.json["outputs"] if o["name"] == "scores")
    assert scores["shape"] == [1, CLASSES]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": {}}, "inputs"),
        ({"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [1]}]}, "data"),
        ({"inputs": [{"name": "images", "shape": 1, "datatype": "BYTES", "data": []}]}, "shape"),
        ({"inputs": [{"name": "images", "shape": [True], "datatype": "BYTES"}]}, "shape"),
        ({"parameters": {"whiten": "x"}}, "whiten"),
        ({"parameters": {"x": [1]}}, "parameters.x"),
        ({"outputs": [{"name": "embedding", "parameters": {"binary_data": 1}}]}, "binary_data"),
        ({"more": 1}, "more"),
        (
            {
                "inputs": [
                    {
                        "name": "images",
                        "shape": [1],
                        "datatype": "BYTES",
                        "parameters": {"binary_data_size": 5},
                    }
                ]
            },
            "bytes are left",
        ),
    ],
)
async def test_a_wrong_inference_request_names_the_field(
    served: Daemon, change: dict[str, Any], words: str
) -> None:
    good = {
        "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": _text(picture(1))}]
    }
    assert (await served.post("/v2/models/tiny/infer", json=good)).status == 200
    answer = await served.post("/v2/models/tiny/infer", json=good | change)
    assert answer.status == 400, answer.body
    assert words in answer.json["error"]


@pytest.mark.parametrize("length", ["-1", "99999999", "x", "5", "1e3"])
async def test_a_wrong_length_of_the_json_is_refused(served: Daemon, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    answer = await served.post("/v2/models/tiny/infer", data=b'{"inputs": []}', headers=headers)
    assert answer.status == 400


async def test_the_routes_are_described(served: Daemon) -> None:
    document = (await served.get("/openapi.json")).json
    routes = {(method, path) for path, item in document["paths"].items() for method in item}
    assert served.app._http is not None
    known = {
        (route.method.lower(), route.path)
        for route in served.app._http._api.routes()
        if route.path != "/openapi.json"
    }
    assert routes == known
    openapi_spec_validator.validate(document)


async def test_tritons_http_client_works(
    served: Daemon, stub: EmbeddingServiceStub, tmp_path: Path
) -> None:
    images = [picture(1), picture(2)]
    paths = []
    for number, data in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(data)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-m", "tests.server.http.triton_program"),
        *(served.app.http_address, "tiny", *map(str, paths)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    seen = json.loads(output)
    assert all(seen[name] for name in ("live", "ready", "model_ready"))
    assert not seen["other_ready"]
    assert seen["server"] == "multigrain"
    assert seen["inputs"] == ["images", "pixels"]
    expected = (await stub.Embed(EmbedRequest(images=images))).results
    for name in ("binary", "text"):
        assert seen[name]["id"] == "7"
        rows = np.array(seen[name]["embedding"], np.float32)
        assert [row.tobytes() for row in rows] == [r.embedding.data for r in expected]
        assert [len(row) for row in seen[name]["scores"]] == [2, 2]
    assert "other" in seen["error"]


async def test_every_response_has_the_headers_of_the_server(served: Daemon) -> None:
    for path in ("/v1/jobs/none/events", "/v1/models", "/v1/none", "/healthz"):
        headers = (await served.get(path)).headers
        assert headers["Server"] == "multigrain"
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_class_0_has_its_number(served: Daemon) -> None:
    answer = await served.post(f"/v1/classify?top_k={CLASSES}", data=picture(3), headers=PNG)
    found = answer.json["results"][0]["classes"]
    assert sorted(c["class_id"] for c in found) == list(range(CLASSES))


async def test_many_elements_are_refused_before_they_are_decoded(
    served: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(bodies.json_format, "Parse", parse)
    headers = {"Content-Type": "application/json"}
    body = b'{"images": [' + b'"",' * 1_000_000 + b'""]}'
    answer = await served.post("/v1/embed", data=body, headers=headers)
    assert answer.status == 400
    assert "too many elements" in answer.json["error"]["message"]
    tensor = b'{"inputs": [{"data": [' + b"0," * (3 << 20) + b"0]}]}"
    answer = await served.post("/v2/models/tiny/infer", data=tensor, headers=headers)
    assert "send tensors as binary data" in answer.json["error"]


async def test_an_unfinished_body_is_not_kept_by_its_error() -> None:
    class Content:
        async def readany(self) -> bytes:
            parts.append(1)
            if len(parts) > 3:
                raise asyncio.CancelledError
            return bytes(1 << 20)

    parts: list[int] = []
    request: Any = SimpleNamespace(headers={}, content_length=None, content=Content())
    with pytest.raises(asyncio.CancelledError) as caught:
        await bodies.read_body(request, 1 << 30)
    frame = caught.value.__traceback__
    held = []
    while frame is not None:
        held.append(frame.tb_frame.f_locals.get("body"))
        frame = frame.tb_next
    assert [len(body) for body in held if isinstance(body, bytearray)] == [0]
