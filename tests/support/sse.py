"""An event with names: equal to the plain tuple that the parser gives out."""

from __future__ import annotations

from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    name: bytes
    data: bytes
