"""OAuth credentials over a token endpoint that the test plays, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from treq.testing import StubTreq
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from gateway.config import OAuthSettings
from gateway.credentials.oauth import OAuthCredentials
from gateway.protocol.errors import ApiError

START = 1_800_000_000.0


class Asked:
    """One request to the token endpoint, answered by the test."""

    def __init__(self, request: Request, flush: Callable[[], None]) -> None:
        assert request.content is not None
        self._request = request
        self._flush = flush
        self.method = request.method
        self.headers = {
            name.decode().lower(): values[-1].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        self.form = {
            name: value for name, (value,) in parse_qs(request.content.read().decode()).items()
        }
        self.left = False
        request.notifyFinish().addErrback(self._leave)

    def _leave(self, _: Failure) -> None:
        self.left = True

    def gives(self, access_token: str, **members: Any) -> None:
        self.answers(200, {"access_token": access_token, "token_type": "Bearer", **members})

    def answers(self, status: int, body: object) -> None:
        self._request.setResponseCode(status)
        self.sends(body if isinstance(body, bytes) else json.dumps(body).encode())
        if not self.left:
            self._request.finish()
            self._flush()

    def sends(self, data: bytes) -> None:
        self._request.write(data)
        self._flush()


class Endpoint(Resource):
    """Keeps what was asked."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self.client = StubTreq(self)

    def render(self, request: Request) -> int:
        self.asked.append(Asked(request, self.client.flush))
        return NOT_DONE_YET

    @property
    def last(self) -> Asked:
        return self.asked[-1]


class Got:
    """What came of a Deferred or a plain value."""

    def __init__(self, given: object) -> None:
        self.values: list[Any] = []
        self.failures: list[Failure] = []
        self.deferred: Deferred[Any] = maybeDeferred(lambda: given)
        self.deferred.addCallbacks(self.values.append, self.failures.append)

    @property
    def waits(self) -> bool:
        return not self.values and not self.failures

    @property
    def value(self) -> Any:
        assert not self.failures, f"expected a value, got {self.failures}"
        assert self.values, "expected a value, nothing came yet"
        return self.values[0]

    @property
    def token(self) -> str:
        headers: Mapping[str, str] = self.value
        scheme, _, token = headers["authorization"].partition(" ")
        assert scheme == "Bearer"
        return token

    @property
    def error(self) -> ApiError:
        assert self.failures, f"expected an error, got {self.values}"
        error = self.failures[0].value
        assert isinstance(error, ApiError), f"expected an error for the client, got {error!r}"
        return error


class Stage:
    """One account.

    :param held: the token file's content at the start.
    :param settings: beyond the usual.
    """

    def __init__(self, folder: Path, held: object = None, **settings: Any) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.endpoint = Endpoint()
        self.path = folder / "tokens.json"
        if held is not None:
            self.put(held)
        self.writes: list[Deferred[None]] | None = None
        self.fields = {"refresh_token": "refresh-config", **settings}
        self.credentials = self.restarted()

    def restarted(self) -> OAuthCredentials:
        """Credentials as a new process has them."""
        settings = OAuthSettings(
            token_url="http://auth.test/token",
            client_id="client-1",
            token_file=str(self.path),
            **self.fields,
        )
        self.credentials = OAuthCredentials(
            "a", settings, self.clock, self.endpoint.client, self.in_thread, jitter=lambda: 0.0
        )
        return self.credentials

    def in_thread(self, function: Callable[[], None]) -> Deferred[None]:
        """At once; with ``writes`` set, when the test says so."""
        if self.writes is None:
            return maybeDeferred(function)
        gate: Deferred[None] = Deferred()
        self.writes.append(gate)
        return gate.addCallback(lambda _: function())

    def put(self, content: object) -> None:
        """Replace the file, as a person does."""
        text = content if isinstance(content, str) else json.dumps(content)
        beside = self.path.with_suffix(".hand")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)

    @property
    def held(self) -> Any:
        return json.loads(self.path.read_text("utf-8"))

    def headers(self) -> Got:
        return Got(self.credentials.headers())

    def refused(self, token: str) -> Got:
        return Got(self.credentials.refused({"authorization": f"Bearer {token}"}))

    def ready(self, token: str = "access-1", **members: Any) -> None:
        """An access token was asked for and given."""
        first = self.headers()
        self.endpoint.last.gives(token, **{"expires_in": 3600, **members})
        assert first.token == token
