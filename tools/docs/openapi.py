"""The OpenAPI document of the HTTP API and its table of routes, from the protos."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
)

from multigrain import __version__
from tools.docs.markdown import ROOT, code, prose, table
from tools.docs.protos import comments, files

#: The document, which the daemon serves.
PATH = ROOT / "server" / "multigrain_server" / "http" / "openapi.json"

Json = dict[str, Any]
_P = "multigrain.v1"
_OIP = "inference"


@dataclass(frozen=True)
class Route:
    """A route and the call that it makes.

    Attributes:
        method: of HTTP.
        path: with variables in braces.
        call: "package.Service/Method".
        body: "" = the message is in the path and the query; "images" = JSON, a form or an image;
            "tensors" = the Open Inference Protocol's.
        stream: whether the response has lines of JSON.
    """

    method: str
    path: str
    call: str
    body: str = ""
    stream: bool = False


_MODEL = "/v2/models/{name}"
_VERSION = f"{_MODEL}/versions/{{version}}"
_INFERENCE = f"{_OIP}.GRPCInferenceService"

ROUTES = (
    Route("post", "/v1/embed", f"{_P}.EmbeddingService/Embed", "images"),
    Route("post", "/v1/classify", f"{_P}.EmbeddingService/Classify", "images"),
    Route("get", "/v1/models", f"{_P}.ModelService/ListModels"),
    Route("get", "/v1/models/{model}", f"{_P}.ModelService/GetModel"),
    Route("get", "/v1/jobs", f"{_P}.JobService/ListJobs"),
    Route("get", "/v1/jobs/{job_id}", f"{_P}.JobService/GetJob"),
    Route("get", "/v1/jobs/{job_id}/events", f"{_P}.JobService/StreamEvents", stream=True),
    Route("get", "/v2", f"{_INFERENCE}/ServerMetadata"),
    Route("get", "/v2/health/live", f"{_INFERENCE}/ServerLive"),
    Route("get", "/v2/health/ready", f"{_INFERENCE}/ServerReady"),
    Route("get", _MODEL, f"{_INFERENCE}/ModelMetadata"),
    Route("get", _VERSION, f"{_INFERENCE}/ModelMetadata"),
    Route("get", f"{_MODEL}/ready", f"{_INFERENCE}/ModelReady"),
    Route("get", f"{_VERSION}/ready", f"{_INFERENCE}/ModelReady"),
    Route("post", f"{_MODEL}/infer", f"{_INFERENCE}/ModelInfer", "tensors"),
    Route("post", f"{_VERSION}/infer", f"{_INFERENCE}/ModelInfer", "tensors"),
)

_WHOLE = ("TYPE_INT32", "TYPE_UINT32", "TYPE_SINT32", "TYPE_FIXED32", "TYPE_SFIXED32")
_LONG = ("TYPE_INT64", "TYPE_UINT64", "TYPE_SINT64", "TYPE_FIXED64", "TYPE_SFIXED64")
_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "description": 'Seconds, as in "1.5s".'},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
}


def render_routes() -> str:
    """The table of routes."""
    rows = []
    for route in ROUTES:
        service, _, name = route.call.rpartition("/")
        call = f"{service.rpartition('.')[2]}.{name}"
        rows.append([code(f"{route.method.upper()} {route.path}"), code(call), _summary(route)])
    return table(["route", "call", "meaning"], rows)


def document() -> str:
    """The OpenAPI document as text."""
    schemas = _Schemas()
    paths: dict[str, Json] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route, schemas)
    found = {
        "openapi": "3.1.0",
        "info": {
            "title": "multigrain",
            "version": __version__,
            "description": "Embeds and classifies images, and reads models and jobs. Below /v2: "
            "the Open Inference Protocol.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(schemas.made.items())),
        },
    }
    return json.dumps(found, indent=1) + "\n"


class _Schemas:
    """JSON Schemas of messages, made when one is referred to."""

    def __init__(self) -> None:
        self.made: dict[str, Json] = {
            "Error": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "code": {"type": "integer", "description": "The HTTP status."},
                            "message": {"type": "string"},
                            "status": {"type": "string", "description": "The gRPC status."},
                            "details": {"type": "array", "items": {"type": "object"}},
                        },
                    }
                },
            },
            "InferenceError": {"type": "object", "properties": {"error": {"type": "string"}}},
        }
        self._messages: dict[str, DescriptorProto] = {}
        self._enums: dict[str, EnumDescriptorProto] = {}
        for file in files().values():
            for enum in file.enum_type:
                self._enums[f"{file.package}.{enum.name}"] = enum
            for message in file.message_type:
                self._add(file.package, message)

    def message(self, name: str) -> DescriptorProto:
        return self._messages[name]

    def _add(self, scope: str, message: DescriptorProto) -> None:
        name = f"{scope}.{message.name}"
        self._messages[name] = message
        for enum in message.enum_type:
            self._enums[f"{name}.{enum.name}"] = enum
        for nested in message.nested_type:
            self._add(name, nested)

    def refer(self, name: str) -> Json:
        """A reference to the schema of a message or enumeration."""
        if name in _WELL_KNOWN:
            return _WELL_KNOWN[name]
        short = name.removeprefix(f"{_P}.").removeprefix(f"{_OIP}.")
        if short not in self.made:
            self.made[short] = {}  # a message may contain itself
            self.made[short] = self._enum(name) if name in self._enums else self._object(name)
        return {"$ref": f"#/components/schemas/{short}"}

    def _enum(self, name: str) -> Json:
        values = [value.name for value in self._enums[name].value]
        return _described({"type": "string", "enum": values}, comments().get(name, ""))

    def _object(self, name: str) -> Json:
        properties = {
            field.name: _described(self.field(field), comments().get(f"{name}.{field.name}", ""))
            for field in self._messages[name].field
        }
        made = {"type": "object", "properties": properties}
        return _described(made, comments().get(name, ""))

    def field(self, field: FieldDescriptorProto) -> Json:
        """The schema of a field."""
        target = self._messages.get(field.type_name.removeprefix("."))
        if target is not None and target.options.map_entry:
            return {"type": "object", "additionalProperties": self.field(target.field[1])}
        one = self._single(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return {"type": "array", "items": one}
        return one

    def _single(self, field: FieldDescriptorProto) -> Json:
        kind = FieldDescriptorProto.Type.Name(field.type)
        if kind in ("TYPE_MESSAGE", "TYPE_ENUM"):
            return self.refer(field.type_name.removeprefix("."))
        if kind in _WHOLE:
            return {"type": "integer"}
        if kind in _LONG:
            return {"type": "string", "pattern": "^-?[0-9]+$"}
        if kind == "TYPE_BYTES":
            return {"type": "string", "contentEncoding": "base64"}
        return {"type": {"TYPE_BOOL": "boolean", "TYPE_STRING": "string"}.get(kind, "number")}


def _operation(route: Route, schemas: _Schemas) -> Json:
    service, _, name = route.call.rpartition("/")
    file = next(f for f in files().values() if any(_of(f, s) == service for s in f.service))
    method = next(
        m for s in file.service if _of(file, s) == service for m in s.method if m.name == name
    )
    request = method.input_type.removeprefix(".")
    variables = re.findall(r"{(\w+)}", route.path)
    parameters: list[Json] = []
    for field in schemas.message(request).field:
        in_path = field.name in variables
        if route.body == "tensors" and not in_path:
            continue
        if field.type == FieldDescriptorProto.TYPE_BYTES:
            continue
        parameters.append(
            {
                "name": field.name,
                "in": "path" if in_path else "query",
                **({"required": True} if in_path else {}),
                "description": comments().get(f"{request}.{field.name}", ""),
                "schema": schemas.field(field),
            }
        )
    if route.body == "tensors":
        for variable in variables:
            if not any(p["name"] == variable for p in parameters):
                parameters.append(
                    {"name": variable, "in": "path", "required": True, "schema": {"type": "string"}}
                )
    parameters.append(
        {
            "name": "X-Request-Timeout",
            "in": "header",
            "description": "Seconds after which the call ends with 504.",
            "schema": {"type": "number"},
        }
    )
    error = "InferenceError" if route.path.startswith("/v2") else "Error"
    answer = schemas.refer(method.output_type.removeprefix("."))
    kind = "application/x-ndjson" if route.stream else "application/json"
    responses: Json = {
        "200": {"description": "OK", "content": {kind: {"schema": answer}}},
        "default": {
            "description": "Refused or failed.",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}},
        },
    }
    if route.stream:
        responses["200"]["description"] = "Events, one in a line."
        responses["200"]["content"][kind]["schema"] = schemas.refer(f"{_P}.JobEvent")
    if route.body == "tensors" or name in ("ServerLive", "ServerReady", "ModelReady"):
        responses["200"]["content"] = {kind: {"schema": {"type": "object"}}}
    made: Json = {
        "operationId": name + ("Version" if "versions" in route.path else ""),
        "summary": _summary(route),
        "parameters": parameters,
        "responses": responses,
    }
    if route.body == "images":
        made["requestBody"] = {"required": True, "content": _image_bodies(request, schemas)}
    if route.body == "tensors":
        made["requestBody"] = {
            "required": True,
            "description": "JSON; with the header Inference-Header-Content-Length, tensors as "
            "bytes follow it. Files in JSON are written in base64.",
            "content": {
                kind: {"schema": {"type": "object"}}
                for kind in ("application/json", "application/octet-stream")
            },
        }
    return made


def _image_bodies(request: str, schemas: _Schemas) -> Json:
    form: Json = {"type": "object", "properties": {}}
    for field in schemas.message(request).field:
        is_file = field.type == FieldDescriptorProto.TYPE_BYTES
        binary = {"type": "array", "items": {"type": "string", "format": "binary"}}
        form["properties"][field.name] = binary if is_file else schemas.field(field)
    return {
        "application/json": {"schema": schemas.refer(request)},
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }


def _of(file: Any, service: Any) -> str:
    return f"{file.package}.{service.name}"


def _summary(route: Route) -> str:
    text = prose(comments().get(route.call.replace("/", "."), ""))
    return text.partition(". ")[0].rstrip(".") + "." if text else ""


def _described(schema: Json, text: str) -> Json:
    if not text:
        return schema
    text = " ".join(text.split())
    if "$ref" in schema:
        return {"allOf": [schema], "description": text}
    return {**schema, "description": text}
