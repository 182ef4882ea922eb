"""The daemon's configuration, with units, limits and defaults.

Every key can be set in a YAML file, in the environment (``MULTIGRAIN_GRPC__MAX_MESSAGE_MIB``)
and on the command line (``--grpc-max-message-mib``); see ``settings_sources``. The descriptions are
the reference documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from multigrain.specs.base import Spec
from multigrain_server.access.config import AccessConfig, TlsConfig
from multigrain_server.address import ListenAddress
from multigrain_server.devices import Inventory
from multigrain_server.engines.config import EnvironmentNames, ServingConfig
from multigrain_server.tracing.config import TracingConfig


def _address(text: str) -> str:
    ListenAddress.parse(text)
    return text


def _tcp_address(text: str) -> str:
    if text and ListenAddress.parse(text).host.startswith("unix:"):
        raise ValueError("must be a host and a port, not a Unix socket")
    return text


def _inventory(text: str) -> str:
    Inventory.parse(text)
    return text


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


Address = Annotated[str, AfterValidator(_address)]
OptionalTcpAddress = Annotated[str, AfterValidator(_tcp_address)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


# gRPC takes milliseconds as a 32-bit number.
_MAX_SECONDS = 2_000_000


class LogConfig(Spec):
    """Log lines, which go to standard error."""

    format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: text for people, or JSON for collectors."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged."
    )


class GrpcConfig(Spec):
    """Limits of the gRPC transport."""

    max_message_mib: int = Field(
        64, ge=1, le=2047, description="Largest message in either direction, in MiB."
    )
    max_concurrent_streams: int = Field(
        1000,
        ge=1,
        le=2**31 - 1,
        description="Maximum number of calls in flight on one connection. If a client reaches it, "
        "some of its calls may be refused with UNAVAILABLE before they start.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum number of connections, in total. It is lower where the process may "
        "not have so many open files (`ulimit -n`), of which a quarter is kept for other uses.",
    )
    max_connections_per_host: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Number of connections of one host above which those without an authorized "
        "call are closed, oldest first. Connections in use are never closed, so a proxy may have "
        "more.",
    )
    keepalive_seconds: float = Field(
        30.0,
        ge=1,
        le=_MAX_SECONDS,
        description="Seconds without traffic after which a connection is probed. Clients may probe "
        "every 5 seconds; clients that ping more often are disconnected.",
    )
    keepalive_timeout_seconds: float = Field(
        20.0,
        ge=1,
        le=_MAX_SECONDS,
        description="Seconds without a response to a probe after which a connection is closed.",
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        le=_MAX_SECONDS,
        description="Age in seconds at which a connection is closed gracefully, so that its client "
        "reconnects and finds new replicas; 0 = never.",
    )
    connection_grace_seconds: float = Field(
        60.0,
        ge=0,
        le=_MAX_SECONDS,
        description="Seconds that calls on a connection of that age have to finish.",
    )


class JobsConfig(Spec):
    """Supervision of jobs."""

    poll_seconds: float = Field(
        0.05,
        ge=0.005,
        le=10,
        description="Interval in seconds at which event logs and runner processes are checked.",
    )
    heartbeat_seconds: float = Field(
        10.0,
        ge=0.1,
        description="Idle seconds after which an event stream sends a heartbeat event.",
    )
    max_runner_crashes: int = Field(
        3,
        ge=1,
        le=1_000_000,
        description="Number of consecutive runner crashes without progress after which a job "
        "fails. (Crashes of workers are counted by max_restarts of the job.)",
    )
    max_queued: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Queued jobs at most; the last tenth is kept for clients with fewer jobs than "
        "others. Further submissions are refused with RESOURCE_EXHAUSTED.",
    )
    max_queued_per_client: int = Field(
        500,
        ge=1,
        le=100_000,
        description="Queued jobs of one client at most, which is a token, or a host where there "
        "are no tokens.",
    )
    runner_restart_seconds: float = Field(
        0.5,
        gt=0,
        description="Seconds before a crashed runner is restarted; doubles with each crash.",
    )
    sandbox: Literal["auto", "off"] = Field(
        "auto",
        description="Whether workers restrict themselves: auto = an evaluation or export by one "
        "worker on the CPU reads data roots and libraries only, writes its job folder and models "
        "only, and has no network; other workers dump no core and gain no privileges. "
        "Default auto.",
    )
    compile_cache_dir: AbsolutePath | None = Field(
        None,
        description="Folder of compiled training graphs, which later jobs with the same network "
        "on the same processor load instead of compiling for up to minutes. Daemons of one user "
        "may share one. Default: compile-cache in the data directory.",
    )
    compile_cache_mib: int = Field(
        1024,
        ge=0,
        le=1 << 20,
        description="MiB of compiled graphs kept; the ones unused for the longest time are "
        "removed. 0 = none.",
    )
    worker_environment: EnvironmentNames = Field(
        (),
        description="Names of further environment variables of the daemon that the processes of "
        "jobs get; NAME* stands for all that begin with NAME. By default they get search paths, "
        "language, time zone, and the variables of Python, drivers and numerical libraries. "
        "Default none.",
    )


class ShutdownConfig(Spec):
    """Graceful shutdown on SIGTERM. Jobs keep running, and the next daemon supervises them."""

    keep_serving_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds for which calls are still accepted after readiness turned false; "
        "give load balancers the time to notice.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Seconds that calls in flight have to finish."
    )


class ServerConfig(Spec):
    """The daemon's configuration."""

    data_dir: AbsolutePath = Field(
        Path("multigrain-data"),
        validate_default=True,
        description="Data directory for jobs, models and state; created if missing. Only one "
        "daemon can use it at a time.",
    )
    listen: Address = Field(
        "127.0.0.1:50051",
        description="gRPC address: HOST:PORT, [IPV6]:PORT or unix:PATH. Port 0 = any free port; "
        "the file <data-dir>/address has the address in use.",
    )
    http_listen: OptionalTcpAddress = Field(
        "127.0.0.1:9464",
        description="HTTP address of the status pages, /metrics, /healthz and /readyz; empty = "
        "none.",
    )
    data_root: tuple[AbsolutePath, ...] = Field(
        (),
        description="Data roots: folders under which requests may name paths, in addition to the "
        "data directory.",
    )
    devices: Annotated[str, AfterValidator(_inventory)] = Field(
        "cpu:1",
        description='Devices for jobs, joined by commas: "cpu:N" (N jobs at a time on the CPU), '
        '"gpu:0-7", "ascend:0-7" (indices).',
    )
    insecure: bool = Field(
        False,
        description="Allow addresses that other machines can reach without TLS.",
    )
    tls: TlsConfig = TlsConfig()
    access: AccessConfig = AccessConfig()
    log: LogConfig = LogConfig()
    grpc: GrpcConfig = GrpcConfig()
    jobs: JobsConfig = JobsConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    serving: ServingConfig = ServingConfig()
    tracing: TracingConfig = TracingConfig()

    @model_validator(mode="after")
    def _safe_address(self) -> Self:
        for name, address, encrypted, keys in (
            ("listen", self.listen, self.tls.enabled, "tls.certificate and tls.key"),
            ("http_listen", self.http_listen, self.tls.http, "a certificate and tls.http"),
        ):
            reachable = address and not ListenAddress.parse(address).loopback
            if reachable and not (self.insecure or encrypted):
                raise ValueError(
                    f"{name}: other machines can reach {address}, and traffic would not be "
                    f"encrypted; set {keys}, or listen on a loopback address, or set --insecure "
                    "if the network is trusted"
                )
            if reachable and not (self._callers_are_known(name) or self.access.allow_anonymous):
                raise ValueError(
                    f"{name}: other machines can reach {address}, and every caller would be an "
                    "administrator; set access.tokens (multigrain-server --new-token NAME:ROLE "
                    "makes a line of that file) or tls.client_ca, or listen on a loopback "
                    "address, or set --access-allow-anonymous if something else decides who can "
                    "connect"
                )
        return self

    def _callers_are_known(self, name: str) -> bool:
        """Whether an address, ``listen`` or ``http_listen``, is closed to unknown callers.

        ``access.pages: open`` opens the HTTP address on purpose, which ``warnings`` mentions.
        """
        if self.access.tokens is not None:
            return True
        return self.tls.client_ca is not None and (name == "listen" or self.tls.http)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that are allowed but expose the daemon."""
        found = []
        tokens, mutual = self.access.tokens is not None, self.tls.client_ca is not None
        if not ListenAddress.parse(self.listen).loopback:
            if tokens and not self.tls.enabled:
                found.append("tokens are sent unencrypted")
            if not tokens and not mutual:
                found.append("anyone who can reach the address may make any call")
        if self.http_listen and not ListenAddress.parse(self.http_listen).loopback:
            if not self.tls.http:
                found.append(f"{self.http_listen} is served without TLS (tls.http)")
            if (not tokens or self.access.pages == "open") and not (mutual and self.tls.http):
                calls = "" if tokens or mutual else " and use the HTTP API"
                found.append(
                    f"anyone who can reach {self.http_listen} may read metrics and pages{calls}"
                )
        return tuple(found)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every folder under which requests may name paths."""
        return (self.data_dir, *self.data_root)
