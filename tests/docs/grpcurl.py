"""Stands in for grpcurl where it is not installed: sends its arguments through ``buf curl``.

``buf curl`` is a gRPC client of its own that knows the messages by the server's reflection and
parses the same JSON, so that what the pages show is really sent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BUF = Path(sys.executable).with_name("buf")


def main() -> int:
    """Calls, lists or describes, as grpcurl would."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prefix_chars="-")
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", dest="data")
    parser.add_argument("address")
    parser.add_argument("what")
    parser.add_argument("symbol", nargs="?")
    arguments = parser.parse_args()
    url = f"http://{arguments.address}"
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    if arguments.what == "list":
        return subprocess.call([*command, "--list-services", url])
    if arguments.what == "describe":
        return describe(arguments.address, arguments.symbol)
    if arguments.data is not None:
        command += ["--data", arguments.data]
    return subprocess.call([*command, f"{url}/{arguments.what}"])


def describe(address: str, symbol: str) -> int:
    """Prints the fields of a message, which the server's reflection describes."""
    import grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    with grpc.insecure_channel(address) as channel:
        file = ProtoReflectionDescriptorDatabase(channel).FindFileContainingSymbol(symbol)
    for message in file.message_type:
        if f"{file.package}.{message.name}" == symbol:
            print(symbol, *(field.name for field in message.field), sep="\n  ")
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
