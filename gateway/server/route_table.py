"""The API's endpoints; each is one line here and one handler in a module of its own."""

from __future__ import annotations

from gateway.server.chat import ChatCompletions
from gateway.server.compact import Inputs
from gateway.server.models import Models
from gateway.server.responses import Responses
from gateway.server.routes import Table
from gateway.server.stored import StoredResponses


def endpoints(
    responses: Responses,
    stored: StoredResponses,
    inputs: Inputs,
    models: Models,
    chat: ChatCompletions,
) -> Table:
    """What is served, without prefixes."""
    return {
        "/responses": {"POST": responses.create},
        "/responses/compact": {"POST": inputs.compact},
        "/responses/input_tokens": {"POST": inputs.count},
        "/responses/{response_id}": {"GET": stored.retrieve, "DELETE": stored.delete},
        "/responses/{response_id}/cancel": {"POST": stored.cancel},
        "/responses/{response_id}/input_items": {"GET": stored.input_items},
        "/models": {"GET": models.index},
        "/models/{model}": {"GET": models.retrieve},
        "/chat/completions": {"POST": chat.complete},
    }
