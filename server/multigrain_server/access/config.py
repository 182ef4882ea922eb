"""Configuration of TLS and access control."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from multigrain.specs.base import Spec


def _absolute(path: Path | None) -> Path | None:
    return path.expanduser().absolute() if path is not None else None


OptionalFile = Annotated[Path | None, AfterValidator(_absolute)]


class TlsConfig(Spec):
    """TLS of the gRPC address, and optionally of the HTTP address.

    Changed files are reloaded at the next connection.
    """

    certificate: OptionalFile = Field(
        None,
        description="Certificate chain of the server (PEM file), reloaded when it changes; none = "
        "no TLS.",
    )
    key: OptionalFile = Field(
        None, description="Private key of the certificate (PEM file), without a passphrase."
    )
    client_ca: OptionalFile = Field(
        None,
        description="Certificate authorities (PEM file) that issue client certificates; clients "
        "must then have one (mutual TLS). None = clients need no certificate.",
    )
    http: bool = Field(
        False, description="Use TLS on the HTTP address too, with the same files and rules."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        if self.http and self.certificate is None:
            raise ValueError("http needs certificate and key")
        return self

    @property
    def enabled(self) -> bool:
        return self.certificate is not None


class AccessConfig(Spec):
    """Access control."""

    tokens: OptionalFile = Field(
        None,
        description="YAML file with the roles and SHA-256 of each token, reloaded when it changes. "
        "None = every client may make every call.",
    )
    health: Literal["open", "token"] = Field(
        "open",
        description="Whether health checks, /healthz and /readyz need a token (of any role).",
    )
    reflection: Literal["open", "token"] = Field(
        "token", description="Whether server reflection needs a token (of any role)."
    )
    pages: Literal["open", "token"] = Field(
        "token",
        description="Whether /metrics and the status pages need a token with the role read.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Allow addresses that other machines can reach without tokens or client "
        "certificates: whoever reaches them may make any call. For networks where something else "
        "decides who can connect, such as a service mesh.",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Names under which the HTTP address is reached, without the port. Where there "
        "are no tokens and no TLS (tls.http), requests for other public names are refused, so that "
        "web pages in a browser cannot read it. Addresses, names of one word, this machine's own "
        "and those below .local, .internal, .svc and .cluster.local are always accepted.",
    )
    max_streams_per_client: int = Field(
        900,
        ge=1,
        le=1_000_000,
        description="Maximum number of open streams per client, which is a token, or a host where "
        "there are no tokens. The default is below grpc.max_concurrent_streams, so that one client "
        "cannot use up a connection that it shares with others behind a proxy.",
    )
    max_subscribers_per_client: int = Field(
        900,
        ge=1,
        le=1_000_000,
        description="Maximum number of open event streams (StreamEvents) per client.",
    )
