"""One HTTP request: reading and accepting it, the handler's view of it, and its answer.

twisted.web makes a :class:`WireRequest` for each request.  The site accepts or refuses it when its
head is complete, before a body is read.  When the body is complete, the handler gets a
:class:`ClientRequest`.  Errors have the API's shape (protocol.md §5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from gateway.protocol.errors import ApiError
from gateway.protocol.request import json_text
from gateway.server.bodies import body_too_long, check_encoding, decode_body

#: Headers of every event stream; proxies must neither keep nor buffer it.
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}

_log = Logger(namespace="gateway.http")


class ClientRequest:
    """A request, complete with its body.

    Exactly one answer is due: :meth:`answer` or :meth:`refuse`, or :meth:`start`, any number
    of :meth:`write` and :meth:`finish`.  After the client has gone all of them do nothing.

    :ivar method: in capitals; GET also for HEAD, because only the sending of the answer differs.
    :ivar is_head: whether it is HEAD.
    :ivar path: as sent, without the query.
    :ivar query_string: as sent, without the question mark.
    :ivar parameters: the named parts of the path.
    :ivar headers: see :func:`header_texts`.
    :ivar body: decoded of its content encoding.
    :ivar connection: the request's own id, for logs.
    """

    def __init__(
        self,
        wire: WireRequest,
        method: str,
        path: str,
        query_string: str,
        headers: Mapping[str, str],
        connection: str,
    ) -> None:
        self._wire: WireRequest | None = wire
        self.is_head = method == "HEAD"
        self.method = "GET" if self.is_head else method
        self.path = path
        self.query_string = query_string
        self.parameters: Mapping[str, str] = {}
        self.headers = headers
        self.body = b""
        self.connection = connection
        self.started = False
        self._is_held_back = False
        self._answered: Callable[[int, Mapping[str, str]], None] | None = None
        self._gone: Callable[[], None] | None = None
        self._abandoned: Callable[[ApiError], None] | None = None
        self._pause: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's fields."""
        return parse_qs(self.query_string, keep_blank_values=True)

    # --- answers ---------------------------------------------------------------------

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer with a whole body.

        :param headers: names in lower case.
        """
        self.start(status, {**headers, "content-length": str(len(body))})
        self.write(body)
        self.finish()

    def refuse(self, error: ApiError) -> None:
        """Answer with an error, or break the answer off if it has begun."""
        if self.started:
            self.cut()
        else:
            self.answer(error.status, refusal_body(error), refusal_headers(error))

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer that comes in pieces.

        Clients show the ``x-request-id`` of an error to their users.  If no upstream gave one, it
        is the request's name in the log.

        :param headers: names in lower case.
        """
        assert not self.started, "a request is answered once"
        self.started = True
        if self._wire is not None:
            headers = {"x-request-id": self.connection, **headers}
            if self._answered is not None:
                self._answered(status, headers)
            self._wire.send_head(status, headers)

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._wire is not None:
            self._wire.send(data)

    def finish(self) -> None:
        """The answer is complete.

        A paused producer is resumed: the client's speed does not matter any more.
        """
        wire = self._wire
        if wire is not None:
            resume = self._resume if self._is_held_back else None
            self._forget()
            wire.finish()
            if resume is not None:
                resume()

    def cut(self) -> None:
        """Break the answer off: the client sees that it is incomplete."""
        if self._wire is not None:
            self._wire.cut()

    # --- what happens meanwhile ------------------------------------------------------

    def when_answered(self, call: Callable[[int, Mapping[str, str]], None]) -> None:
        """Call this with the status and the headers of the answer as it begins."""
        self._answered = call

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call this when the client disconnects before its answer is complete."""
        self._gone = call

    def when_abandoned(self, call: Callable[[ApiError], None]) -> None:
        """Call this instead of :meth:`refuse` when the time for shutdown is over."""
        self._abandoned = call

    def when_slow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call these as the client falls behind and catches up.

        The producer of the answer must stop meanwhile.  The connection drops a client that takes
        too long.
        """
        self._pause, self._resume = pause, resume
        if self._is_held_back:
            pause()

    # --- called by the connection ----------------------------------------------------

    def client_gone(self) -> None:
        """The connection is lost."""
        gone = self._gone
        if self._wire is not None:
            self._forget()
            if gone is not None:
                gone()

    def abandon(self, error: ApiError) -> None:
        """End the request, because the time for shutdown is over."""
        if self._wire is not None:
            (self._abandoned or self.refuse)(error)
            self.cut()

    def hold_back(self, held_back: bool) -> None:
        """The connection's write buffer is full, or empty again.  May be called repeatedly."""
        if held_back is self._is_held_back:
            return
        self._is_held_back = held_back
        call = self._pause if held_back else self._resume
        if call is not None:
            call()

    def _forget(self) -> None:
        """Send nothing more, and call nothing."""
        self._wire = None
        self._answered = self._gone = self._abandoned = self._pause = self._resume = None


class WireRequest(Request):
    """twisted.web's side of one request.

    :ivar headers: see :func:`header_texts`.
    :ivar tenant: the name of its client key; empty while that is unknown.
    :ivar client_request: the handler's view of it; None before the request is complete.
    :ivar is_answered: whether it was answered before its body was read.
    :ivar received: bytes of its body so far, as sent.
    """

    channel: Any = None  # an HttpChannel until the answer is complete

    def __init__(self, channel: Any, queued: object = False) -> None:
        super().__init__(channel, False)
        self._site = channel.site
        self.headers: dict[str, str] = {}
        self.tenant = ""
        self.client_request: ClientRequest | None = None
        self.is_answered = False
        self.received = 0
        self._handler: Callable[[ClientRequest], None] | None = None
        self._query = b""
        self._refusal: ApiError | None = None
        self._is_upgrade = False
        self._body = BytesIO()

    # --- reading ---------------------------------------------------------------------

    def begin(self, method: bytes, target: bytes, version: bytes, length: int | None) -> None:
        """Accept or refuse the request before its body is read.

        :param length: of the body; None while that is unknown.
        """
        self.method, self.uri, self.clientproto = method, target, version
        self.path, _, self._query = _path_of(target).partition(b"?")
        self.headers = header_texts(
            (name, value)
            for name, values in self.requestHeaders.getAllRawHeaders()
            for value in values
        )
        if length == 0 and self._asks_for_websocket() and self.channel.may_upgrade:
            self._is_upgrade = True
            return
        try:
            self._handler = self._site.accept(self)
            if length is not None and length > self._site.max_body_bytes:
                raise body_too_long(self._site.max_body_bytes)
            check_encoding(self.headers.get("content-encoding", ""))
        except ApiError as error:
            self._refusal = error
            if error.status in (429, 503):
                self.channel.is_last = True  # it was not admitted
            if length != 0:
                self.answer_early(error)

    def _asks_for_websocket(self) -> bool:
        """Whether it asks for an upgrade to WebSocket (RFC 6455 §4.2.1)."""
        return self.method == b"GET" and "websocket" in self.headers.get("upgrade", "").lower()

    @property
    def expects_continue(self) -> bool:
        """Whether to answer ``100 Continue`` before the body (RFC 9110 §10.1.1)."""
        expected = self.headers.get("expect", "").lower() == "100-continue"
        return expected and self._refusal is None and self.clientproto == b"HTTP/1.1"

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self.received += len(data)
        if self.is_answered:
            return
        if self.received > self._site.max_body_bytes:
            self.answer_early(body_too_long(self._site.max_body_bytes))
        else:
            self._body.write(data)
            self._site.limiter.incoming.keep(self.channel, len(data))

    def answer_early(self, error: ApiError) -> None:
        """Answer now, read on for a short time, and close.

        A connection that is closed with unread bytes is reset, and the answer is lost.
        """
        self.is_answered = True
        self._body = BytesIO()
        self._site.limiter.incoming.leave(self.channel)
        self.channel.linger()
        body = refusal_body(error)
        self.send_head(error.status, {**refusal_headers(error), "content-length": str(len(body))})
        self.write(body)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is complete."""
        if self.is_answered:
            self.finish()
        elif self._is_upgrade:
            self.channel.upgrade(self._head())
        else:
            self.process()

    def _head(self) -> bytes:
        """The request's line and headers, once more."""
        lines = [b"%b %b %b" % (self.method, self.uri, self.clientproto)]
        for name, values in self.requestHeaders.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        return b"\r\n".join([*lines, b"", b""])

    def process(self) -> None:
        """Call the handler; twisted.web leaves out the body of an answer to HEAD."""
        client_request = self.client_request = ClientRequest(
            self,
            self.method.decode("latin-1"),
            self.path.decode("latin-1"),
            self._query.decode("latin-1"),
            self.headers,
            self._site.next_connection(),
        )
        client_request.hold_back(self.channel.stall.is_stalled)
        try:
            if self._refusal is not None:
                raise self._refusal
            assert self._handler is not None
            body, self._body = self._body.getvalue(), BytesIO()
            encoding = self.headers.get("content-encoding", "")
            client_request.body = json_text(decode_body(body, encoding, self._site.max_body_bytes))
            del body
            self._handler(client_request)
        except ApiError as error:
            client_request.refuse(error)
        except Exception:
            _log.failure("a request for {path} broke its handler", path=client_request.path[:200])
            client_request.refuse(ApiError.gateway_failed())

    def parseCookies(self) -> None:
        """Do nothing: only the admin side reads cookies, from the header."""

    def gotLength(self, length: int | None) -> None:
        """The body is kept in memory, not in a file: it is bounded, and read at once."""

    # --- answering -------------------------------------------------------------------

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer.

        :param headers: names in lower case.
        """
        self.setResponseCode(status, phrase_of(status).encode())
        self.setHeader(b"date", datetimeToString())
        for name, value in {**self._site.headers, **headers}.items():
            self.setHeader(name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        if self.channel is not None and (self.channel.is_last or not self.channel.persistent):
            self.setHeader(b"connection", b"close")
        self.write(b"")

    def send(self, data: bytes) -> None:
        """Send a piece of the answer's body."""
        if self.channel is not None:
            self.channel.stall.last_write = len(data)
        self.write(data)

    def cut(self) -> None:
        """Break the answer off."""
        if self.channel is not None:
            self.channel.abort()

    def connectionLost(self, reason: Failure) -> None:
        """The client disconnected."""
        super().connectionLost(reason)
        if self.client_request is not None:
            self.client_request.client_gone()


def _path_of(target: bytes) -> bytes:
    """What follows the authority of a request target (RFC 9112 §3.2.2)."""
    if target.startswith(b"/"):
        return target
    _, _, rest = target.partition(b"://")
    return b"/" + rest.partition(b"/")[2]


# --- headers and errors --------------------------------------------------------------------


def header_texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name in lower case; values of the same name joined by commas.

    Cookies are joined by semicolons (RFC 9113 §8.2.3).  Each character stands for one byte
    (ISO 8859-1, RFC 9110 §5.5), so that a value in any encoding is passed on as it came.
    """
    texts: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in texts:
            value = f"{texts[name]}{'; ' if name == 'cookie' else ', '}{value}"
        texts[name] = value
    return texts


def headers_of(head: bytes) -> dict[str, str]:
    """The headers of a raw head; see :func:`header_texts`."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return header_texts(
        (name.strip(b" \t"), value.strip(b" \t")) for name, _, value in lines if name
    )


def refusal_headers(error: ApiError) -> dict[str, str]:
    """The headers of an error as an answer; names in lower case."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    headers["content-type"] = "application/json"
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.setdefault("www-authenticate", "Bearer")  # RFC 9110 §15.5.2
    return headers


def refusal_body(error: ApiError) -> bytes:
    """``{"error": {…}}``."""
    return msgspec.json.encode({"error": error.body()})


def refusal(error: ApiError, more_headers: Mapping[str, str] | None = None) -> bytes:
    """The whole answer, for a connection that ends with it."""
    body = refusal_body(error)
    headers = {
        **refusal_headers(error),
        **(more_headers or {}),
        "content-length": str(len(body)),
        "connection": "close",
    }
    lines = [f"HTTP/1.1 {error.status} {phrase_of(error.status)}"]
    lines += [f"{name}: {_one_line(value)}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def phrase_of(status: int) -> str:
    """The reason phrase of a status; Twisted knows none of the newer ones."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
