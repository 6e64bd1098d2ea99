"""One turn over a WebSocket to its account, and its answer (protocol.md §8.7).

It finds or opens a socket, sends one ``response.create`` and reads the events.  It goes over HTTP
instead if the account's service takes no WebSocket (``transport: auto``).  Whether a failed turn is
sent again is for the turn to decide: the codes ``SOCKET_LOST`` and ``SOCKET_UNSUITED`` say that the
account is not to blame.
"""

from __future__ import annotations

import enum

from twisted.python.failure import Failure

from gateway.deadline import Deadline
from gateway.protocol.error_parsing import from_event
from gateway.protocol.errors import SOCKET_LOST, SOCKET_UNSUITED, ApiError
from gateway.protocol.events import ERRORS, PREAMBLE
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import (
    MAX_REQUEST_BYTES,
    SOCKET_AT_ITS_END,
    ends_response,
    is_out_of_band,
    read_until_end,
    response_id,
)
from gateway.upstream.errors import log_bug
from gateway.upstream.http import TurnExchange
from gateway.upstream.interface import EventReceiver, ForwardedRequest, UpstreamAnswer
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_client import NORMAL, ClosedSocket, UpstreamSocket
from gateway.upstream.websocket_counts import SocketEnd
from gateway.upstream.websocket_opening import SocketOpening
from gateway.upstream.websocket_pool import PooledSocket, SocketReceiver
from gateway.upstream.websocket_successor import SocketSuccessor

#: What a paused turn keeps of its answer before the socket is not read any more, in bytes.
_MAX_HELD_BYTES = 1_048_576

#: How long the ``response.failed`` may take that an empty ``error`` announces, in seconds.  An
#: answer over HTTP ends without it, a socket does not.
_ANNOUNCED_SECONDS = 5.0

#: How many messages are kept behind the end of a response that is held back.
_MAX_BEHIND = 64

_TOO_BIG = 1009


class WebSocketExchangeState(enum.Enum):
    """The states of an exchange, named by what it waits for."""

    __hash__ = object.__hash__  # there is one of each; Enum hashes names, in Python

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


class WebSocketExchange(SocketReceiver):
    """One turn over a socket, and its answer.

    :param message: the encoded turn; empty where the response has begun by itself.
    :param follows: what has the socket of such a response.
    """

    def __init__(
        self,
        access: WebSocketAccess,
        turn: UpstreamTurn,
        message: bytes,
        receiver: EventReceiver,
        follows: SocketSuccessor | None = None,
    ) -> None:
        self._access = access
        self._turn = turn
        self._message = message
        self._receiver = receiver
        self._state = _State.IDLE
        self._socket: PooledSocket | None = None
        self._http: TurnExchange | None = None
        self._follows = follows
        #: What came behind the end of the response while that was held back.
        self._behind: list[bytes] = []
        #: What opens a socket, for which the pool keeps room meanwhile.
        self._opening: SocketOpening | None = None
        self._paused = False
        self._held: list[Event] = []
        self._held_bytes = 0
        #: Why the socket was lost, while events that came before are held back.
        self._lost: ApiError | None = None
        self._terminal = b""
        self._created = b""
        self._idle_seconds = access.http.timeouts.idle
        self._answer: UpstreamAnswer | None = None
        self._holder: str | None = None
        self._message_bytes = len(message)
        self._deadline = Deadline(access.reactor, self._timed_out)

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
        access, turn = self._access, self._turn
        self._deadline.start(access.http.timeouts.first_byte)
        if self._follows is not None:
            self._follow(*self._follows.take())
            return
        unsuited = turn.request.background or len(self._message) > MAX_REQUEST_BYTES
        if turn.holder is not None:
            held = access.holding(turn.holder)
            if unsuited:
                self._fail(_unsuited("A WebSocket cannot carry this request."))
            elif held is None:
                self._fail(_lost("The WebSocket with the previous response is gone."))
            else:
                self._send(held)
            return
        if unsuited:
            self._go_by_http()
            return
        free = access.pool.take(access.key_of(turn))
        if free is not None:
            self._send(free)
        elif access.pool.reserve():
            self._enter(_State.OPENING)
            self._opening = SocketOpening(access, turn, self)
            self._opening.start()
        elif access.falls_back:
            self._go_by_http()
        else:
            self._fail(
                ApiError.bad_gateway(
                    "The account has as many WebSockets as it may.", "upstream_websockets_used_up"
                )
            )
        access.fill_spares()

    def cancel(self) -> None:
        """Drop it now; the socket may still get the rest of the answer, so it is closed."""
        if self._http is not None:
            self._http.cancel()
        elif self._state is not _State.OVER:
            self._drop(SocketEnd.REFUSED if self._terminal else SocketEnd.CANCELLED)

    def finish(self) -> None:
        """The terminal event was read: the socket is free."""
        if self._http is not None:
            self._http.finish()
            return
        if self._state is _State.STREAMING and self._terminal:
            socket = self._socket
            self._stop()
            self._access.served()
            if socket is not None:  # it may be lost since the event was read
                socket.finish(self._holder is not None)
                if self._behind:
                    socket.messages_behind(self._behind)
        else:
            self.cancel()

    def successor(self) -> SocketSuccessor | None:
        """In place of ``finish``: wait on the socket for the response that follows by itself."""
        socket = self._socket
        if self._state is not _State.STREAMING or not self._terminal or socket is None:
            return None
        self._stop()
        self._access.served()
        holds = self._holder is not None
        return SocketSuccessor(self._access, socket, self._behind, holds, _following)

    def tell(self, message: bytes) -> bool:
        """Send a message about the response that runs; False where that cannot be done."""
        if self._state is not _State.STREAMING or self._terminal or self._socket is None:
            return False
        self._socket.socket.send_message(message)
        return True

    def pause(self) -> None:
        """Keep what comes; a socket that goes on bringing much is not read any more.

        The wait for the first event goes on: the receiver cannot be its reason.
        """
        self._paused = True
        if self._http is not None:
            self._http.pause()
        elif self._state is _State.STREAMING:
            self._deadline.stop()

    def resume(self) -> None:
        """Deliver what was kept, and read on."""
        if not self._paused:
            return
        self._paused = False
        if self._http is not None:
            self._http.resume()
            return
        if self._state is not _State.STREAMING:
            return  # nothing is kept before the first event
        self._deadline.start(self._idle_seconds)
        held, self._held = self._held, []
        too_much = self._held_bytes > _MAX_HELD_BYTES
        self._held_bytes = 0
        if too_much and self._socket is not None:
            self._socket.socket.resume()
        if held:
            self._deliver(held)
        lost, self._lost = self._lost, None
        if lost is not None and self._is_running():
            self._fail(lost)
        else:
            self._end_unfinished()

    # --- opening a socket ------------------------------------------------------------

    def socket_opened(self, socket: UpstreamSocket, is_private: bool) -> None:
        """There is a new socket."""
        self._opening = None
        access = self._access
        opened = access.pool.add(socket, access.key_of(self._turn), is_private)
        self._send(opened)
        access.fill_spares()

    def opening_refused(self, error: ApiError) -> None:
        """The account is at fault."""
        self._fail(error)

    def no_socket(self, error: ApiError) -> None:
        """Nothing was sent: go by HTTP, or report it."""
        if self._access.falls_back:
            self._go_by_http()
        else:
            self._fail(error)

    def opening_broke(self, failure: Failure) -> None:
        """A bug of the gateway ends the exchange, which would wait for ever otherwise."""
        log_bug(failure)
        if self._state is not _State.OVER:
            self._fail(ApiError.gateway_failed())

    def _go_by_http(self) -> None:
        if self._turn.request.prewarm:  # over HTTP it would be answered in full
            self._fail(_unsuited("No WebSocket is free for a prewarm."))
            return
        self._give_up_room()
        self._enter(_State.HTTP)
        self._deadline.stop()
        self._message = b""
        self._http = http = self._access.http.exchange(self._turn, self._receiver)
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
        if self._access.is_held_by_socket(self._turn):
            self._holder = socket.token
        socket.socket.send_message(self._message)
        self._receiver.upstream_connected()

    def _follow(self, socket: PooledSocket | None, payloads: list[bytes]) -> None:
        """The response has begun on ``socket``, without a request."""
        if socket is None:
            self._fail(_lost("The upstream's WebSocket closed before the response had ended."))
            return
        self._enter(_State.SENT)
        self._socket = socket
        self._answer = UpstreamAnswer(socket.socket.head.status, {}, b"")
        socket.go_on(self)
        if self._access.is_held_by_socket(self._turn):
            self._holder = socket.token
        self._receiver.upstream_connected()
        rest = self.socket_messages(payloads)
        if rest:
            socket.messages_behind(rest)

    def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
        """Events of the answer; what follows its end is returned."""
        if self._terminal:
            return self._keep_behind(payloads)
        events: list[Event] = []
        rest = payloads
        while rest:
            more, rest = read_until_end(rest)
            fit = self._count_of_this(more)
            events += more[:fit]
            if fit < len(more):
                self._fail_or_hold(events, _lost("The upstream mixed up two responses."))
                return []
            name, payload = events[-1] if more else (b"", b"")
            if not ends_response(name):
                break
            if name in ERRORS and SOCKET_AT_ITS_END in payload:
                error = _lost("The upstream's WebSocket is at its end.")
                self._fail_or_hold(events[:-1], error, SocketEnd.CONNECTION_LIMIT)
                return []
            if name not in ERRORS or from_event(payload) is not None:
                self._terminal = name
                break
            self._idle_seconds = min(_ANNOUNCED_SECONDS, self._idle_seconds)
            if not self._paused:
                self._deadline.start(self._idle_seconds)
        if not events:
            return rest
        if self._state is _State.SENT:
            self._begin_answer()
        if self._paused:
            self._hold(events)
            return self._keep_behind(rest)
        if self._is_running():
            self._deadline.touch()
            self._deliver(events)
        return rest

    def _keep_behind(self, payloads: list[bytes]) -> list[bytes]:
        """Keep what comes while the end is held back; what is too much is returned."""
        if len(self._behind) + len(payloads) > _MAX_BEHIND:
            return payloads
        self._behind += payloads
        return []

    def _count_of_this(self, events: list[Event]) -> int:
        """How many events come before one of another response."""
        for number, (name, payload) in enumerate(events):
            if self._created:
                break
            if self._is_of_another(name, payload):
                return number
        ends = bool(events) and ends_response(events[-1][0])
        return len(events) - (ends and self._is_of_another(*events[-1]))

    def _is_of_another(self, name: bytes, payload: bytes) -> bool:
        """Whether an event belongs to a response before, as far as that can be told cheaply.

        What comes late for a response that has ended must not end the next one: that begins with
        its ``response.created``, and ends with the same id.
        """
        is_first = self._socket is None or self._socket.turns == 1
        if self._created:
            ends_well = not is_first and name not in ERRORS
            return ends_well and payload.find(response_id(self._created)) < 0
        if name in ERRORS or is_out_of_band(name):
            return False
        self._created = payload
        return name not in PREAMBLE and not is_first

    def _begin_answer(self) -> None:
        self._enter(_State.STREAMING)
        self._message = b""
        if self._paused:
            self._deadline.stop()
        else:
            self._deadline.start(self._idle_seconds)
        assert self._answer is not None
        self._receiver.upstream_answered(self._answer.headers)

    def _deliver(self, events: list[Event]) -> None:
        self._receiver.upstream_events(events)
        self._end_unfinished()

    def _end_unfinished(self) -> None:
        """Report the end, if the receiver did not take the terminal event for one."""
        delivered = self._terminal and not self._paused and not self._held
        if delivered and self._is_running():
            self._drop(SocketEnd.NOT_FINISHED)
            self._receiver.upstream_ended(None)

    def _hold(self, events: list[Event]) -> None:
        self._held += events
        before = self._held_bytes
        self._held_bytes += sum(len(payload) for _, payload in events)
        if before <= _MAX_HELD_BYTES < self._held_bytes and self._socket is not None:
            self._socket.socket.pause()

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket is lost."""
        self._socket = None
        if self._terminal:
            return  # the answer is whole, and its end is held back
        said = ClosedSocket(closed.code, self._access.without_secrets(closed.reason))
        message = f"The upstream's WebSocket closed before the response had ended: {said}."
        # Before an event of the response (quotas are none) these mean that the input is refused;
        # over HTTP the reason is given.
        refuses_input = not self._created and closed.code in (NORMAL, _TOO_BIG)
        if refuses_input:
            self._fail_or_hold([], _unsuited(message))
        else:
            self._access.lost(said, answered=bool(self._created))
            self._fail_or_hold([], _lost(message))

    def _fail_or_hold(
        self, events: list[Event], error: ApiError, why: SocketEnd = SocketEnd.FAILED
    ) -> None:
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
            self._lost = error
            socket, self._socket = self._socket, None
            if socket is not None:
                socket.drop(why)
        else:
            self._fail(error, why)

    # --- the end ---------------------------------------------------------------------

    def _timed_out(self) -> None:
        streaming = self._state is _State.STREAMING
        waited = self._idle_seconds if streaming else self._access.http.timeouts.first_byte
        what = "sent no event" if streaming else "did not answer"
        message = f"The upstream {what} within {waited:g} seconds."
        self._fail(ApiError.bad_gateway(message, "upstream_timeout"), SocketEnd.SILENCE)

    def _fail(self, error: ApiError, why: SocketEnd = SocketEnd.FAILED) -> None:
        self._drop(why)
        self._receiver.upstream_ended(error)

    def _drop(self, why: SocketEnd) -> None:
        socket, opening = self._socket, self._opening
        self._stop()
        if self._http is not None:
            self._http.cancel()
        if opening is not None:
            self._answer = opening.answer
            opening.cancel()
        if socket is not None:
            socket.drop(why)

    def _stop(self) -> None:
        self._enter(_State.OVER)
        self._give_up_room()
        self._deadline.stop()
        self._socket = self._lost = None
        self._message = b""
        self._held = []

    def _give_up_room(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            self._access.pool.give_up()

    def _is_running(self) -> bool:
        return self._state in (_State.SENT, _State.STREAMING)

    def _enter(self, state: WebSocketExchangeState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"an exchange cannot go from {self._state} to {state}")
        self._state = state


def _following(
    access: WebSocketAccess, turn: UpstreamTurn, receiver: EventReceiver, follows: SocketSuccessor
) -> WebSocketExchange:
    return WebSocketExchange(access, turn, b"", receiver, follows)


def _lost(message: str) -> ApiError:
    return ApiError.bad_gateway(message, SOCKET_LOST)


def _unsuited(message: str) -> ApiError:
    return ApiError.bad_gateway(message, SOCKET_UNSUITED)
