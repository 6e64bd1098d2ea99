"""Accounts as strategies see them: settings, a name, and the turns that run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from gateway.config import AccountSettings
from gateway.routing.account import Account


@dataclass(eq=False)
class Figures:
    """What a strategy reads of an account."""

    settings: AccountSettings
    in_flight: int = 0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.settings.name


def account(name: str, weight: int = 1, priority: int = 1) -> Account:
    """An idle account; nothing can be sent to it."""
    settings = AccountSettings(
        name=name, base_url="http://127.0.0.1:1", key="sk", weight=weight, priority=priority
    )
    return cast(Account, Figures(settings))


def weighted(*weights: int) -> tuple[Account, ...]:
    """Accounts named by their position."""
    return tuple(account(str(index), weight) for index, weight in enumerate(weights))
