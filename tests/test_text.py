"""Names as text that is safe to print, and paths as text that can be stored."""

from __future__ import annotations

import os
import random
import sys
import unicodedata

import pytest

from multigrain.text import (
    is_text,
    normalize,
    original_path,
    printable,
    printable_lines,
    stored_path,
)

NAMES = [
    (b"latin\xe9.png", r"latin\xe9.png"),
    (b"\xff\xfe", r"\xff\xfe"),
    (b"caf\xc3\xa9.png", "café.png"),
    ("日本.png".encode(), "日本.png"),
    (rb"a\b.png", r"a\b.png"),
    (rb"latin\xe9.png", r"latin\x5cxe9.png"),
    (rb"\x5cxe9", r"\x5cx5cxe9"),
    (b"\\x\xe9", r"\x\xe9"),
    (b"\x1b[2J\n", r"\x1b[2J\x0a"),
    ("\u202egnp.exe".encode(), r"\xe2\x80\xaegnp.exe"),
    (b"\\\x1b", r"\\x1b"),
]


@pytest.mark.parametrize(("raw", "stored"), NAMES)
def test_paths_are_stored_as_utf8_and_come_back(raw: bytes, stored: str) -> None:
    path = os.fsdecode(raw)
    assert stored_path(path) == stored
    assert os.fsencode(original_path(stored)) == raw


def test_any_bytes_come_back_and_differ_from_each_other() -> None:
    source = random.Random(12)
    pieces = [b"\\", b"x", b"e", b"9", b"5", b"c", b"\xe9", b"\xc3\xa9", b"a", b"\x1b", b"\x9b"]
    seen: dict[str, bytes] = {}
    for _ in range(20_000):
        raw = b"".join(source.choices(pieces, k=source.randint(1, 8)))
        stored = stored_path(os.fsdecode(raw))
        stored.encode()
        assert os.fsencode(original_path(stored)) == raw
        assert seen.setdefault(stored, raw) == raw


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 日本 \u200d\u200c", "plain ü 日本 \u200d\u200c"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\r\tc\0", r"a\x0ab\x0d\x09c\x00"),
        ("\x85\x9b", r"\u0085\u009b"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u2028\u2066\ufeff", r"\u2028\u2066\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_control_character_of_unicode_is_printed() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = printable(character)
        kind = unicodedata.category(character)
        direction = unicodedata.bidirectional(character)
        if kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and direction in _DIRECTIONS):
            assert shown.isascii(), hex(code)
            assert shown.startswith("\\"), hex(code)
        elif kind not in ("Cf", "Cn"):
            assert shown == character, hex(code)


_DIRECTIONS = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")


def test_lines_of_a_log() -> None:
    assert printable_lines("a\tb\r\n\x1b[2Jc\x85d\n") == ["a       b", r"\x1b[2Jc\u0085d", ""]


def test_names_of_one_text_are_equal_when_normalized() -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert decomposed != "café"
    assert normalize(decomposed) == normalize("café") == "café"


def test_is_text() -> None:
    assert is_text("日本")
    assert not is_text("caf\udce9")
