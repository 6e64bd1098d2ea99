"""One HTTP request as its handler sees it, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import parse_qs

from gateway.protocol.errors import ApiError
from gateway.server.refusal import refusal_body, refusal_headers


class Answering(Protocol):
    """The wire below a request."""

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer."""

    def send(self, data: bytes) -> None:
        """Send a piece of its body."""

    def complete(self) -> None:
        """It is whole; the connection may serve the next request."""

    def cut(self) -> None:
        """Break it off: the client sees that it is not whole."""


class ClientRequest:
    """A request, complete with its body.

    Exactly one answer is due: :meth:`answer` or :meth:`refuse`, or :meth:`start`, any number
    of :meth:`write` and :meth:`finish`.  After the client has gone all of them do nothing.

    :ivar method: in capitals; GET for HEAD, whose answer differs only on the wire.
    :ivar path: as sent, without the query.
    :ivar query_string: as sent, without the question mark.
    :ivar parameters: the named parts of the path.
    :ivar headers: see :func:`~gateway.server.handover.header_texts`.
    :ivar body: decoded of its content encoding.
    :ivar connection: the request's own id, for journals.
    """

    def __init__(
        self,
        wire: Answering,
        method: str,
        path: str,
        query_string: str,
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        connection: str,
    ) -> None:
        self._wire: Answering | None = wire
        self.method = method
        self.path = path
        self.query_string = query_string
        self.parameters = parameters
        self.headers = headers
        self.body = b""
        self.connection = connection
        self.started = False
        self._is_held_back = False
        self._gone: Callable[[], None] | None = None
        self._abandoned: Callable[[ApiError], None] | None = None
        self._pause: Callable[[], None] | None = None
        self._resume: Callable[[], None] | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's fields."""
        return parse_qs(self.query_string, keep_blank_values=True)

    @property
    def is_over(self) -> bool:
        """Whether it is answered, or its client gone."""
        return self._wire is None

    # --- answers ---------------------------------------------------------------------

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer with a whole body.

        :param headers: names in lower case.
        """
        self.start(status, {**headers, "content-length": str(len(body))})
        self.write(body)
        self.finish()

    def refuse(self, error: ApiError) -> None:
        """Answer with an error; one that comes too late for that breaks the answer off."""
        if self.started:
            if self._wire is not None:
                self._wire.cut()
            return
        self.answer(error.status, refusal_body(error), refusal_headers(error))

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer that comes in pieces.

        Clients show their users the ``x-request-id`` of an error; where no upstream gave one
        it is what journals and the log call the request.

        :param headers: names in lower case.
        """
        assert not self.started, "a request is answered once"
        self.started = True
        if self._wire is not None:
            self._wire.send_head(status, {"x-request-id": self.connection, **headers})

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._wire is not None:
            self._wire.send(data)

    def finish(self) -> None:
        """The answer is whole.

        What produces it may go on behind it: the client's pace does not matter any more.
        """
        wire = self._wire
        if wire is not None:
            resume = self._resume if self._is_held_back else None
            self._forget()
            wire.complete()
            if resume is not None:
                resume()

    # --- what happens meanwhile ------------------------------------------------------

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call this when the client leaves before its answer is whole."""
        self._gone = call

    def when_abandoned(self, call: Callable[[ApiError], None]) -> None:
        """Call this instead of :meth:`refuse` when the gateway can wait no longer."""
        self._abandoned = call

    def when_slow(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call these as the client falls behind and catches up.

        What produces the answer must stop meanwhile.  A client that takes too long is cut
        off by the connection.
        """
        self._pause, self._resume = pause, resume
        if self._is_held_back:
            pause()

    # --- the wire's side -------------------------------------------------------------

    def client_gone(self) -> None:
        """The connection is lost."""
        gone = self._gone
        if self._wire is not None:
            self._forget()
            if gone is not None:
                gone()

    def abandon(self, error: ApiError) -> None:
        """The gateway can wait no longer."""
        if self._wire is None:
            return
        (self._abandoned or self.refuse)(error)
        if self._wire is not None:
            self._wire.cut()

    def hold_back(self, held_back: bool) -> None:
        """The connection's buffers are full, or empty again.  May repeat itself."""
        if held_back is self._is_held_back:
            return
        self._is_held_back = held_back
        call = self._pause if held_back else self._resume
        if call is not None:
            call()

    def _forget(self) -> None:
        """Nothing more is sent, and nobody is called."""
        self._wire = None
        self._gone = self._abandoned = self._pause = self._resume = None
