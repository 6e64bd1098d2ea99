"""Serves a simulator over HTTP: routes, request bodies, answers, and the twistd service."""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

import msgspec
import zstandard
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IReactorTCP, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from simulator import handlers
from simulator.accounts import SimulatedAccount, account_headers, check_dialect
from simulator.chat import chat
from simulator.engine import AccountEngine
from simulator.faults import Refuse
from simulator.items import new_id
from simulator.request_log import Endpoint, LoggedRequest, Outcome
from simulator.simulator import Exchange, Simulator
from simulator.stream import AnswerStream, Reply
from simulator.validation import Refusal
from simulator.websocket import SocketFactory, check_path, is_upgrade
from simulator.websocket_dialects import check_upgrade

_log = Logger()

#: A request may have so many bytes when it is unpacked.
_LONGEST = 256 * 1024 * 1024
_HANDLERS: Mapping[Endpoint, Callable[[Exchange], Reply]] = {
    "create": handlers.create,
    "retrieve": handlers.retrieve,
    "delete": handlers.delete,
    "cancel": handlers.cancel,
    "input_items": handlers.input_items,
    "input_tokens": handlers.input_tokens,
    "compact": handlers.compact,
    "chat": chat,
    "models": handlers.models,
    "model": handlers.model,
}
#: Paths under the prefix; ``*`` is an id. The first one that fits is taken.
_ROUTES: tuple[tuple[str, tuple[str, ...], Endpoint], ...] = (
    ("POST", ("responses",), "create"),
    ("POST", ("responses", "compact"), "compact"),
    ("POST", ("responses", "input_tokens"), "input_tokens"),
    ("GET", ("responses", "*"), "retrieve"),
    ("DELETE", ("responses", "*"), "delete"),
    ("POST", ("responses", "*", "cancel"), "cancel"),
    ("GET", ("responses", "*", "input_items"), "input_items"),
    ("GET", ("models",), "models"),
    ("GET", ("models", "*"), "model"),
    ("POST", ("chat", "completions"), "chat"),
)


class SimulatorService(Service):
    """Serves a simulator over HTTP on a loopback port.

    It listens from ``startService`` on, and its port is known as soon as that returns.

    :param port: 0: any free one.
    """

    def __init__(
        self,
        simulator: Simulator,
        reactor: IReactorTCP,
        *,
        interface: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.simulator = simulator
        self._reactor = reactor
        self._interface = interface
        self._wanted_port = port
        self._site = SimulatorSite(simulator)
        self._listening: IListeningPort | None = None

    @property
    def port(self) -> int:
        """The port in use.

        :raises RuntimeError: while the service is not running.
        """
        if self._listening is None:
            raise RuntimeError("the simulator is not listening")
        return cast(int, self._listening.getHost().port)  # type: ignore[attr-defined]

    def base_url(self, account: SimulatedAccount | str | None = None) -> str:
        """The base URL of the account's service, by default the platform's."""
        known = self.simulator.account(account) if isinstance(account, str) else account
        prefix = self.simulator.prefixes[0] if known is None else self.simulator.prefix_of(known)
        return f"http://{self._interface}:{self.port}{prefix}"

    def drop_sockets(self) -> None:
        """Reset every WebSocket, idle ones too, as a network does."""
        self._site.sockets.abort()

    def startService(self) -> None:
        """Listen."""
        super().startService()
        self._listening = self._reactor.listenTCP(
            self._wanted_port,
            self._site,  # type: ignore[arg-type]
            interface=self._interface,
        )

    def stopService(self) -> Deferred[None]:
        """Reset all connections, and stop listening."""
        super().stopService()
        listening, self._listening = self._listening, None
        self.simulator.abort()
        for channel in list(self._site.channels):
            cast(ITCPTransport, channel.transport).abortConnection()
        self._site.sockets.abort()
        stopped = None if listening is None else listening.stopListening()
        return succeed(None) if stopped is None else stopped


class _Channel(HTTPChannel):
    """An HTTP connection that its site knows, so that a stop can close it."""

    site: SimulatorSite

    # Clients send metadata headers of several KiB each.
    totalHeadersSize = 256 * 1024
    MAX_LENGTH = 256 * 1024

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.channels.discard(self)
        super().connectionLost(reason)


class SimulatorSite(Site):
    """A site without an access log that keeps its connections."""

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, simulator: Simulator) -> None:
        self.sockets = SocketFactory(simulator)
        resource = SimulatorResource(simulator, self.sockets)
        super().__init__(resource, reactor=simulator.clock, parsePOSTFormSubmission=False)
        self.channels: set[_Channel] = set()

    def log(self, request: http.Request) -> None:
        """Log nothing: the simulator has its own request log."""


class SimulatorResource(Resource):
    """The whole site as one leaf: it has few paths, and keys tell accounts apart."""

    isLeaf = True

    def __init__(self, simulator: Simulator, sockets: SocketFactory | None = None) -> None:
        super().__init__()
        self._simulator = simulator
        self._sockets = SocketFactory(simulator) if sockets is None else sockets

    def render(self, request: Request) -> bytes | int:
        """Answer a request."""
        assert request.content is not None
        raw = request.content.read()
        began = time.monotonic()
        entry = _logged(request, len(raw), self._simulator.clock.seconds())
        self._simulator.requests.add(entry)
        try:
            if is_upgrade(request):
                return self._upgraded(request, entry)
            exchange = self._admitted(request, entry, raw)
            if isinstance(exchange.fault, Refuse):
                return _refuse(request, entry, exchange.fault.status, exchange.fault.body)
            reply = self._answered(exchange)
        except Refusal as refusal:
            _set_headers(request, refusal.headers)
            entry.error = refusal.error
            return _refuse(request, entry, refusal.status, refusal.body)
        finally:
            common = {
                "x-request-id": new_id("req"),
                "openai-processing-ms": str(int((time.monotonic() - began) * 1000)),
                "openai-version": "2020-10-01",
            }
            for name, value in common.items():
                if not request.responseHeaders.hasHeader(name):
                    request.setHeader(name, value)
        entry.status = 200
        request.setHeader(b"content-type", reply.content_type.encode())
        _set_headers(request, reply.headers)
        return self._write(request, entry, reply)

    def _upgraded(self, request: Request, entry: LoggedRequest) -> bytes | int:
        """Answer an upgrade to a WebSocket."""
        entry.endpoint = "upgrade"
        engine = self._engine(request)
        entry.account = engine.account.name
        check_path(entry.path, self._simulator, engine.account.websocket.path)
        fault = self._simulator.faults.take(entry.account, "upgrade")
        if isinstance(fault, Refuse):
            _set_headers(request, fault.headers)
            return _refuse(request, entry, fault.status, fault.body)
        check_upgrade(engine.account, entry.headers)
        self._sockets.check_room(engine.account)
        return self._sockets.upgrade(Exchange(self._simulator, engine, entry, fault), request)

    def _admitted(self, request: Request, entry: LoggedRequest, raw: bytes) -> Exchange:
        """The request with its account, endpoint and fault."""
        engine = self._engine(request)
        entry.account = engine.account.name
        endpoint, named = find_target(entry.method, entry.path, self._simulator.prefixes)
        entry.endpoint = endpoint
        _set_headers(request, account_headers(engine.account, endpoint))
        if entry.method == "POST" and (raw or endpoint != "cancel"):
            kind, taken = entry.headers.get("content-type", ""), engine.account.accepted_encodings
            entry.body = decoded(raw, kind, entry.content_encoding, taken)
        fault = self._simulator.faults.take(entry.account, endpoint)
        _set_headers(request, fault.extra_headers())
        return Exchange(self._simulator, engine, entry, fault, named)

    def _engine(self, request: Request) -> AccountEngine:
        for name in ("authorization", "api-key"):
            value = (request.getHeader(name.encode()) or b"").decode("latin-1").strip()
            if name == "authorization":
                scheme, _, value = value.partition(" ")
                value = value.strip() if scheme.lower() == "bearer" else ""
            engine = self._simulator.engine_of_key(value)
            # A service with a header of its own for keys takes them as bearer on a WebSocket, too.
            is_bearer_upgrade = name == "authorization" and is_upgrade(request)
            if engine and (engine.account.auth_header == name or is_bearer_upgrade):
                return engine
        message = "Incorrect API key provided. Use the key of one of the simulated accounts."
        raise Refusal(401, message, code="invalid_api_key")

    def _answered(self, exchange: Exchange) -> Reply:
        endpoint = exchange.entry.endpoint
        assert endpoint is not None
        try:
            check_dialect(exchange.engine.account, endpoint, exchange.body)
            return _HANDLERS[endpoint](exchange)
        except Refusal:
            raise
        except Exception as error:
            _log.failure("The simulated model failed")
            message = "The model failed."
            raise Refusal(500, message, kind="server_error", code="server_error") from error

    def _write(self, request: Request, entry: LoggedRequest, reply: Reply) -> bytes | int:
        if isinstance(reply.written, list) and all(
            isinstance(each, bytes) for each in reply.written
        ):
            entry.outcome = "completed"
            return b"".join(reply.written)

        is_json = isinstance(reply.written, list)

        def ended(outcome: Outcome | None) -> None:
            self._simulator.streams.discard(stream)
            if entry.outcome == "running":
                entry.outcome = outcome or ("completed" if is_json else "ended")

        clock, delay = self._simulator.clock, self._simulator.event_delay
        stream = AnswerStream(request, iter(reply.written), clock, delay, ended)
        self._simulator.streams.add(stream)
        stream.start()
        return NOT_DONE_YET


def find_target(method: str, path: str, prefixes: Sequence[str]) -> tuple[Endpoint, str]:
    """The endpoint of a request, and the id in its path or "".

    :param prefixes: the paths of services begin with one of them.
    :raises Refusal: 404 for an unknown path, 405 for a method that it does not support.
    """
    unknown = Refusal(404, f"Invalid URL ({method} {path})")
    prefix = next((each for each in prefixes if path.startswith(f"{each}/")), None)
    if prefix is None:
        raise unknown
    parts = tuple(path[len(prefix) + 1 :].split("/"))
    allowed: list[str] = []
    for wanted, route, endpoint in _ROUTES:
        if not _fits(route, parts):
            continue
        if wanted == method:
            named = parts[route.index("*")] if "*" in route else ""
            return endpoint, unquote(named)
        allowed.append(wanted)
    if not allowed:
        raise unknown
    message = f"Not allowed to {method} on {path}."
    headers = {"allow": ", ".join(allowed)}
    raise Refusal(405, message, code="method_not_supported", headers=headers)


def _fits(route: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return len(route) == len(parts) and all(
        part and step in ("*", part) for step, part in zip(route, parts, strict=True)
    )


def decoded(raw: bytes, content_type: str, encoding: str | None, accepted: Collection[str]) -> Any:
    """The JSON value of a body.

    :param accepted: the content encodings that are decoded.
    :raises Refusal: when the body is not JSON, or compressed for an account that accepts no such.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        message = (
            f"Unsupported content type: '{content_type}'."
            " This API method only accepts 'application/json' requests."
        )
        raise Refusal(400, message, code="unsupported_content_type")
    name = (encoding or "identity").strip().lower()
    try:
        # A body in an encoding that is not accepted is not JSON.
        plain = _unpacked(raw, name) if name in accepted else raw
        return msgspec.json.decode(plain)
    except (ValueError, RecursionError) as error:
        message = "We could not parse the JSON body of your request."
        raise Refusal(400, message) from error


def _unpacked(raw: bytes, encoding: str) -> bytes:
    """The plain bytes.

    :raises ValueError: when they are damaged, cut short or too long.
    """
    if encoding == "gzip":
        return _gunzipped(raw)
    if encoding == "zstd":
        return _unzstd(raw)
    raise ValueError(f"no decoder for {encoding}")


def _gunzipped(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(raw, _LONGEST)
    except zlib.error as error:
        raise ValueError("damaged") from error
    if not unpacker.eof or unpacker.unconsumed_tail or unpacker.unused_data:
        raise ValueError("cut short or too long")
    return plain


def _unzstd(raw: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw)) as reader:
            plain = reader.read(_LONGEST + 1)
    except zstandard.ZstdError as error:
        raise ValueError("damaged") from error
    if len(plain) > _LONGEST:
        raise ValueError("too long")
    return plain


def _logged(request: Request, size: int, at: float) -> LoggedRequest:
    """The log entry of a request; of a repeated header it has the last value."""
    headers = {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
    query = {
        name.decode("utf-8", "replace"): [value.decode("utf-8", "replace") for value in values]
        for name, values in (request.args or {}).items()
    }
    return LoggedRequest(
        None,
        headers,
        None,
        size,
        method=request.method.decode("latin-1"),
        path=request.path.decode("latin-1").rstrip("/"),
        query=query,
        content_encoding=headers.get("content-encoding"),
        at=at,
    )


def _set_headers(request: Request, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        request.setHeader(name.lower(), value)


def _refuse(request: Request, entry: LoggedRequest, status: int, body: Any) -> bytes:
    """Answer with an error; a body of text or bytes is sent as it is."""
    entry.status = status
    if entry.error is None:
        entry.error = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
    entry.outcome = "refused"
    request.setResponseCode(status)
    if isinstance(body, (str, bytes)):
        return body.encode() if isinstance(body, str) else body
    request.setHeader(b"content-type", b"application/json")
    return b"" if body is None else msgspec.json.encode(body)
