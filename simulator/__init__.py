"""A strict Responses API server to try the gateway on and to test it against.

It imports nothing of the gateway, so that it stays an independent witness of what was sent to it.
"""

from __future__ import annotations

from simulator.accounts import DIALECTS, MODES, Dialect, Mode, SimulatedAccount
from simulator.faults import (
    EMPTY_ERROR,
    CloseAfter,
    DropAfter,
    EmptyOutput,
    EndAfter,
    Ending,
    Fault,
    FaultQueue,
    InsertAfter,
    NoEcho,
    PauseAfter,
    Refuse,
    ResponseHeaders,
    SilenceAfter,
    TerminalAfter,
    Together,
    flat_error,
    nested_error,
)
from simulator.limits import CodexLimits, RateLimits, Window
from simulator.model import Model, ModelTurn
from simulator.request_log import LoggedRequest
from simulator.resource import SimulatorResource
from simulator.scripted import ScriptedModel
from simulator.server import SimulatorService
from simulator.simulator import Simulator

__all__ = [
    "DIALECTS",
    "EMPTY_ERROR",
    "MODES",
    "CloseAfter",
    "CodexLimits",
    "Dialect",
    "DropAfter",
    "EmptyOutput",
    "EndAfter",
    "Ending",
    "Fault",
    "FaultQueue",
    "InsertAfter",
    "LoggedRequest",
    "Mode",
    "Model",
    "ModelTurn",
    "NoEcho",
    "PauseAfter",
    "RateLimits",
    "Refuse",
    "ResponseHeaders",
    "ScriptedModel",
    "SilenceAfter",
    "SimulatedAccount",
    "Simulator",
    "SimulatorResource",
    "SimulatorService",
    "TerminalAfter",
    "Together",
    "Window",
    "flat_error",
    "nested_error",
]
