"""What an attempt shows beside its answer: the account's quotas, and whose a response is."""

from __future__ import annotations

from gateway.protocol.rate_limits import read_rate_limits_event, read_windows
from gateway.protocol.response_stream import BrokenResponse, FinishedResponse, RefusedResponse
from gateway.turn.attempt import Attempt
from gateway.turn.context import TurnServices


def learn_from_headers(services: TurnServices, attempt: Attempt) -> None:
    """Quotas, as the upstream's response headers tell them (protocol.md §7)."""
    windows = read_windows(attempt.answer_headers, services.clock.seconds())
    if windows:
        attempt.account.health.observe(windows)


def learn_from_events(services: TurnServices, attempt: Attempt) -> None:
    """Quotas, as ``codex.rate_limits`` and the error that ended it tell them (§4.5, §5.2)."""
    relay, health = attempt.relay, attempt.account.health
    if relay.rate_limits:
        health.observe(read_rate_limits_event(relay.rate_limits, services.clock.seconds()))
    if (
        isinstance(relay.outcome, (RefusedResponse, BrokenResponse, FinishedResponse))
        and relay.outcome.error is not None
    ):
        health.observe(read_windows(relay.outcome.error.hints, services.clock.seconds()))


def note_owner(services: TurnServices, tenant: str, attempt: Attempt) -> None:
    """Requests about a stored response go to the account that keeps it."""
    relay, account = attempt.relay, attempt.account
    if relay.response_id and not relay.minted:
        services.owners.note(tenant, relay.response_id, account.name)


def note_owner_of_parent(services: TurnServices, tenant: str, attempt: Attempt) -> None:
    """An account went on from a response that nobody here knew: so it keeps that."""
    parent = attempt.plan.previous_response_id
    if parent is not None:
        services.owners.note(tenant, parent, attempt.account.name)
