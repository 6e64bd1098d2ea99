"""What one account answers: checks, resolves, asks the model and keeps the response (sans-IO)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.accounts import SimulatedAccount
from simulator.events import (
    Event,
    completed,
    item_events,
    opening_events,
    response_object,
    usage_object,
)
from simulator.items import (
    CALL_TYPES,
    Item,
    estimated_tokens,
    input_items,
    new_id,
    tools_of,
)
from simulator.model import Model, ModelTurn
from simulator.parameters import check_parameters
from simulator.refusals import (
    Refusal,
    bad_request,
    model_not_found,
    previous_response_not_found,
    unsupported_parameter,
    zero_data_retention,
)
from simulator.sealing import Seal
from simulator.store import Record, ResponseStore
from simulator.validation import check_context, check_new_items, expand_references

_ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "compaction": "cmp",
}


@dataclass(frozen=True)
class Resolved:
    """A request together with the conversation it continues."""

    request: dict[str, Any]
    parent: Record | None
    inherited: Sequence[Item]
    new: Sequence[Item]

    @property
    def context(self) -> list[Item]:
        """Everything the model reads, in order."""
        return [*self.inherited, *self.new]

    @property
    def cached_tokens(self) -> int:
        return estimated_tokens(list(self.inherited))

    @property
    def tokens(self) -> int:
        """What the request's whole input counts."""
        around = [self.request.get("instructions"), self.request.get("tools")]
        return self.cached_tokens + estimated_tokens(list(self.new)) + estimated_tokens(around)


@dataclass(frozen=True)
class Answer:
    """An accepted request and everything it will be answered with."""

    response_id: str
    context: Sequence[Item]
    response: dict[str, Any]
    final: dict[str, Any]
    record: Record
    keep: Callable[[], None]

    def events(self) -> Iterator[Event]:
        """The whole event sequence, not yet numbered."""
        yield from opening_events(self.response)
        for index, item in enumerate(self.final["output"]):
            yield from item_events(index, item)
        yield {"type": "response.completed", "response": self.final}


class AccountEngine:
    """One account's side of the API."""

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
        self._seal = Seal(account.key)
        self._now = now

    def answer(self, body: object, size: int = 0) -> Answer:
        """The answer to a request body of so many bytes; Refusal if the API would not take it."""
        request = check_parameters(body)
        stored = self._stores(request)
        if request.get("background"):
            self._check_background(stored)
        resolved = self.resolve(request)
        context, parent = resolved.context, resolved.parent
        response = response_object(
            request,
            response_id=new_id("resp"),
            created_at=int(self._now()),
            previous_response_id=parent.response_id if parent else None,
            store=stored,
        )
        output = self.generate(context, request)
        usage = usage_object(resolved.tokens, resolved.cached_tokens, estimated_tokens(output))
        final = completed(response, output, usage, int(self._now()))
        record = Record(response["id"], parent, resolved.new, output, final, size)

        def keep() -> None:
            if stored and self.account.mode == "stateful":
                self.store.keep(record)

        return Answer(response["id"], context, response, final, record, keep)

    def resolve(self, request: dict[str, Any]) -> Resolved:
        """The conversation a checked request continues; Refusal if it is none to go on with."""
        model = request.get("model")
        if self.account.models and model is not None and model not in self.account.models:
            raise model_not_found(model)
        _refuse_unknown_sources(request)
        parent = self._parent(request.get("previous_response_id"))
        find = self._finder(self._stores(request))
        new = expand_references(input_items(request.get("input")), find)
        check_new_items(new, find, self._seal.issued)
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

    def _parent(self, response_id: str | None) -> Record | None:
        if response_id is None or self.account.mode == "forgetful":
            return None
        if self.account.mode == "stateless":
            raise zero_data_retention()
        record = self.store.get(response_id)
        if record is None:
            raise previous_response_not_found(response_id)
        if record.run is not None and not record.run.is_over:
            message = f"Previous response with id '{response_id}' has not ended yet."
            raise bad_request(message, "previous_response_id")
        return record

    def _finder(self, stored: bool) -> Callable[[str], Item | None]:
        """How items named by id alone are found; who keeps nothing by design asks nothing."""
        if self.account.mode == "forgetful" and stored:
            return lambda item_id: {"type": "reasoning", "id": item_id, "summary": []}
        return self.store.item

    def turn(self, context: Sequence[Item], request: dict[str, Any]) -> ModelTurn:
        """What the model is given to answer a context."""
        tools = tools_of(request.get("tools"), context)
        return ModelTurn(context, tools, request, self._seal.close, self._seal.open)

    def generate(self, context: Sequence[Item], request: dict[str, Any]) -> list[Item]:
        """The model's answer to a context, with ids and all."""
        items = self._model.respond(self.turn(context, request))
        is_compaction = any(item["type"] == "compaction" for item in items)
        if isinstance(request.get("reasoning"), dict) and not is_compaction:
            items = [self._reasoning(request), *items]
        return [_finished(item) for item in items]

    def _reasoning(self, request: dict[str, Any]) -> Item:
        item: Item = {"type": "reasoning", "summary": []}
        if "reasoning.encrypted_content" in (request.get("include") or ()):
            item["encrypted_content"] = self._seal.close({"reasoning": self.account.name})
        return item


def _refuse_unknown_sources(request: dict[str, Any]) -> None:
    """Conversations and stored prompts exist nowhere here."""
    for name in ("conversation", "prompt"):
        source = request.get(name)
        if source is not None:
            source_id = source.get("id") if isinstance(source, dict) else source
            message = f"{name.capitalize()} with id '{source_id}' not found."
            raise Refusal(404, message, param=name)


def _finished(item: Item) -> Item:
    """The model's item with the id, status and call id that the API gives it."""
    kind = item["type"]
    given: Item = {"id": new_id(_ID_PREFIXES.get(kind, "item")), "type": kind}
    if kind not in ("reasoning", "compaction"):
        given["status"] = "completed"
    if kind in CALL_TYPES:
        given["call_id"] = new_id("call")
    return {**given, **item}
