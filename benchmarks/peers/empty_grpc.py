"""The least that a call costs: a grpc.aio handler that answers Embed with a constant.

``python -m benchmarks.peers.empty_grpc SIZE [PORT]`` prints its address as the first line. Its
answers are as large as those of the daemon: one vector of SIZE float32 numbers. Several processes
can share a port (SO_REUSEPORT): the kernel divides the connections among them.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

from multigrain.v1 import embedding_pb2, embedding_pb2_grpc


class Servicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, size: int) -> None:
        data = bytes(4 * size)
        vector = embedding_pb2.Vector(size=size, dtype=embedding_pb2.DTYPE_FP32, data=data)
        status = embedding_pb2.ItemStatus()
        times = embedding_pb2.Timings(
            decode_ns=10**6, queue_ns=10**6, compute_ns=10**6, total_ns=10**7
        )
        self._answer = embedding_pb2.EmbedResponse(
            model="resnet18@1",
            results=[embedding_pb2.EmbedResult(status=status, embedding=vector)],
            timings=times,
        )

    async def Embed(  # noqa: N802
        self,
        request: embedding_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedding_pb2.EmbedRequest, embedding_pb2.EmbedResponse],
    ) -> embedding_pb2.EmbedResponse:
        return self._answer


async def main() -> None:
    # Only Embed is measured; the other methods are never called.
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    servicer = Servicer(int(sys.argv[1]))  # type: ignore[abstract]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
