"""Twisted endpoint strings: are they well formed, and can other machines reach them?

Nothing listens here and no reactor is installed; `service.py` does the listening.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from twisted.internet.endpoints import serverFromString

_PORT_KINDS = ("tcp", "tcp6", "ssl")
# What each kind takes, in the order in which it may be given without names.
_PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface"),
        *("backlog", "extraCertChain", "dhParameters"),
    ),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
_WRAPPER = "haproxy:"


class _Endpoint(NamedTuple):
    kind: str
    parameters: dict[str, str]
    surplus: list[str]


def endpoint_problem(text: str) -> str | None:
    """Why Twisted would not listen there, in a few words; None when it would."""
    kind, parameters, surplus = _parse(text)
    known = _PARAMETERS.get(kind)
    if known:
        unknown = [*surplus, *(name for name in parameters if name not in known)]
        if unknown:
            hint = r"; a colon inside a value is written \:" if surplus else ""
            return f"'{unknown[0]}' is not one of its parameters {', '.join(known)}{hint}"
        if known[0] not in parameters:
            return f"its {known[0]} is missing"
    if kind in _PORT_KINDS and not _is_port(parameters["port"]):
        return f"'{parameters['port']}' is not a port between 0 and 65535"
    if kind == "systemd":
        # The sockets exist only in the service itself, not in a --check beforehand.
        one = ("index" in parameters) != ("name" in parameters)
        return None if one else "it takes either an index or a name"
    try:
        # The parsers only keep the reactor for later; without one nothing can be opened.
        serverFromString(None, text)
    except OSError as error:  # the certificate files of ssl:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:
        # Parsers of installed plugins raise what they like, and so does OpenSSL.
        words = str(error).splitlines()
        return words[0] if words else type(error).__name__
    return None


def is_loopback(text: str) -> bool:
    """True when only this machine can connect; unknown kinds count as reachable."""
    kind, parameters, _ = _parse(text)
    if kind == "unix":
        return True
    if kind == "systemd":
        return parameters.get("domain") == "UNIX"
    interface = parameters.get("interface", "") if kind in _PORT_KINDS else ""
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def same_place(one: str, other: str) -> bool:
    """True when the second could not listen while the first does."""
    first, second = _parse(one), _parse(other)
    if first.kind not in _PORT_KINDS or second.kind not in _PORT_KINDS:
        return first == second
    ports = [endpoint.parameters.get("port", "") for endpoint in (first, second)]
    if int(ports[0]) != int(ports[1]) or int(ports[0]) == 0:
        return False
    return _overlap(_interface(first), _interface(second))


def _interface(endpoint: _Endpoint) -> str:
    """The address it listens on; "" is all of them, in IPv4."""
    given = endpoint.parameters.get("interface", "")
    everywhere = "::" if endpoint.kind == "tcp6" else ""
    return {"": everywhere, "0.0.0.0": "", "localhost": "127.0.0.1"}.get(given, given)


def _overlap(one: str, other: str) -> bool:
    """`::` takes the port for IPv4, too, on the systems that matter."""
    if one == other or "::" in (one, other):
        return True
    return "" in (one, other) and ":" not in one + other


def _parse(text: str) -> _Endpoint:
    """The parts of the string, looking through a PROXY-protocol wrapper."""
    inner = text[len(_WRAPPER) :] if text.startswith(_WRAPPER) else text
    kind, *parts = re.split(r"(?<!\\):", inner)
    known = list(_PARAMETERS.get(kind, ()))
    parameters, surplus = {}, []
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            parameters[name] = _unescape(value)
        elif known and known[0] not in parameters:
            parameters[known.pop(0)] = _unescape(name)
        else:
            surplus.append(_unescape(name))
    return _Endpoint(kind, parameters, surplus)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:6]) <= 65535
