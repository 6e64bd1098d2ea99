"""A strict Responses API server to try the gateway on and to test it against.

It imports nothing of the gateway, so that it stays an independent witness of what was sent to it.
"""

from __future__ import annotations

from gateway.simulator.accounts import DIALECTS, MODES, Dialect, Mode, SimulatedAccount
from gateway.simulator.faults import (
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
from gateway.simulator.limits import CodexLimits, RateLimits, Window
from gateway.simulator.model import Model, ModelTurn
from gateway.simulator.request_log import LoggedRequest
from gateway.simulator.resource import SimulatorResource
from gateway.simulator.scripted import ScriptedModel
from gateway.simulator.server import SimulatorService
from gateway.simulator.simulator import Simulator

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
