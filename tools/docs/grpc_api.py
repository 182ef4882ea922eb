"""Services and messages of the contract, from the comments of the .proto files."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from tools.docs.markdown import code, prose, table
from tools.docs.protos import comments, files

_PACKAGE = "multigrain.v1"
# Their fields have pages of their own.
_SPECIFICATIONS = {
    "TrainingSpec": "training-specification.md",
    "EvaluationSpec": "evaluation-specification.md",
    "ExportSpec": "export-specification.md",
    "DeviceSpec": "training-specification.md#devices",
    "ErrorKind": "errors.md",
}
_SCALARS = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


def render_services() -> str:
    """Every call with what it takes and gives."""
    parts = []
    for file in _files():
        for service in file.service:
            name = f"{_PACKAGE}.{service.name}"
            parts += [f"### {service.name}", prose(comments().get(name, ""))]
            rows = []
            for method in service.method:
                request = _message_link(method.input_type, stream=method.client_streaming)
                response = _message_link(method.output_type, stream=method.server_streaming)
                text = prose(comments().get(f"{name}.{method.name}", ""))
                rows.append([f"{code(method.name)}\n{request}\n→ {response}", text])
            parts.append(table(["call, request → response", "meaning"], rows))
    return "\n\n".join(part for part in parts if part)


def render_messages() -> str:
    """Every message and enumeration, but those of specifications."""
    parts: list[str] = []
    for file in _files():
        if file.name.endswith("_spec.proto"):
            continue
        for enum in file.enum_type:
            if enum.name not in _SPECIFICATIONS:
                parts += _enum(_PACKAGE, enum)
        for message in file.message_type:
            if message.name not in _SPECIFICATIONS:
                parts += _message(_PACKAGE, message)
    return "\n\n".join(part for part in parts if part)


def _files() -> Iterator[FileDescriptorProto]:
    """Of the contract itself; the Open Inference Protocol is documented by its owners."""
    return (file for file in files().values() if file.package == _PACKAGE)


def _message(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}.{message.name}"
    yield f"### {_short(name)}"
    yield prose(comments().get(name, ""))
    rows = []
    for field in message.field:
        text = prose(comments().get(f"{name}.{field.name}", ""))
        if field.HasField("oneof_index") and not field.proto3_optional:
            text = f"One of {code(message.oneof_decl[field.oneof_index].name)}. {text}".strip()
        rows.append([f"{code(field.name)} = {field.number}\n{_type(message, field)}", text])
    yield table(["field and type", "meaning"], rows) if rows else "No fields."
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _message(name, nested)
    for enum in message.enum_type:
        yield from _enum(name, enum)


def _enum(scope: str, enum: EnumDescriptorProto) -> Iterator[str]:
    name = f"{scope}.{enum.name}"
    yield f"### {_short(name)}"
    yield prose(comments().get(name, ""))
    rows = [
        [f"{code(value.name)} = {value.number}", prose(comments().get(f"{name}.{value.name}", ""))]
        for value in enum.value
    ]
    yield table(["value", "meaning"], rows)


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = (_type(nested, part) for part in nested.field)
            return f"map of {key} to {value}"
    text = _message_link(field.type_name) if field.type_name else code(_SCALARS[field.type])
    if repeated:
        return f"repeated {text}"
    return f"optional {text}" if field.proto3_optional else text


def _message_link(full_name: str, *, stream: bool = False) -> str:
    name = full_name.removeprefix(".")
    text = code(_short(name))
    if name.startswith(f"{_PACKAGE}."):
        short = _short(name)
        target = _SPECIFICATIONS.get(short)
        if target is None and not short.endswith("Spec") and short != "WeightsSource":
            target = f"#{short.lower().replace('.', '')}"
        if target is not None:
            text = f"[{text}]({target})"
    return f"stream of {text}" if stream else text


def _short(name: str) -> str:
    return name.removeprefix(f"{_PACKAGE}.")
