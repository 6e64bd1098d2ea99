"""A WebSocket front with the fault this product was built against, as a control for the tests.

Each turn becomes an HTTP request and the link to the turn before is lost: `keep_thread=False` sends
no `previous_response_id`. With `keep_thread=True` it is passed on as the client sent it, the least
that works against a stateful upstream.
"""

from __future__ import annotations

import http.client
import json
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve


class LossyFront:
    """The server; a context manager."""

    def __init__(self, upstream_url: str, *, keep_thread: bool) -> None:
        self._upstream = urlsplit(upstream_url)
        self._keep_thread = keep_thread
        self._server: Server = serve(self._serve, "127.0.0.1", 0, max_size=None)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.socket.getsockname()[1])

    def __enter__(self) -> LossyFront:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)

    def _serve(self, client: ServerConnection) -> None:
        try:
            warmed_up: dict[str, list[Any]] = {}
            for message in client:
                body = json.loads(message)
                if body.get("generate") is False:
                    warmed_up["resp_prewarm"] = body["input"]
                    client.send(json.dumps(_completed("resp_prewarm")))
                else:
                    self._turn(client, body, warmed_up)
        except ConnectionClosed:
            return

    def _turn(
        self, client: ServerConnection, body: dict[str, Any], warmed_up: dict[str, list[Any]]
    ) -> None:
        del body["type"]
        body["stream"] = True
        previous = body.get("previous_response_id")
        if previous in warmed_up:
            body["input"] = warmed_up[previous] + body["input"]
        if previous in warmed_up or not self._keep_thread:
            body.pop("previous_response_id", None)
        upstream = http.client.HTTPConnection(self._upstream.netloc, timeout=30)
        upstream.request(
            "POST",
            f"{self._upstream.path}/responses",
            json.dumps(body),
            {"Authorization": "Bearer any-key", "Content-Type": "application/json"},
        )
        answer = upstream.getresponse()
        if answer.status != 200:
            error = {"type": "error", "status": answer.status, **json.loads(answer.read())}
            client.send(json.dumps(error))
        else:
            for line in answer:
                if line.startswith(b"data: "):
                    client.send(line[6:].strip().decode())
        upstream.close()


def _completed(response_id: str) -> dict[str, Any]:
    response = {"id": response_id, "object": "response", "status": "completed", "output": []}
    return {"type": "response.completed", "response": response}
