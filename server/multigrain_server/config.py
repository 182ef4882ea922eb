"""Everything an operator can set: units, limits and defaults in one place.

Every key can stand in a YAML file, in the environment (``MULTIGRAIN_GRPC__MAX_MESSAGE_MIB``)
and on the command line (``--grpc-max-message-mib``); see ``config_sources``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from multigrain.specs.base import Spec
from multigrain_server.access.config import AccessConfig, TlsConfig
from multigrain_server.address import ListenAddress
from multigrain_server.devices import Inventory
from multigrain_server.serving.config import ServingConfig
from multigrain_server.tracing.config import TracingConfig


def _address(text: str) -> str:
    ListenAddress.parse(text)
    return text


def _tcp_address(text: str) -> str:
    if ListenAddress.parse(text).host.startswith("unix:"):
        raise ValueError("HTTP needs a host and a port")
    return text


def _inventory(text: str) -> str:
    Inventory.parse(text)
    return text


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


Address = Annotated[str, AfterValidator(_address)]
TcpAddress = Annotated[str, AfterValidator(_tcp_address)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class LogConfig(Spec):
    """What is logged, to standard error."""

    format: Literal["text", "json"] = Field("text", description="Lines for people, or JSON.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )


class GrpcConfig(Spec):
    """Limits of the gRPC transport."""

    max_message_mib: int = Field(
        64, ge=1, le=2047, description="Largest message either way, in MiB."
    )
    max_concurrent_streams: int = Field(
        1000,
        ge=1,
        description="Calls in flight on one connection. Of a client that goes to this "
        "limit, some calls may be refused with UNAVAILABLE before they are begun.",
    )
    keepalive_seconds: float = Field(
        30.0,
        ge=1,
        description="Seconds of silence after which a connection is probed. Clients may probe "
        "every 5 seconds; one that does so more often is hung up on.",
    )
    keepalive_timeout_seconds: float = Field(
        20.0, ge=1, description="Seconds after which a connection that does not answer is closed."
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds after which clients are asked to connect anew, so that they find "
        "new replicas; 0 = never.",
    )
    connection_grace_seconds: float = Field(
        60.0, ge=0, description="Seconds that calls on such a connection have to finish."
    )


class JobsConfig(Spec):
    """Supervision of jobs."""

    poll_seconds: float = Field(
        0.05, ge=0.005, le=10, description="Interval at which events and processes are looked at."
    )
    heartbeat_seconds: float = Field(
        10.0, ge=0.1, description="Seconds of silence after which an event stream says it lives."
    )
    max_runner_crashes: int = Field(
        3,
        ge=1,
        description="Ends of a job's runner in a row, without progress, after which the job fails. "
        "(Deaths of workers are the runner's matter: see max_restarts of a job.)",
    )
    runner_restart_seconds: float = Field(
        0.5, gt=0, description="Pause before a crashed runner is started again; doubles each time."
    )


class ShutdownConfig(Spec):
    """What happens on SIGTERM. Jobs go on; the next start of the daemon finds them again."""

    keep_serving_seconds: float = Field(
        0.0,
        ge=0,
        description="Seconds between readiness falling and new calls being refused: as long as "
        "load balancers need to notice.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Seconds that calls in flight have to finish."
    )


class ServerConfig(Spec):
    """The daemon's configuration."""

    data_dir: AbsolutePath = Field(
        Path("multigrain-data"),
        validate_default=True,
        description="Folder of all state; created if missing. One daemon at a time.",
    )
    listen: Address = Field(
        "127.0.0.1:50051",
        description="gRPC address; port 0 = any free one, see <data-dir>/address.",
    )
    http_listen: TcpAddress | Literal[""] = Field(
        "127.0.0.1:9464",
        description="HTTP address: status page, /metrics, /healthz and /readyz; empty = none.",
    )
    data_root: tuple[AbsolutePath, ...] = Field(
        (),
        description="Folders that requests may name paths in, besides the data directory.",
    )
    devices: Annotated[str, AfterValidator(_inventory)] = Field(
        "cpu:1",
        description='What jobs may use: "cpu:N" (N jobs share the CPU at a time), "gpu:0-7", '
        '"ascend:0-7" (indices), joined by commas.',
    )
    insecure: bool = Field(
        False,
        description="Allow addresses that other machines can reach, without TLS.",
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
                    f"{name}: {address} can be reached from other machines, and calls would not be "
                    f"encrypted; give {keys}, or listen on a loopback address, or give --insecure "
                    "if the network is trusted"
                )
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, and an operator should know."""
        found = []
        tokens, mutual = self.access.tokens is not None, self.tls.client_ca is not None
        if not ListenAddress.parse(self.listen).loopback:
            if tokens and not self.tls.enabled:
                found.append("tokens cross the network unencrypted")
            if not tokens and not mutual:
                found.append("whoever reaches the address may do everything")
        if self.http_listen and not ListenAddress.parse(self.http_listen).loopback:
            if not self.tls.http:
                found.append(f"{self.http_listen} is reachable without TLS (tls.http)")
            if (not tokens or self.access.pages == "open") and not (mutual and self.tls.http):
                found.append(f"whoever reaches {self.http_listen} may read metrics and pages")
        return tuple(found)

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.data_dir, *self.data_root)
