"""TLS to an account's upstream: trusted authorities, host names, client certificates."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    KeyPair,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

#: Offered by ALPN (RFC 7301): no upgrade to a WebSocket can be sent over HTTP/2.
_PROTOCOLS = [b"http/1.1"]

#: OpenSSL's verification errors (X509_V_ERR_…) in words for the operator.
_VERIFY_ERRORS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is not signed by an authority that this account trusts",
    19: "is not signed by an authority that this account trusts",
    20: "is not signed by an authority that this account trusts",
    21: "is not signed by an authority that this account trusts",
    23: "has been revoked",
}


class WrongCertificate(Exception):
    """The upstream's certificate is not accepted.

    The text continues a sentence that begins with "its certificate".
    """


class TLSFileError(Exception):
    """A file of an account's TLS settings cannot be used.

    :ivar setting: the name of the setting.
    """

    def __init__(self, setting: str, path: str, why: str) -> None:
        super().__init__(f"{setting} {path!r}: {why}")
        self.setting = setting


@implementer(IPolicyForHTTPS)
class AccountTLS:
    """The TLS settings of one account; its files are read when it is made.

    :param ca_file: trusted instead of what the platform trusts (PEM, one or more).
    :param client_cert_file: the client certificate, then its chain (PEM).
    :param client_key_file: its key (PEM, not encrypted); None when it is in the certificate's
        file.
    :raises TLSFileError: when a file cannot be used.
    """

    def __init__(
        self,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        client_key_file: str | None = None,
    ) -> None:
        self._trust: Any = platformTrust()
        self._certificate: PrivateCertificate | None = None
        self._chain: list[X509] = []
        if ca_file is not None:
            self._trust = trustRootFromCertificates(
                [Certificate(each) for each in _certificates("ca_file", ca_file)]
            )
        if client_cert_file is not None:
            own, *self._chain = _certificates("client_cert_file", client_cert_file)
            if client_key_file is not None:
                key = _key("client_key_file", client_key_file)
            else:
                key = _key("client_cert_file", client_cert_file)
            try:
                self._certificate = PrivateCertificate.fromCertificateAndKeyPair(
                    Certificate(own), key
                )
            except Exception:
                raise TLSFileError(
                    "client_cert_file", client_cert_file, "is not the certificate of this key"
                ) from None

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """What makes the TLS connections to a host."""
        name = hostname.decode("ascii")
        # Twisted drops certificates that come after the first.
        more = {"extraCertChain": self._chain} if self._certificate is not None else {}
        creator = optionsForClientTLS(
            name,
            self._trust,
            self._certificate,
            acceptableProtocols=_PROTOCOLS,
            extraCertificateOptions=more,
        )
        return StrictConnectionCreator(creator, name)


@implementer(IOpenSSLClientConnectionCreator)
class StrictConnectionCreator:
    """Accepts only certificates that name the host, and says why others are refused.

    It replaces Twisted's own check, which (seen in 26.10) accepts a certificate without any
    name, and logs a traceback.
    """

    def __init__(self, creator: IOpenSSLClientConnectionCreator, hostname: str) -> None:
        self._creator = creator
        self._hostname = hostname
        self._expected = [_service_id(hostname)]

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """A TLS connection that verifies its peer."""
        connection: SSL.Connection = self._creator.clientConnectionForTLS(tlsProtocol)

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            if not ok:
                problem = _VERIFY_ERRORS.get(error, f"cannot be verified (OpenSSL's error {error})")
            elif depth == 0 and not self._names_the_host(certificate):
                problem = f"is not for {self._hostname}"
            else:
                return True
            tlsProtocol.failVerification(Failure(WrongCertificate(problem)))
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _names_the_host(self, certificate: X509) -> bool:
        try:
            verify_service_identity(extract_patterns(certificate), self._expected, [])
        except Exception:  # a broken certificate may raise anything; OpenSSL cannot handle it
            return False
        return True


def _service_id(hostname: str) -> ServiceID:
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return DNS_ID(hostname)
    return IPAddress_ID(hostname)


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TLSFileError(setting, path, error.strerror or "cannot be read") from None


def _certificates(setting: str, path: str) -> list[X509]:
    try:
        found = x509.load_pem_x509_certificates(_read(setting, path))
    except ValueError:
        raise TLSFileError(setting, path, "expected certificates in PEM") from None
    return [X509.from_cryptography(each) for each in found]


def _key(setting: str, path: str) -> KeyPair:
    try:
        key: Any = load_pem_private_key(_read(setting, path), None)
        return KeyPair(PKey.from_cryptography_key(key))
    except TypeError:  # raised for an encrypted key, or a kind unknown to TLS
        raise TLSFileError(setting, path, "expected a key without a passphrase") from None
    except ValueError:
        raise TLSFileError(setting, path, "expected a private key in PEM") from None
