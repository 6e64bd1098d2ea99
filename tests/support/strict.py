"""A small strict Responses server for tests: it refuses what the real ones refuse.

The rules are those of protocol.md §5.3 and §8.1; `Mode` says which kind of upstream it plays.
"""

from __future__ import annotations

import enum
import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.events import (
    Json,
    call_item,
    error_body,
    reasoning_item,
    text_item,
    user,
)
from tests.support.upstream import Exchange, Recorded, Upstream, sse_bytes

Brain = Callable[[list[Json], "Strict"], list[Json]]
FORBIDDEN = ("type", "generate", "stream_id")
SEALS = "reasoning.encrypted_content"


class Mode(enum.Enum):
    """What the upstream does with previous_response_id."""

    STATEFUL = "stateful"  # knows every response it made, store:false included
    STATELESS = "stateless"  # refuses the parameter
    FORGETFUL = "forgetful"  # accepts and ignores it: echoes null, answers without history
    STORED_ONLY = "stored only"  # store:false responses are not found afterwards


@dataclass
class Refusal(Exception):
    """A request error: status and body."""

    status: int
    body: Json


class Strict:
    """One upstream account with its own memory and its own server."""

    lists_no_output = False  # whether its terminal events have an empty `output`
    seals_on_request = False  # else always, and only `store: false` asks for seals

    def __init__(self, name: str, mode: Mode = Mode.STATEFUL, brain: Brain | None = None) -> None:
        self.name = name
        self.mode = mode
        self.brain = brain or tool_loop
        self.transcripts: dict[str, list[Json]] = {}
        self.items: dict[str, Json] = {}  # what a request may name by its id
        self.order: list[str] = []  # ids of the answers given, in order
        self.refusals: list[str] = []  # the bodies of its refusals, in order
        self.before_answer: Callable[[Exchange], bool] | None = None
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self.server = Upstream(self.script)

    @property
    def requests(self) -> list[Recorded]:
        """Every request that arrived, refused ones included."""
        return self.server.requests

    @property
    def accepted(self) -> list[Recorded]:
        """The requests that were answered and not abandoned by the gateway."""
        kept = [r for r in self.requests if not r.refused and not r.gone.is_set()]
        if self.mode is Mode.FORGETFUL:  # a trial may be over before it is abandoned
            kept = [r for r in kept if r.previous_response_id is None]
        return kept

    def forget(self) -> None:
        """As after a restart: every id is unknown."""
        self.transcripts.clear()
        self.items.clear()

    def script(self, exchange: Exchange) -> None:
        # A hook for one-off trouble; True means it answered itself.
        if self.before_answer is not None and self.before_answer(exchange):
            return
        try:
            with self._lock:
                transcript, parent = self._accept(exchange.request.body)
        except Refusal as refusal:
            exchange.request.refused = True
            self.refusals.append(json.dumps(refusal.body))
            exchange.json(refusal.status, refusal.body)
            return
        body = exchange.request.body
        store = body.get("store", True)
        response_id = f"resp_{self.name}_{uuid.uuid4().hex}"
        items = self.brain(transcript, self)
        exchange.request.response_id = response_id
        if self.mode is not Mode.STATELESS and (self.mode is not Mode.STORED_ONLY or store):
            self.transcripts[response_id] = [*transcript, *items]
        if self.mode in (Mode.STATEFUL, Mode.STORED_ONLY) and store:
            self.items.update((item["id"], item) for item in items)
        self.order.append(response_id)
        if self.seals_on_request and SEALS not in (body.get("include") or []):
            items = [unsealed(item) for item in items]
        events = exchange.turn(
            items,
            response_id=response_id,
            previous_response_id=parent,
            empty_output=self.lists_no_output,
        )
        exchange.chunks(*self.written(events))
        exchange.end()

    def written(self, events: list[Json]) -> list[bytes]:
        """The events of one answer as its stream has them."""
        return [sse_bytes(event) for event in events]

    def seal(self) -> str:
        """encrypted_content that only this account can read."""
        return f"sealed:{self.name}:{next(self._count)}"

    # ---- rules

    def check_service(self, body: Json) -> None:
        """Refuse what the service does not take, whatever the conversation is."""

    def _accept(self, body: Json) -> tuple[list[Json], str | None]:
        self.check_service(body)
        for name in FORBIDDEN:
            if name in body:
                raise refuse("unsupported_parameter", f"Unsupported parameter: {name}", name)
        if body.get("stream") is not True:
            raise refuse("unsupported_parameter", "Stream must be true", "stream")
        history: list[Json] = []
        parent = body.get("previous_response_id")
        if parent is not None:
            if self.mode is Mode.STATELESS:
                detail = {"detail": "Unsupported parameter: previous_response_id"}
                raise Refusal(400, detail)
            if self.mode is Mode.FORGETFUL:
                parent = None
            elif parent not in self.transcripts:
                message = f"Previous response with id '{parent}' not found."
                raise refuse("previous_response_not_found", message, "previous_response_id")
            else:
                history = self.transcripts[parent]
        given = body.get("input")
        new = [user(given)] if isinstance(given, str) else [*map(self._named, given or [])]
        transcript = [*history, *new]
        self._check(transcript, self.seals_on_request or not body.get("store", True))
        return transcript, parent

    def _named(self, item: Json) -> Json:
        """The item itself, or the one that it names."""
        if item.get("type") != "item_reference":
            return item
        if item["id"] not in self.items:
            raise not_found(item["id"])
        return self.items[item["id"]]

    def _check(self, transcript: list[Json], sealed_only: bool) -> None:
        seen_ids: set[str] = set()
        open_calls: dict[str, None] = {}
        known_calls: set[str] = set()
        for item in transcript:
            kind = str(item.get("type", "message"))
            item_id = item.get("id")
            if item_id is not None:
                if item_id in seen_ids:
                    raise refuse(None, f"Duplicate item found with id {item_id}.", "input")
                seen_ids.add(item_id)
            sealed = item.get("encrypted_content")
            if sealed is not None and f":{self.name}:" not in str(sealed):
                message = "The encrypted content could not be verified."
                raise refuse("invalid_encrypted_content", message, None)
            if kind == "reasoning" and not sealed and sealed_only and item_id not in self.items:
                raise not_found(item_id)
            if kind.endswith("_call_output"):
                call_id = item["call_id"]
                if call_id not in known_calls:
                    what = kind.removesuffix("_output").replace("_", " ")
                    message = f"No tool call found for {what} output with call_id {call_id}."
                    raise refuse(None, message, "input")
                open_calls.pop(call_id, None)
            elif kind.endswith("_call") and "call_id" in item:
                known_calls.add(item["call_id"])
                open_calls[item["call_id"]] = None
        if open_calls:
            first = next(iter(open_calls))
            raise refuse(None, f"No tool output found for function call {first}.", "input")


def unsealed(item: Json) -> Json:
    """As who did not ask for sealed reasoning gets it."""
    return {name: value for name, value in item.items() if name != "encrypted_content"}


def not_found(item_id: object) -> Refusal:
    message = (
        f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false."
        " Try again with `store` set to true, or remove this item from your input."
    )
    return Refusal(404, error_body(None, message, param="input"))


def refuse(code: str | None, message: str, param: str | None) -> Refusal:
    return Refusal(400, error_body(code, message, param=param))


def said(item: Json) -> str:
    """The text of a message item, '' for others."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [] if isinstance(part, dict))


def tool_loop(transcript: list[Json], strict: Strict) -> list[Json]:
    """The scripted model: `rounds=N` asks for N tool calls, `recall` for all user texts."""
    texts = [said(item) for item in transcript if item.get("role") == "user"]
    last = texts[-1] if texts else ""
    since = 0
    for item in transcript:
        if item.get("role") == "user":
            since = 0
        elif str(item.get("type", "")).endswith("_call_output"):
            since += 1
    thought = reasoning_item(strict.seal())
    wanted = re.search(r"rounds=(\d+)", last)
    if wanted and since < int(wanted.group(1)):
        return [thought, call_item(f"call_{strict.name}_{len(transcript)}_{since}")]
    if "recall" in last:
        return [thought, text_item(" | ".join(texts))]
    outputs = [str(i["output"]) for i in transcript if str(i.get("type")).endswith("_output")]
    return [thought, text_item(f"{strict.name} done: {last} {' '.join(outputs)}".strip())]
