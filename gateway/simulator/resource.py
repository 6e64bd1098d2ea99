"""The simulator's HTTP face: `POST {prefix}/responses`, `GET {prefix}/models`, and their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from gateway.simulator.engine import AccountEngine, Answer
from gateway.simulator.events import DONE, Event, sse
from gateway.simulator.faults import Ending, Fault, Refuse, Steps
from gateway.simulator.items import new_id
from gateway.simulator.refusals import Refusal, invalid_api_key
from gateway.simulator.request_log import LoggedRequest, Outcome
from gateway.simulator.stream import AnswerStream, Written

if TYPE_CHECKING:
    from gateway.simulator.simulator import Simulator

_log = Logger()

_TERMINALS: dict[str, Outcome] = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}

_PIECE = 64 * 1024


class SimulatorResource(Resource):
    """The whole site as one leaf: few paths, and each account known by its key."""

    isLeaf = True

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self._simulator = simulator

    def render(self, request: Request) -> bytes | int:
        request.setHeader(b"x-request-id", new_id("req").encode())
        path = request.path.decode("latin-1").rstrip("/")
        method = request.method.decode("latin-1")
        prefix = self._simulator.prefix
        if (method, path) == ("POST", f"{prefix}/responses"):
            return self._create(request)
        try:
            engine = self._engine(request)
            if (method, path) == ("GET", f"{prefix}/models"):
                return _answer_json(request, 200, _models(engine))
        except Refusal as refusal:
            return _answer_json(request, refusal.status, {"error": refusal.error})
        message = f"Invalid URL ({method} {path})"
        return _answer_json(request, 404, {"error": Refusal(404, message).error})

    def _engine(self, request: Request) -> AccountEngine:
        header = request.getHeader(b"authorization") or b""
        scheme, _, key = header.decode("latin-1").partition(" ")
        engine = self._simulator.engine_of_key(key.strip())
        if scheme.lower() != "bearer" or engine is None:
            raise invalid_api_key()
        return engine

    def _create(self, request: Request) -> bytes | int:
        assert request.content is not None
        raw = request.content.read()
        entry = LoggedRequest(None, _headers(request), None, len(raw))
        self._simulator.requests.add(entry)
        try:
            engine = self._engine(request)
            entry.account = engine.account.name
            entry.body = _decoded(request, raw)
            fault = self._simulator.faults.take(entry.account)
            for name, value in fault.extra_headers().items():
                request.setHeader(name.lower(), value)
            if isinstance(fault, Refuse):
                return _refuse(request, entry, fault.status, fault.body)
            answer = engine.answer(entry.body, len(raw))
        except Refusal as refusal:
            return _refuse(request, entry, refusal.status, {"error": refusal.error})
        except Exception:
            _log.failure("The simulated model failed")
            failed = Refusal(500, "The model failed.", kind="server_error", code="server_error")
            return _refuse(request, entry, failed.status, {"error": failed.error})
        entry.response_id = answer.response_id
        entry.context = answer.context
        entry.status = 200
        self._stream(request, entry, answer, fault)
        return NOT_DONE_YET

    def _stream(self, request: Request, entry: LoggedRequest, answer: Answer, fault: Fault) -> None:
        steps = _observed(fault.rewrite(answer.events()), entry, answer)
        if entry.body.get("stream"):
            request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
            request.setHeader(b"cache-control", b"no-cache")
            written = _as_sse(steps)
        else:
            request.setHeader(b"content-type", b"application/json")
            written = _as_json(steps)

        def ended(outcome: Outcome | None) -> None:
            self._simulator.streams.discard(stream)
            if outcome is not None and entry.outcome == "running":
                entry.outcome = outcome

        delay = self._simulator.event_delay
        stream = AnswerStream(request, written, self._simulator.clock, delay, ended)
        self._simulator.streams.add(stream)
        stream.start()


def _observed(steps: Steps, entry: LoggedRequest, answer: Answer) -> Steps:
    """The same steps, numbered, noted in the log, and the response kept as it completes."""
    number = 0
    for step in steps:
        if isinstance(step, dict):
            kind, rest = step["type"], {k: v for k, v in step.items() if k != "type"}
            step = {"type": kind, "sequence_number": number, **rest}
            number += 1
            if kind == "response.completed":
                answer.keep()
            entry.outcome = _TERMINALS.get(kind, entry.outcome)
            entry.events_sent += 1
        yield step


def _as_sse(steps: Steps) -> Iterator[Written]:
    for step in steps:
        yield sse(step) if isinstance(step, dict) else step
    yield DONE


def _as_json(steps: Steps) -> Iterator[Written]:
    """The final response object of the steps; what interrupts them interrupts this, too."""
    last: Event = {}
    for step in steps:
        if isinstance(step, dict):
            last = step
        elif isinstance(step, Ending):
            yield Ending.DROP if step is Ending.END else step
        elif not isinstance(step, bytes):
            yield step
    body = msgspec.json.encode(last.get("response"))
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _headers(request: Request) -> dict[str, str]:
    """The request's headers by lower-case name; the last of several wins."""
    return {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in request.requestHeaders.getAllRawHeaders()
    }


def _decoded(request: Request, raw: bytes) -> Any:
    content_type = (request.getHeader(b"content-type") or b"").decode("latin-1")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        message = (
            f"Unsupported content type: '{content_type}'."
            " This API method only accepts 'application/json' requests."
        )
        raise Refusal(400, message, code="unsupported_content_type")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        message = "We could not parse the JSON body of your request."
        raise Refusal(400, message) from error


def _refuse(request: Request, entry: LoggedRequest, status: int, body: Any) -> bytes:
    entry.status = status
    entry.error = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
    entry.outcome = "refused"
    return _answer_json(request, status, body)


def _answer_json(request: Request, status: int, body: Any) -> bytes:
    """A whole JSON answer; a body of text or bytes goes out as it is."""
    request.setResponseCode(status)
    if isinstance(body, (str, bytes)):
        return body.encode() if isinstance(body, str) else body
    request.setHeader(b"content-type", b"application/json")
    return b"" if body is None else msgspec.json.encode(body)


def _models(engine: AccountEngine) -> dict[str, Any]:
    names = engine.account.models or ("gpt-simulated",)
    data = [
        {"id": name, "object": "model", "created": 1700000000, "owned_by": "simulator"}
        for name in names
    ]
    return {"object": "list", "data": data}
