"""The files that accounts name are looked at before the gateway starts."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.config import AccountSettings, ConfigError, load_settings

SECRET = "sk-leak-0123456789"


def load(**entry: object) -> AccountSettings:
    account = {"name": "a", "base_url": "http://h", **entry}
    return load_settings(yaml.safe_dump({"accounts": [account]}), {}, "f").accounts[0]


def mistake(**entry: object) -> str:
    """What is said of the account, without the file's name and the account's path."""
    with pytest.raises(ConfigError) as caught:
        load(**entry)
    line = str(caught.value)
    assert SECRET not in line
    start = "f: accounts[0]."
    assert line.startswith(start), f"expected a line about the account, got {line!r}"
    return line[len(start) :]


def self_signed() -> tuple[bytes, bytes]:
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client.test")])
    today = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today)
        .not_valid_after(today + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# The key in a file


def test_a_key_file_may_end_with_a_line_break(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    account = load(key_file=str(file))
    assert (account.key, account.key_file) == (None, str(file))


@pytest.mark.parametrize("text", ["", "\n", f"{SECRET}\nsecond\n", f"{SECRET} x", "ü", "\0"])
def test_a_key_file_holds_one_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    line = mistake(key_file=f"{tmp_path}/key")
    assert (
        line == f"key_file: '{tmp_path}/key': expected a file with one key in it and nothing else"
    )


def test_a_byte_order_mark_is_named_because_nobody_sees_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRET, encoding="utf-8-sig")
    assert mistake(key_file=f"{tmp_path}/key").endswith(
        "; it begins with a byte order mark, which editors may hide"
    )


def test_a_home_directory_is_not_looked_up() -> None:
    line = mistake(key_file="~/no-such-key")
    assert line.startswith("key_file: '~/no-such-key': No such file or directory; expected ")
    assert line.endswith("~ is not expanded")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    line = mistake(key_file=f"{tmp_path}/key")
    words = "No such file or directory; expected a file that can be read"
    assert line == f"key_file: '{tmp_path}/key': {words}"


def test_neither_a_directory_nor_a_pipe_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for somebody who writes
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        line = mistake(key_file=str(path))
        assert line == f"key_file: '{path}': not a file; expected one that can be read"


@pytest.mark.parametrize("name", [SECRET, f"{SECRET}\0", f"{SECRET}\ud800"])
def test_a_key_in_place_of_its_file_is_not_shown(name: str) -> None:
    assert mistake(key_file=name).startswith("key_file: <hidden>: ")


# OAuth


def oauth(folder: Path, **changed: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "token_url": "https://login.test/oauth/token",
        "client_id": "gateway",
        "refresh_token": "first",
        "token_file": f"{folder}/tokens.json",
    }
    return {name: value for name, value in {**whole, **changed}.items() if value is not None}


def test_an_oauth_account_needs_a_place_for_its_tokens(tmp_path: Path) -> None:
    account = load(oauth=oauth(tmp_path, client_secret="with space", scope="models offline_access"))
    assert account.oauth is not None
    assert account.oauth.refresh_before_seconds == 300
    assert (account.key, account.key_file) == (None, None)


@pytest.mark.parametrize("file", ["missing/tokens.json", "", "missing/"])
def test_the_directory_of_the_tokens_exists(file: str, tmp_path: Path) -> None:
    line = mistake(oauth=oauth(tmp_path, token_file=f"{tmp_path}/{file}"))
    words = "expected the name of a file in a directory that exists"
    assert line == f"oauth.token_file: '{tmp_path}/{file}': {words}"


def test_a_refresh_token_is_needed_until_the_gateway_has_kept_one(tmp_path: Path) -> None:
    given = oauth(tmp_path, refresh_token=None)
    assert mistake(oauth=given).startswith("oauth.refresh_token: missing; expected the first")
    file = tmp_path / "tokens.json"
    file.write_text("\n")
    assert mistake(oauth=given).startswith("oauth.refresh_token: missing; expected the first")
    file.write_text('{"refresh_token": "kept"}')
    assert load(oauth=given).oauth is not None


@pytest.mark.parametrize(
    "text", [SECRET, "{", "[]", "{}", '{"refresh_token": 1}', '{"refresh_token": ""}', "\xff"]
)
def test_a_token_file_holds_tokens(text: str, tmp_path: Path) -> None:
    """Without them every turn of the account would fail, and nothing else would say why."""
    (tmp_path / "tokens.json").write_bytes(text.encode("latin-1"))
    words = 'expected JSON such as {"refresh_token": "..."}, or no such file yet'
    line = f"oauth.token_file: '{tmp_path}/tokens.json': {words}"
    assert mistake(oauth=oauth(tmp_path)) == line


def test_two_accounts_do_not_write_one_file(tmp_path: Path) -> None:
    entry = {"base_url": "http://h", "oauth": oauth(tmp_path)}
    again = {**entry, "oauth": oauth(tmp_path, token_file=f"{tmp_path}/./tokens.json")}
    accounts = [{"name": "a", **entry}, {"name": "b", **again}]
    with pytest.raises(ConfigError) as caught:
        load_settings(yaml.safe_dump({"accounts": accounts}), {}, "f")
    line = "accounts[0] has this file already; expected each file once"
    assert str(caught.value).endswith(line)
    assert str(caught.value).startswith("f: accounts[1].oauth.token_file: ")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {"token_url": "login.test"},
            "oauth.token_url: 'login.test': expected an http:// or https",
        ),
        (
            {"token_url": f"https://u:{SECRET}@login.test"},
            "oauth.token_url: 'https://<hidden>@login.test': expected an http:// or https:// URL "
            "without a user name; the client's go in client_id, client_secret",
        ),
        ({"client_id": "ü"}, "oauth.client_id: <hidden>: expected printable ASCII characters"),
        ({"client_secret": f"{SECRET}\n"}, "oauth.client_secret: <hidden>: expected printable"),
        ({"refresh_token": f"{SECRET}\n"}, "oauth.refresh_token: <hidden>: expected printable"),
        ({"refresh_token": ""}, "oauth.refresh_token: <hidden>: expected text that is not empty"),
        (
            {"refresh_before_seconds": -1},
            "oauth.refresh_before_seconds: -1: expected a number from",
        ),
        ({"token_file": None}, "oauth.token_file: missing; every entry needs it"),
        ({"token_file": "\0"}, "oauth.token_file: <hidden>: expected the name of a file in a dire"),
    ],
)
def test_a_mistake_in_oauth_is_named(changed: dict[str, object], line: str, tmp_path: Path) -> None:
    got = mistake(oauth=oauth(tmp_path, **changed))
    assert got.startswith(line), f"expected a line that starts with {line!r}, got {got!r}"


# TLS


def test_a_certificate_its_key_and_whom_to_trust(tmp_path: Path) -> None:
    certificate, key = self_signed()
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "both.pem").write_bytes(certificate + key)
    load(
        key="k",
        ca_file=f"{tmp_path}/cert.pem",
        client_cert_file=f"{tmp_path}/cert.pem",
        client_key_file=f"{tmp_path}/key.pem",
    )
    load(key="k", client_cert_file=f"{tmp_path}/both.pem")


def test_a_certificate_and_a_key_of_somebody_else_do_not_pass(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes(self_signed()[0])
    (tmp_path / "key.pem").write_bytes(self_signed()[1])
    cert, key = f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem"
    start = f"client_cert_file: '{cert}': expected a certificate in PEM form and its private key"
    assert mistake(key="k", client_cert_file=cert, client_key_file=key).startswith(start)
    alone = mistake(key="k", client_cert_file=cert)
    assert alone == f"{start} without a password, in this file or in client_key_file"


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    certificate, key = self_signed()
    locked = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    (tmp_path / "both.pem").write_bytes(certificate + locked)
    line = mistake(key="k", client_cert_file=f"{tmp_path}/both.pem")
    assert "without a password" in line


def test_a_client_key_alone_is_no_use(tmp_path: Path) -> None:
    line = mistake(key="k", client_key_file="/etc/key.pem")
    assert line == "client_key_file: '/etc/key.pem': expected client_cert_file with it"


def test_what_is_to_be_trusted_is_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not one")
    line = mistake(key="k", ca_file=f"{tmp_path}/ca.pem")
    assert line == f"ca_file: '{tmp_path}/ca.pem': expected certificates in PEM form"
    assert mistake(key="k", ca_file="/nowhere.pem").startswith("ca_file: '/nowhere.pem': No such")


# --- request logs --------------------------------------------------------------------------


def content(directory: str) -> str:
    """What is wrong with a directory for request logs; empty when nothing is."""
    log = {"content": {"directory": directory}}
    text = yaml.safe_dump({"simulator": {"accounts": 1}, "log": log})
    try:
        load_settings(text, {}, "test")
    except ConfigError as error:
        return str(error)
    return ""


def test_request_logs_need_a_directory_that_nobody_else_can_enter(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    assert content(str(own)) == ""
    assert content(str(tmp_path / "new")) == ""
    own.chmod(0o750)
    assert "log.content.directory" in content(str(own))
    assert "mode 0700" in content(str(own))


@pytest.mark.parametrize("name", ["requests", "/nowhere/at/all/requests", "/dev/null", "a\0b"])
def test_request_logs_need_a_place_that_exists(name: str) -> None:
    assert "log.content.directory" in content(name)
