"""What Triton's own client sees of a server, as JSON on standard output.

Run in a process of its own: the client's messages have the names of ours, and one process can
know only one of them.

    python triton_program.py ADDRESS MODEL IMAGE...
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

Json = dict[str, Any]


def files(images: list[bytes]) -> triton.InferInput:
    tensor = triton.InferInput("images", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    return tensor


def zeros(shape: list[int]) -> triton.InferInput:
    tensor = triton.InferInput("pixels", shape, "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, np.float32))
    return tensor


def refused(call: Any, *arguments: Any, **fields: Any) -> Json:
    try:
        call(*arguments, **fields)
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return {}


def result(answer: triton.InferResult) -> Json:
    response = answer.get_response()
    return {
        "model": f"{response.model_name}@{response.model_version}",
        "id": response.id,
        "embedding": answer.as_numpy("embedding").tolist(),
        "scores": answer.as_numpy("scores").tolist(),
    }


def blocking(address: str, model: str, images: list[bytes]) -> Json:
    with triton.InferenceServerClient(address) as client:
        seen: Json = {
            "live": client.is_server_live(),
            "ready before": client.is_model_ready(model),
            "index before": client.get_model_repository_index(as_json=True),
        }
        client.load_model(model)
        seen |= {
            "server ready": client.is_server_ready(),
            "ready": client.is_model_ready(model, "1"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True)["config"],
            "infer": result(client.infer(model, [files(images)], request_id="one")),
            "zipped": result(
                client.infer(
                    model,
                    [files(images)],
                    model_version="1",
                    compression_algorithm="gzip",
                    priority=1,
                    timeout=60_000_000,
                    client_timeout=60,
                    parameters={"normalize": False},
                )
            ),
        }
        side = seen["metadata"]["inputs"][1]["shape"][-1]
        seen["pixels"] = result(client.infer(model, [zeros([2, 3, int(side), int(side)])]))
        top = triton.InferRequestedOutput("scores", class_count=2)
        answer = client.infer(model, [files(images)], outputs=[top])
        seen["top"] = [[text.decode() for text in row] for row in answer.as_numpy("scores")]
        done: queue.Queue[Any] = queue.Queue()
        client.async_infer(model, [files(images)], callback=lambda **kept: done.put(kept))
        seen["async"] = result(done.get(timeout=60)["result"])
        seen["stream"] = stream(client, model, images)
        seen["errors"] = {
            "model": refused(client.infer, "nothing", [files(images)]),
            "image": refused(client.infer, model, [files([b"no image"])]),
            "shape": refused(client.infer, model, [zeros([1, 3, 5, 7])]),
            "memory": refused(client.get_system_shared_memory_status),
            "trace": refused(client.get_trace_settings),
            "log": refused(client.get_log_settings),
            "config": refused(client.load_model, model, config="{}"),
        }
        seen["statistics"] = client.get_inference_statistics(model, as_json=True)
        client.unload_model(model)
        seen["ready after"] = client.is_model_ready(model)
        client.load_model(model)
        return seen


def stream(client: triton.InferenceServerClient, model: str, images: list[bytes]) -> list[Json]:
    """Three requests, of which the second is bad."""
    replies: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: replies.put((result, error)))
    for number, sent in enumerate([images, [b"no image"], images[:1]]):
        client.async_stream_infer(
            model,
            [files(sent)],
            request_id=str(number),
            enable_empty_final_response=True,
        )
    seen: list[Json] = []
    for _ in range(3):
        answer, error = replies.get(timeout=60)
        seen.append({"error": error.message()} if error is not None else result(answer))
    client.stop_stream()
    return seen


async def asynchronous(address: str, model: str, images: list[bytes]) -> Json:
    async def requests() -> AsyncIterator[Json]:
        for number in range(3):
            yield {"model_name": model, "inputs": [files(images)], "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        answers = await asyncio.gather(*(client.infer(model, [files([image])]) for image in images))
        try:
            await client.infer(model, [files([b"no image"])])
            status = ""
        except InferenceServerException as error:
            status = error.status()
        streamed = [
            (answer.get_response().id, error)
            async for answer, error in client.stream_infer(requests())
        ]
        return {
            "ready": await client.is_server_ready(),
            "embeddings": [answer.as_numpy("embedding")[0].tolist() for answer in answers],
            "status": status,
            "stream": streamed,
            "statistics": await client.get_inference_statistics(model, as_json=True),
        }


def main() -> None:
    address, model, *paths = sys.argv[1:]
    images = [Path(path).read_bytes() for path in paths]
    seen = {
        "blocking": blocking(address, model, images),
        "asynchronous": asyncio.run(asynchronous(address, model, images)),
        # Their contract, to be compared with ours.
        "contract": [
            base64.b64encode(file.DESCRIPTOR.serialized_pb).decode()
            for file in (model_config_pb2, service_pb2)
        ],
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
