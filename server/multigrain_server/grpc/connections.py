"""Bounds on the connections of the gRPC address, which gRPC itself limits in total only.

The daemon finds the sockets that gRPC has accepted among its own descriptors, and shuts down those
that a host has too many of. gRPC then takes them for connections that their clients closed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

import structlog

from multigrain.memory import release_freed_memory
from multigrain_server.access.client import host
from multigrain_server.asyncio_utils import background_task
from multigrain_server.config import GrpcConfig

_log = structlog.get_logger(__name__)

_SECONDS = 0.5
_STATUS_SECONDS = 0.1
# Of all connections; those of callers who were never authorized make room before it is reached.
_NEARLY_FULL = 0.9
# Descriptors kept for files, engines and the HTTP address, of those that a process may have.
_RESERVED_SHARE = 4
_RESERVED = 192
_MIN_CONNECTIONS = 16
# Freed memory is returned to the operating system while this much more is resident than once was;
# less often if that does not help.
_TRIM_BYTES = 32 << 20
_TRIM_SECONDS = 3.0
_MAX_TRIM_SECONDS = 6.0
_TRIM_HELPED_BYTES = 8 << 20
# tcpi_bytes_received of struct tcp_info, since Linux 4.1.
_TCP_INFO_BYTES = 136
_RECEIVED = slice(128, 136)

_Endpoint = tuple[str, int]
_UNIX: _Endpoint = ("", 0)


def raise_descriptor_limit() -> None:
    """Sets the limit of open files to the most that the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections(config: GrpcConfig) -> int:
    """How many gRPC connections there may be: fewer than configured if descriptors are scarce."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return config.max_connections
    left = soft - max(_RESERVED, soft // _RESERVED_SHARE)
    return min(config.max_connections, max(_MIN_CONNECTIONS, left))


@dataclass(frozen=True)
class Connection:
    """An accepted connection.

    Attributes:
        inode: identifies the socket as long as it is open.
        descriptor: of the socket, in this process.
        peer: address and port of the client.
    """

    inode: int
    descriptor: int
    peer: _Endpoint

    def received_bytes(self) -> int:
        """Bytes received so far; 0 = unknown."""
        try:
            if os.fstat(self.descriptor).st_ino != self.inode:
                return 0
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=self.descriptor)
        except OSError:
            return 0
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return 0
        finally:
            sock.detach()  # it is not ours to close
        return int.from_bytes(info[_RECEIVED], sys.byteorder)

    def end(self) -> bool:
        """Shuts the connection down, unless its descriptor belongs to another one by now."""
        try:
            copy = os.dup(self.descriptor)
        except OSError:
            return False
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=copy) as sock:
            if os.fstat(copy).st_ino != self.inode:
                return False
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            return True


class ConnectionGuard:
    """Ends connections that are more than a host's or the daemon's share.

    A connection on which a call was authorized is never ended.

    Args:
        config: the limits.
    """

    def __init__(self, config: GrpcConfig) -> None:
        self._per_host = config.max_connections_per_host
        self._total = max_connections(config)
        self._port = 0
        self._authorized: set[str] = set()
        # By inode, in the order in which they were seen first.
        self._connections: dict[int, Connection] = {}
        self._by_peer: dict[_Endpoint, Connection] = {}
        # Inodes of other sockets.
        self._others: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._least_bytes = _resident_bytes()

    def start(self, port: int) -> None:
        """Watches the connections to a port."""
        self._port = port
        self._task = background_task(self._watch(), name="connections")

    def stop(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()

    def authorize(self, peer: str) -> None:
        """Records that a call was authorized on a connection.

        Args:
            peer: as reported by gRPC.
        """
        self._authorized.add(peer)

    def received_bytes(self, peer: str) -> int:
        """Bytes received so far on a connection without an authorized call; else 0.

        Args:
            peer: as reported by gRPC.
        """
        if peer in self._authorized:
            return 0
        endpoint = _endpoint(peer)
        found = self._by_peer.get(endpoint)
        # All clients of a Unix socket have one name: none of them would be found.
        if found is None and endpoint != _UNIX:
            self.scan()
            found = self._by_peer.get(endpoint)
        return found.received_bytes() if found is not None else 0

    def end(self, peer: str) -> None:
        """Ends a connection at once, unless a call was authorized on it.

        Args:
            peer: as reported by gRPC.
        """
        if peer in self._authorized:
            return
        self.scan()
        connection = self._by_peer.get(_endpoint(peer))
        if connection is not None and connection.end():
            _log.debug("connection ended", peer=peer)

    def end_soon(self, peer: str) -> None:
        """The same a moment later, so that the status of a call is sent before."""
        loop = asyncio.get_running_loop()
        loop.call_later(_STATUS_SECONDS, self.end, peer, context=Context())

    def check(self) -> int:
        """Ends the connections that are too many. Returns how many."""
        self.scan()
        known = {_endpoint(peer): peer for peer in self._authorized}
        self._authorized = {
            known[connection.peer]
            for connection in self._connections.values()
            if connection.peer in known
        }
        hosts: defaultdict[str, list[Connection]] = defaultdict(list)
        for connection in self._connections.values():
            hosts[host(_peer(connection.peer))].append(connection)
        ended = 0
        total = len(self._connections)
        for name in sorted(hosts, key=lambda name: len(hosts[name]), reverse=True):
            excess = len(hosts[name]) - self._per_host
            excess = max(excess, total - int(self._total * _NEARLY_FULL))
            if excess <= 0:
                continue
            strangers = [found for found in hosts[name] if found.peer not in known]
            gone = sum(connection.end() for connection in strangers[:excess])
            total -= gone
            ended += gone
            if gone:
                _log.warning(
                    "ended connections without an authorized call",
                    host=name,
                    ended=gone,
                    connections=len(hosts[name]),
                )
        return ended

    def scan(self) -> None:
        """Finds the connections that are open now."""
        sockets = dict(_sockets())
        self._others &= sockets.keys()
        self._connections = {
            inode: found for inode, found in self._connections.items() if inode in sockets
        }
        for inode, descriptor in sockets.items():
            if inode in self._others or inode in self._connections:
                continue
            peer = _accepted_from(descriptor, self._port)
            if peer is None:
                self._others.add(inode)
            else:
                self._connections[inode] = Connection(inode, descriptor, peer)
        self._by_peer = {found.peer: found for found in self._connections.values()}

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        delay = _TRIM_SECONDS
        trim_at = loop.time() + delay
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                self.check()
            except OSError as error:  # no descriptors for a moment
                _log.warning("cannot examine connections", reason=str(error))
            if loop.time() >= trim_at:
                helped = await self._return_memory()
                delay = _TRIM_SECONDS if helped else min(2 * delay, _MAX_TRIM_SECONDS)
                trim_at = loop.time() + delay

    async def _return_memory(self) -> bool:
        """Returns what a flood of calls had allocated, which the C library would keep.

        Returns False if that made no difference.
        """
        before = _resident_bytes()
        self._least_bytes = min(self._least_bytes, before)
        if before - self._least_bytes < _TRIM_BYTES:
            return True
        await asyncio.to_thread(release_freed_memory)
        return before - _resident_bytes() > _TRIM_HELPED_BYTES


def _sockets() -> Iterator[tuple[int, int]]:
    """Inodes and descriptors of the sockets of this process."""
    with os.scandir("/proc/self/fd") as entries:
        names = [entry.name for entry in entries]
    for name in names:
        try:
            kind, _, rest = os.readlink(f"/proc/self/fd/{name}").partition(":")
        except OSError:  # closed meanwhile
            continue
        if kind == "socket":
            yield int(rest[1:-1]), int(name)


def _accepted_from(descriptor: int, port: int) -> _Endpoint | None:
    """The peer of a TCP connection to a local port; None for any other socket."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if sock.getsockname()[1] != port:
            return None
        address = sock.getpeername()
        return _plain(address[0]), address[1]
    except OSError:  # it listens, or its client has gone
        return None
    finally:
        sock.detach()  # it is not ours to close


def _endpoint(peer: str) -> _Endpoint:
    """Address and port of a peer as reported by gRPC."""
    text, _, port = unquote(peer).partition(":")[2].rpartition(":")
    try:
        return _plain(text.strip("[]")), int(port)
    except ValueError:
        return _UNIX


def _peer(endpoint: _Endpoint) -> str:
    """The inverse of ``_endpoint``."""
    address, port = endpoint
    return f"ipv6:[{address}]:{port}" if ":" in address else f"ipv4:{address}:{port}"


def _plain(address: str) -> str:
    """An address in one form: an IPv4 client of an IPv6 socket as IPv4."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(found)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
