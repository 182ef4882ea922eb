"""The filter of system calls, also for the architecture that these tests do not run on."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

import pytest

from multigrain.sandbox import seccomp
from multigrain.sandbox.seccomp import ARCHITECTURES, Filter, MemoryFileFilter

ALLOWED, DENIED, MISSING = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

#: What every library needs, by architecture: read, write, mmap, futex, exit_group, openat, tgkill.
USUAL = {
    "x86_64": (0, 1, 9, 202, 231, 257, 234),
    "aarch64": (63, 64, 222, 98, 94, 56, 131),
}
OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}
NR_CLONE_THREAD, NR_CLONE_VM = 0x00010000, 0x00000100


def decision(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Runs a filter as the kernel does (Documentation/networking/filter.rst)."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *(*arguments, *(6 - len(arguments)) * (0,)))
    code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("HBBI", program))
    position = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_forbidden_is_refused_and_the_usual_calls_are_not(machine: str) -> None:
    found = ARCHITECTURES[machine]
    wanted = Filter()
    program = wanted.program(found)
    for name, number in seccomp.numbers(wanted.forbidden(), machine).items():
        assert decision(program, found.audit, number) == DENIED, name
    for number in USUAL[machine]:
        assert decision(program, found.audit, number) == ALLOWED, number


def test_what_is_allowed_is_not_refused(machine: str) -> None:
    found = ARCHITECTURES[machine]
    program = Filter(execute=True, fork=True, sockets=True, attributes=True).program(found)
    for names in (seccomp.EXECUTE, seccomp.FORK, seccomp.SOCKETS, seccomp.ATTRIBUTES):
        for name, number in seccomp.numbers(names, machine).items():
            assert decision(program, found.audit, number) == ALLOWED, name
    for name, number in seccomp.numbers(seccomp.ALWAYS, machine).items():
        assert decision(program, found.audit, number) == DENIED, name


def test_files_in_memory_are_refused_by_a_filter_of_their_own(machine: str) -> None:
    found = ARCHITECTURES[machine]
    program = MemoryFileFilter().program(found)
    files = seccomp.numbers(seccomp.MEMORY_FILES, machine)
    assert len(files) == 2
    for name, number in files.items():
        assert decision(program, found.audit, number) == DENIED, name
    for number in USUAL[machine]:
        if number not in files.values():
            assert decision(program, found.audit, number) == ALLOWED, number


def test_calls_of_another_architecture_are_refused(machine: str) -> None:
    """Their numbers mean other calls: 59 is execve on x86-64, and 11 for a 32-bit program."""
    program = Filter().program(ARCHITECTURES[machine])
    i386, arm = 0x40000003, 0x40000028
    for audit in (i386, arm, ARCHITECTURES[OTHER[machine]].audit):
        assert decision(program, audit, USUAL[machine][0]) == DENIED
    x32 = 0x40000000
    assert decision(program, ARCHITECTURES[machine].audit, x32 | 520) == DENIED


def test_threads_can_be_started_and_processes_cannot(machine: str) -> None:
    found = ARCHITECTURES[machine]
    clone, clone3 = found.calls["clone"], found.calls["clone3"]
    thread = NR_CLONE_THREAD | NR_CLONE_VM
    for fork in (False, True):
        program = Filter(fork=fork).program(found)
        assert decision(program, found.audit, clone, thread) == ALLOWED
        assert decision(program, found.audit, clone3) == MISSING
        process = ALLOWED if fork else DENIED
        assert decision(program, found.audit, clone, 17) == process  # SIGCHLD
        new_user_namespace = 0x10000000
        if fork:
            assert decision(program, found.audit, clone, 17 | new_user_namespace) == DENIED


def test_arguments_decide_about_limits_terminals_and_pairs_of_sockets(machine: str) -> None:
    found = ARCHITECTURES[machine]
    program = Filter().program(found)

    def of(name: str, *arguments: int) -> int:
        return decision(program, found.audit, found.calls[name], *arguments)

    assert of("prlimit64", 0, 7) == ALLOWED
    assert of("prlimit64", 1234, 7) == DENIED
    assert of("ioctl", 0, 0x5401) == ALLOWED  # TCGETS
    assert of("ioctl", 0, 0x5412) == DENIED  # TIOCSTI
    # The kernel ignores the upper half.
    assert of("ioctl", 0, 0x5412 | 1 << 32) == DENIED
    stream, packets, closed_on_exec = 1, 5, 0o2000000
    for kind in range(16):
        # Datagram sockets, and what the kernel takes for them, could be sent from to any address.
        expected = ALLOWED if kind in (stream, packets) else DENIED
        assert of("socketpair", 1, kind | closed_on_exec) == expected, kind
    tipc = 30
    assert of("socketpair", tipc, stream) == DENIED


def test_file_flags_are_attributes(machine: str) -> None:
    found = ARCHITECTURES[machine]
    for attributes, expected in ((False, DENIED), (True, ALLOWED)):
        program = Filter(attributes=attributes).program(found)
        for request in (0x40086602, 0x401C5820, 0x40806685):  # SETFLAGS, FSSETXATTR, ENABLE_VERITY
            answer = decision(program, found.audit, found.calls["ioctl"], 3, request)
            assert answer == expected, hex(request)


def test_numbers_are_those_of_libseccomp(machine: str) -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp2 is not installed")
    found = ARCHITECTURES[machine]
    names = {name for one in ARCHITECTURES.values() for name in one.calls}
    names.update(Filter().forbidden())
    unknown = -1  # to this version of the library
    differing = {}
    for name in sorted(names):
        number = library.seccomp_syscall_resolve_name_arch(
            ctypes.c_uint32(found.audit), name.encode()
        )
        # Negative: this architecture lacks it.
        if number != unknown and found.calls.get(name, -2) != max(number, -2):
            differing[name] = (found.calls.get(name), number)
    assert not differing


def test_an_unknown_architecture_has_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert seccomp.architecture() is None
    for attempt in (seccomp.check, lambda: seccomp.install(Filter())):
        with pytest.raises(OSError, match="riscv64") as raised:
            attempt()
        assert "riscv64" in seccomp.explain(raised.value)
