"""One account's side of the API: checks requests, asks the model, stores responses.

Responses in the background are made on the simulator's clock; they can be read, followed and
cancelled meanwhile.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from simulator.accounts import SimulatedAccount
from simulator.events import (
    Event,
    completed,
    item_events,
    numbered,
    opening_events,
    response_object,
    usage_object,
)
from simulator.faults import Headers, Steps
from simulator.items import (
    CALL_TYPES,
    ID_PREFIXES,
    ContentCipher,
    Item,
    estimated_tokens,
    input_items,
    new_id,
    tools_of,
)
from simulator.model import Model, ModelTurn
from simulator.validation import (
    Refusal,
    bad_request,
    check_context,
    check_new_items,
    check_parameters,
    expand_references,
    unsupported_parameter,
)

_AT_ONCE = ("response.created", "response.queued")


@dataclass(frozen=True)
class Resolved:
    """A request with the conversation that it continues."""

    request: dict[str, Any]
    parent: Record | None
    inherited: Sequence[Item]
    new: Sequence[Item]

    @property
    def context(self) -> list[Item]:
        """All items that the model reads, in order."""
        return [*self.inherited, *self.new]

    @property
    def cached_tokens(self) -> int:
        """The tokens of the conversation so far."""
        return estimated_tokens(list(self.inherited))

    @property
    def tokens(self) -> int:
        """The tokens of the whole input."""
        around = [self.request.get("instructions"), self.request.get("tools")]
        return self.cached_tokens + estimated_tokens(list(self.new)) + estimated_tokens(around)


@dataclass(frozen=True)
class Answer:
    """The answer to an accepted request.

    :ivar response: the response as it begins.
    :ivar final: the response as it ends.
    :ivar store: stores the response as a record has it, if it is to be stored.
    """

    response_id: str
    context: Sequence[Item]
    response: dict[str, Any]
    final: dict[str, Any]
    record: Record
    store: Callable[[Record], None]

    def keep(self) -> None:
        """Store the response as it ends."""
        self.store(self.record)

    def events(self) -> Iterator[Event]:
        """The whole event sequence, without numbers."""
        yield from opening_events(self.response)
        for index, item in enumerate(self.final["output"]):
            yield from item_events(index, item)
        yield {"type": "response.completed", "response": self.final}


class AccountEngine:
    """One account's side of the API.

    :param model: answers the turns.
    :param store: the stored responses.
    :param now: unix seconds.
    """

    def __init__(
        self,
        account: SimulatedAccount,
        model: Model,
        *,
        store: ResponseStore | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.account = account
        self.store = ResponseStore() if store is None else store
        self._model = model
        self._cipher = ContentCipher(account.key)
        self._now = now

    def answer(
        self,
        body: object,
        size: int = 0,
        *,
        remembered: FindRecord | None = None,
        prewarms: bool = False,
        response_id: str | None = None,
    ) -> Answer:
        """Answer a request.

        :param size: the bytes of its body.
        :param remembered: finds a response in the memory of the request's WebSocket; None over
            HTTP.
        :param prewarms: the model is not asked; the input can be continued.
        :param response_id: the id of the response; by default a new one.
        :raises Refusal: when the API does not accept it.
        """
        request = check_parameters(body)
        stored = self._stores(request)
        if request.get("background"):
            self._check_background(stored)
        resolved = self.resolve(request, remembered)
        context, parent = resolved.context, resolved.parent
        response = response_object(
            request,
            response_id=response_id or new_id("resp"),
            created_at=int(self._now()),
            previous_response_id=parent.response_id if parent else None,
            store=stored,
        )
        output = [] if prewarms else self.generate(context, request)
        usage = usage_object(resolved.tokens, resolved.cached_tokens, estimated_tokens(output))
        final = completed(response, output, usage, int(self._now()))
        record = Record(response["id"], parent, resolved.new, output, final, size)

        def store(ended: Record) -> None:
            if stored and self.account.mode == "stateful":
                self.store.keep(ended)

        return Answer(response["id"], context, response, final, record, store)

    def resolve(self, request: dict[str, Any], remembered: FindRecord | None = None) -> Resolved:
        """Find the conversation that a checked request continues.

        :param remembered: as in :meth:`answer`.
        :raises Refusal: when there is none, or it cannot be continued.
        """
        model = request.get("model")
        if self.account.models and model is not None and model not in self.account.models:
            message = f"The requested model '{model}' does not exist."
            raise bad_request(message, "model", "model_not_found")
        _refuse_unknown_sources(request)
        parent = self._parent(request.get("previous_response_id"), remembered)
        find = self._finder(self._stores(request))
        new = expand_references(input_items(request.get("input")), find)
        check_new_items(new, find, self._cipher.issued)
        resolved = Resolved(request, parent, parent.context() if parent else [], new)
        check_context(resolved.context)
        return resolved

    def _check_background(self, stored: bool) -> None:
        if self.account.mode != "stateful":
            raise unsupported_parameter("background")
        if not stored:
            raise bad_request("Background mode requires 'store' to be true.", "background")

    def _stores(self, request: dict[str, Any]) -> bool:
        return self.account.mode != "stateless" and request.get("store") is not False

    def _parent(self, response_id: str | None, remembered: FindRecord | None) -> Record | None:
        if response_id is None or self.account.mode == "forgetful":
            return None
        found = None if remembered is None else remembered(response_id)
        if found is not None:
            return found
        if self.account.mode == "stateless" and remembered is None:
            message = "Previous response cannot be used for this organization due to"
            message += " Zero Data Retention."
            raise bad_request(message, "previous_response_id", "unsupported_parameter")
        record = self.store.get(response_id)
        if record is None:
            message = f"Previous response with id '{response_id}' not found."
            raise bad_request(message, "previous_response_id", "previous_response_not_found")
        if record.run is not None and not record.run.is_over:
            message = f"Previous response with id '{response_id}' has not ended yet."
            raise bad_request(message, "previous_response_id")
        return record

    def _finder(self, stored: bool) -> Callable[[str], Item | None]:
        """Finds items given by id alone; a forgetful account claims to have any."""
        if self.account.mode == "forgetful" and stored:
            return lambda item_id: {"type": "reasoning", "id": item_id, "summary": []}
        return self.store.item

    def turn(self, context: Sequence[Item], request: dict[str, Any]) -> ModelTurn:
        """The turn that the model is given for a context."""
        tools = tools_of(request.get("tools"), context)
        return ModelTurn(context, tools, request, self._cipher.encrypt, self._cipher.decrypt)

    def generate(self, context: Sequence[Item], request: dict[str, Any]) -> list[Item]:
        """The model's output items for a context, complete with ids."""
        items = self._model.respond(self.turn(context, request))
        is_compaction = any(item["type"] == "compaction" for item in items)
        if isinstance(request.get("reasoning"), dict) and not is_compaction:
            items = [self._reasoning(request), *items]
        return [_finished(item) for item in items]

    def _reasoning(self, request: dict[str, Any]) -> Item:
        item: Item = {"type": "reasoning", "summary": []}
        if "reasoning.encrypted_content" in (request.get("include") or ()):
            item["encrypted_content"] = self._cipher.encrypt({"reasoning": self.account.name})
        return item


def _refuse_unknown_sources(request: dict[str, Any]) -> None:
    """The simulator has no conversations and no stored prompts."""
    for name in ("conversation", "prompt"):
        source = request.get(name)
        if source is not None:
            source_id = source.get("id") if isinstance(source, dict) else source
            message = f"{name.capitalize()} with id '{source_id}' not found."
            raise Refusal(404, message, param=name)


def _finished(item: Item) -> Item:
    """The model's item with the id, status and call id that the API adds."""
    kind = item["type"]
    given: Item = {"id": new_id(ID_PREFIXES.get(kind, "item")), "type": kind}
    if kind not in ("reasoning", "compaction"):
        given["status"] = "completed"
    if kind in CALL_TYPES:
        given["call_id"] = new_id("call")
    return {**given, **item}


@dataclass(frozen=True, eq=False)
class Record:
    """A stored response; it holds its parent, so that a chain outlives the eviction of its root.

    :ivar size: the bytes of its request.
    :ivar run: makes it, if it is made in the background.
    """

    response_id: str
    parent: Record | None
    input: Sequence[Item]
    output: Sequence[Item]
    response: Item = field(repr=False)
    size: int = 0
    run: BackgroundRun | None = field(default=None, repr=False)

    def context(self) -> list[Item]:
        """All items from the root of the chain to the output of this response."""
        chain: list[Record] = []
        record: Record | None = self
        while record is not None:
            chain.append(record)
            record = record.parent
        items: list[Item] = []
        for record in reversed(chain):
            items += record.input
            items += record.output
        return items


#: Finds a response by its id.
FindRecord = Callable[[str], Record | None]


class ResponseStore:
    """The stored responses of one account and their items; the oldest are evicted first.

    :param delay: a response is found only so many seconds after it was stored.
    :param now: the time in seconds.
    """

    def __init__(
        self,
        max_count: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        *,
        delay: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._delay = delay
        self._now = now
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._stored_at: dict[str, float] = {}
        self._items: dict[str, Item] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, record: Record) -> None:
        """Store a response, in place of its earlier state."""
        stored_at = self._stored_at.get(record.response_id, self._now())
        self.forget(record.response_id)
        self._stored_at[record.response_id] = stored_at
        self._records[record.response_id] = record
        self._bytes += record.size
        for item in (*record.input, *record.output):
            if isinstance(item.get("id"), str):
                self._items[item["id"]] = item
        while len(self._records) > self._max_count or (
            self._bytes > self._max_bytes and len(self._records) > 1
        ):
            self.forget(next(iter(self._records)))

    def get(self, response_id: str) -> Record | None:
        """A stored response."""
        record = self._records.get(response_id)
        if record is None or self._now() < self._stored_at[response_id] + self._delay:
            return None
        return record

    def item(self, item_id: str) -> Item | None:
        """A stored item."""
        return self._items.get(item_id)

    def forget(self, response_id: str) -> None:
        """Remove a response."""
        record = self._records.pop(response_id, None)
        if record is None:
            return
        del self._stored_at[response_id]
        self._bytes -= record.size
        for item in (*record.input, *record.output):
            self._items.pop(item.get("id", ""), None)


class BackgroundRun:
    """One background response from ``queued`` to its end.

    :param events: its events, spread evenly over the time.
    :param keep: called with each new state of the record.
    :param seconds: the time from its start to its end.
    :param streamed: whether it was requested as a stream; only then can it be streamed again.
    """

    def __init__(
        self,
        record: Record,
        events: Iterable[Any],
        *,
        keep: Callable[[Record], None],
        clock: IReactorTime,
        seconds: float,
        streamed: bool,
    ) -> None:
        self.response: dict[str, Any] = record.response
        self.streamed = streamed
        self.is_over = False
        self._record = record
        self._keep = keep
        self._clock = clock
        self._made: list[Event] = []
        self._coming = deque(step for step in numbered(iter(events)) if isinstance(step, dict))
        self._pause = seconds / max(1, len(self._coming))
        self._started = clock.seconds()
        self._timer: IDelayedCall | None = None
        self._followers: list[Deferred[None]] = []

    def start(self) -> None:
        """Become ``queued`` at once, and go on as time passes."""
        while self._coming and self._coming[0]["type"] in _AT_ONCE:
            self._step()
        self._go_on()

    def follow(self, after: int = -1) -> Steps:
        """The events after a sequence number, with a wait for each one that is still to come."""
        position = after + 1
        if position >= len(self._made) and not self.is_over:
            yield Headers.NOW
        while True:
            while position < len(self._made):
                yield self._made[position]
                position += 1
            if self.is_over:
                return
            yield self._change()

    def cancel(self) -> None:
        """Cancel, if it has not ended. Its streams end without a terminal event."""
        if not self.is_over:
            self._become({**self.response, "status": "cancelled", "output": []})
            self.stop()

    def stop(self) -> None:
        """Make no more events, and leave the stored state as it is."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_followers()

    def _go_on(self) -> None:
        if self._coming:
            due = self._started + self._pause * len(self._made)
            wait = max(0.0, due - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._due)
        else:
            self.stop()

    def _due(self) -> None:
        self._timer = None
        self._step()
        self._go_on()

    def _step(self) -> None:
        event = self._coming.popleft()
        self._made.append(event)
        if "response" in event:
            self._become(event["response"])
        self._tell_followers()

    def _become(self, response: dict[str, Any]) -> None:
        self.response = response
        output = response["output"]
        self._keep(replace(self._record, response=response, output=output, run=self))

    def _change(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(self._followers.remove)
        self._followers.append(waiting)
        return waiting

    def _tell_followers(self) -> None:
        followers, self._followers = self._followers, []
        for waiting in followers:
            waiting.callback(None)
