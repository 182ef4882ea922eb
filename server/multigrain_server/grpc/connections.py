"""Bounds on the connections of the gRPC address, which gRPC itself limits in total only.

The daemon finds the sockets that gRPC has accepted among its own descriptors, and shuts down those
that a host has too many of. gRPC then takes them for connections that their clients closed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import select
import socket
import stat
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Metric

from multigrain.memory import release_freed_memory
from multigrain_server.access.client import host
from multigrain_server.asyncio_utils import background_task
from multigrain_server.config import GrpcConfig
from multigrain_server.grpc.metadata_limit import MAX_ENTRIES

_log = structlog.get_logger(__name__)

_SECONDS = 0.5
_STATUS_SECONDS = 0.1
# After a connection was accepted, and while new ones have sent more than a first call does.
_LOOK_SECONDS = 0.02
# While there are new connections without an authorized call.
_CALM_LOOK_SECONDS = 0.1
# Of the time between two looks, this part may be spent looking.
_LOOK_SHARE = 10
# gRPC closes connections whose clients have not acknowledged its settings by then
# (``grpc.server_handshake_timeout_ms`` and ``grpc.http2.settings_timeout``), and limits the headers
# of all others to 16 KiB.
_NEW_SECONDS = 11.0
# What a client may send before it has the server's settings: one flow-control window, and headers.
_FREE_BYTES = 96 << 10
# Bytes above that which new connections without an authorized call have sent, all together. Every
# byte of headers may take some 130 bytes of memory. A client whose call was refused may have sent a
# window of its message.
_SUSPECT_BYTES = 512 << 10
_REFUSED_BYTES = 3 << 20
# While clients get their first authorized calls, others may be waiting for theirs, for this long.
_PATIENCE_SECONDS = 1.0
# A call that has arrived may wait so long for a CPU before it is authorized.
_BUSY_SECONDS = 0.25
_DISCARDED_BYTES = 1 << 20
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

_MANY = "many"
_BYTES = "bytes"


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
        since: time of the event loop at which it was seen first.
    """

    inode: int
    descriptor: int
    peer: _Endpoint
    since: float = 0.0

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
        """Shuts the connection down, unless its descriptor belongs to another one by now.

        Discards what gRPC has not read yet.
        """
        try:
            copy = os.dup(self.descriptor)
        except OSError:
            return False
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=copy) as sock:
            if os.fstat(copy).st_ino != self.inode:
                return False
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                # Copies nothing.
                flags = socket.MSG_DONTWAIT | socket.MSG_TRUNC
                while sock.recv(_DISCARDED_BYTES, flags):
                    pass
            return True


class ConnectionGuard:
    """Ends connections that are more than a host's or the daemon's share, or send too much.

    A connection on which a call was authorized is never ended.

    Args:
        config: the limits.
        registry: where the counter of ended connections is registered.
    """

    def __init__(self, config: GrpcConfig, registry: CollectorRegistry | None = None) -> None:
        self._per_host = config.max_connections_per_host
        self._total = max_connections(config)
        self._port = 0
        self._authorized: dict[str, _Endpoint] = {}
        self._trusted: set[_Endpoint] = set()
        # Peers without an authorized call of which some call was answered.
        self._answered: dict[str, _Endpoint] = {}
        # What they had sent when the last one was.
        self._accounted: dict[_Endpoint, int] = {}
        self._discarding: set[_Endpoint] = set()
        # When connections were seen first that had sent much, by inode.
        self._suspects: dict[int, float] = {}
        self._welcomed = False
        self._arrivals: select.epoll | None = None
        self._arrived = False
        self._next_look: asyncio.TimerHandle | None = None
        # By host and reason, to be logged.
        self._ended: Counter[tuple[str, str]] = Counter()
        self._metric = Metric(
            "multigrain_connections_ended",
            "gRPC connections without an authorized call that the daemon ended: too many of a host "
            '(reason="many"), or too many bytes (reason="bytes").',
            ["reason"],
            registry=registry,
        )
        for reason in (_MANY, _BYTES):
            self._metric.labels(reason)
        self._metadata_metric = Metric(
            "multigrain_metadata_refused",
            f"Calls that were ended because they have more than {MAX_ENTRIES} metadata entries.",
            registry=registry,
        )
        self._refused_metadata = 0
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
        self._watch_arrivals()

    def stop(self) -> None:
        """Stops watching."""
        if self._task is not None:
            self._task.cancel()
        if self._next_look is not None:
            self._next_look.cancel()
        if self._arrivals is not None:
            asyncio.get_running_loop().remove_reader(self._arrivals.fileno())
            self._arrivals.close()
            self._arrivals = None

    def authorize(self, peer: str) -> None:
        """Records that a call was authorized on a connection.

        Args:
            peer: as reported by gRPC.
        """
        if peer not in self._authorized:
            self._authorized[peer] = _endpoint(peer)
            self._trusted.add(self._authorized[peer])
            self._welcomed = True

    def answer(self, peer: str) -> None:
        """Records that a call was answered, or refused, that needed no authorization or had none.

        Args:
            peer: as reported by gRPC.
        """
        endpoint = self._answered.get(peer)
        if endpoint is None:
            endpoint = self._answered[peer] = _endpoint(peer)
        found = self._by_peer.get(endpoint)
        if found is not None:
            self._accounted[endpoint] = found.received_bytes()

    @contextmanager
    def discarding(self, peer: str) -> Iterator[None]:
        """While this runs, the daemon reads what the client sends, and it may send any number.

        Args:
            peer: as reported by gRPC.
        """
        endpoint = _endpoint(peer)
        self._discarding.add(endpoint)
        try:
            yield
        finally:
            self._discarding.discard(endpoint)
            self.answer(peer)

    def refuse_metadata(self) -> None:
        """Records that a call was ended because of its metadata."""
        self._refused_metadata += 1
        self._metadata_metric.inc()

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

    def known_received_bytes(self, peer: str) -> int:
        """Bytes received so far on any connection; 0 = it is too new, or a Unix socket.

        Args:
            peer: as reported by gRPC.
        """
        found = self._by_peer.get(self._authorized.get(peer) or _endpoint(peer))
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
        open_now = self._by_peer.keys()
        self._authorized = {
            peer: endpoint for peer, endpoint in self._authorized.items() if endpoint in open_now
        }
        self._trusted = set(self._authorized.values())
        self._answered = {
            peer: endpoint for peer, endpoint in self._answered.items() if endpoint in open_now
        }
        self._accounted = {
            endpoint: sent for endpoint, sent in self._accounted.items() if endpoint in open_now
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
            strangers = [found for found in hosts[name] if found.peer not in self._trusted]
            # Those that have sent nothing go first: a health check sends its request at once. Of
            # these and of the others, the oldest.
            strangers.sort(key=lambda found: found.received_bytes() > 0)
            gone = sum(self._end(connection, name, _MANY) for connection in strangers[:excess])
            total -= gone
            ended += gone
        return ended

    def check_bytes(self, now: float) -> float | None:
        """Ends new connections without an authorized call that have sent too much together.

        Counts what they have sent since the last of their calls was answered.

        Those that have sent most are ended first. A call is authorized as soon as its headers have
        come, so a connection is ended only if it had sent much a quarter of a second ago already,
        and no connection was authorized since the previous check; or a second ago.

        Args:
            now: the time of the event loop.

        Returns:
            Seconds to the next check; None = there are no such connections.
        """
        answered = set(self._answered.values())
        sent: dict[bool, list[tuple[int, Connection]]] = {False: [], True: []}
        new = False
        for connection in reversed(self._connections.values()):
            if now - connection.since > _NEW_SECONDS:
                break  # the others are older
            if connection.peer in self._trusted:
                continue
            new = True
            if connection.peer in self._discarding:
                continue
            accounted = self._accounted.get(connection.peer, 0)
            excess = connection.received_bytes() - accounted - _FREE_BYTES
            if excess > 0:
                sent[connection.peer in answered].append((excess, connection))
        patience = _PATIENCE_SECONDS if self._welcomed else _BUSY_SECONDS
        self._welcomed = False
        suspected_before = now - patience
        for limit, found in ((_SUSPECT_BYTES, sent[False]), (_REFUSED_BYTES, sent[True])):
            total = sum(excess for excess, _ in found)
            for excess, connection in sorted(found, key=lambda one: one[0], reverse=True):
                if total <= limit:
                    break
                if self._suspects.get(connection.inode, now) <= suspected_before:
                    self._end(connection, host(_peer(connection.peer)), _BYTES)
                total -= excess
        self._suspects = {
            found.inode: self._suspects.get(found.inode, now)
            for _, found in (*sent[False], *sent[True])
        }
        if self._suspects:
            return _LOOK_SECONDS
        return _CALM_LOOK_SECONDS if new else None

    def _end(self, connection: Connection, name: str, reason: str) -> bool:
        if not connection.end():
            return False
        self._connections.pop(connection.inode, None)
        self._ended[name, reason] += 1
        self._metric.labels(reason).inc()
        return True

    def scan(self) -> None:
        """Finds the connections that are open now."""
        sockets = dict(_sockets())
        now = time.monotonic()
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
                self._connections[inode] = Connection(inode, descriptor, peer, now)
        self._by_peer = {found.peer: found for found in self._connections.values()}

    def _watch_arrivals(self) -> None:
        """Has ``_arrival`` called for new connections."""
        # Not in the selector of the event loop, as gRPC may close these sockets at any time.
        self._arrivals = select.epoll()
        for _, descriptor in _sockets():
            if _listens(descriptor, self._port):
                self._arrivals.register(descriptor, select.EPOLLIN | select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._arrivals.fileno(), self._arrival)

    def _arrival(self) -> None:
        if self._arrivals is None:
            return
        self._arrivals.poll(0)
        self._arrived = True
        self._look_in(_LOOK_SECONDS)

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._next_look is not None:
            if self._next_look.when() <= loop.time() + seconds:
                return
            self._next_look.cancel()
        self._next_look = loop.call_later(seconds, self._look, context=Context())

    def _look(self) -> None:
        """Examines the connections, and again as long as some of them are new."""
        self._next_look = None
        began = time.monotonic()
        delay: float | None = _CALM_LOOK_SECONDS
        try:
            if self._arrived:
                self._arrived = False
                self.check()
            delay = self.check_bytes(began)
        except OSError as error:  # no descriptors for a moment
            _log.warning("cannot examine connections", reason=str(error))
        if delay is not None:
            self._look_in(max(delay, _LOOK_SHARE * (time.monotonic() - began)))

    def _report(self) -> None:
        """Logs what was ended."""
        for (name, reason), count in self._ended.items():
            _log.warning(
                "ended connections without an authorized call",
                host=name,
                reason=reason,
                ended=count,
            )
        self._ended.clear()
        if self._refused_metadata:
            _log.warning("ended calls with too much metadata", calls=self._refused_metadata)
            self._refused_metadata = 0

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
            self._report()
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
    for name in os.listdir("/proc/self/fd"):
        try:
            found = os.fstat(int(name))
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(found.st_mode):
            yield found.st_ino, int(name)


@contextmanager
def _tcp(descriptor: int, port: int) -> Iterator[socket.socket | None]:
    """A TCP socket of this process that has a local port; None for any other descriptor."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        yield None
        return
    try:
        ours = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port
        yield sock if ours else None
    finally:
        sock.detach()  # it is not ours to close


def _listens(descriptor: int, port: int) -> bool:
    """Whether a TCP socket accepts connections to a local port."""
    with suppress(OSError), _tcp(descriptor, port) as sock:
        return sock is not None and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


def _accepted_from(descriptor: int, port: int) -> _Endpoint | None:
    """The peer of a TCP connection to a local port; None for any other socket."""
    # An error: it listens, or its client has gone.
    with suppress(OSError), _tcp(descriptor, port) as sock:
        if sock is not None:
            address = sock.getpeername()
            return _plain(address[0]), address[1]
    return None


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
