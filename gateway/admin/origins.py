"""Which hosts and origins a request may name: against DNS rebinding and cross-site posts.

A page of another site can make an operator's browser send requests here, also under a name of
that site which it points to this address.  The browser then tells that name in ``Host``, and
the site in ``Origin`` and ``Sec-Fetch-Site`` (Fetch Metadata Request Headers, W3C).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.web.http import Request

from gateway.admin.errors import AdminError, bad_request
from gateway.admin.heads import header_values

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?\Z")

#: From where a browser may send what changes something; ``none`` is the operator's own hand.
_FRIENDLY_SITES = frozenset({"same-origin", "none"})

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_host(request: Request, names: Collection[str]) -> None:
    """Refuse a request that is meant for another server.

    :param names: host names by which the admin side may be called besides its addresses.
    :raises AdminError: 400 or 421 (RFC 9110 §15.5.20).
    """
    values = header_values(request, b"host")
    if len(values) != 1:
        raise bad_request("send one Host header")
    name, _ = _split(values[0])
    if name in names or name == "localhost" or name.endswith(".localhost"):
        return
    address = _address(name)
    if address is not None and (address.is_loopback or address == _address(_local(request))):
        return
    raise AdminError(421, "this host is not served here; admin.hosts lists the names that are")


def check_origin(request: Request) -> bool:
    """Refuse what a page of another site sends.

    :return: whether the request shows that it comes from a page of our own.
    :raises AdminError: 403.
    """
    sites = header_values(request, b"sec-fetch-site")
    origins = header_values(request, b"origin")
    if any(site not in _FRIENDLY_SITES for site in sites):
        raise AdminError(403, "another site sent this; nothing was done")
    if any(not _is_own(origin, request) for origin in origins):
        raise AdminError(403, "a page of another origin sent this; nothing was done")
    return bool(origins) or "same-origin" in sites


def _is_own(origin: str, request: Request) -> bool:
    """Whether it is where this very request went.

    A proxy in front of the admin side may speak TLS where we do not.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or (request.isSecure() and parts.scheme != "https"):
        return False
    name, own_port = _split(header_values(request, b"host")[0])
    own = own_port or _DEFAULT_PORTS[parts.scheme]
    return (parts.hostname or "").rstrip(".") == name and port == own


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a ``Host``, the name without brackets and in lower case."""
    found = _HOST.match(host)
    if found is None:
        raise bad_request("the Host header cannot be read")
    name = found[1].strip("[]").lower().rstrip(".")
    return name, int(found[2]) if found[2] else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _local(request: Request) -> str:
    """The address that the client connected to."""
    host: Any = request.getHost()
    return host.host if isinstance(host, (IPv4Address, IPv6Address)) else ""


def client_address(request: Request) -> str:
    """Where a request comes from, for logs."""
    peer: Any = request.getClientAddress()
    return peer.host if isinstance(peer, (IPv4Address, IPv6Address)) else "local"
