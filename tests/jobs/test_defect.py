"""Errors of workers in words."""

from __future__ import annotations

from multigrain.jobs.failure import MAX_LENGTH, describe_exception

# As MindSpore 2.8 raises it.
NO_MEMORY = """
----------------------------------------------------
- Memory not enough:
----------------------------------------------------
Memory isn't enough and alloc failed, kernel name: 69_Default/Div-op0, alloc size: 65273856B.

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/backend/ms_backend/runtime/graph_scheduler/base/graph_scheduler.cc:1168 Run
"""


def test_a_framed_message_is_told_by_its_text_and_memory_by_what_to_do() -> None:
    said = describe_exception(RuntimeError(NO_MEMORY))
    assert said.startswith("RuntimeError: Memory isn't enough and alloc failed, kernel name: 69_")
    assert "use a smaller schedule.batch_size" in said
    assert "\n" not in said
    assert describe_exception(MemoryError()).startswith("MemoryError (use a smaller")


def test_a_plain_message_is_told_by_its_first_line() -> None:
    assert describe_exception(ValueError("one\ntwo")) == "ValueError: one"
    assert describe_exception(KeyError()) == "KeyError"
    assert describe_exception(ValueError("x" * 9000)) == "ValueError: " + "x" * MAX_LENGTH


def test_a_message_of_headings_alone_is_told_by_the_first() -> None:
    text = "\n-----\n- Memory pool: \n-----\n- C++ Call Stack: (For framework developers)\n"
    assert describe_exception(RuntimeError(text)) == "RuntimeError: Memory pool:"
