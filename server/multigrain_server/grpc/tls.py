"""The server's certificate, which is reloaded when its files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from multigrain.files import read_bytes
from multigrain.storage import os_error_hint
from multigrain_server.access.config import TlsConfig
from multigrain_server.storage_errors import Stamp, stamp

_log = structlog.get_logger(__name__)
_MAX_BYTES = 4 << 20

# Modification time, size and inode of each file; None if it is missing.
_Stamps = tuple[Stamp | None, ...]


class TlsError(Exception):
    """The certificate files cannot be used; the message says which and why."""


@dataclass(frozen=True)
class _Loaded:
    """The content of the files, and their stamps when they were read."""

    stamps: _Stamps
    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    expiry: float


class Certificates:
    """Reloads the files at the first connection after one of them has changed.

    If they do not match (one was replaced, the other not yet), the previous certificates stay in
    use and an error is logged; the files are tried again when they have changed again.

    Args:
        config: the files; certificate and key must be set.

    Raises:
        TlsError: if the files cannot be used.
    """

    def __init__(self, config: TlsConfig) -> None:
        assert config.certificate is not None
        assert config.key is not None
        self._certificate = config.certificate
        self._key = config.key
        self._client_ca = config.client_ca
        self._loaded = self._given = self._load()
        self._unusable: _Stamps = ()

    def expiry(self) -> float:
        """Unix time at which the certificate chain in use expires."""
        return self._loaded.expiry

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for gRPC; with ``client_ca``, clients must have a certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._renewed,  # type: ignore[arg-type]  # None is missing in its stub
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """The context for the next connection of another server, with the latest files.

        Sessions belong to a context, so none is resumed after the files have changed.
        """
        self._refresh()
        return self._loaded.context

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for each connection; None = unchanged."""
        self._refresh()
        if self._given is self._loaded:
            return None
        self._given = self._loaded
        return self._loaded.configuration

    def _refresh(self) -> None:
        stamps = self._stamps()
        if stamps in (self._loaded.stamps, self._unusable):
            return
        try:
            self._loaded = self._load()
        except TlsError as error:
            self._unusable = stamps
            _log.error("certificate reload failed; keeping the previous ones", reason=str(error))
        else:
            _log.info("certificates reloaded")

    def _load(self) -> _Loaded:
        # Before reading: what changes meanwhile is reloaded.
        stamps = self._stamps()
        certificate, key = _read(self._certificate), _read(self._key)
        try:
            # OpenSSL checks that they match. There is no terminal to ask for a passphrase.
            context = _without_resumption(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsError(
                f"{self._certificate} and {self._key} are not a certificate and its key: {error}"
            ) from None
        authorities = None
        if self._client_ca is not None:
            authorities = _read(self._client_ca)
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
                context.verify_mode = ssl.CERT_REQUIRED
            except (ssl.SSLError, ValueError) as error:
                raise TlsError(f"{self._client_ca} has no certificates: {error}") from None
        configuration = grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=authorities
        )
        return _Loaded(stamps, configuration, context, _expiry(certificate))

    def _stamps(self) -> _Stamps:
        files = (self._certificate, self._key, self._client_ca)
        return tuple(stamp(path) for path in files if path is not None)


def _without_resumption(context: ssl.SSLContext) -> ssl.SSLContext:
    """Makes every connection verify its client's certificate.

    A resumed session would not be checked against the current ``client_ca``.
    """
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        todo = os_error_hint(
            error, "read it", "see --tls-certificate, --tls-key and --tls-client-ca"
        )
        raise TlsError(f"{path}: {error.strerror}; {todo}") from None


def _expiry(chain: bytes) -> float:
    # Slow to import, and not needed without TLS.
    from cryptography import x509

    certificates = x509.load_pem_x509_certificates(chain)
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
