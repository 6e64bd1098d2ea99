"""`POST /responses/input_tokens`: how many tokens a request would bring to the model."""

from __future__ import annotations

from simulator.exchange import Exchange
from simulator.parameters import COUNTED, check_parameters
from simulator.replies import Reply, json_reply


def input_tokens(exchange: Exchange) -> Reply:
    request = check_parameters(exchange.body, COUNTED, required=())
    resolved = exchange.engine.resolve(request)
    exchange.entry.context = resolved.context
    counted = {"object": "response.input_tokens", "input_tokens": resolved.tokens}
    return json_reply(counted, exchange.fault)
