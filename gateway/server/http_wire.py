"""twisted.web's side of one request: decides on it at its head, then hands it to its handler."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from gateway.protocol.errors import ApiError
from gateway.protocol.request import json_text
from gateway.server.bodies import body_too_long, check_encoding, decode_body
from gateway.server.handover import asks_for_websocket, header_texts
from gateway.server.http_request import ClientRequest
from gateway.server.refusal import phrase_of, refusal_body, refusal_headers
from gateway.server.routes import Route

if TYPE_CHECKING:
    from gateway.server.http_channel import ClientChannel

_log = Logger(namespace="gateway.http")


class WireRequest(Request):
    """twisted.web's side of one request."""

    channel: Any = None  # an HttpChannel until the answer is complete

    def __init__(self, channel: ClientChannel, queued: object = False) -> None:
        super().__init__(channel, False)
        self._site = channel.site
        self._headers: dict[str, str] = {}
        self._query = ""
        self._route: Route | None = None
        self.tenant = ""
        self._refusal: ApiError | None = None
        self._body = BytesIO()
        self.face: ClientRequest | None = None
        self.is_answered = False
        self.is_upgrade = False
        self.received = 0

    # --- reading ---------------------------------------------------------------------

    def begin(self, method: bytes, uri: bytes, version: bytes, length: int | None) -> None:
        """Decide, before its body is read, whether the request is welcome.

        :param length: of the body; None while that is unknown.
        """
        self.method, self.uri, self.clientproto = method, uri, version
        self.path, _, query = _path_of(uri).partition(b"?")
        self._query = query.decode("latin-1")
        self._headers = header_texts(
            (name, value)
            for name, values in self.requestHeaders.getAllRawHeaders()
            for value in values
        )
        upgrades = length == 0 and asks_for_websocket(method, self._headers.get("upgrade", ""))
        if upgrades and self.channel.has_room:
            self.is_upgrade = True
            return
        try:
            self._welcome(length)
        except ApiError as error:
            self._refusal = error
            if not self.tenant and self._is_strangers():
                self.channel.is_last = True  # it would take a place from who has a key
            if length != 0:
                self.answer_early(error)

    def _welcome(self, length: int | None) -> None:
        self.channel.enter()
        self._route = self._site.routes.find(
            self.method.decode("latin-1"), self.path.decode("latin-1")
        )
        self.tenant = self._site.tenants.tenant_of(self._headers, self._address())
        self.channel.claim(self.tenant)
        if length is not None and length > self._site.max_body_bytes:
            raise body_too_long(self._site.max_body_bytes)
        check_encoding(self._headers.get("content-encoding", ""))

    def _is_strangers(self) -> bool:
        """Whether it comes without one of our keys."""
        return self._site.tenants.is_stranger(self._headers)

    def _address(self) -> str:
        """The client's, for the operator."""
        peer = self.channel.transport.getPeer()
        return str(getattr(peer, "host", peer))

    @property
    def is_welcome(self) -> bool:
        """Whether its body is wanted."""
        return self._refusal is None

    @property
    def waits_for_a_word(self) -> bool:
        """Whether its client wants to hear that, before it sends the body (RFC 9110 §10.1.1)."""
        expected = self._headers.get("expect", "").lower()
        return expected == "100-continue" and self.clientproto == b"HTTP/1.1"

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
        """Answer now, read the rest for a moment, and close: no reset may eat the answer."""
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
        elif self.is_upgrade:
            self.channel.upgrade(self.head())
        else:
            self.process()

    def head(self) -> bytes:
        """The request's line and headers, once more."""
        lines = [b"%b %b %b" % (self.method, self.uri, self.clientproto)]
        for name, values in self.requestHeaders.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        return b"\r\n".join([*lines, b"", b""])

    def process(self) -> None:
        """Hand it to its handler; twisted.web leaves the body of an answer to HEAD out."""
        route = self._route
        face = self.face = ClientRequest(
            self,
            "GET" if self.method == b"HEAD" else self.method.decode("latin-1"),
            self.path.decode("latin-1"),
            self._query,
            route.parameters if route is not None else {},
            self._headers,
            self._site.next_connection(),
        )
        face.hold_back(self.channel.patience.is_tried)
        try:
            if self._refusal is not None:
                raise self._refusal
            assert route is not None
            body, self._body = self._body.getvalue(), BytesIO()
            encoding = self._headers.get("content-encoding", "")
            face.body = json_text(decode_body(body, encoding, self._site.max_body_bytes))
            del body
            route.handler(face, self.tenant)
        except ApiError as error:
            face.refuse(error)
        except Exception:
            _log.failure("a request for {path} broke its handler", path=face.path[:200])
            face.refuse(ApiError.gateway_failed())

    def parseCookies(self) -> None:
        """Nobody here has any."""

    def gotLength(self, length: int | None) -> None:
        """The body is kept in memory, not in a file: it is bounded, and read at once."""

    # --- answering -------------------------------------------------------------------

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """See ``Answering``."""
        self.setResponseCode(status, phrase_of(status).encode())
        self.setHeader(b"server", b"responses-gateway")
        self.setHeader(b"date", datetimeToString())
        for name, value in headers.items():
            self.setHeader(name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        if self.channel is not None and (self.channel.is_last or not self.channel.persistent):
            self.setHeader(b"connection", b"close")
        self.write(b"")

    def send(self, data: bytes) -> None:
        """See ``Answering``."""
        if self.channel is not None:
            self.channel.patience.last_write = len(data)
        self.write(data)

    def complete(self) -> None:
        """See ``Answering``."""
        self.finish()

    def cut(self) -> None:
        """See ``Answering``."""
        if self.channel is not None:
            self.channel.abort()

    def connectionLost(self, reason: Failure) -> None:
        """The client left."""
        super().connectionLost(reason)
        if self.face is not None:
            self.face.client_gone()


def _path_of(uri: bytes) -> bytes:
    """What follows the authority of a request target (RFC 9112 §3.2.2)."""
    if uri.startswith(b"/"):
        return uri
    _, _, rest = uri.partition(b"://")
    return b"/" + rest.partition(b"/")[2]
