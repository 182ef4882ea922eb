"""An engine that is out of memory ends; one that was only asked for too much does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from multigrain.memory import EXIT_OUT_OF_MEMORY, end_if_nothing_is_left, end_if_out_of_memory
from multigrain_server.engines.launch import describe_exit

PROGRAM = """
import resource
from multigrain.memory import end_if_nothing_is_left, end_if_out_of_memory
{setup}
try:
    {act}
except Exception as error:
    {judge}(error)
print("goes on")
"""
NO_MEMORY = "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))"


def run(setup: str, act: str, judge: str) -> tuple[int, str]:
    program = PROGRAM.format(setup=setup, act=act, judge=judge)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "act",
    [
        "raise MemoryError",
        "raise RuntimeError('std::bad_alloc')",
        "raise RuntimeError('CUDA error: out of memory')",
    ],
)
def test_a_network_without_memory_ends_the_engine(act: str) -> None:
    assert run("", act, "end_if_out_of_memory") == (EXIT_OUT_OF_MEMORY, "")
    assert describe_exit(EXIT_OUT_OF_MEMORY) == "out of memory"


def test_a_decoder_that_finds_no_memory_ends_the_engine_if_there_is_none() -> None:
    assert run(NO_MEMORY, "bytearray(1 << 26)", "end_if_nothing_is_left")[0] == EXIT_OUT_OF_MEMORY
    wrapped = "raise ValueError('too large') from MemoryError()"
    assert run(NO_MEMORY, wrapped, "end_if_nothing_is_left")[0] == EXIT_OUT_OF_MEMORY


def test_a_file_that_asks_for_too_much_does_not_end_an_engine_that_has_memory() -> None:
    end_if_nothing_is_left(MemoryError())
    end_if_nothing_is_left(OSError("out of memory when reading image file"))


def test_other_errors_end_nothing() -> None:
    for judge in (end_if_nothing_is_left, end_if_out_of_memory):
        judge(ValueError("the image is truncated"))
