"""Turns of several clients over the WebSockets of one account, in any order: nothing hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import globalLogPublisher

from gateway.protocol.websocket_messages import ends_response
from gateway.upstream.interface import UpstreamExchange
from tests.upstream.websocket_account import (
    AT_ITS_END,
    COMPLETED,
    CREATED,
    DELTA,
    FIRST_BYTE,
    IDLE,
    RATE_LIMITS,
    Listener,
    SocketAccount,
)
from tests.upstream.websocket_wire import PING, PONG, Peer, closing, frame, messages

EVENTS = [
    CREATED,
    DELTA,
    COMPLETED,
    RATE_LIMITS,
    AT_ITS_END,
    b'{"type":"response.failed","response":{"id":"resp_1"}}',
    b'{"type":"response.created","response":{"id":"resp_2"}}',
    b'{"type":"response.completed","response":{"id":"resp_2"}}',
    b'{"type":"error","error":{}}',
    b'{"type":"error","status":400,"error":{"message":"No."}}',
    b'{"type":"response.output_text.delta","delta":"%s"}' % (b"x" * 600_000),
    b"{}",
    b'{"type":"response.created", broken',
    b"\xff",
]
#: Most are what a service sends in order.
NUMBERS = st.sampled_from([0, 1, 2] * 8 + list(range(len(EVENTS))))
ACTS = [(step, act) for step in ("connected", "answered", "events") for act in ("cancel", "pause")]
REFUSALS = [400, 401, 403, 404, 429, 500]


class Client(Listener):
    """Reads one turn as the gateway does: it finishes or drops it at its end.

    :param acts: what it does at a step, besides: the step, and ``cancel`` or ``pause``.
    """

    exchange: UpstreamExchange

    def __init__(self, acts: tuple[str, str] | None, drops: bool) -> None:
        super().__init__(self._step)
        self._acts = acts
        self._drops = drops
        self.paused = False
        self.finished = False
        #: Begins the next turn of the conversation, within the end of this one.
        self.follows: Callable[[], None] = lambda: None

    @property
    def is_done(self) -> bool:
        return self.over or bool(self.endings)

    def _step(self, step: str) -> None:
        if step == "ended":
            self.exchange.cancel()
            return
        if self._acts is not None and self._acts[0] == step:
            if self._acts[1] == "cancel":
                self.leaves()
                return
            self.pauses()
        if step == "events" and any(ends_response(name) for name, _ in self.events):
            if self.events[-1][1] == EVENTS[8]:
                return  # it announces the end
            self.over = True
            self.finished = not self._drops
            if self._drops:
                self.exchange.cancel()
            else:
                self.exchange.finish()
            self.follows()

    def leaves(self) -> None:
        self.over = True
        self.exchange.cancel()

    def pauses(self) -> None:
        self.paused = True
        self.exchange.pause()

    def resumes(self) -> None:
        self.paused = False
        self.exchange.resume()


class ExchangeMachine(RuleBasedStateMachine):
    """The rules are clients, the account's service, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.account = SocketAccount(most=2, most_of_all=3, spare_sockets=0)
        self.clients: list[Client] = []
        self.upgraded: list[Peer] = []
        self.served: dict[int, set[str]] = {}
        self.failures: list[Any] = []
        globalLogPublisher.addObserver(self._observe)

    def _observe(self, said: Any) -> None:
        if said.get("log_failure") is not None:
            self.failures.append(said["log_failure"])

    @property
    def running(self) -> list[Client]:
        return [each for each in self.clients if not each.is_done]

    # --- clients ---

    @rule(
        affinity=st.sampled_from(["one", "two"]),
        tenant=st.sampled_from(["ann", "bob"]),
        acts=st.sampled_from([None] * 6 + ACTS),
        ready=st.sampled_from([True, True, True, False]),
        drops=st.sampled_from([False, False, False, True]),
        pauses=st.sampled_from([False, False, False, True]),
        size=st.sampled_from([1, 1, 100_000]),
        follows=st.booleans(),
    )
    def a_turn_begins(
        self,
        affinity: str,
        tenant: str,
        acts: tuple[str, str] | None,
        ready: bool,
        drops: bool,
        pauses: bool,
        size: int,
        follows: bool,
    ) -> None:
        turn = self.account.turn(affinity, tenant, input=f"{tenant} " * size)
        self._starts(turn, acts, drops, pauses, follows)
        if ready and self.account.endpoint.connecting:
            self.a_connection_is_made_or_not(fails=False)
            for peer in self._open(False):
                self.upgraded.append(peer)
                peer.accepts()

    @precondition(lambda self: any(each.finished for each in self.clients))
    @rule(data=st.data())
    def a_turn_continues_another(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([each for each in self.clients if each.finished]))
        holder = parent.exchange.holder
        turn = self.account.turn("one", "ann", input="ann ", holder=holder)
        if holder is None or self.account.upstream.holds(holder):
            name = (holder or "").partition("/")[0]
            sockets = [each for each in self.account.pool.sockets() if each.name == name]
            if all(each.key is not None and each.key.tenant == "ann" for each in sockets):
                self._starts(turn)

    def _starts(
        self,
        turn: Any,
        acts: tuple[str, str] | None = None,
        drops: bool = False,
        pauses: bool = False,
        follows: bool = False,
    ) -> None:
        client = Client(acts, drops)
        if follows:
            client.follows = lambda: self._starts(turn)
        client.exchange = self.account.upstream.exchange(turn, client)
        self.clients.append(client)
        if pauses:
            client.pauses()
        client.exchange.start()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), command=st.sampled_from(["leaves", "pauses", "resumes", "resumes"]))
    def a_client_acts(self, data: st.DataObject, command: str) -> None:
        getattr(data.draw(st.sampled_from(self.running)), command)()

    # --- the service ---

    @precondition(lambda self: self.account.endpoint.connecting)
    @rule(fails=st.booleans())
    def a_connection_is_made_or_not(self, fails: bool) -> None:
        if self.account.endpoint.connecting[0][1].called:
            self.account.endpoint.connecting.pop(0)
        elif fails:
            self.account.endpoint.fails(ConnectionRefusedError())
        else:
            self.account.connects()

    def _open(self, upgraded: bool) -> list[Peer]:
        return [
            each
            for each in self.account.peers
            if not each.closed and (each in self.upgraded) == upgraded
        ]

    @precondition(lambda self: self._open(False))
    @rule(data=st.data(), status=st.sampled_from([101, 101, 101, *REFUSALS]))
    def an_upgrade_is_answered(self, data: st.DataObject, status: int) -> None:
        peer = data.draw(st.sampled_from(self._open(False)))
        self.upgraded.append(peer)
        if status == 101:
            peer.accepts()
        else:
            peer.sends(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\n{}" % status)

    @precondition(lambda self: self._open(True))
    @rule(
        data=st.data(),
        numbers=st.lists(NUMBERS, min_size=1, max_size=4),
    )
    def events_come(self, data: st.DataObject, numbers: list[int]) -> None:
        data.draw(st.sampled_from(self._open(True))).says(*(EVENTS[each] for each in numbers))

    @precondition(lambda self: self._open(True))
    @rule(
        data=st.data(),
        sent=st.sampled_from(
            [
                closing(1000),
                closing(1009),
                closing(1011, b"why"),
                frame(b"", PING),
                frame(b"", PONG),
                frame(b"half", fin=False),
                b"\x81",
                b"\xff\xff",
            ]
        ),
    )
    def a_frame_comes(self, data: st.DataObject, sent: bytes) -> None:
        data.draw(st.sampled_from(self._open(True))).sends(sent)

    @precondition(lambda self: [each for each in self.account.peers if not each.closed])
    @rule(data=st.data())
    def a_connection_is_lost(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from([e for e in self.account.peers if not e.closed]))
        peer.loses()
        peer.transport.connected = False

    @precondition(lambda self: self._open(True))
    @rule(data=st.data())
    def a_request_is_read(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(self._open(True)))
        peer.drain()
        number = self.account.peers.index(peer)
        for message in messages(peer.frames()):
            tenant = "ann" if b'"ann ' in message else "bob"
            self.served.setdefault(number, set()).add(tenant)
        assert len(self.served.get(number, ())) <= 1, "two tenants on one socket"

    @rule(seconds=st.sampled_from([1.0, 16.0, 31.0, 121.0, 1801.0]))
    def time_passes(self, seconds: float) -> None:
        self.account.reactor.advance(seconds)

    # --- what holds ---

    @invariant()
    def the_counts_are_right(self) -> None:
        pool = self.account.pool
        assert pool.opened_now <= 2
        open_now = [each for each in self.account.peers if not each.closed]
        assert len(list(pool.sockets())) <= len(open_now)
        assert pool.busy <= len([e for e in self.clients if not e.is_done])

    @invariant()
    def no_bug_is_logged(self) -> None:
        assert not self.failures, self.failures

    def teardown(self) -> None:
        try:
            for client in self.running:
                if client.paused:
                    client.resumes()
            for _ in range(3):
                self.account.reactor.advance(max(FIRST_BYTE, IDLE) + 1)
                for client in self.running:
                    if client.paused:
                        client.resumes()
            over_http = [e for e in self.running if e.exchange.transport_name == "http"]
            assert self.running == over_http, "a turn hangs"
            for client in over_http:
                client.leaves()
            self.account.check_rest()
            self.no_bug_is_logged()
        finally:
            globalLogPublisher.removeObserver(self._observe)


ExchangeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestExchanges = ExchangeMachine.TestCase
