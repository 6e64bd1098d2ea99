"""The parts of the running gateway that the admin side reads and acts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from gateway.api_keys.keys import KeyRing
from gateway.config import Setting
from gateway.log import LogThreshold
from gateway.metrics.collector import MetricsCollector
from gateway.reload import RejectedReload
from gateway.server.connections import ConnectionLimiter
from gateway.server.drain import Drain
from gateway.server.websocket import ResponsesFactory
from gateway.state.keeper import StateFigures, nothing_kept
from gateway.turn.context import TurnServices


@dataclass
class Configuration:
    """The configuration in force.

    :ivar source: a description of where it was read.
    :ivar settings: every setting, secrets masked.
    :ivar generation: counts the configurations that were in force.
    :ivar last_rejected: the last one that was not taken, or None.
    :ivar reload: reads it anew and returns the result in one line, or a Deferred of it, or
        raises; None where it cannot be read anew.
    """

    source: str = "defaults"
    settings: Callable[[], Sequence[Setting]] = tuple
    generation: Callable[[], int] = lambda: 1
    last_rejected: Callable[[], RejectedReload | None] = lambda: None
    reload: Callable[[], str | Deferred[str]] | None = None


@dataclass
class RunningGateway:
    """All parts of the running gateway.

    :ivar websockets: the factory of WebSocket connections.
    :ivar threshold: of the log.
    :ivar http_turns: counts the turns of HTTP clients.
    :ivar drain: empties it of clients.
    :ivar kept: called for how its state is kept; returns None without one.
    :ivar started_at: unix seconds.
    """

    services: TurnServices
    api_keys: KeyRing
    limiter: ConnectionLimiter
    websockets: ResponsesFactory
    threshold: LogThreshold
    metrics: MetricsCollector
    http_turns: Callable[[], int]
    drain: Drain
    kept: Callable[[], StateFigures | None] = nothing_kept
    configuration: Configuration = field(default_factory=Configuration)

    def __post_init__(self) -> None:
        self.started_at = self.now()

    def now(self) -> float:
        """Unix seconds."""
        return self.services.clock.seconds()
