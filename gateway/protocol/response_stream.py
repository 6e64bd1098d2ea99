"""The stream of one upstream answer: which events are relayed or held, and how it ends.

Sans-IO.  A :class:`ResponseStream` reads the events of one attempt and returns, batch by batch,
what may be sent.  Until the first output everything is held, so that an answer which is then
refused was never seen by the client (design law 4; protocol.md §4, §8.4, §10.38-§10.57).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from gateway.protocol.controls import is_answer
from gateway.protocol.error_classification import blames_others
from gateway.protocol.error_parsing import from_event, from_failed_response
from gateway.protocol.errors import ApiError
from gateway.protocol.events import (
    ERRORS,
    PASSED_UNREAD,
    PREAMBLE,
    TERMINALS,
    MalformedEvent,
    ResponseHead,
    raw_value,
    read_item_done,
    read_response,
    read_turn_state,
    response_members,
    sequence_number,
    strict_json,
    with_response,
    with_response_members,
    with_turn_state,
    without_limit_headers,
)
from gateway.protocol.headers import without_limits
from gateway.protocol.output_items import OutputItems, finish_terminal
from gateway.protocol.request import Members
from gateway.protocol.sse import Event
from gateway.protocol.synthetic_events import created_event, new_response_id, opening
from gateway.protocol.usage import Usage, read_usage

#: Events that may be held before the first output; more than this is no preamble.
_MAX_HELD = 64


class StreamPhase(enum.Enum):
    """Where an attempt stands."""

    __hash__ = object.__hash__  # there is one of each; Enum hashes names, in Python

    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    OUTPUT = "output"
    ENDED = "ended"


#: The phases that may follow each phase.
TRANSITIONS = {
    StreamPhase.SENT: {StreamPhase.ACKNOWLEDGED, StreamPhase.OUTPUT, StreamPhase.ENDED},
    StreamPhase.ACKNOWLEDGED: {StreamPhase.OUTPUT, StreamPhase.ENDED},
    StreamPhase.OUTPUT: {StreamPhase.ENDED},
    StreamPhase.ENDED: set(),
}


class FinishedResponse(NamedTuple):
    """The upstream's own terminal event is among the payloads.

    :ivar status: completed, failed or incomplete.
    :ivar reason: that of an incomplete one.
    """

    status: str
    reason: str | None
    error: ApiError | None
    usage: Usage | None = None


class RefusedResponse(NamedTuple):
    """The upstream ended the attempt, and the client saw nothing of it.

    :ivar terminal: the payloads that end the turn in the upstream's own words.
    """

    error: ApiError
    terminal: tuple[bytes, ...] = ()


class BrokenResponse(NamedTuple):
    """The upstream ended the attempt after something of it was relayed."""

    error: ApiError


class UnchainedResponse(NamedTuple):
    """The upstream answers, but ignored the previous response it was sent."""

    echo: str | None


class BackgroundResponse(NamedTuple):
    """The upstream accepted the turn, and runs it in the background; clients poll for it."""


Outcome = (
    FinishedResponse | BackgroundResponse | RefusedResponse | BrokenResponse | UnchainedResponse
)


class ResponseStream:
    """Reads one attempt.

    :param chained_to: the ``previous_response_id`` that was sent and must be echoed, or None to
        require no echo.
    :param pass_rate_limits: whether the client may see the limits of this account:
        ``codex.rate_limits`` and the headers that count them.
    :param is_taken: whether the client has another response of an id already.
    :param client_parent: the ``previous_response_id`` that the client named, or None; it is
        shown that one also where the upstream was sent another, or none.
    :param wrap_turn_state: what the client gets in place of the upstream's turn state.
    :param new_response: the response object for an id, where the upstream gives none in time.
    :param is_background: whether the answer may end before the response does.
    :param without_secrets: removes the account's secrets from the text of a failure.
    :ivar released: whether anything of this attempt was given out for relaying.
    :ivar response_id: the id of ``response.created``; empty before.
    :ivar upstream_id: the id that the upstream gave it; empty when it gave none.
    :ivar created: ``response.created`` as the client gets it; empty before.
    :ivar turn_state: ``x-codex-turn-state`` as the upstream's event gave it, or None.
    :ivar rate_limits: the last ``codex.rate_limits`` event; empty when there was none.
    :ivar outcome: None until the attempt has ended.
    :ivar read_answer: given the type and the data of an answer to what the client said about the
        response; returns what the client gets of it, or None.
    :ivar id_is_ours: the upstream gave its response no id of its own; ``response_id`` is the
        gateway's.
    """

    def __init__(
        self,
        chained_to: str | None = None,
        pass_rate_limits: bool = True,
        is_taken: Callable[[str], bool] = lambda _: False,
        client_parent: str | None = None,
        wrap_turn_state: Callable[[str], str] = str,
        new_response: Callable[[str], Members] = lambda _: {},
        is_background: bool = False,
        without_secrets: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self._without_secrets = without_secrets
        self._client_parent = client_parent
        self._shown: dict[str, msgspec.Raw] = {}
        self._is_taken = is_taken
        self._wrap_turn_state = wrap_turn_state
        self._new_response = new_response
        self._chained_to = chained_to
        self._pass_rate_limits = pass_rate_limits
        self._is_background = is_background
        self._held: list[bytes] = []
        self._items = OutputItems()
        self.phase = StreamPhase.SENT
        self.released = False
        self.response_id = ""
        self.read_answer: Callable[[bytes, bytes], bytes | None] = lambda _, __: None
        self.id_is_ours = False
        self.upstream_id = ""
        self.turn_state: str | None = None
        self.created = b""
        self.rate_limits = b""
        self.outcome: Outcome | None = None
        self._last_numbered = b""

    @property
    def items(self) -> list[bytes]:
        """The finished output items so far, in ``output_index`` order (design law 3)."""
        return self._items.raw

    @property
    def has_output(self) -> bool:
        """Whether something beyond the preamble was given out."""
        return self.phase in (StreamPhase.OUTPUT, StreamPhase.ENDED)

    def feed(self, events: Iterable[Event]) -> list[bytes]:
        """Read a batch; return the payloads that go to the client now.

        Nothing is read once :attr:`outcome` is set.

        :param events: each under the type that its data says.
        """
        payloads: list[bytes] = []
        in_output = self.phase is StreamPhase.OUTPUT
        for name, data in events:
            if in_output and name in PASSED_UNREAD:
                payloads.append(data)
                continue
            if self.phase is StreamPhase.ENDED:
                break
            self._read(name, data, payloads)
            in_output = self.phase is StreamPhase.OUTPUT
        self._note_number(payloads)
        return payloads

    def release(self) -> list[bytes]:
        """Stop holding back: return what was held; later events pass at once."""
        held, self._held = self._held, []
        self._note_number(held)
        self.released = True
        return held

    def end_of_stream(self) -> None:
        """The stream ended; without a terminal event that is a failure."""
        if self._is_background and self.phase is StreamPhase.ACKNOWLEDGED and not self.id_is_ours:
            self._end(BackgroundResponse())
            return
        self.fail(ApiError.bad_gateway("The upstream ended its answer without finishing it."))

    def fail(self, error: ApiError) -> None:
        """End the attempt with an error; who sees it depends on what was relayed.

        An attempt that has ended stays as it ended.
        """
        if self.outcome is None:
            error = self._for_client(error)
            self._end(BrokenResponse(error) if self.released else RefusedResponse(error))

    def last_number(self) -> int:
        """The last ``sequence_number`` that was given out, -1 when there is none."""
        return sequence_number(self._last_numbered) if self._last_numbered else -1

    def _note_number(self, payloads: list[bytes]) -> None:
        """Keep the last numbered event; not every event has a number."""
        for payload in reversed(payloads):
            if payload.find(b'"sequence_number"') >= 0:
                self._last_numbered = payload
                return

    def _read(self, name: bytes, data: bytes, payloads: list[bytes]) -> None:
        try:
            if name in PASSED_UNREAD:
                self._output(data, payloads)
            elif name == b"response.metadata":
                self._metadata(strict_json(data), payloads)
            elif name in PREAMBLE:
                self._preamble(name, strict_json(data), payloads)
            elif name == b"response.output_item.done":
                self._item_done(strict_json(data), payloads)
            elif name in TERMINALS:
                self._terminal(name, strict_json(data), payloads)
            elif name in ERRORS:
                self._error(strict_json(data))
            elif name == b"codex.rate_limits":
                self.rate_limits = strict_json(data)
                if self._pass_rate_limits:
                    self._hold_or_pass(self.rate_limits, payloads)
            elif is_answer(name):
                self._control_answer(name, strict_json(data), payloads)
            elif name.startswith(b"response."):
                self._output(data, payloads)
            else:
                self._hold_or_pass(data, payloads)
        except MalformedEvent as error:
            self.fail(ApiError.bad_gateway(f"The upstream sent an unreadable event: {error}."))

    def _metadata(self, data: bytes, payloads: list[bytes]) -> None:
        turn_state = read_turn_state(data)
        if not self._pass_rate_limits:
            data = without_limit_headers(data)
        if turn_state is not None:
            self.turn_state = self.turn_state or turn_state
            data = with_turn_state(data, self._wrap_turn_state(turn_state))
        self._hold_or_pass(data, payloads)

    def _preamble(self, name: bytes, data: bytes, payloads: list[bytes]) -> None:
        if name == b"response.created" and self.created:
            return  # one response has one beginning
        head = read_response(data)
        if head is None:
            data = with_response(data, self._response_so_far())
            head = ResponseHead()
        if not self.created:
            if self._chained_to is not None and head.previous_response_id != self._chained_to:
                self._end(UnchainedResponse(head.previous_response_id))
                return
            self._choose_id(head)
            if name != b"response.created":
                self._begin(response_members(data), data, payloads)
            if self.phase is StreamPhase.SENT:
                self._enter(StreamPhase.ACKNOWLEDGED)
        shown = self._shown_in_place_of(head)
        data = with_response_members(data, shown) if shown else data
        self.created = self.created or data
        self._hold_or_pass(data, payloads)

    def _begin(self, response: Members, first: bytes, payloads: list[bytes]) -> None:
        """Give the answer the beginning that its upstream left out.

        :param response: what is known of the response.
        :param first: the event that came without one.
        """
        numbers = [sequence_number(event) for event in (*self._held, first)]
        number = next((number for number in numbers if number >= 0), 0)
        began = opening({**response, **self._shown, "id": raw_value(self.response_id)})
        self.created = created_event(began, number - 1)  # they rise, and 0 may be taken
        if self.released:
            payloads.append(self.created)
        else:
            self._held.insert(0, self.created)

    def _response_so_far(self) -> Members:
        """The response as far as the client knows it."""
        return response_members(self.created) if self.created else self._new_response("")

    def _choose_id(self, head: ResponseHead) -> None:
        """Clients continue a response by its id, so it must have one."""
        self.id_is_ours = not head.id or self._is_taken(head.id)
        self.response_id = new_response_id() if self.id_is_ours else head.id
        self.upstream_id = head.id
        if self._client_parent is not None and head.previous_response_id != self._client_parent:
            self._shown["previous_response_id"] = raw_value(self._client_parent)

    def _shown_in_place_of(self, head: ResponseHead) -> Members:
        """Members that clients get in place of those of this response object."""
        shown = dict(self._shown)
        if head.id != self.response_id:
            shown["id"] = raw_value(self.response_id)
        if head.previous_is_odd:
            shown.setdefault("previous_response_id", raw_value(None))
        return shown

    def _control_answer(self, name: bytes, data: bytes, payloads: list[bytes]) -> None:
        answer = self.read_answer(name, data)
        if answer is not None:
            self._hold_or_pass(answer, payloads)

    def _item_done(self, data: bytes, payloads: list[bytes]) -> None:
        index, raw = read_item_done(data)
        if raw is None:
            return
        self._output(data, payloads)
        if self.outcome is None:
            self._items.add(index, raw)

    def _output(self, data: bytes, payloads: list[bytes]) -> None:
        if self.phase is not StreamPhase.OUTPUT:
            if self._chained_to is not None and self.phase is StreamPhase.SENT:
                self._end(UnchainedResponse(None))
                return
            if not self.created:
                self._choose_id(ResponseHead())
                self._begin(self._new_response(self.response_id), data, payloads)
            self._enter(StreamPhase.OUTPUT)
            payloads += self.release()
        payloads.append(data)

    def _terminal(self, name: bytes, data: bytes, payloads: list[bytes]) -> None:
        if name == b"response.failed":
            data = self._without_secrets(data)
        if name == b"response.failed" and not response_members(data):
            self.fail(from_event(data) or from_failed_response(None))
            return  # what failed was no response that has an id
        head = read_response(data)
        status = TERMINALS[name].removeprefix(b"response.").decode()
        if head is None:
            if self.phase is not StreamPhase.OUTPUT:
                raise MalformedEvent(f"{name.decode()} without a response object")
            data = with_response(data, self._response_so_far())
            head = read_response(data) or ResponseHead()
        not_echoed = self._chained_to not in (None, head.previous_response_id)
        if not_echoed and self.phase is StreamPhase.SENT and status == "completed":
            self._end(UnchainedResponse(head.previous_response_id))
            return
        if not self.created:
            self._choose_id(head)
            self._begin(response_members(data), data, payloads)
        shown = self._shown_in_place_of(head)
        error = None
        if status == "failed":
            beside = None if head.error else from_event(data)
            error = self._for_client(beside or from_failed_response(head.error))
        if error is not None and isinstance(head.error, dict) and "headers" in head.error:
            shown["error"] = raw_value({**head.error, "headers": error.headers})
        ending = finish_terminal(data, name, shown, self._items)
        if error is not None and self.released and blames_others(error):
            self._end(BrokenResponse(error))
            return
        if error is not None and not self.released:
            self._end(RefusedResponse(error, (*self._held, *ending.events)))
            return
        if not self.released:
            payloads += self.release()
        payloads += ending.events
        self._items.settle(ending.items)
        reason = "interrupted" if name == b"response.cancelled" else head.incomplete_reason
        self._end(FinishedResponse(status, reason, error, read_usage(head.usage)))

    def _error(self, data: bytes) -> None:
        error = from_event(self._without_secrets(data))
        if error is not None:
            self.fail(error)
        # An empty error event announces a detailed response.failed: wait for it.

    def _for_client(self, error: ApiError) -> ApiError:
        """Leave an account's limits out, where the client may not see them."""
        if not self._pass_rate_limits:
            error.headers = without_limits(error.headers)
        return error

    def _hold_or_pass(self, data: bytes, payloads: list[bytes]) -> None:
        if not self.released and len(self._held) >= _MAX_HELD:
            payloads += self.release()
        (payloads if self.released else self._held).append(data)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._enter(StreamPhase.ENDED)

    def _enter(self, phase: StreamPhase) -> None:
        if phase is self.phase:
            return
        if phase not in TRANSITIONS[self.phase]:
            raise AssertionError(f"an attempt cannot go from {self.phase} to {phase}")
        self.phase = phase
