"""Rules for accounts: where they are, what authorizes them, how they are reached."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from gateway.config import files
from gateway.config.errors import SettingError, SettingErrors
from gateway.config.secrets import MASK
from gateway.config.settings import AccountSettings, OAuthSettings
from gateway.config.urls import base_url, check_proxy, checked_url
from gateway.config.words import (
    check_auth_header,
    check_credential,
    check_headers,
    check_models,
    check_one_of,
)

# RFC 6749 appendix A: VSCHAR, which has the space.
_OAUTH_VALUE = re.compile(r"[\x20-\x7e]+")
_MEMBER = re.compile(r"[a-z][a-z0-9_]*")
# As an editor for Windows leaves it before the key; read as Latin-1.
_BYTE_ORDER_MARK = "\xef\xbb\xbf"
# Members without which there is no turn; two have settings of their own.
_NEEDED = frozenset(["input", "model", "previous_response_id", "store", "stream", "type"])
_AZURE = "such as https://NAME.openai.azure.com/openai/v1"


def apply(
    accounts: Sequence[AccountSettings], mistakes: SettingErrors
) -> tuple[AccountSettings, ...]:
    """The accounts with their base URLs in plain form."""
    applied = tuple(
        _apply(each, f"accounts[{index}]", mistakes) for index, each in enumerate(accounts)
    )
    if applied and not any(each.enabled for each in applied):
        words = "all of them have 'enabled: false'; expected at least one without it"
        mistakes.append(SettingError("accounts", words))
    _check_token_files(applied, mistakes)
    return applied


def _apply(account: AccountSettings, path: str, mistakes: SettingErrors) -> AccountSettings:
    _check_credentials(account, path, mistakes)
    with mistakes.noted():
        check_auth_header(account.auth_header, f"{path}.auth_header")
    check_headers(account.headers, f"{path}.headers", mistakes)
    for name in account.headers:
        if name.lower() == account.auth_header.lower():
            words = "expected another header; this one carries the key, see auth_header"
            mistakes.append(SettingError(f"{path}.headers.{name}", words))
    check_models(account.models, f"{path}.models", mistakes)
    for asked, own in account.aliases.items():
        if not asked.strip() or not own.strip():
            words = "expected a model's name for clients and this account's name for it"
            mistakes.append(SettingError(f"{path}.aliases.{asked}", repr(own), words))
    _check_members(account.strip, f"{path}.strip", mistakes)
    _check_egress(account, path, mistakes)
    plain = account.base_url
    with mistakes.noted():
        plain = _base_url(account, f"{path}.base_url")
    return msgspec.structs.replace(account, base_url=plain)


def _base_url(account: AccountSettings, path: str) -> str:
    if not account.base_url:
        words = _AZURE if account.preset == "azure" else "unless its preset knows one"
        raise SettingError(path, f"missing; every entry needs it, {words}")
    return base_url(account.base_url, path)


def _check_credentials(account: AccountSettings, path: str, mistakes: SettingErrors) -> None:
    with mistakes.noted():
        check_one_of(account, path, "key", "key_file", "oauth")
    if account.key is not None:
        with mistakes.noted():
            check_credential(account.key, f"{path}.key")
    if account.key_file is not None:
        with mistakes.noted():
            _check_key_file(account.key_file, f"{path}.key_file")
    if account.oauth is not None:
        _check_oauth(account.oauth, f"{path}.oauth", mistakes)


def _check_key_file(name: str, where: str) -> None:
    held = files.read(name, where).decode("latin-1").strip()
    if not held or not held.isascii() or not held.isprintable() or " " in held:
        words = "expected a file with one key in it and nothing else"
        if held.startswith(_BYTE_ORDER_MARK):
            words += "; it begins with a byte order mark, which editors may hide"
        raise SettingError(where, files.shown(name), words)


def _check_oauth(oauth: OAuthSettings, path: str, mistakes: SettingErrors) -> None:
    with mistakes.noted():
        words = "the client's go in client_id, client_secret"
        checked_url(oauth.token_url, f"{path}.token_url", words)
    for name in ("client_id", "client_secret", "refresh_token", "scope"):
        value = getattr(oauth, name)
        if value is not None and not _OAUTH_VALUE.fullmatch(value):
            words = "expected printable ASCII characters without line breaks"
            mistakes.append(SettingError(f"{path}.{name}", MASK, words))
    with mistakes.noted():
        files.check_writable_place(oauth.token_file, f"{path}.token_file")
        if files.holds_tokens(oauth.token_file, f"{path}.token_file"):
            return
        if oauth.refresh_token is None:
            words = (
                "missing; expected the first refresh token, because token_file does not hold one"
            )
            raise SettingError(f"{path}.refresh_token", words)


def _check_token_files(accounts: Sequence[AccountSettings], mistakes: SettingErrors) -> None:
    first: dict[str, int] = {}
    for index, account in enumerate(accounts):
        if account.oauth is None:
            continue
        place = _place_of(account.oauth.token_file)
        if place in first:
            words = f"accounts[{first[place]}] has this file already; expected each file once"
            where = f"accounts[{index}].oauth.token_file"
            mistakes.append(SettingError(where, files.shown(account.oauth.token_file), words))
        first.setdefault(place, index)


def _place_of(name: str) -> str:
    with suppress(ValueError):  # a NUL in it, which is said elsewhere
        return os.path.realpath(name)
    return name


def _check_members(members: Sequence[str], path: str, mistakes: SettingErrors) -> None:
    for index, member in enumerate(members):
        where = f"{path}[{index}]"
        if not _MEMBER.fullmatch(member):
            words = "expected the name of a request's member"
            mistakes.append(SettingError(where, repr(member), words))
        elif member in _NEEDED:
            words = "expected another member; turns need this one (see continuity and store)"
            mistakes.append(SettingError(where, repr(member), words))


def _check_egress(account: AccountSettings, path: str, mistakes: SettingErrors) -> None:
    if account.proxy is not None:
        with mistakes.noted():
            check_proxy(account.proxy, f"{path}.proxy")
    if account.ca_file is not None:
        with mistakes.noted():
            files.check_authorities(account.ca_file, f"{path}.ca_file")
    if account.client_cert_file is not None:
        with mistakes.noted():
            files.check_certificate(account.client_cert_file, account.client_key_file, path)
    elif account.client_key_file is not None:
        where, shown = f"{path}.client_key_file", files.shown(account.client_key_file)
        mistakes.append(SettingError(where, shown, "expected client_cert_file with it"))
