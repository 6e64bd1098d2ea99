"""What types and ranges cannot say of the whole: names used once, who may reach what."""

from __future__ import annotations

import re

import msgspec

from gateway.config import account_rules, key_rules
from gateway.config.endpoints import endpoint_problem, is_loopback, same_place
from gateway.config.errors import SettingError, SettingErrors
from gateway.config.settings import Settings
from gateway.config.words import check_credential, check_names

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ENDPOINT_WORDS = "expected a Twisted endpoint such as tcp:8080:interface=127.0.0.1"


def apply_rules(settings: Settings, mistakes: SettingErrors) -> Settings:
    """`settings` with URLs and digests in plain form, as far as they are right."""
    check_names([("keys", key.name) for key in settings.keys], mistakes)
    check_names([("accounts", account.name) for account in settings.accounts], mistakes)
    if settings.admin.token is not None:
        with mistakes.noted():
            check_credential(settings.admin.token, "admin.token")
    _check_hosts(settings, mistakes)
    keys = key_rules.apply(settings.keys, mistakes)
    accounts = account_rules.apply(settings.accounts, mistakes)
    _check_endpoints(settings, mistakes)
    with mistakes.noted():
        _check_reach_of_clients(settings)
    with mistakes.noted():
        _check_reach_of_admin(settings)
    return msgspec.structs.replace(settings, keys=keys, accounts=accounts)


def _check_hosts(settings: Settings, mistakes: SettingErrors) -> None:
    for index, host in enumerate(settings.admin.hosts):
        if not _HOST_NAME.fullmatch(host):
            words = "expected a host name such as gateway.internal, without scheme and port"
            mistakes.append(SettingError(f"admin.hosts[{index}]", repr(host), words))


def _check_endpoints(settings: Settings, mistakes: SettingErrors) -> None:
    for path, text in (("listen", settings.listen), ("admin.listen", settings.admin.listen)):
        problem = text and endpoint_problem(text)
        if problem:
            mistakes.append(SettingError(path, repr(text), f"{_ENDPOINT_WORDS}: {problem}"))


def _check_reach_of_clients(settings: Settings) -> None:
    if endpoint_problem(settings.listen):
        return
    if not settings.keys and not is_loopback(settings.listen):
        raise SettingError(
            *("keys", "[]"),
            "expected at least one key, because other machines can reach "
            f"listen '{settings.listen}'; without keys listen on 127.0.0.1, ::1 or unix:",
        )


def _check_reach_of_admin(settings: Settings) -> None:
    admin = settings.admin
    if admin.listen is None or endpoint_problem(admin.listen) or endpoint_problem(settings.listen):
        return
    if same_place(settings.listen, admin.listen):
        raise SettingError("admin.listen", repr(admin.listen), "expected another place than listen")
    if admin.token is None and not is_loopback(admin.listen):
        raise SettingError(
            *("admin.token", "null"),
            "expected a token, because other machines can reach "
            f"admin.listen '{admin.listen}'; without one listen on 127.0.0.1, ::1 or unix:",
        )
