"""Messages from HTTP requests: JSON, multipart forms, an image as the body, and queries."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from aiohttp import web
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from multigrain.errors import ErrorKind, MultigrainError
from multigrain_server.http.calls import send_continue

T = TypeVar("T")
M = TypeVar("M", bound=Message)

#: Decoding JSON holds the interpreter's lock: files belong into forms, or are the body.
MAX_JSON_BYTES = 16 << 20
# Numbers take much longer to decode than a text of the same length.
MAX_TENSOR_JSON_BYTES = 4 << 20
# A request with images has some dozens of elements; millions would take many seconds.
_MAX_COMMAS = 10_000
# Larger bodies are parsed in a thread.
_IN_THREAD_BYTES = 64 << 10
_MAX_PARTS = 4096
_MAX_HEADER_BYTES = 4096
_MAX_HEADERS = 8
# Of a part that is not a file.
_MAX_VALUE_BYTES = 4096
_MESSAGE_CHARACTERS = 300
_INTEGER = re.compile(r"^-?\d{1,19}$")
_FLAGS = {"true": True, "false": False}
# What zlib must expect: a header of gzip or of zlib (RFC 9110, section 8.4.1).
_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# RFC 2046, section 5.1.1
_BOUNDARY = re.compile(
    r"""boundary=(?:"([\w'()+,./:=? -]{1,70})"|([\w'+.-]{1,70}))""", re.ASCII | re.IGNORECASE
)


async def read_body(request: web.Request, limit: int) -> bytearray | bytes:
    """The body of a request, decompressed.

    aiohttp would decompress it on the event loop, before the call is authorized.

    Raises:
        MultigrainError: INVALID_FIELD if it has more than ``limit`` bytes, compressed or not, or
            its coding is unknown.
    """
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity" and coding not in _CODINGS:
        raise MultigrainError.field(
            "Content-Encoding", f"{coding[:80]!r} is not accepted: send gzip, deflate or no coding"
        )
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    await send_continue(request)
    body = bytearray()
    try:
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except BaseException:
        # The traceback of the error refers to it, often until the garbage collector runs.
        body.clear()
        raise
    if coding == "identity":
        return body
    return await asyncio.to_thread(_decompressed, body, _CODINGS[coding], limit)


def _decompressed(body: bytearray, window_bits: int, limit: int) -> bytes:
    decoder = zlib.decompressobj(window_bits)
    try:
        found = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise MultigrainError.field("Content-Encoding", f"the body is damaged: {error}") from None
    if len(found) > limit:
        raise _too_large(limit)
    if not decoder.eof or decoder.unused_data:
        what = "something follows its end" if decoder.eof else "its end is missing"
        raise MultigrainError.field("Content-Encoding", f"the body is damaged: {what}")
    return found


def _too_large(limit: int) -> MultigrainError:
    return MultigrainError(
        ErrorKind.INVALID_FIELD, f"the body is larger than the {limit} bytes that are accepted"
    )


async def parsed(body: bytearray | bytes, parse: Callable[[Any], T]) -> T:
    """What ``parse`` makes of a body; in a thread if that takes long."""
    if len(body) <= _IN_THREAD_BYTES:
        return parse(body)
    return await asyncio.to_thread(parse, body)


async def read_images(request: web.Request, make: Callable[[], M], limit: int) -> M:
    """The message of a request with images, in one of three forms.

    - JSON: the JSON form of the message, its images in base64.
    - ``multipart/form-data``: files named "images" and fields named as those of the message.
    - anything else: the body is one image; the other fields are in the query.

    Args:
        request: the HTTP request.
        make: makes an empty message.
        limit: most bytes of the body.

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    kind = request.content_type
    if kind in ("application/json", "text/json"):
        _no_query(request)
        body = await read_body(request, min(limit, MAX_JSON_BYTES))
        return await parsed(body, lambda data: from_json(data, make()))
    if kind == "multipart/form-data":
        _no_query(request)
        header = request.headers.get("Content-Type", "")
        boundary = _BOUNDARY.search(header)
        if boundary is None:
            raise MultigrainError.field("Content-Type", "multipart/form-data needs a boundary")
        body = await read_body(request, limit)
        return await parsed(body, lambda data: _from_form(data, boundary[1] or boundary[2], make()))
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise MultigrainError.field(
            "Content-Type",
            f"{kind[:80]!r} is not accepted: send application/json, multipart/form-data, image/... "
            "or application/octet-stream",
        )
    message = from_query(request, make())
    body = await read_body(request, limit)
    if not body:
        raise MultigrainError.field("images", "the body is empty: it must be an image")
    message.images.append(bytes(body))  # type: ignore[attr-defined]
    return message


def _no_query(request: web.Request) -> None:
    """A field there would be ignored, and the default used in its place."""
    for name in request.query:
        raise MultigrainError.field(
            name[:80], f"is in the query: with {request.content_type}, fields are in the body"
        )


def from_json(body: bytes | bytearray, message: M) -> M:
    """Fills a message from its JSON form. Raises MultigrainError INVALID_FIELD."""
    if not body:
        raise MultigrainError(ErrorKind.INVALID_FIELD, "the body is empty: it must be JSON")
    if not body.lstrip().startswith(b"{"):
        raise MultigrainError(ErrorKind.INVALID_FIELD, "cannot parse the request: no JSON object")
    if body.count(b",") > _MAX_COMMAS:
        raise MultigrainError(
            ErrorKind.INVALID_FIELD, "the JSON has too many elements: send fewer images"
        )
    try:
        json_format.Parse(bytes(body), message)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise _bad_json(error) from None
    return message


def _bad_json(error: Exception) -> MultigrainError:
    text = str(error) or "it is nested too deeply"
    if len(text) > _MESSAGE_CHARACTERS:
        text = f"{text[:_MESSAGE_CHARACTERS]}..."
    return MultigrainError(ErrorKind.INVALID_FIELD, f"cannot parse the request: {text}")


def from_query(request: web.Request, message: M, **path: str) -> M:
    """Fills a message from the query, and from the variables of the path.

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    values = [(name, value) for name, value in request.query.items()]
    return from_fields(values + list(path.items()), message)


def from_fields(values: Iterable[tuple[str, str]], message: M) -> M:
    """Fills a message from texts by the names of fields; repeated fields stand several times, and
    an entry of a map is written "key=value".

    Raises:
        MultigrainError: INVALID_FIELD.
    """
    fields = message.DESCRIPTOR.fields_by_name
    found: dict[str, Any] = {}
    for name, text in values:
        field = fields.get(name)
        if field is None or field.type == FieldDescriptor.TYPE_BYTES:
            known = ", ".join(n for n, f in fields.items() if f.type != FieldDescriptor.TYPE_BYTES)
            raise MultigrainError.field(name[:80], f"is unknown: known are {known}")
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, equals, value = text.partition("=")
            if not equals:
                raise MultigrainError.field(name, f"{text[:80]!r} must be written key=value")
            entries = found.setdefault(name, {})
            if key in entries:
                raise MultigrainError.field(name, f"{key[:80]!r} is given twice")
            entries[key] = value
        elif field.is_repeated:
            found.setdefault(name, []).append(_value(field, text))
        elif name in found:
            raise MultigrainError.field(name, "is given twice")
        else:
            found[name] = _value(field, text)
    try:
        json_format.ParseDict(found, message)
    except (json_format.ParseError, ValueError) as error:
        raise _bad_json(error) from None
    return message


def _value(field: Any, text: str) -> Any:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text not in _FLAGS:
            raise MultigrainError.field(field.name, f"{text[:80]!r} must be true or false")
        return _FLAGS[text]
    if field.type == FieldDescriptor.TYPE_ENUM and _INTEGER.match(text):
        return int(text)
    return text


def _from_form(body: bytearray | bytes, boundary: str, message: M) -> M:
    """A message from a multipart form."""
    parser = PushMultipartParser(
        boundary,
        content_length=len(body),
        max_header_size=_MAX_HEADER_BYTES,
        max_header_count=_MAX_HEADERS,
        max_segment_count=_MAX_PARTS,
    )
    values: list[tuple[str, str]] = []
    name, is_file, content = "", False, bytearray()
    images: list[bytes] = []
    try:
        for item in parser.parse(body):
            if isinstance(item, MultipartSegment):
                if item.filename and item.name != "images":
                    raise MultigrainError.field(
                        (item.name or "")[:80], "is a file: name the parts with files images"
                    )
                name, is_file, content = item.name or "", item.name == "images", bytearray()
            elif item is not None:
                content += item
                if not is_file and len(content) > _MAX_VALUE_BYTES:
                    raise MultigrainError.field(
                        name[:80],
                        f"is longer than {_MAX_VALUE_BYTES} bytes: name the parts with files "
                        "images",
                    )
            elif is_file:
                images.append(bytes(content))
            else:
                values.append((name, content.decode()))
        parser.close()
    except (MultipartError, UnicodeDecodeError) as error:
        raise MultigrainError(ErrorKind.INVALID_FIELD, f"cannot parse the form: {error}") from None
    from_fields(values, message)
    message.images.extend(images)  # type: ignore[attr-defined]
    return message
