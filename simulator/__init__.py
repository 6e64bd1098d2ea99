"""A strict server of the Responses API, to try the gateway on and to test it against.

It imports nothing of the gateway, so that it judges independently what it receives.
"""

from __future__ import annotations

from simulator.accounts import SimulatedAccount
from simulator.server import SimulatorService
from simulator.simulator import Simulator

__all__ = ["SimulatedAccount", "Simulator", "SimulatorService"]
