"""Turns of one account over WebSocket, and over HTTP where that does better (protocol.md §8.7).

A :class:`WebSocketExchange` finds or opens a socket, sends one ``response.create`` and reads its
events.  It goes by HTTP instead if the account's service takes no WebSocket (``transport: auto``).
Whether a failed turn is sent again is for the turn to decide: the codes ``SOCKET_LOST`` and
``SOCKET_UNSUITED`` say that the account is not to blame.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import AccountSettings
from gateway.deadline import Deadline
from gateway.protocol.error_parsing import from_event, from_http
from gateway.protocol.errors import SOCKET_LOST, SOCKET_UNSUITED, ApiError
from gateway.protocol.events import ERRORS
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import (
    MAX_REQUEST_BYTES,
    SOCKET_AT_ITS_END,
    UpgradeRefusal,
    create_message,
    ends_response,
    handshake_authorization,
    handshake_headers,
    names_a_session,
    read_message,
    refusal_of_upgrade,
)
from gateway.upstream.errors import log_bug, upstream_failure
from gateway.upstream.http import HttpUpstream, TurnExchange
from gateway.upstream.interface import (
    BodyReceiver,
    EventReceiver,
    ForwardedRequest,
    UpstreamAnswer,
    UpstreamExchange,
)
from gateway.upstream.websocket_client import (
    NORMAL,
    ClosedSocket,
    Handshake,
    UpgradeFailed,
    UpgradeRefused,
    UpstreamSocket,
    dial,
)
from gateway.upstream.websocket_pool import (
    PooledSocket,
    SocketKey,
    SocketReceiver,
    WebSocketPool,
)

#: How long a service that takes no WebSocket is not asked again, and one that could not be
#: reached by it, in seconds.
_NO_WEBSOCKET_SECONDS = 600.0
_UNREACHABLE_SECONDS = 30.0

#: Misses in a row on sockets that should have known the response, after which their responses are
#: not continued for a while, in seconds.
_MOST_MISSES = 3
_MISSES_SECONDS = 3600.0

#: What a paused turn keeps of its answer before the socket is not read any more, in bytes.
_MAX_HELD_BYTES = 1_048_576

_TOO_BIG = 1009

_log = Logger(namespace="gateway.upstream")


class WebSocketUpstream:
    """One account, reached over WebSocket.

    :param http: the same account over HTTP; its credentials and timeouts hold for both.
    :param connect: makes the endpoint for a URL with the scheme ``http`` or ``https``.
    :param pool: the account's sockets.
    :ivar http: as given.
    """

    def __init__(
        self,
        reactor: Any,
        settings: AccountSettings,
        http: HttpUpstream,
        connect: Callable[[str], IStreamClientEndpoint],
        pool: WebSocketPool,
    ) -> None:
        self.reactor = reactor
        self.http = http
        self.pool = pool
        self.falls_back = settings.transport == "auto"
        self.continues_unstored = settings.websocket.continues_unstored
        self._settings = settings
        self._connect = connect
        self._unavailable_until = 0.0
        self._why_unavailable: str | None = None
        self._misses = 0
        self._mistrusted_until = 0.0
        self._filling: Deferred[Any] | None = None

    # --- the interface of transports -------------------------------------------------

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> UpstreamExchange:
        """Encode a turn; one that WebSocket cannot carry goes by HTTP."""
        goes_by_http = turn.request.background or (turn.avoids_websocket and self.falls_back)
        if turn.holder is None and (goes_by_http or self.unavailable() is not None):
            return self.http.exchange(turn, receiver)
        message = create_message(turn)
        if len(message) > MAX_REQUEST_BYTES and turn.holder is None:
            return self.http.exchange(turn, receiver)
        return WebSocketExchange(self, turn, message, receiver)

    def forward(self, request: ForwardedRequest, receiver: BodyReceiver) -> UpstreamExchange:
        """Prepare a request that is sent as it is, over HTTP."""
        return self.http.forward(request, receiver)

    def holds(self, holder: str) -> bool:
        """Whether it is the account's name, or the token of a socket's latest response."""
        if self.http.holds(holder):
            return True
        trusted = self._mistrusted_until <= self.reactor.seconds()
        return trusted and self.pool.holding(holder) is not None

    def secrets(self) -> Sequence[str]:
        """The current secrets of its credentials."""
        return self.http.secrets()

    def without_secrets(self, text: bytes) -> bytes:
        """What the account answered, without its secrets."""
        return self.http.without_secrets(text)

    def close(self) -> Deferred[None]:
        """Close all sockets and connections."""
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.cancel()
        self.pool.close()
        closed: Deferred[None] = self.http.close()
        return gatherResults([closed]).addCallback(lambda _: None)

    # --- whether sockets can be opened -----------------------------------------------

    def unavailable(self) -> str | None:
        """Why no socket is opened now, where HTTP is used in its place; None if one may be."""
        if not self.falls_back or self._unavailable_until <= self.reactor.seconds():
            return None
        return self._why_unavailable

    def could_not_open(self, refusal: UpgradeRefusal | None, why: str) -> None:
        """Remember that no socket could be opened.

        :param refusal: how the upgrade was refused; None if there was no answer to it.
        """
        lasting = refusal is UpgradeRefusal.NO_WEBSOCKET
        seconds = _NO_WEBSOCKET_SECONDS if lasting else _UNREACHABLE_SECONDS
        self._unavailable_until = self.reactor.seconds() + seconds
        self._why_unavailable = why
        if self.falls_back:
            _log.info(
                "account {account} is reached over HTTP for {seconds:g} seconds: {why}",
                account=self._settings.name,
                seconds=seconds,
                why=why,
            )

    # --- what sockets continue -------------------------------------------------------

    def continued(self) -> None:
        """A socket continued its latest response."""
        self._misses = 0

    def missed(self) -> None:
        """A socket did not know its latest response.  Some services forget all of them."""
        self._misses += 1
        if self._misses >= _MOST_MISSES:
            self._misses = 0
            self._mistrusted_until = self.reactor.seconds() + _MISSES_SECONDS

    # --- sockets ---------------------------------------------------------------------

    def key_of(self, turn: UpstreamTurn) -> SocketKey:
        """Whose sockets a turn may use; each lane of a conversation has its own."""
        return SocketKey(turn.tenant, (turn.affinity, turn.request.stream_id))

    def open(
        self, turn: UpstreamTurn | None, authorization: Mapping[str, str]
    ) -> tuple[Deferred[UpstreamSocket], bool]:
        """Open a socket.

        :param turn: the first one on it; None for a spare socket, which names no client.
        :return: the socket, and whether it names a client's session.
        """
        settings = self._settings
        headers = handshake_headers(turn, list(settings.headers.items()), settings.websocket.beta)
        url = self.http.base_url() + settings.websocket.path
        handshake = Handshake(
            url,
            {**headers, **handshake_authorization(authorization)},
            settings.websocket.subprotocols,
        )
        opening = dial(self.reactor, self._connect(url), handshake, settings.websocket.ping_seconds)
        return opening, names_a_session(headers)

    def fill_spares(self) -> None:
        """Open a spare socket, if one is missing; the next after it."""
        missing = self.pool.spares < self._settings.websocket.spare_sockets
        if self._filling is not None or not missing or self.unavailable() is not None:
            return
        headers = self.http.credentials.headers()
        if isinstance(headers, Deferred):
            return  # a turn will bring a fresh token
        if self.pool.opened_now >= self.pool.most or not self.pool.reserve():
            return
        self._filling = filling = self.open(None, headers)[0]
        filling.addCallbacks(self._filled, self._not_filled)
        filling.addErrback(log_bug)

    def _filled(self, socket: UpstreamSocket) -> None:
        self._filling = None
        self.pool.add(socket, None, is_private=False)
        self.fill_spares()

    def _not_filled(self, failure: Failure) -> None:
        self._filling = None
        self.pool.give_up()


class WebSocketExchangeState(enum.Enum):
    """The states of an exchange, named by what it waits for."""

    IDLE = "to be started"
    OPENING = "a socket"
    SENT = "the first event"
    STREAMING = "the rest of the events"
    HTTP = "an exchange over HTTP"
    OVER = "nothing"


_State = WebSocketExchangeState

TRANSITIONS = {
    _State.IDLE: {_State.OPENING, _State.SENT, _State.HTTP, _State.OVER},
    _State.OPENING: {_State.SENT, _State.HTTP, _State.OVER},
    _State.SENT: {_State.STREAMING, _State.OVER},
    _State.STREAMING: {_State.OVER},
    _State.HTTP: {_State.OVER},
    _State.OVER: set(),
}


class _Lost(NamedTuple):
    """How the socket was lost while its last events are held back."""

    error: ApiError


class WebSocketExchange(SocketReceiver):
    """One turn over a socket, and its answer.

    :param message: the encoded turn.
    """

    def __init__(
        self,
        upstream: WebSocketUpstream,
        turn: UpstreamTurn,
        message: bytes,
        receiver: EventReceiver,
    ) -> None:
        self._upstream = upstream
        self._turn = turn
        self._message = message
        self._receiver = receiver
        self._state = _State.IDLE
        self._socket: PooledSocket | None = None
        self._http: TurnExchange | None = None
        self._waiting: Deferred[Any] | None = None
        self._reserved = False
        self._authorization: Mapping[str, str] = {}
        self._reauthorized = False
        self._paused = False
        self._held: list[Event] = []
        self._held_bytes = 0
        self._lost: _Lost | None = None
        self._terminal = b""
        self._answer: UpstreamAnswer | None = None
        self._holder: str | None = None
        self._message_bytes = len(message)
        self._deadline = Deadline(upstream.reactor, self._timed_out)

    # --- what is known of it ---------------------------------------------------------

    @property
    def request_bytes(self) -> int:
        """Size of the encoded request."""
        return self._message_bytes if self._http is None else self._http.request_bytes

    @property
    def transport_name(self) -> str:
        """``websocket``, or ``http`` where it went by that."""
        return "websocket" if self._http is None else self._http.transport_name

    @property
    def holder(self) -> str | None:
        """The token of the response, if only its socket can continue it."""
        return self._holder

    @property
    def request(self) -> ForwardedRequest | None:
        """The message, until it is answered."""
        if self._http is not None:
            return self._http.request
        if not self._message:
            return None
        return ForwardedRequest("GET", "/responses", {}, self._message)

    def answer(self) -> UpstreamAnswer | None:
        """The answer to the upgrade, once the turn is answered; or its refusal."""
        return self._answer if self._http is None else self._http.answer()

    # --- commands --------------------------------------------------------------------

    def start(self) -> None:
        """Find a socket, or open one, and send the turn."""
        upstream, turn = self._upstream, self._turn
        self._deadline.start(upstream.http.timeouts.first_byte)
        if turn.holder is not None:
            held = upstream.pool.holding(turn.holder)
            if len(self._message) > MAX_REQUEST_BYTES:
                self._fail(_unsuited("The request is too large for a WebSocket."))
            elif held is None:
                self._fail(_lost("The WebSocket with the previous response is gone."))
            else:
                self._send(held)
            return
        free = upstream.pool.take(upstream.key_of(turn))
        if free is not None:
            self._send(free)
        elif upstream.pool.reserve():
            self._reserved = True
            self._enter(_State.OPENING)
            self._authorize()
        elif upstream.falls_back:
            self._go_by_http()
        else:
            self._fail(
                ApiError.bad_gateway(
                    "The account has as many WebSockets as it may.", "upstream_websockets_used_up"
                )
            )
        upstream.fill_spares()

    def cancel(self) -> None:
        """Drop it now; the socket may still get the rest of the answer, so it is closed."""
        if self._http is not None:
            self._http.cancel()
        elif self._state is not _State.OVER:
            self._drop("cancelled")

    def finish(self) -> None:
        """The terminal event was read: the socket is free."""
        if self._http is not None:
            self._http.finish()
            return
        if self._state is _State.STREAMING and self._terminal:
            socket = self._socket
            self._stop()
            assert socket is not None
            socket.finish(self._holder is not None)
        else:
            self.cancel()

    def pause(self) -> None:
        """Keep what comes; a socket that goes on bringing much is not read any more."""
        self._paused = True
        if self._http is not None:
            self._http.pause()
        else:
            self._deadline.stop()

    def resume(self) -> None:
        """Deliver what was kept, and read on."""
        if not self._paused:
            return
        self._paused = False
        if self._http is not None:
            self._http.resume()
            return
        if self._state is _State.OVER:
            return
        timeouts = self._upstream.http.timeouts
        streaming = self._state is _State.STREAMING
        self._deadline.start(timeouts.idle if streaming else timeouts.first_byte)
        held, self._held = self._held, []
        too_much = self._held_bytes > _MAX_HELD_BYTES
        self._held_bytes = 0
        if too_much and self._socket is not None:
            self._socket.socket.resume()
        if held:
            self._deliver(held)
        lost, self._lost = self._lost, None
        if lost is not None and self._is_running():
            self._fail(lost.error)

    # --- opening a socket ------------------------------------------------------------

    def _authorize(self) -> None:
        try:
            headers = self._upstream.http.credentials.headers()
        except Exception:
            self._fail_inside(Failure())
            return
        if isinstance(headers, Deferred):
            self._wait(headers, self._open, self._not_authorized)
        else:
            self._open(headers)

    def _open(self, authorization: Mapping[str, str]) -> None:
        self._authorization = authorization
        private = False
        try:
            opening, private = self._upstream.open(self._turn, authorization)
        except Exception:
            opening = fail()
        self._wait(opening, lambda socket: self._opened(socket, private), self._not_opened)

    def _wait(
        self,
        waiting: Deferred[Any],
        callback: Callable[[Any], None],
        errback: Callable[[Failure], None],
    ) -> None:
        self._waiting = waiting

        def done(result: Any) -> None:
            self._waiting = None
            if self._state is _State.OPENING:
                callback(result)

        def failed(failure: Failure) -> None:
            self._waiting = None
            if self._state is _State.OPENING:
                errback(failure)

        waiting.addCallbacks(done, failed)
        waiting.addErrback(self._fail_inside)

    def _opened(self, socket: UpstreamSocket, is_private: bool) -> None:
        self._reserved = False
        upstream = self._upstream
        opened = upstream.pool.add(socket, upstream.key_of(self._turn), is_private)
        self._send(opened)
        upstream.fill_spares()

    def _not_authorized(self, failure: Failure) -> None:
        error = failure.value
        self._fail(error if isinstance(error, ApiError) else upstream_failure(failure))

    def _not_opened(self, failure: Failure) -> None:
        problem = failure.value
        if not isinstance(problem, UpgradeRefused):
            failed = isinstance(problem, UpgradeFailed)
            error = (
                ApiError.bad_gateway(f"The upstream {problem}.", "upstream_timeout")
                if failed
                else upstream_failure(failure)
            )
            self._no_socket(None, error)
            return
        head = problem.head
        body = self._upstream.without_secrets(problem.body)
        self._answer = UpstreamAnswer(head.status, head.headers, body)
        if head.status == 401 and not self._reauthorized:
            self._reauthorized = True
            changed = self._upstream.http.credentials.refused(self._authorization)
            if isinstance(changed, Deferred):
                self._wait(changed, self._reauthorize, self._not_authorized)
            else:
                self._reauthorize(changed)
            return
        self._refused(head.status, head.headers, body)

    def _reauthorize(self, changed: bool) -> None:
        if changed:
            self._authorize()
            return
        assert self._answer is not None
        self._refused(*self._answer)

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        refusal = refusal_of_upgrade(status)
        error = from_http(status, headers, body)
        if refusal is UpgradeRefusal.ACCOUNT:
            self._fail(error)
            return
        if refusal is UpgradeRefusal.NO_WEBSOCKET:
            error = ApiError.bad_gateway(
                f"The upstream takes no WebSocket: it answered the upgrade with {status}.",
                "upstream_websocket_refused",
            )
        self._no_socket(refusal, error)

    def _no_socket(self, refusal: UpgradeRefusal | None, error: ApiError) -> None:
        """Nothing was sent: go by HTTP, or report it."""
        self._upstream.could_not_open(refusal, str(error))
        if self._upstream.falls_back:
            self._go_by_http()
        else:
            self._fail(error)

    def _go_by_http(self) -> None:
        self._give_up_room()
        self._enter(_State.HTTP)
        self._deadline.stop()
        self._message = b""
        self._http = http = self._upstream.http.exchange(self._turn, self._receiver)
        if self._paused:
            http.pause()
        http.start()

    # --- the answer ------------------------------------------------------------------

    def _send(self, socket: PooledSocket) -> None:
        self._enter(_State.SENT)
        self._socket = socket
        head = socket.socket.head
        # What the handshake says of quotas was true at that time only.
        headers = head.headers if socket.turns == 0 else {}
        self._answer = UpstreamAnswer(head.status, headers, b"")
        socket.begin(self)
        if not self._turn.is_stored and self._upstream.continues_unstored:
            self._holder = socket.token
        socket.socket.send_message(self._message)
        self._receiver.upstream_connected()

    def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
        """Events of the answer; what follows its end is returned."""
        events: list[Event] = []
        rest: list[bytes] = []
        for number, payload in enumerate(payloads):
            event = read_message(payload)
            if event is None:
                continue
            name = event[0]
            if ends_response(name):
                if name in ERRORS and SOCKET_AT_ITS_END.encode() in payload:
                    self._fail_or_hold(events, _lost("The upstream's WebSocket is at its end."))
                    return []
                if name not in ERRORS or from_event(payload) is not None:
                    self._terminal = name
                    rest = payloads[number + 1 :]
                    events.append(event)
                    break
            events.append(event)
        if not events:
            return rest
        if self._state is _State.SENT:
            self._begin_answer()
        if self._paused:
            self._hold(events)
        elif self._is_running():
            self._deadline.touch()
            self._deliver(events)
        return rest

    def _begin_answer(self) -> None:
        self._enter(_State.STREAMING)
        self._message = b""
        if not self._paused:
            self._deadline.start(self._upstream.http.timeouts.idle)
        assert self._answer is not None
        self._receiver.upstream_answered(self._answer.headers)

    def _deliver(self, events: list[Event]) -> None:
        terminal = self._terminal
        self._note_misses(events)
        self._receiver.upstream_events(events)
        if terminal and self._is_running() and not self._paused:
            self._drop("not finished")
            self._receiver.upstream_ended(None)

    def _note_misses(self, events: list[Event]) -> None:
        """Whether the socket knew the response it should have."""
        if self._turn.holder is None or not self._terminal:
            return
        name, payload = events[-1]
        if name not in ERRORS:
            self._upstream.continued()
        elif b"previous_response" in payload:
            self._upstream.missed()

    def _hold(self, events: list[Event]) -> None:
        self._held += events
        before = self._held_bytes
        self._held_bytes += sum(len(payload) for _, payload in events)
        if before <= _MAX_HELD_BYTES < self._held_bytes and self._socket is not None:
            self._socket.socket.pause()

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket is lost."""
        self._socket = None
        reason = self._upstream.without_secrets(closed.reason.encode()).decode(errors="replace")
        said = ClosedSocket(closed.code, reason[:200])
        message = f"The upstream's WebSocket closed before the response had ended: {said}."
        # Without an answer these mean that the input is refused; over HTTP the reason is given.
        refuses_input = self._state is _State.SENT and closed.code in (NORMAL, _TOO_BIG)
        self._fail_or_hold([], _unsuited(message) if refuses_input else _lost(message))

    def _fail_or_hold(self, events: list[Event], error: ApiError) -> None:
        """End with an error, after all events that came before it."""
        if events:
            if self._state is _State.SENT:
                self._begin_answer()
            if self._paused:
                self._hold(events)
            elif self._is_running():
                self._deliver(events)
        if not self._is_running():
            return
        if self._paused and self._held:
            self._lost = _Lost(error)
        else:
            self._fail(error)

    # --- the end ---------------------------------------------------------------------

    def _timed_out(self) -> None:
        timeouts = self._upstream.http.timeouts
        streaming = self._state is _State.STREAMING
        waited = timeouts.idle if streaming else timeouts.first_byte
        what = "sent no event" if streaming else "did not answer"
        message = f"The upstream {what} within {waited:g} seconds."
        self._fail(ApiError.bad_gateway(message, "upstream_timeout"), "silence")

    def _fail_inside(self, failure: Failure) -> None:
        """A bug of the gateway ends the exchange, which would wait for ever otherwise."""
        log_bug(failure)
        if self._state is not _State.OVER:
            self._fail(ApiError.gateway_failed())

    def _fail(self, error: ApiError, why: str = "failed") -> None:
        self._drop(why)
        self._receiver.upstream_ended(error)

    def _drop(self, why: str) -> None:
        socket, waiting = self._socket, self._waiting
        self._stop()
        if waiting is not None:
            waiting.cancel()
        if socket is not None:
            socket.drop(why)

    def _stop(self) -> None:
        self._enter(_State.OVER)
        self._give_up_room()
        self._deadline.stop()
        self._socket = self._waiting = self._lost = None
        self._message = b""
        self._held = []

    def _give_up_room(self) -> None:
        if self._reserved:
            self._reserved = False
            self._upstream.pool.give_up()

    def _is_running(self) -> bool:
        return self._state in (_State.SENT, _State.STREAMING)

    def _enter(self, state: WebSocketExchangeState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"an exchange cannot go from {self._state} to {state}")
        self._state = state


def _lost(message: str) -> ApiError:
    return ApiError.bad_gateway(message, SOCKET_LOST)


def _unsuited(message: str) -> ApiError:
    return ApiError.bad_gateway(message, SOCKET_UNSUITED)
