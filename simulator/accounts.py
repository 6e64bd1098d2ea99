"""Simulated accounts: keys, limits, and the dialects of services (protocol.md §8.1, §4.5)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from simulator.events import Event
from simulator.faults import EmptyOutput, Steps
from simulator.items import type_of
from simulator.request_log import Endpoint
from simulator.validation import Refusal

#: stateful: stores responses. stateless: refuses ``previous_response_id``.
#: forgetful: accepts it, ignores it and answers without history.
Mode = Literal["stateful", "stateless", "forgetful"]
MODES: tuple[Mode, ...] = ("stateful", "stateless", "forgetful")

#: platform: as documented. chatgpt: the backend of Codex. xai: refuses ``additional_tools``.
Dialect = Literal["platform", "chatgpt", "xai"]
DIALECTS: tuple[Dialect, ...] = ("platform", "chatgpt", "xai")
#: Endpoints that generate, with limits in their answers.
_GENERATING: frozenset[Endpoint] = frozenset({"create", "compact", "chat"})
#: The endpoints of the ChatGPT backend, and the request parameters it knows.
_CHATGPT_ENDPOINTS: frozenset[Endpoint] = frozenset({"create", "compact", "models"})
_CHATGPT_WORDS = (
    "client_metadata include input instructions model parallel_tool_calls prompt_cache_key "
    "reasoning service_tier store stream stream_options text tool_choice tools"
)
_CHATGPT_PARAMETERS = frozenset(_CHATGPT_WORDS.split())


@dataclass(frozen=True)
class RateLimits:
    """What the platform says of its limits (they are not enforced); resets as ``6m0s``."""

    limit_requests: int = 10_000
    remaining_requests: int = 9_999
    reset_requests: str = "6ms"
    limit_tokens: int = 2_000_000
    remaining_tokens: int = 1_999_000
    reset_tokens: str = "30ms"

    def headers(self) -> Mapping[str, str]:
        """As headers of an answer."""
        limits = asdict(self).items()
        return {f"x-ratelimit-{name.replace('_', '-')}": str(value) for name, value in limits}


@dataclass(frozen=True)
class Window:
    """How much of a quota window is used; it resets so many seconds after each answer."""

    used_percent: float
    window_minutes: int
    resets_in_seconds: int

    def as_json(self, now: float) -> dict[str, Any]:
        """As JSON, with the reset in unix seconds."""
        return {
            "used_percent": self.used_percent,
            "window_minutes": self.window_minutes,
            "reset_at": int(now) + self.resets_in_seconds,
        }


@dataclass(frozen=True)
class CodexLimits:
    """The two quota windows of a ChatGPT subscription."""

    primary: Window = field(default_factory=lambda: Window(12, 300, 3_600))
    secondary: Window = field(default_factory=lambda: Window(4.5, 10_080, 86_400))

    def headers(self, now: float) -> Mapping[str, str]:
        """As headers of an answer."""
        found = {"x-codex-plan-type": "plus", "x-codex-active-limit": "codex"}
        for name, window in (("primary", self.primary), ("secondary", self.secondary)):
            for key, value in window.as_json(now).items():
                found[f"x-codex-{name}-{key.replace('_', '-')}"] = str(value)
        return found


def random_key() -> str:
    """A key for an account."""
    return f"sk-simulated-{secrets.token_urlsafe(24)}"


@dataclass(frozen=True)
class SocketOptions:
    """The WebSocket mode of an account. What is None is as in the account's dialect.

    :ivar enabled: upgrades are else refused with 426.
    :ivar path: the path of upgrades, behind the prefix.
    :ivar subprotocol: the subprotocol that clients must offer.
    :ivar max_sockets: more upgrades at a time are refused with 403; None: any number.
    :ivar has_lanes: whether ``stream_id`` is accepted.
    :ivar queues: whether a request waits for the one before it on its lane; it is else refused.
    :ivar age_seconds: the age from which a socket takes no requests.
    :ivar close_at_age: at that age it closes with this code, between two responses.
    :ivar max_message_bytes: longer messages end the socket with 1009.
    :ivar continues_unstored: whether the latest response of a lane can be continued with
        ``store: false``.
    :ivar has_uncoded_misses: a lost previous response is refused without code and param.
    :ivar interrupts: whether ``response.interrupt`` ends a response; it is else ignored.
    :ivar cancels: the same for ``response.cancel``.
    :ivar steers: whether ``response.steer`` is supported.
    :ivar sends_limits: ``codex.rate_limits`` before each response.
    :ivar sends_limits_late: another one, out of band after it.
    :ivar sends_timing: ``responsesapi.websocket_timing`` out of band after each response.
    :ivar late_seconds: how long after a response the frames out of band come.
    :ivar ping_seconds: the interval of its pings; None: it sends none.
    :ivar pong_seconds: without a pong for so long it closes with 1011.
    """

    enabled: bool = True
    path: str = "/responses"
    subprotocol: str | None = None
    max_sockets: int | None = None
    has_lanes: bool | None = None
    queues: bool = True
    age_seconds: float | None = None
    close_at_age: int | None = None
    max_message_bytes: int = 16 * 1024 * 1024 - 1
    continues_unstored: bool | None = None
    has_uncoded_misses: bool = False
    interrupts: bool = True
    cancels: bool = False
    steers: bool = True
    sends_limits: bool | None = None
    sends_limits_late: bool = False
    sends_timing: bool = False
    late_seconds: float = 0.0
    ping_seconds: float | None = None
    pong_seconds: float = 20.0

    def of_dialect(self, dialect: Dialect) -> SocketOptions:
        """The options with those that were left to the dialect."""
        given = {
            "has_lanes": dialect == "platform",
            "age_seconds": 25 * 60.0 if dialect == "xai" else 60 * 60.0,
            "continues_unstored": dialect != "xai",
            "sends_limits": dialect == "chatgpt",
        }
        missing = {name: value for name, value in given.items() if getattr(self, name) is None}
        return replace(self, **missing)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SimulatedAccount:
    """One credential of the simulator.

    :ivar models: the models it serves; empty: any.
    :ivar encodings: the content encodings it accepts; None: those of its dialect.
    :ivar codex_catalogue: whether ``GET /models?client_version=…`` has Codex's own shape; None: as
        in its dialect.
    :ivar turn_state: an ``x-codex-turn-state`` for every response.
    :ivar headers: headers for every answer; they replace others of their names.
    :ivar store_delay_seconds: how long a stored response cannot be found, as on Azure, except on
        the WebSocket that made it.
    :ivar websocket: its WebSocket mode.
    """

    name: str
    key: str = field(default_factory=random_key, repr=False)
    mode: Mode = "stateful"
    models: tuple[str, ...] = ()
    dialect: Dialect = "platform"
    auth_header: Literal["authorization", "api-key"] = "authorization"
    encodings: tuple[str, ...] | None = None
    codex_catalogue: bool | None = None
    chat_completions: bool = True
    turn_state: str | None = None
    rate_limits: RateLimits = field(default_factory=RateLimits)
    codex_limits: CodexLimits = field(default_factory=CodexLimits)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    store_delay_seconds: float = 0.0
    websocket: SocketOptions = field(default_factory=SocketOptions)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect {self.dialect!r} is none of {', '.join(DIALECTS)}")
        object.__setattr__(self, "websocket", self.websocket.of_dialect(self.dialect))

    @property
    def accepted_encodings(self) -> tuple[str, ...]:
        """The content encodings of requests it accepts."""
        if self.encodings is not None:
            return self.encodings
        return ("gzip", "zstd") if self.dialect == "chatgpt" else ()

    @property
    def has_catalogue(self) -> bool:
        """Whether it lists models in Codex's own shape, too."""
        if self.codex_catalogue is not None:
            return self.codex_catalogue
        return self.dialect == "chatgpt"


def account_headers(account: SimulatedAccount, endpoint: Endpoint | None) -> Mapping[str, str]:
    """The headers of an account's answers: its limits and turn state, and its own headers."""
    found: dict[str, str] = {}
    if endpoint in _GENERATING:
        if account.dialect == "chatgpt":
            found.update(account.codex_limits.headers(time.time()))
        else:
            found.update(account.rate_limits.headers())
    if endpoint == "create" and account.turn_state is not None:
        found["x-codex-turn-state"] = account.turn_state
    found.update(account.headers)
    return found


class DetailRefusal(Refusal):
    """A refusal of the ChatGPT backend: ``{"detail": "…"}``."""

    @property
    def body(self) -> Any:
        """The JSON of the answer."""
        return {"detail": self.error["message"]}


class TextRefusal(Refusal):
    """A refusal of a service with errors of plain text: ``{"error": "…"}``."""

    @property
    def body(self) -> Any:
        """The JSON of the answer."""
        return {"error": self.error["message"]}


def check_dialect(account: SimulatedAccount, endpoint: Endpoint, body: object) -> None:
    """Check what the account's service refuses, though the platform accepts it.

    :raises Refusal: when it does.
    """
    request = body if isinstance(body, dict) else {}
    if endpoint == "chat" and not account.chat_completions:
        raise Refusal(404, "Chat completions are not served here.")
    if account.dialect == "chatgpt":
        _check_chatgpt(endpoint, request)
    elif account.dialect == "xai":
        _check_xai(request)


def speak_dialect(account: SimulatedAccount, steps: Steps) -> Steps:
    """The steps of a response as the account's service sends them."""
    if account.dialect != "chatgpt":
        return steps
    return EmptyOutput().rewrite(_with_limits(account, steps))


def _check_chatgpt(endpoint: Endpoint, request: dict[str, Any]) -> None:
    if endpoint not in _CHATGPT_ENDPOINTS:
        raise DetailRefusal(404, "Not Found")
    for name, value in request.items():
        if value is not None and name not in _CHATGPT_PARAMETERS:
            raise DetailRefusal(400, f"Unsupported parameter: {name}")
    if endpoint != "create":
        return
    if not isinstance(request.get("input"), list):
        raise DetailRefusal(400, "Input must be a list")
    if request.get("store") is not False:
        raise DetailRefusal(400, "Store must be set to false")
    if request.get("stream") is not True:
        raise DetailRefusal(400, "Stream must be set to true")


def _check_xai(request: dict[str, Any]) -> None:
    """XAI refuses the whole input for an item of a type that it does not know."""
    items = request.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and type_of(item) == "additional_tools":
            message = (
                "Failed to deserialize the JSON body into the target type:"
                " data did not match any variant of untagged enum ModelInput"
            )
            raise TextRefusal(422, message)


def _with_limits(account: SimulatedAccount, steps: Steps) -> Steps:
    for step in steps:
        yield step
        if isinstance(step, dict) and step["type"] == "response.in_progress":
            yield limits_event(account)


def limits_event(account: SimulatedAccount) -> Event:
    """The quotas of a ChatGPT subscription as an event."""
    now = time.time()
    return {
        "type": "codex.rate_limits",
        "plan_type": "plus",
        "metered_limit_name": "codex",
        "limit_name": None,
        "rate_limits": {
            "allowed": True,
            "limit_reached": False,
            "primary": account.codex_limits.primary.as_json(now),
            "secondary": account.codex_limits.secondary.as_json(now),
        },
        "credits": {"has_credits": False, "unlimited": False, "balance": None},
        "additional_rate_limits": None,
        "promo": None,
    }
