"""Services of the field as strict upstreams, as an account meets them that no preset describes."""

from __future__ import annotations

import json

from tests.support.events import Json, new_id, reasoning_item
from tests.support.strict import Brain, Mode, Refusal, Strict, refuse

#: What the ChatGPT backend takes of a request (protocol.md §8.1).
_CHATGPT_PARAMETERS = frozenset(
    {
        "client_metadata",
        "include",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "reasoning",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
    }
)


class Platform(Strict):
    """As documented: what was stored can be named, reasoning is sealed for who asks for it."""

    seals_on_request = True


class ChatGpt(Strict):
    """Like the ChatGPT backend: it refuses to store, and says so in a shape of its own."""

    seals_on_request = True
    lists_no_output = True

    def __init__(self, name: str, brain: Brain | None = None) -> None:
        super().__init__(name, Mode.STATELESS, brain)

    def check_service(self, body: Json) -> None:
        for name, value in body.items():
            if value is not None and name not in _CHATGPT_PARAMETERS:
                raise _detail(f"Unsupported parameter: {name}")
        if not isinstance(body.get("input"), list):
            raise _detail("Input must be a list")
        if body.get("store") is not False:
            raise _detail("Store must be set to false")
        if body.get("stream") is not True:
            raise _detail("Stream must be set to true")


class ZeroRetention(Strict):
    """The platform for an organisation with zero data retention: `store` changes nothing."""

    seals_on_request = True

    def __init__(self, name: str, brain: Brain | None = None) -> None:
        super().__init__(name, Mode.STATELESS, brain)

    def check_service(self, body: Json) -> None:
        if body.get("previous_response_id") is not None:
            message = (
                "Previous response cannot be used for this organization due to Zero Data Retention."
            )
            raise refuse("unsupported_parameter", message, "previous_response_id")


class OtherIds(Strict):
    """Its terminal events list what it streamed under other ids, and a thought more."""

    def listed(self, events: list[Json]) -> list[Json]:
        final = events[-1]["response"]
        renamed = [{**item, "id": new_id("final")} for item in final["output"]]
        final["output"] = [reasoning_item(self.seal()), *renamed]
        return events


class TypesByName(Strict):
    """The data of its events have no `type`: the `event:` lines tell it."""

    def written(self, events: list[Json]) -> list[bytes]:
        untyped = [
            (event["type"], {k: v for k, v in event.items() if k != "type"}) for event in events
        ]
        return [f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode() for kind, data in untyped]


def _detail(message: str) -> Refusal:
    return Refusal(400, {"detail": message})
