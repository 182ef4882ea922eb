"""What a worker's unforeseen error says, in one line that a person can act on."""

from __future__ import annotations

import re

MAX_LENGTH = 500

# MindSpore frames its messages: rules of dashes, a heading between two of them, then the text,
# and last a stack of its own sources.
_RULE = re.compile(r"^\s*-{4,}\s*$")
_HEADING = re.compile(r"^\s*- .*:\s*(\(.*\))?\s*$")
_STACK = re.compile(r"^\s*- (C\+\+ Call Stack|The Traceback)")
_MEMORY = re.compile(
    r"memory (isn't|is not|not) enough|out of memory|bad_alloc|bad allocation", re.I
)
_ADVICE = "use a smaller schedule.batch_size or model.image_size, fewer workers, or more memory"


def in_words(error: Exception) -> str:
    """Type and message of an error.

    Returns:
        one line of at most ``MAX_LENGTH`` characters and a hint.
    """
    text = _first_sentence(str(error))[:MAX_LENGTH]
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    return f"{said} ({_ADVICE})" if out_of_memory(error) else said


def out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory, of the machine or of a device."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def _first_sentence(message: str) -> str:
    for line in message.splitlines():
        if _STACK.match(line):
            break
        if line.strip() and not _RULE.match(line) and not _HEADING.match(line):
            return line.strip()
    # Nothing but headings: the first of them says more than nothing.
    return next((line.strip(" -") for line in message.splitlines() if line.strip(" -")), "")
