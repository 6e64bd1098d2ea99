"""The settings of known services, so that an account's entry needs little more than a key.

A preset fills in only what the entry leaves out, also within a section: the operator's own values
win. The services' behaviour: protocol.md §8.1, §8.3.10, §10.30, §10.77; and their documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

# Codex's own members, which only OpenAI's services know.
_CODEX_MEMBERS = ("access_programs", "client_metadata")
_OTHER_ENGINES = (*_CODEX_MEMBERS, "stream_options")
# The Codex backend of ChatGPT takes a fixed list of members and answers 400 to any other.
_CHATGPT_REFUSES = (
    *("context_management", "frequency_penalty", "max_output_tokens", "max_tool_calls"),
    *("metadata", "presence_penalty", "prompt_cache_retention", "safety_identifier"),
    *("temperature", "top_logprobs", "top_p", "truncation", "user"),
)
# Servers on the operator's own machine ask for no key, and ignore one.
_NO_KEY = "unused"
_CREDENTIALS = ("key", "key_file", "oauth")

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "openai": {
            "base_url": "https://api.openai.com/v1",
            "background": True,
            "transport": "auto",
            # What its guides document; Codex's `response.interrupt` is not among it.
            "websocket": {"controls": ("steer", "inject")},
        },
        # Every resource has an address of its own.
        "azure": {
            "auth_header": "api-key",
            "strip": _CODEX_MEMBERS,
            "background": True,
            "transport": "auto",
        },
        "xai": {
            "base_url": "https://api.x.ai/v1",
            "strip": (*_OTHER_ENGINES, "metadata"),
            "tools": "hoisted",
            "instructions": "inherited",
            # For those who choose a WebSocket: it ends after 25 minutes.
            "websocket": {
                "continues_unstored": False,
                "reuses_ids": True,
                "max_age_minutes": 24.0,
            },
        },
        "openrouter": {
            "base_url": "https://openrouter.ai/api/v1",
            "continuity": "replay",
            "store": "never",
            "strip": _OTHER_ENGINES,
            "tools": "hoisted",
        },
        "vllm": {
            "base_url": "http://127.0.0.1:8000/v1",
            "key": _NO_KEY,
            "continuity": "replay",
            "strip": _OTHER_ENGINES,
            "tools": "hoisted",
        },
        "ollama": {
            "base_url": "http://127.0.0.1:11434/v1",
            "key": _NO_KEY,
            "continuity": "replay",
            "strip": _OTHER_ENGINES,
            "tools": "hoisted",
        },
        # It keeps responses, but loses events of streams that continue one.
        "lmstudio": {
            "base_url": "http://127.0.0.1:1234/v1",
            "key": _NO_KEY,
            "continuity": "replay",
            "strip": _OTHER_ENGINES,
            "tools": "hoisted",
        },
        # `replay` is about stored responses; a WebSocket continues what it made itself.
        "chatgpt": {
            "base_url": "https://chatgpt.com/backend-api/codex",
            "continuity": "replay",
            "store": "never",
            "strip": _CHATGPT_REFUSES,
            "chat_completions": False,
            "transport": "auto",
            # Codex itself sends this one there.
            "websocket": {"beta": "responses_websockets=2026-02-06", "controls": ("interrupt",)},
        },
    }
)


def additions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the preset of an account's entry adds to it; none without a preset.

    Of a section only the members are named that the entry leaves out.
    """
    added = dict(PRESETS.get(entry.get("preset") or "", {}))
    if any(entry.get(name) is not None for name in _CREDENTIALS):
        added.pop("key", None)
    if entry.get("oauth") is not None:  # its tokens are bearer tokens (RFC 6750)
        added.pop("auth_header", None)
    return dict(_left_out(entry, added))


def filled_in(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An account's entry with all that its preset adds to it."""
    filled = {**entry, **additions(entry)}
    for name, value in filled.items():
        if isinstance(value, Mapping):
            filled[name] = {**value, **(entry.get(name) or {})}
    return filled


def _left_out(entry: Mapping[str, Any], added: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in added.items():
        if isinstance(value, Mapping):
            own = entry.get(name) or {}
            yield name, {member: each for member, each in value.items() if member not in own}
        elif name not in entry or name == "key":
            yield name, value
