"""The typed, frozen settings with their ranges, choices and defaults, and the secret fields.

Ranges and choices are defined only here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

# The upper bound keeps `.inf` and slips of the keyboard out of reactor.callLater.
YEAR = 365 * 24 * 3600
Seconds = Annotated[float, Meta(ge=0, le=YEAR)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=YEAR)]
PositiveMinutes = Annotated[float, Meta(gt=0, le=YEAR / 60)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=2**40)]
Text = Annotated[str, Meta(min_length=1)]
Patterns = Annotated[tuple[Text, ...], Meta(min_length=1)]
# Tokens of a day go beyond every other count.
Tokens = Annotated[int, Meta(ge=1, le=10**15)]
Workers = Annotated[int, Meta(ge=1, le=256)] | Literal["auto"]
Weight = Annotated[int, Meta(ge=1, le=1000)]
Priority = Annotated[int, Meta(ge=0, le=1000)]

Preset = Literal["openai", "azure", "xai", "openrouter", "vllm", "ollama", "lmstudio", "chatgpt"]
Continuity = Literal["auto", "chain", "replay"]
StoreRule = Literal["client", "never"]
ToolsRule = Literal["as-sent", "hoisted"]
InstructionsRule = Literal["as-sent", "inherited"]
Transport = Literal["auto", "websocket", "http"]
Eviction = Literal["strict", "lenient"]
ControlName = Literal["interrupt", "cancel", "steer", "inject"]
Chaining = Literal["auto", "always"]
Strategy = Literal["round-robin", "weighted", "least-in-flight", "fill-first", "priority"]
ReturnRule = Literal["sticky", "stay"]
LossRule = Literal["move", "wait", "fail"]
Persisted = Literal["owners", "stored", "all"]
UnreachableRule = Literal["local", "refuse"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warn", "error"]
SimulatorMode = Literal["stateful", "stateless", "forgetful"]

#: What is shown in place of a secret.
MASK = "<hidden>"
SECRET_FIELDS = frozenset(
    [
        *("key", "key_sha256", "token", "headers", "proxy", "client_secret", "refresh_token"),
        "encryption_key",
    ]
)
#: URLs that may have a password in them; the rest of them is shown.
_WITH_PASSWORDS = frozenset(["proxy", "store"])

DEFAULT_LISTEN = "tcp:8080:interface=127.0.0.1"
DEFAULT_ADMIN_LISTEN = "tcp:8081:interface=127.0.0.1"


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file. Its repr masks the secrets."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={mask(name, getattr(self, name))}" for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({shown})"


class AdminSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The admin side.

    :ivar listen: None switches it off.
    :ivar hosts: host names that browsers may use for it, besides the addresses it listens on.
    """

    listen: Text | None = DEFAULT_ADMIN_LISTEN
    token: Text | None = None
    hosts: tuple[Text, ...] = ()


class KeySettings(Section, frozen=True, forbid_unknown_fields=True):
    """One key that clients may present, itself or its SHA-256 in hex, and what it may use.

    :ivar sees_quotas: None: only if it is the only key.
    :ivar max_connections: None: half of all connections, or all if it is the only key.
    """

    name: Text
    key: Text | None = None
    key_sha256: Text | None = None
    models: Patterns = ("*",)
    websocket: bool = True
    sees_quotas: bool | None = None
    max_connections: Count | None = None
    max_concurrent_turns: Count | None = None
    requests_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_minute: Tokens | None = None
    tokens_per_day: Tokens | None = None


class OAuthSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Refresh tokens (RFC 6749 §6); the gateway keeps the newest in ``token_file``, as JSON."""

    token_url: Text
    client_id: Text
    token_file: Text
    client_secret: Text | None = None
    refresh_token: Text | None = None
    scope: Text | None = None
    refresh_before_seconds: Seconds = 300.0


class UpstreamWebSocketSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The WebSockets to one account, see ``transport``.  The bounds are those of one process.

    :ivar max_age_minutes: an older socket gets no further turn.
    :ivar idle_minutes: a socket that no turn has used for so long is closed.
    :ivar spare_sockets: how many are kept open for conversations that have none yet.
    :ivar continues_unstored: whether the service continues responses with ``store: false`` on the
        socket that made them.
    :ivar reuses_ids: whether the service gives one id to all stored responses of a socket, so that
        only the socket knows which is meant.
    :ivar subprotocols: offered in the handshake, in this order (RFC 6455 §1.9).
    :ivar controls: the messages about a running response that the service knows.
    :ivar beta: a value that the handshake's ``OpenAI-Beta`` must have.
    :ivar path: added to ``base_url``; may have a query.
    """

    max_sockets: Count = 50
    max_age_minutes: PositiveMinutes = 55.0
    idle_minutes: PositiveMinutes = 30.0
    spare_sockets: Annotated[int, Meta(ge=0, le=1000)] = 0
    continues_unstored: bool = True
    reuses_ids: bool = False
    controls: tuple[ControlName, ...] = ()
    subprotocols: tuple[Text, ...] = ()
    beta: Text | None = None
    path: Text = "/responses"
    ping_seconds: Annotated[float, Meta(ge=1, le=3600)] = 25.0


class AccountSettings(Section, frozen=True, forbid_unknown_fields=True):
    """One upstream credential; a preset has filled in what the file leaves out.

    With a loaded file exactly one of ``key``, ``key_file`` and ``oauth`` is set.

    :ivar base_url: without a trailing slash.
    :ivar strip: the request members that the service refuses.
    :ivar instructions: whether the service keeps those of the previous response, and refuses others
        beside it (inherited).
    :ivar models: shell patterns.
    :ivar aliases: the account's name of a model by the client's name.
    :ivar priority: the lowest is used first.
    :ivar transport: of turns: a WebSocket, or HTTP where the service has none (auto); a WebSocket
        whenever the request fits one (websocket); always HTTP (http).
    """

    name: Text
    base_url: Text = ""
    key: Text | None = None
    key_file: Text | None = None
    oauth: OAuthSettings | None = None
    preset: Preset | None = None
    auth_header: Text = "authorization"
    continuity: Continuity = "auto"
    store: StoreRule = "client"
    strip: tuple[Text, ...] = ()
    tools: ToolsRule = "as-sent"
    instructions: InstructionsRule = "as-sent"
    background: bool = False
    chat_completions: bool = True
    transport: Transport = "http"
    websocket: UpstreamWebSocketSettings = UpstreamWebSocketSettings()
    models: Patterns = ("*",)
    aliases: dict[str, Text] = field(default_factory=dict)
    weight: Weight = 1
    priority: Priority = 1
    max_in_flight: Count | None = None
    requests_per_minute: Count | None = None
    derive_cache_key: bool = False
    enabled: bool = True
    proxy: Text | None = None
    ca_file: Text | None = None
    client_cert_file: Text | None = None
    client_key_file: Text | None = None
    headers: dict[str, str] = field(default_factory=dict)


class RoutingSettings(Section, frozen=True, forbid_unknown_fields=True):
    """How a turn finds its account, and how long it waits for one.

    :ivar queue_seconds: 0: a turn does not wait.
    :ivar return_to: ``return`` in the file: whether a conversation goes back to its account after
        a stand-in (sticky) or remains where it is (stay).
    :ivar on_account_loss: what a conversation does when its account cannot serve it. One with
        encrypted items that no other account can read never moves.
    """

    strategy: Strategy = "round-robin"
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    queue_seconds: Seconds = 15.0
    max_waiting: Count = 1000
    return_to: ReturnRule = field(default="sticky", name="return")
    on_account_loss: LossRule = "move"
    cooldown_max_seconds: PositiveSeconds = 600.0
    affinity_minutes: PositiveMinutes = 60.0
    max_bindings: Count = 100_000


class SessionSettings(Section, frozen=True, forbid_unknown_fields=True):
    """One client connection.

    :ivar eviction: whether a turn with an error of its own evicts the ``store: false`` response
        that it continued on its lane (strict), as on the platform.
    :ivar keepalive_seconds: 0: no keep-alives are sent.
    :ivar websocket: False: upgrades are answered 426, which sends clients to HTTP.
    """

    chaining: Chaining = "auto"
    eviction: Eviction = "strict"
    keepalive_seconds: Seconds = 20.0
    max_age_minutes: PositiveMinutes = 60.0
    max_message_bytes: Annotated[int, Meta(ge=1024, le=2**31 - 1)] = 67_108_864
    hold_seconds: Seconds = 5.0
    compression: bool = False
    websocket: bool = True


class LedgerSettings(Section, frozen=True, forbid_unknown_fields=True):
    """How much of past responses is remembered, and for how long."""

    max_bytes: Bytes = 268_435_456
    ttl_minutes: PositiveMinutes = 60.0


class StateSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Where the state is kept that outlives the process, or that several gateways share.

    :ivar store: ``sqlite``, ``memory``, or the URL of a Redis server.
    :ivar directory: of the SQLite database; None: the service manager's, or the user's own.
    :ivar persist: which content is written: none (owners), that of responses which the upstream
        may store (stored), or that of all.
    :ivar encryption_key: empty: content is not encrypted.
    :ivar when_unreachable: what turns do whose conversation is not known here while the shared
        store cannot be reached.
    :ivar max_bytes: bound on the records on disk.
    :ivar max_age_days: how long records are kept after their last use.
    """

    store: Text = "sqlite"
    directory: Text | None = None
    persist: Persisted = "stored"
    flush_milliseconds: Annotated[int, Meta(ge=1, le=60_000)] = 200
    encryption_key: str = ""
    encryption_key_file: Text | None = None
    when_unreachable: UnreachableRule = "local"
    max_bytes: Bytes = 4_294_967_296
    max_age_days: Annotated[float, Meta(gt=0, le=3650)] = 30.0


class TimeoutSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Upstream: connect, first byte, idle (between events). Client: stall, handshake. Shutdown.

    :ivar handover_seconds: how long running turns may take after a successor has taken over.
    :ivar drain_spread_seconds: over how long WebSockets are closed when the gateway is emptied.
    """

    connect_seconds: PositiveSeconds = 10.0
    first_byte_seconds: PositiveSeconds = 120.0
    idle_seconds: PositiveSeconds = 300.0
    stall_seconds: PositiveSeconds = 60.0
    handshake_seconds: PositiveSeconds = 10.0
    shutdown_seconds: Seconds = 30.0
    handover_seconds: Seconds = 900.0
    drain_spread_seconds: Seconds = 5.0


class LimitSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Bounds on what clients and accounts may hold open, for each process.

    :ivar max_upstream_sockets: WebSockets to all accounts together.
    """

    max_connections: Count = 10_000
    max_queued_turns: Count = 64
    max_incoming_bytes: Bytes = 536_870_912
    max_upstream_sockets: Count = 1000


class ContentLogSettings(Section, frozen=True, forbid_unknown_fields=True):
    """Which turns are written to files with all that they said, and what is hidden there.

    :ivar directory: None: ``requests`` below the service manager's directory or the user's own.
    :ivar keys: shell patterns; without any, turns are recorded only as the admin side asks.
    :ivar max_bytes: bound on all files together; one file has at most an eighth of it.
    :ivar redact: names of headers and of JSON members to hide; shell patterns.
    """

    directory: Text | None = None
    keys: tuple[Text, ...] = ("*",)
    accounts: Patterns = ("*",)
    models: Patterns = ("*",)
    max_bytes: Annotated[int, Meta(ge=1_048_576, le=2**44)] = 1_073_741_824
    max_files: Count = 1000
    redact: tuple[Text, ...] = ()


class LogSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The log's format, the lowest level that is logged, and the turns that are recorded.

    :ivar content: None: no turn is recorded, unless the admin side asks for it.
    """

    format: LogFormat = "text"
    level: LogLevel = "info"
    content: ContentLogSettings | None = None


class SimulatorSettings(Section, frozen=True, forbid_unknown_fields=True):
    """The embedded upstream that needs no key."""

    accounts: Annotated[int, Meta(ge=1, le=100)] = 2
    mode: SimulatorMode = "stateful"


class Settings(Section, frozen=True, forbid_unknown_fields=True):
    """The whole configuration; that of a start without a file is ``Settings()``.

    :ivar environment_file: files with variables for ``${NAME}``; in the configuration also one path
        without a list.
    :ivar workers: processes that serve clients; auto: one for each core.
    """

    listen: Text = DEFAULT_LISTEN
    admin: AdminSettings = AdminSettings()
    keys: tuple[KeySettings, ...] = ()
    accounts: tuple[AccountSettings, ...] = ()
    routing: RoutingSettings = RoutingSettings()
    session: SessionSettings = SessionSettings()
    ledger: LedgerSettings = LedgerSettings()
    state: StateSettings = StateSettings()
    workers: Workers = 1
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    environment_file: tuple[Text, ...] = ()
    simulator: SimulatorSettings | None = None

    def __post_init__(self) -> None:
        if not self.accounts and self.simulator is None:
            msgspec.structs.force_setattr(self, "simulator", SimulatorSettings())


def masked(name: str, value: Any) -> Any:
    """The value of a field, masked when it is a secret: of a mapping the keys are shown."""
    if name in _WITH_PASSWORDS and isinstance(value, str):
        return without_credentials(value)
    if name not in SECRET_FIELDS or not value:
        return value
    return dict.fromkeys(value, MASK) if isinstance(value, dict) else MASK


def mask(name: str, value: Any) -> str:
    """The text of a field's value for a repr, masked when it is a secret."""
    shown = masked(name, value)
    if shown is value:
        return repr(value)
    if isinstance(shown, dict):
        return "{" + ", ".join(f"{key!r}: {MASK}" for key in shown) + "}"
    return str(shown)


def without_credentials(url: str) -> str:
    """A URL with user name and password masked, also when it is malformed."""
    userinfo, at, place = url.rpartition("@")
    scheme, slashes, _ = userinfo.partition("://")
    return f"{scheme}{slashes}{MASK}@{place}" if at and slashes else (MASK if at else url)
