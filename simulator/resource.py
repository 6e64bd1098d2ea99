"""The simulator's HTTP face: lets requests in, finds their endpoint, writes what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from simulator import catalogue, chat, compaction, counting, handlers, retrieval
from simulator.dialects import check_dialect
from simulator.encodings import decoded
from simulator.endpoints import Endpoint, find_target
from simulator.engine import AccountEngine
from simulator.exchange import Exchange
from simulator.faults import Refuse
from simulator.headers import account_headers, common_headers
from simulator.refusals import Refusal, invalid_api_key
from simulator.replies import Reply
from simulator.request_log import LoggedRequest, Outcome
from simulator.stream import AnswerStream

if TYPE_CHECKING:
    from simulator.simulator import Simulator

_log = Logger()

_ENDPOINTS: Mapping[Endpoint, Callable[[Exchange], Reply]] = {
    "create": handlers.create,
    "retrieve": handlers.retrieve,
    "delete": retrieval.delete,
    "cancel": handlers.cancel,
    "input_items": retrieval.input_items,
    "input_tokens": counting.input_tokens,
    "compact": compaction.compact,
    "chat": chat.chat,
    "models": catalogue.models,
    "model": catalogue.model,
}


class SimulatorResource(Resource):
    """The whole site as one leaf: few paths, and each account known by its key."""

    isLeaf = True

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator

    def render(self, request: Request) -> bytes | int:
        assert request.content is not None
        raw = request.content.read()
        began = time.monotonic()
        entry = _logged(request, len(raw), self._simulator.clock.seconds())
        self._simulator.requests.add(entry)
        try:
            exchange = self._admitted(request, entry, raw)
            if isinstance(exchange.fault, Refuse):
                return _refuse(request, entry, exchange.fault.status, exchange.fault.body)
            reply = self._answered(exchange)
        except Refusal as refusal:
            _set_headers(request, refusal.headers)
            entry.error = refusal.error
            return _refuse(request, entry, refusal.status, refusal.body)
        finally:
            for name, value in common_headers(time.monotonic() - began).items():
                if not request.responseHeaders.hasHeader(name):
                    request.setHeader(name, value)
        entry.status = 200
        request.setHeader(b"content-type", reply.content_type.encode())
        _set_headers(request, reply.headers)
        return self._write(request, entry, reply)

    def _admitted(self, request: Request, entry: LoggedRequest, raw: bytes) -> Exchange:
        """The request with its account, its endpoint and its fault; Refusal of one not let in."""
        engine = self._engine(request)
        entry.account = engine.account.name
        target = find_target(entry.method, entry.path, self._simulator.prefixes)
        entry.endpoint = target.endpoint
        _set_headers(request, account_headers(engine.account, target.endpoint))
        if entry.method == "POST" and (raw or target.endpoint != "cancel"):
            kind, taken = entry.headers.get("content-type", ""), engine.account.taken_encodings
            entry.body = decoded(raw, kind, entry.content_encoding, taken)
        fault = self._simulator.faults.take(entry.account, target.endpoint)
        _set_headers(request, fault.extra_headers())
        return Exchange(self._simulator, engine, entry, fault, target.named)

    def _engine(self, request: Request) -> AccountEngine:
        for name in ("authorization", "api-key"):
            value = (request.getHeader(name.encode()) or b"").decode("latin-1").strip()
            if name == "authorization":
                scheme, _, value = value.partition(" ")
                value = value.strip() if scheme.lower() == "bearer" else ""
            engine = self._simulator.engine_of_key(value)
            if engine is not None and engine.account.auth_header == name:
                return engine
        raise invalid_api_key()

    def _answered(self, exchange: Exchange) -> Reply:
        endpoint = exchange.entry.endpoint
        assert endpoint is not None
        try:
            check_dialect(exchange.engine.account, endpoint, exchange.body)
            return _ENDPOINTS[endpoint](exchange)
        except Refusal:
            raise
        except Exception as error:
            _log.failure("The simulated model failed")
            message = "The model failed."
            raise Refusal(500, message, kind="server_error", code="server_error") from error

    def _write(self, request: Request, entry: LoggedRequest, reply: Reply) -> bytes | int:
        if isinstance(reply.written, list) and all(
            isinstance(each, bytes) for each in reply.written
        ):
            entry.outcome = "completed"
            return b"".join(reply.written)

        is_json = isinstance(reply.written, list)

        def ended(outcome: Outcome | None) -> None:
            self._simulator.streams.discard(stream)
            if entry.outcome == "running":
                entry.outcome = outcome or ("completed" if is_json else "ended")

        clock, delay = self._simulator.clock, self._simulator.event_delay
        stream = AnswerStream(request, iter(reply.written), clock, delay, ended)
        self._simulator.streams.add(stream)
        stream.start()
        return NOT_DONE_YET


def _logged(request: Request, size: int, at: float) -> LoggedRequest:
    """A request as it arrived; of headers that came several times the last."""
    headers = {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
    query = {
        name.decode("utf-8", "replace"): [value.decode("utf-8", "replace") for value in values]
        for name, values in (request.args or {}).items()
    }
    return LoggedRequest(
        None,
        headers,
        None,
        size,
        method=request.method.decode("latin-1"),
        path=request.path.decode("latin-1").rstrip("/"),
        query=query,
        content_encoding=headers.get("content-encoding"),
        at=at,
    )


def _set_headers(request: Request, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        request.setHeader(name.lower(), value)


def _refuse(request: Request, entry: LoggedRequest, status: int, body: Any) -> bytes:
    """A whole answer; a body of text or bytes goes out as it is."""
    entry.status = status
    if entry.error is None:
        entry.error = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
    entry.outcome = "refused"
    request.setResponseCode(status)
    if isinstance(body, (str, bytes)):
        return body.encode() if isinstance(body, str) else body
    request.setHeader(b"content-type", b"application/json")
    return b"" if body is None else msgspec.json.encode(body)
