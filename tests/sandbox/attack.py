"""What code that has taken over a restricted process would try. Run in a process of its own."""

from __future__ import annotations

import errno
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from multigrain.sandbox.apply import Sandbox, SandboxReport, apply
from multigrain.sandbox.policies import (
    decoder_sandbox,
    engine_sandbox,
    template_sandbox,
    worker_sandbox,
)


def sandboxes(folder: Path) -> dict[str, Callable[[], Sandbox]]:
    """The sandboxes of the project, by name; what they may read and write is below ``folder``."""
    inside = folder / "inside"
    return {
        "engine": lambda: engine_sandbox(inside, "cpu"),
        "decoder": decoder_sandbox,
        "template": template_sandbox,
        "worker": lambda: worker_sandbox(read=[inside], write=[folder / "results"]),
    }


def attacks(folder: Path) -> dict[str, Callable[[], object]]:
    """Attempts by name. ``folder`` has ``outside``, a file with a secret, and a Unix socket."""
    secret, parent = folder / "outside", os.getppid()

    def connect(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)

    def send_datagram(kind: int) -> None:
        ours, _ = socket.socketpair(socket.AF_UNIX, kind)
        ours.sendto(b"x", str(folder / "datagrams"))

    return {
        "read a file": secret.read_bytes,
        "read through a link": (folder / "inside" / "link").read_bytes,
        "list a folder": lambda: os.listdir(folder),
        "create a file": (folder / "new").touch,
        "create a file in the bundle": (folder / "inside" / "new").touch,
        "change a file": lambda: os.truncate(secret, 0),
        "delete a file": secret.unlink,
        "rename a file": lambda: secret.rename(folder / "renamed"),
        "read the accounts": Path("/etc/passwd").read_bytes,
        "read the kernel's memory": lambda: open("/proc/kcore", "rb").close(),
        "read the parent's environment": Path(f"/proc/{parent}/environ").read_bytes,
        "write the parent's memory": lambda: open(f"/proc/{parent}/mem", "r+b").close(),
        "limit the parent": lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)),
        "signal the parent": lambda: os.kill(parent, 0),
        "open a TCP socket": lambda: socket.socket(socket.AF_INET),
        "open a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "connect to a Unix socket": lambda: connect(str(folder / "socket")),
        "connect to an abstract socket": lambda: connect(f"\0multigrain-attack-{parent}"),
        "send a datagram": lambda: send_datagram(socket.SOCK_DGRAM),
        "send a datagram by a raw socket": lambda: send_datagram(socket.SOCK_RAW),
        "mount": lambda: _call("mount", 0, 0, 0, 0, 0),
        "trace the parent": lambda: _call("ptrace", 16, parent, 0, 0),  # PTRACE_ATTACH
        "read the parent": lambda: _call("process_vm_readv", parent, 0, 0, 0, 0, 0),
        "unshare": lambda: _call("unshare", 0x10000000),  # CLONE_NEWUSER
        "make an io_uring": lambda: _call("io_uring_setup", 1, 0),
        "load a program into the kernel": lambda: _call("bpf", 0, 0, 0),
    }


#: Those that show without a sandbox that an attempt would work, and that harm nobody then.
HARMLESS = (
    *("read a file", "list a folder", "create a file", "open a UDP socket", "change the mode"),
    *("send a datagram", "send a datagram by a raw socket"),
)


def executions() -> dict[str, Callable[[], object]]:
    """Attempts to start another program; a worker may start those of the system."""
    return {
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "replace the process": lambda: os.execv("/bin/true", ["true"]),
    }


def attributes(folder: Path) -> dict[str, Callable[[], object]]:
    """Attempts to change what is known of a file; a worker may do so."""
    secret = folder / "outside"

    def set_flags() -> None:
        import fcntl

        with (folder / "inside" / "model.json").open("rb") as file:
            no_dump = (0x40).to_bytes(8, sys.byteorder)  # FS_NODUMP_FL
            fcntl.ioctl(file, 0x40086602, no_dump)  # FS_IOC_SETFLAGS

    return {
        "change the flags": set_flags,
        "set an attribute by a path": lambda: _call("setxattrat", -100, 0, 0, 0, 0, 0),
        "change the mode": lambda: secret.chmod(0o777),
        "change the owner": lambda: os.chown(secret, os.getuid(), os.getgid()),
        "change the times": lambda: os.utime(secret, (0, 0)),
    }


def memory_attacks(images: int) -> dict[str, Callable[[], object]]:
    """Attempts of an engine to fill memory that no limit of a process counts.

    Args:
        images: descriptor of the memory that it shares with the daemon.
    """

    def reopen() -> None:
        os.close(os.open(f"/proc/self/fd/{images}", os.O_RDWR))

    def write() -> None:
        try:
            os.pwrite(images, b"x" * 4096, 0)
        except OSError as error:
            # What a descriptor without the right to write answers.
            raise OSError(errno.EACCES if error.errno == errno.EBADF else error.errno, "") from None

    return {
        "make a file in memory": lambda: os.memfd_create("attack"),
        "make a secret file in memory": lambda: _call("memfd_secret", 0),
        "map the shared images": lambda: mmap.mmap(images, 4096, prot=mmap.PROT_WRITE),
        "write the shared images": write,
        "open the shared images for writing": reopen,
        "make the shared images writable": lambda: os.fchmod(images, 0o600),
    }


def chosen(name: str, folder: Path) -> dict[str, Callable[[], object]]:
    """The attempts that the sandbox ``name`` must refuse; "" = none is applied."""
    attempts = {**attacks(folder), **attributes(folder), **executions()}
    if not os.path.exists("/proc/kcore"):
        del attempts["read the kernel's memory"]
    if not name:
        return {title: attempts[title] for title in HARMLESS}
    if name == "worker":
        for allowed in (*attributes(folder), *executions()):
            del attempts[allowed]
    return attempts


def _call(name: str, *arguments: int) -> None:
    """A system call by its number. EFAULT and the like mean that it was not refused."""
    import ctypes

    from multigrain.sandbox.seccomp import architecture

    found = architecture()
    assert found is not None
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = [ctypes.c_long(value) for value in (found.calls[name], *arguments)]
    if libc.syscall(*numbers) < 0:
        raise OSError(ctypes.get_errno(), name)


def outcome(attempt: Callable[[], object]) -> str:
    """ "refused", or what happened instead."""
    try:
        attempt()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return "refused"
        return f"{errno.errorcode.get(error.errno or 0)}: {error}"
    return "succeeded"


def main() -> None:
    """Applies the sandbox of the first argument, attacks, and prints what came of it as JSON."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    attempts = chosen(name, folder)
    report = apply(sandboxes(folder)[name]()) if name else SandboxReport()
    found = {title: outcome(attempt) for title, attempt in attempts.items()}
    print(json.dumps({"report": asdict(report), "found": found}))


if __name__ == "__main__":
    main()
