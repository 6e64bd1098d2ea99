"""Whom an account trusts and who it says it is: real handshakes, in memory."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from gateway.upstream.errors import upstream_failure
from gateway.upstream.tls import AccountTLS, TLSFileError, WrongCertificate
from tests.upstream.authority import Authority


class Client(Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def connectionMade(self) -> None:
        self.transport.write(b"request")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


class Meeting:
    """A client of these settings and a server, until both have said all they can."""

    def __init__(self, tls: AccountTLS, host: str, server: ssl.SSLContext) -> None:
        self.clock = MemoryReactorClock()
        creator = tls.creatorForNetloc(host.encode(), 443)
        factory = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Client), clock=self.clock)
        self.wire: Any = factory.buildProtocol(None)
        self.client: Client = self.wire.wrappedProtocol
        self.transport = StringTransport()
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(self.to_server, self.to_client, server_side=True)
        self.heard = b""
        self.refused: ssl.SSLError | None = None
        self.wire.makeConnection(self.transport)
        for _ in range(10):
            self._step()
        if self.transport.disconnecting or self.transport.disconnected:
            self.wire.connectionLost(Failure(ConnectionError("gone")))

    def _step(self) -> None:
        self.clock.advance(1)
        self.to_server.write(self.transport.value())
        self.transport.clear()
        try:
            self.server.do_handshake()
            self.heard += self.server.read()
            self.server.write(b"answer")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.refused = self.refused or error
        answer = self.to_client.read()
        if answer and not (self.transport.disconnecting or self.transport.disconnected):
            self.wire.dataReceived(answer)

    def check_talked(self) -> None:
        assert self.client.lost is None, f"the client left: {self.client.lost}"
        assert self.refused is None, f"the server refused: {self.refused}"
        assert self.heard == b"request"
        assert self.client.received == b"answer"

    def sentence(self) -> str:
        """What clients of the gateway are told."""
        assert self.client.received == b"", "the upstream was trusted"
        assert self.client.lost is not None, "the connection goes on"
        error = upstream_failure(self.client.lost)
        assert (error.status, error.code) == (502, "upstream_error")
        return error.message


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize("host", ["api.test", "127.0.0.1", "::1"])
def test_an_upstream_with_a_certificate_of_the_accounts_authority(
    authority: Authority, host: str
) -> None:
    server = authority.server("api.test", "127.0.0.1", "::1")
    Meeting(AccountTLS(str(authority.file)), host, server).check_talked()


def test_a_server_that_also_has_http_2_is_spoken_to_in_http_1(authority: Authority) -> None:
    server = authority.server("api.test")
    server.set_alpn_protocols(["h2", "http/1.1"])
    meeting = Meeting(AccountTLS(str(authority.file)), "api.test", server)
    meeting.check_talked()
    assert meeting.server.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("host", ["other.test", "127.0.0.2"])
@pytest.mark.parametrize("hosts", [["api.test", "127.0.0.1"], []], ids=["others", "nobody"])
def test_a_certificate_must_name_the_upstream(
    authority: Authority, host: str, hosts: list[str]
) -> None:
    meeting = Meeting(AccountTLS(str(authority.file)), host, authority.server(*hosts))
    assert meeting.client.lost is not None, "a certificate for nobody or others was accepted"
    assert meeting.client.lost.check(WrongCertificate)
    assert f"its certificate is not for {host}." in meeting.sentence()
    assert meeting.heard == b"", "the request went to somebody else"


def test_nobody_is_trusted_by_chance(authority: Authority) -> None:
    meeting = Meeting(AccountTLS(), "api.test", authority.server("api.test"))
    assert "not signed by an authority that this account trusts" in meeting.sentence()


def test_the_accounts_authorities_replace_those_of_the_platform(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ours, other = Authority(tmp_path / "a"), Authority(tmp_path, "other")
    meeting = Meeting(AccountTLS(str(ours.file)), "api.test", other.server("api.test"))
    assert "not signed by an authority" in meeting.sentence()


def test_a_bundle_has_several_authorities(tmp_path: Path) -> None:
    one, two = Authority(tmp_path, "one"), Authority(tmp_path, "two")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"# ours\n" + one.certificate + b"\n# theirs\n" + two.certificate)
    for each in (one, two):
        Meeting(AccountTLS(str(bundle)), "api.test", each.server("api.test")).check_talked()


def test_an_expired_certificate_is_called_so(authority: Authority) -> None:
    server = authority.server("api.test", expired=True)
    meeting = Meeting(AccountTLS(str(authority.file)), "api.test", server)
    assert "its certificate has expired." in meeting.sentence()


# --- client certificates -------------------------------------------------------------------


def test_a_client_certificate_is_shown(authority: Authority) -> None:
    certificate, key = authority.issue("us")
    tls = AccountTLS(str(authority.file), str(certificate), str(key))
    meeting = Meeting(tls, "api.test", authority.server("api.test", clients=authority))
    meeting.check_talked()
    assert meeting.server.getpeercert()["subject"] == ((("commonName", "us"),),)


def test_certificate_and_key_may_share_a_file(authority: Authority) -> None:
    certificate, key = authority.issue("us")
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    tls = AccountTLS(str(authority.file), str(certificate))
    Meeting(tls, "api.test", authority.server("api.test", clients=authority)).check_talked()


def test_what_the_client_certificate_hangs_on_is_shown_too(authority: Authority) -> None:
    between = Authority(authority.folder, "between", authority)
    certificate, key = between.issue("us")
    certificate.write_bytes(certificate.read_bytes() + between.certificate)
    tls = AccountTLS(str(authority.file), str(certificate), str(key))
    for _ in range(2):  # Twisted changes the options that it is given
        Meeting(tls, "api.test", authority.server("api.test", clients=authority)).check_talked()


def test_an_upstream_that_wants_a_certificate_says_so(authority: Authority) -> None:
    server = authority.server("api.test", clients=authority)
    meeting = Meeting(AccountTLS(str(authority.file)), "api.test", server)
    assert meeting.refused is not None
    assert "certificate required" in meeting.sentence()


# --- files ---------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named(authority: Authority) -> None:
    certificate, key = authority.issue("us")
    _, other_key = authority.issue("them")
    missing, rubbish = authority.folder / "missing", authority.folder / "rubbish"
    rubbish.write_bytes(b"-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----\n")
    locked = authority.folder / "locked.key"
    loaded: Any = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hush"),
        )
    )
    cases: list[tuple[str, Path, str, list[Path | None]]] = [
        ("ca_file", missing, "No such file", [missing, None, None]),
        ("ca_file", rubbish, "expected certificates", [rubbish, None, None]),
        ("ca_file", key, "expected certificates", [key, None, None]),
        ("client_cert_file", missing, "No such file", [None, missing, key]),
        ("client_cert_file", certificate, "expected a private key", [None, certificate, None]),
        ("client_cert_file", certificate, "not the certificate", [None, certificate, other_key]),
        ("client_key_file", missing, "No such file", [None, certificate, missing]),
        (
            "client_key_file",
            certificate,
            "expected a private key",
            [None, certificate, certificate],
        ),
        ("client_key_file", locked, "without a passphrase", [None, certificate, locked]),
    ]
    for setting, path, words, files in cases:
        with pytest.raises(TLSFileError, match=words) as caught:
            AccountTLS(*(str(each) if each else None for each in files))
        assert caught.value.setting == setting
        assert str(path) in str(caught.value)
        assert "secret" not in str(caught.value)
