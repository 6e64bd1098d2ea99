"""A real OAuth 2 server on a loopback port: Authlib's, with its clients and tokens in memory.

Refresh tokens rotate: each renewal gives a new one, and voids the old one, at once or
(``lenient``) when the new one is used for the first time, as many services do.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request, TokenMixin
from authlib.oauth2.rfc6749.grants import RefreshTokenGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator

CLIENT_ID = "gateway"
CLIENT_SECRET = "client-secret-of-the-gateway"


class Client(ClientMixin):  # type: ignore[misc]
    """The gateway, as the server knows it."""

    def get_client_id(self) -> str:
        return CLIENT_ID

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(client_secret, CLIENT_SECRET)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "refresh_token"

    def get_allowed_scope(self, scope: str) -> str:
        return scope or ""


@dataclass
class Issued(TokenMixin):  # type: ignore[misc]
    """An access token and the refresh token that came with it."""

    access_token: str
    refresh_token: str
    expires_at: float
    parent: Issued | None = None
    refresh_revoked: bool = False

    def check_client(self, client: Client) -> bool:
        return True

    def get_scope(self) -> str:
        return ""


class Rotation(RefreshTokenGrant):  # type: ignore[misc]
    """RFC 6749 §6, with a new refresh token each time."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Issued | None:
        return self.server.owner.spend(refresh_token)  # type: ignore[no-any-return]

    def authenticate_user(self, refresh_token: Issued) -> str:
        return "somebody"

    def revoke_old_credential(self, refresh_token: Issued) -> None:
        if not self.server.owner.lenient:
            refresh_token.refresh_revoked = True


class _Request(OAuth2Request):  # type: ignore[misc]
    def __init__(self, environ: dict[str, Any], form: dict[str, str]) -> None:
        headers = {"Authorization": environ.get("HTTP_AUTHORIZATION", "")}
        super().__init__(environ["REQUEST_METHOD"], "https://auth.test/token", headers=headers)
        self.payload = BasicOAuth2Payload(form)
        self._form = form

    @property
    def form(self) -> dict[str, str]:
        return self._form


class _Authority(AuthorizationServer):  # type: ignore[misc]
    def __init__(self, owner: OAuthServer) -> None:
        super().__init__()
        self.owner = owner
        self.register_grant(Rotation)
        self.register_token_generator(
            "default",
            BearerTokenGenerator(
                lambda **_: f"access-{secrets.token_hex(16)}",
                lambda **_: f"refresh-{secrets.token_hex(16)}",
                lambda *_: owner.lifetime,
            ),
        )

    def query_client(self, client_id: str) -> Client | None:
        return Client() if client_id == CLIENT_ID else None

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        self.owner.keep(token, request.refresh_token)

    def send_signal(self, *_: Any, **__: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: tuple[Any, Any]) -> _Request:
        return _Request(*request)

    def handle_response(self, status: int, body: Any, headers: Any) -> tuple[int, Any, Any]:
        return status, body, headers


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class OAuthServer(AbstractContextManager["OAuthServer"]):
    """The server, running while it is entered.

    :param lifetime: of access tokens, in seconds.
    :ivar answers: the status of each request to the token endpoint, and its error.
    :ivar before_answer: called with each request, in its thread.
    """

    def __init__(self, lifetime: int = 3600, *, lenient: bool = False) -> None:
        self.lifetime = lifetime
        self.lenient = lenient
        self.answers: list[tuple[int, str | None]] = []
        self.before_answer: Callable[[], object] = lambda: None
        self._issued: list[Issued] = []
        self._lock = threading.RLock()
        self._authority = _Authority(self)
        self._server = make_server("127.0.0.1", 0, self._app, _Server, _Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> OAuthServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/token"

    # ---- for tests

    def log_in(self) -> str:
        """A person logs in; the refresh token that they get."""
        return self.keep({"access_token": "", "refresh_token": f"refresh-{secrets.token_hex(16)}"})

    def accepts(self, access_token: str) -> bool:
        """Whether a resource server takes it now."""
        with self._lock:
            return any(
                secrets.compare_digest(each.access_token, access_token)
                and time.time() < each.expires_at
                for each in self._issued
            )

    def end_access_tokens(self) -> None:
        """Before their time."""
        with self._lock:
            for each in self._issued:
                each.expires_at = 0.0

    @property
    def newest(self) -> Issued:
        return self._issued[-1]

    @property
    def renewals(self) -> int:
        return sum(status == 200 for status, _ in self.answers)

    @property
    def secrets(self) -> list[str]:
        given = [(each.access_token, each.refresh_token) for each in self._issued]
        return [CLIENT_SECRET, *(secret for pair in given for secret in pair if secret)]

    # ---- the server's side

    def keep(self, token: dict[str, Any], parent: Issued | None = None) -> str:
        with self._lock:
            expires_at = time.time() + token.get("expires_in", 0)
            issued = Issued(token["access_token"], token["refresh_token"], expires_at, parent)
            self._issued.append(issued)
            return issued.refresh_token

    def spend(self, refresh_token: str) -> Issued | None:
        """The token that goes with it, unless it is void."""
        for each in self._issued:
            if each.refresh_token == refresh_token and not each.refresh_revoked:
                if each.parent is not None:
                    each.parent.refresh_revoked = True
                return each
        return None

    def _app(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.before_answer()
        length = int(environ.get("CONTENT_LENGTH") or 0)
        form = dict(parse_qsl(environ["wsgi.input"].read(length).decode()))
        with self._lock:
            status, body, headers = self._authority.create_token_response((environ, form))
            self.answers.append((status, body.get("error")))
        start(f"{status} Said", [(name, value) for name, value in headers])
        return [json.dumps(body).encode()]
