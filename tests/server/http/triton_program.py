"""What Triton's own HTTP client sees of a server, as JSON on standard output.

python -m tests.server.http.triton_program ADDRESS MODEL IMAGE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    address, model, *paths = sys.argv[1:]
    images = [Path(path).read_bytes() for path in paths]
    tensor = triton.InferInput("images", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_).reshape(-1, 1))
    with triton.InferenceServerClient(address) as client:
        found = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model, "1"),
            "other_ready": client.is_model_ready("other"),
            "server": client.get_server_metadata()["name"],
            "inputs": [tensor["name"] for tensor in client.get_model_metadata(model)["inputs"]],
        }
        for name, binary in (("binary", True), ("text", False)):
            outputs = [
                triton.InferRequestedOutput("embedding", binary_data=binary),
                triton.InferRequestedOutput("scores", binary_data=binary, class_count=2),
            ]
            answer = client.infer(model, [tensor], outputs=outputs, request_id="7")
            found[name] = {
                "id": answer.get_response()["id"],
                "embedding": answer.as_numpy("embedding").tolist(),
                "scores": [
                    [item.decode() if isinstance(item, bytes) else item for item in row]
                    for row in answer.as_numpy("scores").tolist()
                ],
            }
        try:
            client.infer("other", [tensor])
        except InferenceServerException as error:
            found["error"] = error.message()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
