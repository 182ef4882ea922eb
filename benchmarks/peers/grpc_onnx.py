"""A plain embedding server: grpc.aio, ONNX Runtime float32, one thread per call.

``python -m benchmarks.peers.grpc_onnx BUNDLE`` prints its address as the first line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc
import numpy as np
import onnxruntime

from multigrain.bundle.manifest import BundleManifest
from multigrain.images.preprocess import preprocess
from multigrain.v1 import embedding_pb2, embedding_pb2_grpc


class Servicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, bundle: Path) -> None:
        manifest = BundleManifest.model_validate_json((bundle / "model.json").read_text())
        self._preprocessing = manifest.heads[0].preprocessing
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        self._session = onnxruntime.InferenceSession(
            str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    async def Embed(  # noqa: N802
        self,
        request: embedding_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse],
    ) -> embedding_pb2.EmbedResponse:
        data = await asyncio.to_thread(self._embed, request.images[0])
        vector = embedding_pb2.Vector(size=len(data) // 4, data=data)
        return embedding_pb2.EmbedResponse(results=[embedding_pb2.EmbedResult(embedding=vector)])

    def _embed(self, data: bytes) -> bytes:
        image = preprocess(data, self._preprocessing)
        embedding = self._session.run(["embedding"], {"images": image[np.newaxis]})[0][0]
        return bytes((embedding / np.linalg.norm(embedding)).astype("<f4").tobytes())


async def main() -> None:
    # Only Embed is measured; the other methods are never called.
    servicer = Servicer(Path(sys.argv[1]))  # type: ignore[abstract]
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
