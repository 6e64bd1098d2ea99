"""A small strict Responses server for tests: it refuses what the real ones refuse.

The rules are those of protocol.md §5.3, §8.1 and §8.7; `Mode` says which kind of upstream it plays.
With `take_websockets` its connections may be upgraded, too.
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
from tests.support.websocket_upstream import SocketExchange, UpstreamSocket, WebSocketUpstream

Brain = Callable[[list[Json], "Strict"], list[Json]]
FORBIDDEN = ("type", "generate", "stream_id")
FORBIDDEN_ON_SOCKETS = ("stream", "background", "stream_id")
#: What a service takes over a socket whatever it refuses over HTTP.
OF_SOCKETS = ("type", "generate", "previous_response_id")
SEALS = "reasoning.encrypted_content"


class Mode(enum.Enum):
    """What the upstream does with previous_response_id.

    Over a socket each but the forgetful one also knows the latest response of that socket, and
    `store: false` responses are known in no other way.
    """

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
        self.before_events: Callable[[Exchange, list[Json]], bool] | None = None
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._latest: dict[UpstreamSocket, tuple[str, list[Json]]] = {}
        self.server: Upstream = Upstream(self.script)

    def take_websockets(self) -> None:
        """Let connections be upgraded; before the first one."""
        self.server = WebSocketUpstream(self.script)

    @property
    def websockets(self) -> WebSocketUpstream:
        """Its server as one of WebSockets."""
        assert isinstance(self.server, WebSocketUpstream), "it takes no WebSockets"
        return self.server

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

    @property
    def generated(self) -> list[Recorded]:
        """The requests that the model answered: no refusals, no prewarms."""
        given = set(self.order)
        return [each for each in self.requests if each.response_id in given]

    def forget(self) -> None:
        """As after a restart: every id is unknown."""
        self.transcripts.clear()
        self._latest.clear()
        self.items.clear()

    def script(self, exchange: Exchange) -> None:
        # Hooks for one-off trouble; True means they answered themselves.
        if self.before_answer is not None and self.before_answer(exchange):
            return
        try:
            with self._lock:
                transcript, parent = self._accept(exchange)
        except Refusal as refusal:
            exchange.request.refused = True
            self.refusals.append(json.dumps(refusal.body))
            if isinstance(exchange, SocketExchange):
                self._latest.pop(exchange.socket, None)
            exchange.json(refusal.status, refusal.body)
            return
        body = exchange.request.body
        prewarm = body.get("generate") is False
        response_id = f"resp_{self.name}_{uuid.uuid4().hex}"
        items = [] if prewarm else self.brain(transcript, self)
        exchange.request.response_id = response_id
        self.remember(exchange, response_id, [*transcript, *items])
        if self.mode in (Mode.STATEFUL, Mode.STORED_ONLY) and body.get("store", True):
            self.items.update((item["id"], item) for item in items)
        if not prewarm:
            self.order.append(response_id)
        if self.seals_on_request and SEALS not in (body.get("include") or []):
            items = [unsealed(item) for item in items]
        events = exchange.turn(
            items,
            response_id=response_id,
            previous_response_id=parent,
            empty_output=self.lists_no_output,
        )
        if self.before_events is not None and self.before_events(exchange, events):
            return
        if isinstance(exchange, SocketExchange):
            exchange.sse(*self.listed(events))
        else:
            exchange.chunks(*self.written(events))
        exchange.end()

    def remember(self, exchange: Exchange, response_id: str, transcript: list[Json]) -> None:
        """Know a response from now on, as far as its mode and transport allow."""
        store = exchange.request.body.get("store", True)
        known = self.mode is Mode.STATEFUL or self.mode is Mode.FORGETFUL
        if isinstance(exchange, SocketExchange):
            self._latest[exchange.socket] = response_id, transcript
            known = self.mode is not Mode.STATELESS and store
        elif self.mode is Mode.STORED_ONLY:
            known = store
        if known:
            self.transcripts[response_id] = transcript

    def listed(self, events: list[Json]) -> list[Json]:
        """The events of one answer as it tells them."""
        return events

    def written(self, events: list[Json]) -> list[bytes]:
        """The events of one answer as its stream has them."""
        return [sse_bytes(event) for event in self.listed(events)]

    def seal(self) -> str:
        """encrypted_content that only this account can read."""
        return f"sealed:{self.name}:{next(self._count)}"

    # ---- rules

    def check_service(self, body: Json) -> None:
        """Refuse what the service does not take, whatever the conversation is."""

    def _accept(self, exchange: Exchange) -> tuple[list[Json], str | None]:
        body = exchange.request.body
        over_socket = isinstance(exchange, SocketExchange)
        self.check_service(_as_over_http(body) if over_socket else body)
        for name in FORBIDDEN_ON_SOCKETS if over_socket else FORBIDDEN:
            if name in body:
                raise refuse("unsupported_parameter", f"Unsupported parameter: {name}", name)
        if not over_socket and body.get("stream") is not True:
            raise refuse("unsupported_parameter", "Stream must be true", "stream")
        history: list[Json] = []
        parent = body.get("previous_response_id")
        if self.mode is Mode.FORGETFUL:
            parent = None
        if parent is not None:
            history = self._known(parent, exchange)
        given = body.get("input")
        new = [user(given)] if isinstance(given, str) else [*map(self._named, given or [])]
        transcript = [*history, *new]
        self._check(transcript, self.seals_on_request or not body.get("store", True))
        return transcript, parent

    def _known(self, response_id: str, exchange: Exchange) -> list[Json]:
        """The transcript up to this response."""
        if isinstance(exchange, SocketExchange):
            latest = self._latest.get(exchange.socket)
            if latest is not None and latest[0] == response_id:
                return latest[1]
        elif self.mode is Mode.STATELESS:
            raise Refusal(400, {"detail": "Unsupported parameter: previous_response_id"})
        if response_id not in self.transcripts:
            message = f"Previous response with id '{response_id}' not found."
            raise refuse("previous_response_not_found", message, "previous_response_id")
        return self.transcripts[response_id]

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


def _as_over_http(body: Json) -> Json:
    """A message of a socket as the rules of a service are written."""
    return {**{k: v for k, v in body.items() if k not in OF_SOCKETS}, "stream": True}


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
