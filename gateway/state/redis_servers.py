"""Where Redis is, and how one gets a connection to the master there.

``state.store`` names one server, or the Sentinels that know which server is the master now
(https://redis.io/docs/latest/develop/reference/sentinel-clients/).  Every connection is asked
whether its server is the master before it is used: a Sentinel's answer may be out of date.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import (
    Deferred,
    TimeoutError,
    gatherResults,
    inlineCallbacks,
    succeed,
)
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.protocol import Factory

from gateway.state.backend import StateError
from gateway.state.redis_connection import RedisConnection, RedisRefusal
from gateway.upstream.tls import AccountTLS

_PORT, _SENTINEL_PORT = 6379, 26379

#: Deadlines in seconds: of a connection with TLS and login; of a Sentinel's, as there are others.
CONNECT_SECONDS = 3.0
_SENTINEL_SECONDS = 1.0

#: Refusals of a login; their text may quote it.
_LOGIN = "it refuses the user name or the password of state.store"


class RedisAddress(NamedTuple):
    """The URL of Redis, in parts.

    :ivar places: hosts and ports: of the server, or of the Sentinels.
    :ivar service: the name of the master that the Sentinels know, or "".
    """

    places: tuple[tuple[str, int], ...]
    tls: bool
    service: str
    database: int
    user: str
    password: str

    @property
    def name(self) -> str:
        """For the operator, without the login."""
        places = ",".join(_shown(host, port) for host, port in self.places)
        return f"redis {places}/{self.service and f'{self.service}/'}{self.database}"


def redis_address(url: str) -> RedisAddress:
    """The parts of a URL that :func:`gateway.config.endpoints.check_store` has accepted."""
    parts = urlsplit(url)
    login, _, netloc = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, database = parts.path.strip("/").rpartition("/")
    default = _SENTINEL_PORT if "sentinel" in parts.scheme else _PORT
    found = [urlsplit(f"//{each}") for each in netloc.split(",")]
    return RedisAddress(
        tuple((each.hostname or "", each.port or default) for each in found),
        parts.scheme.startswith("rediss"),
        unquote(service),
        int(database or 0),
        unquote(user),
        unquote(password),
    )


class RedisServers:
    """Makes connections to the master.

    :param reactor: clock and network.
    :param url: as in ``state.store``.
    """

    def __init__(self, reactor: Any, url: str) -> None:
        self._reactor = reactor
        self._address = redis_address(url)
        self._tls = AccountTLS() if self._address.tls else None
        #: The Sentinel that answered last is asked first.
        self._sentinels = list(self._address.places)
        self.name = self._address.name
        self.database = self._address.database

    @inlineCallbacks
    def connect(self, *seconds: float) -> Generator[Any, Any, list[RedisConnection]]:
        """Connections to the master, ready for commands.

        :param seconds: for each connection: how long the server may owe it a reply.
        :return: fails with :class:`StateError` within a few seconds.
        """
        place = self._address.places[0]
        if self._address.service:
            place = yield self._master()
        made = [self._logged_in(place, each) for each in seconds]
        try:
            connections: list[RedisConnection] = yield gatherResults(made, consumeErrors=True)
        except Exception as error:
            for each in made:
                each.addCallbacks(lambda made: made and made.close(), lambda _: None)
                each.cancel()
            raise _told(error) from None
        return connections

    # --- one connection ----------------------------------------------------------------

    def _logged_in(self, place: tuple[str, int], seconds: float) -> Deferred[RedisConnection]:
        made = self._connected(place, seconds, self._log_in)
        return made.addTimeout(CONNECT_SECONDS, self._reactor, _too_late(place))

    @inlineCallbacks
    def _connected(
        self,
        place: tuple[str, int],
        seconds: float,
        prepare: Callable[[RedisConnection], Deferred[Any]],
    ) -> Generator[Any, Any, RedisConnection]:
        host, port = place
        endpoint: Any = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_SECONDS)
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls.creatorForNetloc(host.encode(), port), endpoint)
        connection: RedisConnection = yield endpoint.connect(
            Factory.forProtocol(lambda: RedisConnection(self._reactor, seconds))
        )
        try:
            yield prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @inlineCallbacks
    def _log_in(self, connection: RedisConnection) -> Generator[Any, Any, None]:
        yield self._authenticate(connection)
        if self._address.database:
            yield connection.command("SELECT", self._address.database)
        try:
            role = yield connection.command("ROLE")
        except RedisRefusal as refusal:
            if refusal.code != "NOPERM":  # the first write finds out
                raise
            return
        if role[0] != b"master":
            raise StateError("the server is a replica: the master is another one")

    @inlineCallbacks
    def _authenticate(self, connection: RedisConnection) -> Generator[Any, Any, None]:
        address = self._address
        if not address.password:
            return
        login = (address.user, address.password) if address.user else (address.password,)
        try:
            yield connection.command("AUTH", *login)
        except RedisRefusal:
            raise StateError(_LOGIN) from None

    # --- Sentinels ---------------------------------------------------------------------

    @inlineCallbacks
    def _master(self) -> Generator[Any, Any, tuple[str, int]]:
        """Where the master is, by the first Sentinel that knows."""
        why: StateError | None = None
        for place in list(self._sentinels):
            try:
                found = yield self._ask(place).addTimeout(
                    _SENTINEL_SECONDS, self._reactor, _too_late(place)
                )
            except Exception as error:
                why = _told(error)
                continue
            self._sentinels.remove(place)
            self._sentinels.insert(0, place)
            return found[0].decode(), int(found[1])
        raise StateError(f"no Sentinel knows the master {self._address.service!r}: {why}")

    @inlineCallbacks
    def _ask(self, place: tuple[str, int]) -> Generator[Any, Any, list[bytes]]:
        connection = yield self._connected(place, _SENTINEL_SECONDS, lambda _: succeed(None))
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        try:
            try:
                found = yield connection.command(*question)
            except RedisRefusal as refusal:
                if refusal.code != "NOAUTH":
                    raise
                yield self._authenticate(connection)
                found = yield connection.command(*question)
        finally:
            connection.close()
        if found is None:
            raise StateError("it does not know that name")
        answer: list[bytes] = found
        return answer


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _too_late(place: tuple[str, int]) -> Callable[[Any, float], Any]:
    """What a connection attempt fails with that took too long."""

    def fails(_: Any, seconds: float) -> Any:
        raise StateError(f"{_shown(*place)} did not answer within {seconds:g} s")

    return fails


def _told(error: BaseException) -> StateError:
    """An error of a connection attempt in words for the operator."""
    inner = getattr(error, "subFailure", None)
    if inner is not None:  # of several Deferreds
        return _told(inner.value)
    if isinstance(error, StateError):
        return error
    if isinstance(error, DNSLookupError):
        return StateError("its host name cannot be looked up")
    if isinstance(error, (TimeoutError, ConnectingCancelledError)):
        return StateError("it does not answer in time")
    if isinstance(error, ConnectError):
        return StateError("it refuses connections or cannot be reached")
    return StateError(str(error) or type(error).__name__)
