"""What an operator can set about access, with its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from multigrain.specs.base import Spec


def _absolute(path: Path | None) -> Path | None:
    return path.expanduser().absolute() if path is not None else None


OptionalFile = Annotated[Path | None, AfterValidator(_absolute)]


class TlsConfig(Spec):
    """TLS of the gRPC address, and of the HTTP address if wanted.

    The files are read anew for the first connection after they have changed.
    """

    certificate: OptionalFile = Field(
        None, description="The server's certificate and those that issued it, PEM; none = no TLS."
    )
    key: OptionalFile = Field(None, description="Its private key, PEM, without a passphrase.")
    client_ca: OptionalFile = Field(
        None,
        description="Authorities, PEM, one of which must have issued every caller's certificate; "
        "none = callers need no certificate.",
    )
    http: bool = Field(
        False, description="Whether the HTTP address has TLS too, with the same files and rules."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        if self.http and self.certificate is None:
            raise ValueError("http needs certificate and key")
        return self

    @property
    def enabled(self) -> bool:
        return self.certificate is not None


class AccessConfig(Spec):
    """Who may call what."""

    tokens: OptionalFile = Field(
        None,
        description="YAML file of tokens, their roles and SHA-256; read anew when it has changed. "
        "None = whoever can connect may do everything.",
    )
    health: Literal["open", "token"] = Field(
        "open",
        description="Whether health checks, /healthz and /readyz need a token, of any role.",
    )
    reflection: Literal["open", "token"] = Field(
        "token", description="The same for reflection, which shows the calls and messages."
    )
    pages: Literal["open", "token"] = Field(
        "token",
        description="Whether /metrics and all other pages of the HTTP address need a token of "
        "role read.",
    )
    max_streams_per_client: int = Field(
        1000,
        ge=1,
        description="Streaming calls that one client may have open: one holder of a token, or "
        "without tokens one host.",
    )
    max_subscribers_per_client: int = Field(1000, ge=1, description="Streams of events among them.")
