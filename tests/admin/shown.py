"""A stand-in for the running gateway: what the page shows, in every shape the API gives it."""

from __future__ import annotations

import math
from typing import Any

from gateway.metrics.turns import with_shares

Json = dict[str, Any]

NOW = 1_800_000_000.0
STATES = ("ready", "ready", "cooling", "exhausted", "ready", "unauthorized", "draining", "disabled")


class Shown:
    """Stands in for :class:`gateway.admin.page.PageData` with made-up figures.

    :param words: put into every text that comes from elsewhere.
    """

    def __init__(self, accounts: int = 6, turns: int = 12, words: str = "") -> None:
        self.words = words
        self.names = [f"{name}{words}" for name in _names(accounts)]
        self._turns = [self._turn(number) for number in range(turns)]

    def status(self) -> Json:
        return {
            "version": "0.1.0",
            "uptime_seconds": 276_131.4,
            "state": "degraded",
            "ready": True,
            "drain": None,
            "generation": 3,
            "log_level": "info",
            "last_rejected_reload": {"at": NOW - 700, "error": f"accounts[1].weight{self.words}"},
            "loop_lag_ms": {"p50": 0.21, "p99": 2.4},
            "memory": {"rss_bytes": 312_400_000, "budget_bytes": 1_000_000_000},
            "open_files": {"used": 4213, "limit": 65_536},
            "store": {"where": f"sqlite /var/state{self.words}", "pending_rows": 12},
            "alarms": [
                {
                    "level": "red",
                    "what": f"ohio{self.words} is unauthorized: the token endpoint answered"
                    " 400 invalid_grant",
                    "since": NOW - 1830,
                    "until": None,
                    "advice": "replace its key",
                },
                {
                    "level": "amber",
                    "what": "a configuration was rejected: accounts[1].weight is 0; it must be"
                    " at least 1",
                    "since": NOW - 700,
                    "until": NOW + 340_000,
                    "advice": None,
                },
            ],
            "now": {
                "connections": 2013,
                "websockets": 2000,
                "lanes": 2417,
                "turns_in_flight": 184,
                "turns_queued": 12,
                "turns_waiting": 3,
                "turns_per_minute": 1408,
                "tokens_per_minute": 11_204_338,
                "added_first_token_ms": {"p50": 1.8, "p99": 7.4},
                "upstream_first_token_ms": {"p50": 812.0, "p99": 4310.0},
                "cached_share": 0.871,
                "errors_per_minute": 2.5,
                "refused_per_minute": 1.5,
            },
            "newest": {"at": NOW, "values": {}},
            "history": self._history(),
            "accounts": [self._account(*each) for each in enumerate(self.names)],
            "keys": self._keys(),
            "transports": with_shares(
                {
                    "http": _use(1000, 100, 90_000_000, 4_000_000, 1_000_000),
                    "websocket": _use(3000, 2900, 1_500_000, 12_000_000, 11_500_000),
                }
            ),
            "turns": {"completed": 48_211, "failed": 37, "cancelled": 210},
        }

    def conversations(self, query: str, limit: int) -> Json:
        rules = ("previous response", "thread", "session", "prompt_cache_key", "connection")
        return {
            "conversations": [
                {
                    "id": f"{number:02x}c7f0a4e9b1{self.words}",
                    "rule": rules[number % 5] + self.words,
                    "tenant": f"laptop{self.words}",
                    "account": self.names[number % len(self.names)],
                    "stand_in": self.names[0] if number % 4 == 2 else None,
                    "stand_in_why": "cooling: 429" if number % 4 == 2 else None,
                    "leaves": None,
                    "why": f"the account that holds the parent{self.words}",
                    "bound_at": NOW - 4000 + number,
                    "used_at": NOW - 3 * number - 1,
                }
                for number in range(min(limit, 8))
            ]
        }

    def why(self, name: str) -> Json | None:
        if name == "unknown":
            return None
        return {
            "explanation": [
                f"It is at home at {self.names[0]}, by the rule: previous response.",
                f"{self.names[0]} is cooling: 429 rate_limit_exceeded{self.words}.",
                f"{self.names[1]} serves it meanwhile: its home was cooling.",
            ],
            "binding": None,
            "chain": {"nodes": self._forest()},
        }

    def turns(self, account: str, key: str, status: str, limit: int) -> Json:
        fits = [turn for turn in self._turns if not account or turn["account"] == account]
        return {"turns": fits[-limit:]}

    def memory(self) -> Json:
        registers = (
            ("ledger", 184_213_004, 268_435_456, "bytes", 184_213_004),
            ("bindings", 8211, 100_000, "conversations", 2_413_000),
            ("turn journal", 500, 500, "turns", None),
            (f"waiting room{self.words}", 3, 1000, "turns", None),
        )
        fields = ("name", "size", "bound", "unit", "bytes")
        return {"registers": [dict(zip(fields, each, strict=True)) for each in registers]}

    def recordings(self) -> Json:
        return {
            "recorded": [
                {"what": "configuration", "name": "", "until": None, "turns": 12},
                {"what": "key", "name": f"laptop{self.words}", "until": NOW + 340, "turns": 3},
            ],
            "failed": f"No space left on device{self.words}",
            "turns": 15,
            "bytes": 4_213_000,
            "files": [],
        }

    def configuration(self) -> Json:
        settings = [("listen", "tcp:8080:interface=127.0.0.1", "default")]
        settings.append(("routing.strategy", "least-in-flight", "file"))
        for number, name in enumerate(self.names):
            place = f"accounts[{number}]"
            settings += [
                (f"{place}.name", name, "file"),
                (f"{place}.base_url", f"https://api.example/v1{self.words}", "preset openai"),
                (f"{place}.key", "***", "environment OPENAI_KEY"),
                *((f"{place}.setting_{each}", None, "default") for each in range(24)),
            ]
        fields = ("path", "value", "origin")
        return {
            "generation": 3,
            "source": f"/etc/responses-gateway/pool.yaml{self.words}",
            "can_reload": True,
            "log_level": "info",
            "settings": [dict(zip(fields, each, strict=True)) for each in settings],
        }

    def _history(self) -> Json:
        def wave(top: float, pace: float) -> list[float | None]:
            return [top * (0.6 + 0.4 * math.sin(at / pace) ** 2) for at in range(180)]

        names = ("connections", "lanes", "turns_in_flight", "turns_queued", "turns_per_minute")
        series = {name: wave(2000 / (number + 1), 9 + number) for number, name in enumerate(names)}
        series["turns_queued"] = [float(at % 60 == 7) for at in range(180)]
        series["tokens_per_minute"] = wave(11e6, 21)
        series["errors_per_minute"] = [3.0 if at in (40, 41, 150) else 0.0 for at in range(180)]
        series["added_first_token_ms.p99"] = wave(7.4, 5)
        series["upstream_first_token_ms.p99"] = wave(4310, 13)
        series["cached_share"] = [None] * 60 + [0.7 + at / 1000 for at in range(120)]
        return {"step_seconds": 5, "start": NOW - 900, "series": series}

    def _account(self, number: int, name: str) -> Json:
        state = STATES[number % len(STATES)]
        serving = state not in ("disabled", "draining")
        resting = state in ("cooling", "exhausted", "unauthorized")
        return {
            "name": name,
            "state": state,
            "why": f"429 rate_limit_exceeded{self.words}" if resting else None,
            "since": NOW - 900 - number,
            "until": NOW + 245 if resting else None,
            "resets_at": NOW + 345_600 if state == "exhausted" else None,
            "models": [
                {
                    "model": f"gpt-5{self.words}",
                    "state": "cooling",
                    "why": f"429{self.words}",
                    "until": NOW + 12,
                }
            ]
            if number % 6 == 1
            else [],
            "windows": [
                _window("codex primary", used_percent=97.0 if resting else 62.4),
                _window("requests", remaining=412, limit=5000),
            ]
            if number % 3 != 1
            else [],
            "in_flight": 31 + number,
            "max_in_flight": 64 if number % 2 else None,
            "pinned": 1204,
            "turns": 8123,
            "failures": 12,
            "errors": {"rate_limited": 11, f"service{self.words}": 1} if resting else {},
            "first_token_ms": {"p50": 812.0, "p99": 4310.0},
            "cached_share": 0.87,
            "websockets": None
            if number % 3
            else {
                "in_use": 4 + number,
                "idle": 12,
                "opening": 1,
                "most": 50,
                "opened": 340,
                "lost": {"age": 300, "closed 1006": 7, f"closed otherwise{self.words}": 0},
                "unavailable": {
                    "why": f"the service answered the upgrade with 426{self.words}",
                    "until": NOW + 540,
                }
                if number
                else None,
                "forgets_until": NOW + 3600 if number else None,
            },
            "continuity": {"setting": "auto", "learned": {"store": f"chain{self.words}"}},
            "learned": [
                {
                    "what": f"without user{self.words}",
                    "path": "/responses",
                    "model": f"gpt-5{self.words}",
                    "key": None,
                    "why": f"400 unsupported_parameter: no{self.words}",
                    "until": NOW + 86_000,
                }
            ]
            if number % 6 == 2
            else [],
            "base_url": f"https://api.example/v1{self.words}",
            "weight": 1,
            "priority": 1,
            "actions": ["pause", "drain", "clear", "probe"] if serving else ["resume", "clear"],
        }

    def _keys(self) -> list[Json]:
        return [
            {
                "name": f"{name}{self.words}",
                "models": ["*"],
                "turns_running": 3,
                "turns_running_everywhere": 5,
                "max_concurrent_turns": 8,
                "turns": 20_113,
                "tokens": 911_204_338,
                "last_used_at": NOW - 4 if used else None,
                "limits": {
                    "requests_per_minute": {"used": 55, "limit": 60, "free_at": None},
                    "tokens_per_day": {
                        "used": 2_041_000,
                        "limit": 2_000_000,
                        "free_at": NOW + 5_400,
                    },
                },
                "refusals": {"requests_per_minute": 4} if used else {},
            }
            for name, used in (("laptop", True), ("desk", False))
        ]

    def _turn(self, number: int) -> Json:
        failed = number % 5 == 3
        account = self.names[number % len(self.names)]
        begin = 40.0 if number % 4 == 1 else 0.1
        attempt = {
            "account": account,
            "rule": "the account that holds the parent",
            "route": "chained",
            "candidates": len(self.names),
            "others": {},
            "outcome": "failed" if failed else "completed",
            "chosen_ms": begin + 0.4,
            "connected_ms": begin + 18.2,
            "first_byte_ms": None if failed else begin + 640.0 + 30 * number,
        }
        return {
            "turn": f"c{number}.{number + 4}{self.words}",
            "connection": "c1",
            "key": f"laptop{self.words}",
            "lane": None,
            "model": f"gpt-5-codex{self.words}",
            "previous_response_id": "resp_1",
            "continuation": "named",
            "request_bytes": 14_213,
            "conversation": "c0",
            "response_id": None if failed else f"resp_{number:04d}a91b27c4e8d05f6{self.words}",
            "route": "replayed" if number % 4 == 2 else "chained",
            "reason": f"its account is cooling{self.words}",
            "account": account,
            "transport": "websocket" if number % 3 == 1 else "http",
            "attempts": [attempt, attempt] if failed else [attempt],
            "status": "failed" if failed else "completed",
            "error_code": f"server_error{self.words}" if failed else None,
            "input_tokens": 48_213,
            "cached_tokens": 44_000,
            "output_tokens": 612,
            "queued_ms": begin,
            "first_output_ms": None if failed else 900.0,
            "duration_ms": 1400.0 + 400 * number,
            "relayed_bytes": 91_204,
            "ended_at": None,
            "recording": None if failed else f"v1-responses-{number}{self.words}.log",
        }

    def _forest(self) -> list[Json]:
        parents = [None, 0, 1, 1, 2, 4, 3, 4, 5, None, 9, 8, 8, 6]
        return [
            {
                "id": f"resp_{number:02d}{self.words}",
                "parent": None if parent is None else f"resp_{parent:02d}{self.words}",
                "account": self.names[(number // 4) % len(self.names)],
                "route": ("root", "replayed")[number % 4 == 0]
                if parent is None or number % 4 == 0
                else "chained",
                "status": "completed" if number != 7 else f"evicted{self.words}",
                "created_at": NOW - 3000 + 60 * number,
                "model": f"gpt-5{self.words}",
                "items": 3 + number,
                "bytes": 4000 * (number + 1),
            }
            for number, parent in enumerate(parents)
        ]


def _use(*counts: int) -> dict[str, int]:
    names = ("turns", "chained", "upstream_bytes", "input_tokens", "cached_input_tokens")
    return dict(zip(names, counts, strict=True))


def _names(count: int) -> list[str]:
    known = ["north", "south", "azure-west", "team-a", "vllm", "ohio", "spare", "chatgpt"]
    return (known + [f"account-{number}" for number in range(len(known), count)])[:count]


def _window(name: str, **fields: float) -> Json:
    empty = dict.fromkeys(("used_percent", "remaining", "limit", "window_seconds"))
    return {"name": name, **empty, "resets_at": NOW + 9000, **fields}
