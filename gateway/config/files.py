"""The files that a configuration names: there, readable, and what they are said to be."""

from __future__ import annotations

import os
import ssl
import stat
from typing import Any

import msgspec

from gateway.config.errors import SettingError
from gateway.config.secrets import MASK

# Nothing that belongs here is larger; a device would never end.
_MOST_BYTES = 4 * 1024 * 1024


def read(path: str, where: str) -> bytes:
    """What is in the file that the setting `where` names."""
    try:
        # A pipe would wait for its writer; only files are opened.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SettingError(where, shown(path), "not a file; expected one that can be read")
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        words = f"{error.strerror or 'unusable name'}; expected a file that can be read"
        if path.startswith("~"):
            words += ", with its whole path: ~ is not expanded"
        raise SettingError(where, shown(path), words) from None
    except ValueError:  # a NUL in the name
        raise SettingError(where, shown(path), "expected the name of a file") from None


def check_writable_place(path: str, where: str) -> None:
    """Can the gateway keep a file of this name? Its directory must exist."""
    folder = os.path.dirname(path) or "."
    if not _can_be_named(path) or not os.path.isdir(folder) or os.path.isdir(path):
        words = "expected the name of a file in a directory that exists"
        raise SettingError(where, shown(path), words)
    if not os.access(folder, os.W_OK | os.X_OK):
        words = "expected a directory that the gateway may write to, to replace the file"
        raise SettingError(where, shown(path), words)


def holds_tokens(path: str, where: str) -> bool:
    """Is there a refresh token in the file? It need not exist, but it may hold nothing else."""
    if not os.path.exists(path):
        return False
    content = read(path, where)
    if not content.strip():
        return False
    try:
        held: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        held = None
    token = held.get("refresh_token") if isinstance(held, dict) else None
    if not isinstance(token, str) or not token:
        words = 'expected JSON such as {"refresh_token": "..."}, or no such file yet'
        raise SettingError(where, shown(path), words)
    return True


def check_authorities(path: str, where: str) -> None:
    """Does the file hold certificates to trust?"""
    read(path, where)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise SettingError(where, shown(path), "expected certificates in PEM form") from None


def check_certificate(certificate: str, key: str | None, path: str) -> None:
    """Do the certificate and the key of an account belong together?"""
    where = f"{path}.client_cert_file"
    read(certificate, where)
    if key is not None:
        read(key, f"{path}.client_key_file")
    try:
        # The password keeps OpenSSL from asking at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, OSError, ValueError):
        words = "expected a certificate in PEM form and its private key without a password"
        there = "" if key else ", in this file or in client_key_file"
        raise SettingError(where, shown(certificate), words + there) from None


def shown(path: str) -> str:
    """The name of a file; what does not look like a path may be a key in the wrong place."""
    return repr(path) if path.startswith(("/", "./", "../", "~/")) and len(path) <= 200 else MASK


def _can_be_named(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
