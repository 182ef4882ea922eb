"""seccomp: a filter of the system calls that a process may make.

The filter is a program of classic BPF, which is assembled here. libseccomp would be the library
for it, but its Python package (``pyseccomp`` 0.1.2) finds it by starting ``ldconfig`` and a
compiler, and fails where it is not installed; what is needed here are one list of numbers for each
of two architectures and a few kinds of instructions. A test compares the numbers with those of
libseccomp.

The filter lists what is forbidden: what OpenVINO, ONNX Runtime, MindSpore and the C library need
for computing differs between their versions, so a list of what is allowed would break with them.

Source: ``include/uapi/linux/seccomp.h``, https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
# For all threads; and without the slow-down against speculation that older kernels add, which is
# for programs that run other people's code.
_TSYNC, _SPEC_ALLOW = 1, 4

_DENIED = _ERRNO | errno.EPERM
_Instruction = tuple[int, int, int, int]

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data
_X32 = 0x40000000

_CLONE_THREAD = 0x00010000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NAMESPACES = 0x7E020000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# FS_IOC_SETFLAGS, its 32-bit form, FS_IOC_SETVERSION, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY:
# they change a file that is open for reading only.
_FILE_IOCTLS: Final = (0x40086602, 0x40046602, 0x40087602, 0x401C5820, 0x40806685)
# The two kinds of pairs that stay connected to each other. The others can be sent from to any
# address: datagrams, and SOCK_RAW, which the kernel takes for datagrams.
_STREAM, _PACKETS = 1, 5  # SOCK_STREAM, SOCK_SEQPACKET
_SOCKET_TYPE = 0xF

#: What no process of this project needs: other processes, mounts, namespaces, the kernel itself.
ALWAYS: Final = (
    # Other processes of the same user.
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("pidfd_getfd", "kcmp", "migrate_pages", "move_pages"),
    # Mounts and namespaces.
    *("mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig"),
    *("fsmount", "fspick", "mount_setattr", "setns", "unshare", "swapon", "swapoff"),
    *("open_tree_attr", "quotactl", "quotactl_fd"),
    # Parts of the kernel with many past defects.
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter"),
    *("io_uring_register", "add_key", "request_key", "keyctl", "fanotify_init"),
    # Files by other means than paths, which Landlock does not see.
    *("open_by_handle_at", "name_to_handle_at", "lookup_dcookie"),
    # The machine.
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot"),
    *("syslog", "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    *("sethostname", "setdomainname", "vhangup", "iopl", "ioperm", "modify_ldt"),
    # Memory and queues that all processes of the user share.
    *("shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop"),
    *("semtimedop", "semctl", "mq_open", "mq_unlink"),
)
#: Owner, mode, times and attributes of files, which Landlock does not protect.
ATTRIBUTES: Final = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("setxattrat", "removexattrat", "file_setattr"),
    *("utime", "utimes", "futimesat", "utimensat", "truncate"),
)
#: Files without a name, in memory.
MEMORY_FILES: Final = ("memfd_create", "memfd_secret")
EXECUTE: Final = ("execve", "execveat")
FORK: Final = ("fork", "vfork")
#: Everything that makes a new connection. A pair of connected sockets can still be made.
SOCKETS: Final = ("socket", "connect", "bind", "listen", "accept", "accept4")


def _table(text: str) -> dict[str, int]:
    """The numbers of calls, from "name number, name number"."""
    pairs = (entry.split() for entry in text.split(","))
    return {name: int(number) for name, number in pairs}


# From 424 on, all architectures have the same numbers.
_COMMON: Final = _table(
    """
    io_uring_setup 425, io_uring_enter 426, io_uring_register 427, open_tree 428,
    move_mount 429, fsopen 430, fsconfig 431, fsmount 432, fspick 433, clone3 435,
    pidfd_getfd 438, process_madvise 440, mount_setattr 442, quotactl_fd 443,
    memfd_secret 447, process_mrelease 448, fchmodat2 452, setxattrat 463, removexattrat 466,
    open_tree_attr 467, file_setattr 469
    """
)
# arch/x86/entry/syscalls/syscall_64.tbl
_X86_64: Final = _COMMON | _table(
    """
    ioctl 16, shmget 29, shmat 30, shmctl 31, socket 41, connect 42, accept 43, bind 49,
    listen 50, socketpair 53, clone 56, fork 57, vfork 58, execve 59, semget 64, semop 65,
    semctl 66, msgget 68, msgsnd 69, msgrcv 70, msgctl 71, truncate 76, chmod 90, fchmod 91,
    chown 92, fchown 93, lchown 94, ptrace 101, syslog 103, utime 132, vhangup 153,
    modify_ldt 154, pivot_root 155, adjtimex 159, chroot 161, acct 163, settimeofday 164,
    mount 165, umount2 166, swapon 167, swapoff 168, reboot 169, sethostname 170,
    setdomainname 171, iopl 172, ioperm 173, init_module 175, delete_module 176, quotactl 179,
    setxattr 188, lsetxattr 189, fsetxattr 190, removexattr 197, lremovexattr 198,
    fremovexattr 199, lookup_dcookie 212, semtimedop 220, clock_settime 227, utimes 235,
    mq_open 240, mq_unlink 241, kexec_load 246, add_key 248, request_key 249, keyctl 250,
    migrate_pages 256, fchownat 260, futimesat 261, fchmodat 268, unshare 272, move_pages 279,
    utimensat 280, accept4 288, perf_event_open 298, fanotify_init 300, prlimit64 302,
    name_to_handle_at 303, open_by_handle_at 304, clock_adjtime 305, setns 308,
    process_vm_readv 310, process_vm_writev 311, kcmp 312, finit_module 313, seccomp 317,
    memfd_create 319, kexec_file_load 320, bpf 321, execveat 322, userfaultfd 323
    """
)
# include/uapi/asm-generic/unistd.h, which arm64 uses; it lacks old calls, such as fork.
_AARCH64: Final = _COMMON | _table(
    """
    setxattr 5, lsetxattr 6, fsetxattr 7, removexattr 14, lremovexattr 15, fremovexattr 16,
    lookup_dcookie 18, ioctl 29, umount2 39, mount 40, pivot_root 41, truncate 45, chroot 51,
    fchmod 52, fchmodat 53, fchownat 54, fchown 55, vhangup 58, quotactl 60, utimensat 88,
    acct 89, unshare 97, kexec_load 104, init_module 105, delete_module 106, clock_settime 112,
    syslog 116, ptrace 117, reboot 142, sethostname 161, setdomainname 162, settimeofday 170,
    adjtimex 171, mq_open 180, mq_unlink 181, msgget 186, msgctl 187, msgrcv 188, msgsnd 189,
    semget 190, semctl 191, semtimedop 192, semop 193, shmget 194, shmctl 195, shmat 196,
    socket 198, socketpair 199, bind 200, listen 201, accept 202, connect 203, add_key 217,
    request_key 218, keyctl 219, clone 220, execve 221, swapon 224, swapoff 225,
    migrate_pages 238, move_pages 239, perf_event_open 241, accept4 242, prlimit64 261,
    fanotify_init 262, name_to_handle_at 264, open_by_handle_at 265, clock_adjtime 266,
    setns 268, process_vm_readv 270, process_vm_writev 271, kcmp 272, finit_module 273,
    seccomp 277, memfd_create 279, bpf 280, execveat 281, userfaultfd 282, kexec_file_load 294
    """
)


@dataclass(frozen=True)
class Architecture:
    """A kind of CPU: its number in ``linux/audit.h``, and its system calls by name."""

    audit: int
    calls: Mapping[str, int]


ARCHITECTURES: Final = {
    "x86_64": Architecture(0xC000003E, _X86_64),
    "aarch64": Architecture(0xC00000B7, _AARCH64),
}


@dataclass(frozen=True)
class Filter:
    """What is forbidden beside :data:`ALWAYS`, with EPERM.

    Attributes:
        execute: False = no other program can be started.
        fork: False = no process can be started, only threads.
        sockets: False = no socket can be opened or connected.
        attributes: False = mode, owner and times of files cannot be changed.
    """

    execute: bool = False
    fork: bool = False
    sockets: bool = False
    attributes: bool = False

    def forbidden(self) -> tuple[str, ...]:
        """Names of the calls that are forbidden whatever their arguments."""
        names = list(ALWAYS)
        for allowed, more in (
            (self.execute, EXECUTE),
            (self.fork, FORK),
            (self.sockets, SOCKETS),
            (self.attributes, ATTRIBUTES),
        ):
            if not allowed:
                names += more
        return tuple(names)

    def program(self, architecture: Architecture) -> bytes:
        """The filter as an array of ``struct sock_filter``."""
        calls = architecture.calls
        code = _without(self.forbidden(), architecture)
        # The flags of clone3 are in memory, which a filter cannot read. The C library falls back
        # to clone, whose flags are a number.
        code += [(_EQUAL, 0, 1, calls["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
        if self.fork:
            code += _argument(calls["clone"], 0, (_ANY_BIT, 0, 1, _CLONE_NAMESPACES))
        else:
            code += _argument(calls["clone"], 0, (_ANY_BIT, 1, 0, _CLONE_THREAD))
        # The limits of other processes of this user.
        code += _argument(calls["prlimit64"], 0, (_EQUAL, 1, 0, 0))
        for request in (_TIOCSTI, _TIOCLINUX, *(() if self.attributes else _FILE_IOCTLS)):
            code += _argument(calls["ioctl"], 1, (_EQUAL, 0, 1, request))
        if not self.sockets:
            pair = calls["socketpair"]
            code += _argument(pair, 0, (_EQUAL, 1, 0, socket.AF_UNIX))
            stream, packets = (_EQUAL, 2, 0, _STREAM), (_EQUAL, 1, 0, _PACKETS)
            code += _argument(pair, 1, stream, packets, mask=_SOCKET_TYPE)
        return _assembled(code)


@dataclass(frozen=True)
class MemoryFileFilter:
    """Forbids files in memory, in addition to a :class:`Filter`."""

    def program(self, architecture: Architecture) -> bytes:
        """The filter as an array of ``struct sock_filter``."""
        return _assembled(_without(MEMORY_FILES, architecture))


def _without(names: Iterable[str], architecture: Architecture) -> list[_Instruction]:
    """Instructions that deny some calls, and leave the number of any other loaded."""
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture.audit),
        # 32-bit calls have other numbers.
        (_RETURN, 0, 0, _DENIED),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _DENIED),
    ]
    for name in names:
        if name in architecture.calls:
            code += [(_EQUAL, 0, 1, architecture.calls[name]), (_RETURN, 0, 0, _DENIED)]
    return code


def _assembled(code: Iterable[_Instruction]) -> bytes:
    return b"".join(
        struct.pack("HBBI", *instruction) for instruction in (*code, (_RETURN, 0, 0, _ALLOW))
    )


def architecture() -> Architecture | None:
    """This machine's; None if there is no filter for it."""
    if not sys.platform.startswith("linux") or struct.calcsize("P") != 8:
        return None
    return ARCHITECTURES.get(platform.machine())


def check() -> None:
    """Checks that filters can be installed here, without installing one.

    Raises:
        OSError: if the kernel or a container forbids it, or for an unknown architecture.
    """
    action = ctypes.c_uint32(_ERRNO)
    _seccomp(_known(), _GET_ACTION_AVAIL, 0, ctypes.byref(action))


def install(wanted: Filter | MemoryFileFilter) -> None:
    """Installs a filter for all threads of this process and what they start. It cannot be removed.

    The process must have set no_new_privs.

    Raises:
        OSError: if this machine cannot; nothing is filtered then.
    """
    found = _known()
    program = wanted.program(found)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions and their address.
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if _seccomp(found, _SET_MODE_FILTER, _TSYNC | _SPEC_ALLOW, head) != 0:
        raise OSError(errno.EBUSY, "a thread has another filter")


def explain(error: OSError) -> str:
    """Why there is no filter, for an operator."""
    if error.errno == errno.ENOTSUP:
        return str(error.strerror)
    if error.errno in (errno.ENOSYS, errno.EINVAL):
        return "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "seccomp is forbidden here, by a container's profile for example"
    return f"seccomp failed: {error.strerror}"


def numbers(names: Iterable[str], machine: str) -> dict[str, int]:
    """The numbers of those calls that ``machine`` has."""
    calls = ARCHITECTURES[machine].calls
    return {name: calls[name] for name in names if name in calls}


def _argument(
    number: int,
    index: int,
    *tests: tuple[int, int, int, int],
    mask: int | None = None,
) -> list[tuple[int, int, int, int]]:
    """Forbids a call by the lower half of an argument. A test allows it by a jump over the rest of
    them and one instruction. Expects the number of the call loaded, and leaves it so."""
    body = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]
    if mask is not None:
        body.append((_AND, 0, 0, mask))
    body += [*tests, (_RETURN, 0, 0, _DENIED), (_LOAD, 0, 0, _NUMBER_AT)]
    return [(_EQUAL, 0, len(body), number), *body]


def _known() -> Architecture:
    found = architecture()
    if found is None:
        raise OSError(errno.ENOTSUP, f"there is no seccomp filter for {platform.machine()} here")
    return found


def _seccomp(found: Architecture, operation: int, flags: int, argument: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(
        ctypes.c_long(found.calls["seccomp"]),
        ctypes.c_long(operation),
        ctypes.c_long(flags),
        argument,
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
