"""Calls of the Open Inference Protocol that this server does not offer, refused with a reason."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from multigrain.errors import ErrorKind, MultigrainError

_SHARED = "shared memory is not offered: send and take tensors in the messages"
_ELSEWHERE = "is a matter of the server's configuration, not of its clients"

#: By the name of the call, why.
UNOFFERED = {
    **{
        f"{kind}SharedMemory{verb}": _SHARED
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": f"tracing {_ELSEWHERE}",
    "LogSettings": f"logging {_ELSEWHERE}",
}
_SERVICE = "/inference.GRPCInferenceService/"


class UnofferedCalls(grpc.GenericRpcHandler):
    """Knows their names alone; any other is unknown to the server, and gRPC says so."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        reason = UNOFFERED.get(method.removeprefix(_SERVICE))
        if reason is None or not method.startswith(_SERVICE):
            return None

        async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            raise MultigrainError(ErrorKind.UNSUPPORTED, reason)

        return grpc.unary_unary_rpc_method_handler(refuse)
