"""The protobuf contract with its comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tools.docs.markdown import ROOT


@cache
def files() -> dict[str, FileDescriptorProto]:
    """Descriptor of each file of ``multigrain.v1``, by its path below ``protos/``."""
    protos = ROOT / "protos"
    names = sorted(str(path) for path in (protos / "multigrain").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        arguments = [f"-I{protos}", f"-I{well_known}", "--include_source_info"]
        result = protoc.main(["protoc", *arguments, f"--descriptor_set_out={out}", *names])
        if result != 0:
            raise RuntimeError(f"protoc failed with exit code {result}")
        found = FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in found.file}


@cache
def comments() -> dict[str, str]:
    """Leading comment of each message, field, enum, value, service and call, by full name."""
    found: dict[str, str] = {}
    for file in files().values():
        texts = {
            tuple(place.path): place.leading_comments.strip()
            for place in file.source_code_info.location
            if place.leading_comments
        }
        found |= {name: texts[path] for name, path in _paths(file) if path in texts}
    return found


def enum_comments(enum: str) -> dict[str, str]:
    """Comment of each value of an enum, by the value's name."""
    prefix = f"{enum}."
    return {
        name.removeprefix(prefix): text
        for name, text in comments().items()
        if name.startswith(prefix)
    }


def _paths(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Full name and path in the source of everything that can have a comment.

    The numbers are the field numbers of FileDescriptorProto, DescriptorProto and so on; see
    ``SourceCodeInfo.Location.path`` in descriptor.proto.
    """
    for number, message in enumerate(file.message_type):
        yield from _message_paths(file.package, (4, number), message)
    for number, enum in enumerate(file.enum_type):
        yield from _enum_paths(file.package, (5, number), enum)
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield name, (6, number)
        for position, method in enumerate(service.method):
            yield f"{name}.{method.name}", (6, number, 2, position)


def _message_paths(
    scope: str, path: tuple[int, ...], message: DescriptorProto
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = f"{scope}.{message.name}"
    yield name, path
    for number, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, 2, number)
    for number, nested in enumerate(message.nested_type):
        yield from _message_paths(name, (*path, 3, number), nested)
    for number, enum in enumerate(message.enum_type):
        yield from _enum_paths(name, (*path, 4, number), enum)


def _enum_paths(
    scope: str, path: tuple[int, ...], enum: EnumDescriptorProto
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = f"{scope}.{enum.name}"
    yield name, path
    for number, value in enumerate(enum.value):
        yield f"{name}.{value.name}", (*path, 2, number)
