"""The views of all workers as those of one gateway.

What a worker says is marked with its name first; then the views are merged, in any order; and
:func:`presented` makes of the result what a single process would answer.  It has more members than
that only where workers differ: ``workers`` of an account or an alarm, ``worker`` of a turn or a
conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway import __version__
from gateway.admin.merging import (
    Json,
    Rule,
    agreed,
    by_bucket,
    chosen,
    counts,
    either,
    fields,
    least,
    listed,
    merged,
    most,
    named,
    ranked,
    total,
    united,
)
from gateway.admin.views.recordings import MAX_FILES
from gateway.metrics.histogram import MILLISECONDS, percentiles
from gateway.metrics.turns import TurnMetrics, share, with_shares

#: The states of an account; the later one counts.  What the operator set counts most, as it does
#: in one process.
STATES = ("ready", "unproven", "cooling", "exhausted", "unauthorized", "draining", "disabled")

#: Levels of the log; the whole gateway logs from the lowest on.
_LEVELS = ("error", "warn", "info", "debug")

#: Alarms that are shown one by one.
_MAX_ALARMS = 50

#: What shows why an account is in its state; all of it comes from one worker.
_STATE = ("state", "why", "since", "until", "resets_at", "resting", "breaker", "actions")


# --- the overview ------------------------------------------------------------------------------


def _gateway_state(one: str, other: str) -> str:
    """A gateway with workers in both states."""
    if one == other:
        return one
    # One that takes turns makes up for one that does not.
    return "degraded" if {one, other} & {"ready", "degraded"} else "draining"


_COUNTED = fields(
    {
        "minute": fields({}, by_bucket),
        "step": fields({}, by_bucket),
        "accounts": fields({}, fields({}, by_bucket)),
    },
    by_bucket,
)

_QUOTA = fields({"used_percent": most, "remaining": least, "resets_at": most, "limit": most})

_worst = chosen(lambda account: (STATES.index(account["state"]), account["until"] or 0.0))


def _account(one: Json, other: Json) -> Json:
    found: Json = _ACCOUNT(one, other)
    worst = _worst(_of_state(one), _of_state(other))
    return {**found, **worst}


def _of_state(account: Json) -> Json:
    return {name: account[name] for name in _STATE if name in account}


_WEBSOCKETS = fields(
    {
        "lost": counts,
        "unavailable": chosen(lambda each: each["until"] or 0.0),
        "forgets_until": most,
    },
    total,
)

_ACCOUNT = fields(
    {
        "in_flight": total,
        "turns": total,
        "failures": total,
        "errors": counts,
        "websockets": _WEBSOCKETS,
        "pinned": most,
        "models": listed(named("model"), chosen(lambda each: each["until"] or 0.0)),
        "windows": listed(named("name"), _QUOTA),
        "learned": listed(named("what", "path", "model", "key"), fields({"until": most})),
        "states": fields({}),
    }
)

_TRANSPORTS = fields(
    {},
    fields(
        dict.fromkeys(
            ("chained_share", "chained_share_of_all", "bytes_per_turn", "cached_share"), agreed
        ),
        total,
    ),
)

_KEY = fields(
    {
        "turns_running": total,
        # What workers share each of them knows; who asked last knows it best.
        "turns_running_everywhere": most,
        "turns": most,
        "tokens": most,
        "last_used_at": most,
        "limits": fields({}, fields({"used": most, "free_at": most})),
        "refusals": counts,
    }
)

_ALARM = fields({"since": least, "until": most, "workers": united})

_FIGURES = fields({"longest_unused": most}, total)

_DRAIN = fields({"state": agreed, "seconds": most, "seconds_left": most}, total)

_STORE = fields(
    {
        "where": agreed,
        "reachable": least,
        "why": agreed,
        "since": least,
        "written_at": most,
        "file_bytes": most,
    },
    total,
)

#: What is recorded: a rule is in force in all workers that know what it names.
_RULES = listed(named("what", "name"), fields({"until": most, "turns": total}))

#: A process's part of the overview.
PART = fields(
    {
        "uptime_seconds": most,
        "cpu_seconds": total,
        "state": _gateway_state,
        "ready": either,
        "drain": _DRAIN,
        "generation": most,
        "last_rejected_reload": chosen(lambda each: each["at"]),
        "log_level": ranked(_LEVELS),
        "memory": fields({"rss_bytes": total, "budget_bytes": least}),
        "open_files": chosen(lambda each: (each["used"] or 0) / (each["limit"] or 1)),
        "alarms": listed(named("level", "what"), _ALARM),
        "now": fields({"added_first_token_ms": agreed, "upstream_first_token_ms": agreed}, total),
        "newest": fields({"at": most, "values": counts}),
        "turns": counts,
        "transports": _TRANSPORTS,
        "accounts": listed(named("name"), _account),
        "keys": listed(named("name"), _KEY),
        "ledger": _FIGURES,
        "bindings": most,
        "seals": total,
        "store": _STORE,
        "recordings": _RULES,
        "counted": _COUNTED,
    }
)


def marked(part: Json, worker: str) -> Json:
    """A worker's part, with its name where workers may differ."""
    return {
        **part,
        "accounts": [{**each, "states": {worker: each["state"]}} for each in part["accounts"]],
        "alarms": [{**each, "workers": [worker]} for each in part["alarms"]],
    }


#: The sockets of a process that has ended.
_NO_WEBSOCKETS = {
    **dict.fromkeys(("in_use", "idle", "opening", "most"), 0),
    **dict.fromkeys(("unavailable", "forgets_until")),
}

#: The part of no process.
_NO_TIMES = [0] * (len(MILLISECONDS) + 1)
_NO_TURNS = {
    "added_first_token_ms": _NO_TIMES,
    "upstream_first_token_ms": _NO_TIMES,
    "input": [0, 0],
}
NOTHING: Mapping[str, Any] = {
    "version": __version__,
    "uptime_seconds": 0.0,
    "state": "unusable",
    "ready": False,
    "drain": None,
    "generation": 1,
    "last_rejected_reload": None,
    "log_level": None,
    "memory": {"rss_bytes": None, "budget_bytes": None},
    "open_files": {"used": None, "limit": None},
    "loop_lag_ms": percentiles(_NO_TIMES),
    "alarms": [],
    "now": dict.fromkeys(
        (
            *("connections", "websockets", "lanes", "turns_in_flight", "turns_queued"),
            *("turns_waiting", "turns_limited", "turns_per_minute", "tokens_per_minute"),
            *("errors_per_minute", "refused_per_minute"),
        ),
        0,
    ),
    "newest": {"at": None, "values": {}},
    "turns": {},
    "transports": TurnMetrics().by_transport(),
    "accounts": [],
    "keys": [],
    "ledger": {
        "responses": 0,
        "conversations": 0,
        "bytes": 0,
        "max_bytes": 0,
        "evicted_conversations": 0,
        "longest_unused": None,
    },
    "bindings": 0,
    "seals": 0,
    "store": None,
    "recordings": [],
    "counted": {
        "loop_lag_ms": _NO_TIMES,
        "minute": _NO_TURNS,
        "step": _NO_TURNS,
        "accounts": {},
    },
}


def whole(parts: Mapping[str, Json]) -> Json:
    """The overview of all workers.

    :param parts: what they said, by their names.
    """
    told = [marked(part, name) for name, part in parts.items()] or [dict(NOTHING)]
    return presented(merged(PART, told), list(parts))


def presented(part: Json, workers: Sequence[str]) -> Json:
    """What merged parts are as the overview of one gateway.

    :param workers: all that have a part in it.
    """
    found = {name: value for name, value in part.items() if name not in ("counted", "cpu_seconds")}
    counted = part["counted"]
    found["loop_lag_ms"] = percentiles(counted["loop_lag_ms"])
    found["now"] = {**part["now"], **_measured(counted["minute"])}
    found["newest"] = {**part["newest"], "values": _point(part["newest"], counted["step"])}
    found["transports"] = with_shares(part["transports"])
    found["accounts"] = [_presented_account(each, counted) for each in part["accounts"]]
    alarms = [_presented_alarm(each, workers) for each in part["alarms"]]
    found["alarms"] = sorted(alarms, key=lambda each: each["level"] != "red")[:_MAX_ALARMS]
    return found


def _measured(counted: Mapping[str, Sequence[int]]) -> Json:
    """Percentiles and shares of counts."""
    times = {name: percentiles(values) for name, values in counted.items() if name != "input"}
    tokens, cached = counted["input"]
    return {**times, "cached_share": share(cached, tokens)}


def _point(newest: Json, counted: Mapping[str, Sequence[int]]) -> Json:
    """The newest point of the series."""
    values = dict(newest["values"])
    if not values:
        return values
    for name, found in _measured(counted).items():
        if isinstance(found, dict):
            values.update({f"{name}.{which}": value for which, value in found.items()})
        else:
            values[name] = found
    return values


def _presented_account(account: Json, counted: Json) -> Json:
    found = {name: value for name, value in account.items() if name != "states"}
    of_account = counted["accounts"].get(account["name"])
    if of_account is not None:
        found["first_token_ms"] = percentiles(of_account["first_token_ms"])
        found["cached_share"] = share(of_account["input"][1], of_account["input"][0])
    states = account["states"]
    if len(set(states.values())) > 1:
        found["workers"] = dict(sorted(states.items()))
    return found


def _presented_alarm(alarm: Json, workers: Sequence[str]) -> Json:
    """An alarm that all workers have is one of the gateway."""
    if set(alarm["workers"]) >= set(workers):
        return {name: value for name, value in alarm.items() if name != "workers"}
    return alarm


def remains(part: Json) -> Json:
    """What stays of a worker that has ended: its counts."""
    accounts = (
        {
            **{name: each[name] for name in ("name", "turns", "failures", "errors")},
            "websockets": each["websockets"] and {**each["websockets"], **_NO_WEBSOCKETS},
        }
        for each in part["accounts"]
    )
    # The turns of keys are counted for all workers, and live on.
    keys = ({name: each[name] for name in ("name", "refusals")} for each in part["keys"])
    return {
        "turns": part["turns"],
        "transports": part["transports"],
        "accounts": list(accounts),
        "keys": list(keys),
        "ledger": {"evicted_conversations": part["ledger"]["evicted_conversations"]},
    }


#: Merges what remains of several workers.
REMAINS = fields(
    {
        "turns": counts,
        "transports": _TRANSPORTS,
        "accounts": listed(named("name"), _ACCOUNT),
        "keys": listed(named("name"), _KEY),
        "ledger": _FIGURES,
    }
)


def with_remains(part: Json, ended: Json | None) -> Json:
    """A part with the counts of those that have ended, of the accounts and keys that it has."""
    if ended is None:
        return part

    def with_those(name: str, rule: Rule) -> list[Json]:
        here = {each["name"] for each in part[name]}
        left = [each for each in ended[name] if each["name"] in here]
        found: list[Json] = listed(named("name"), rule)(part[name], left)
        return found

    return {
        **part,
        "turns": counts(part["turns"], ended["turns"]),
        "transports": with_shares(_TRANSPORTS(part["transports"], ended["transports"])),
        "accounts": with_those("accounts", _ACCOUNT),
        "keys": with_those("keys", _KEY),
        "ledger": _FIGURES(part["ledger"], ended["ledger"]),
    }


# --- lists -------------------------------------------------------------------------------------


def of_workers(name: str, views: Mapping[str, Json]) -> list[Json]:
    """The entries of all workers' lists, each with the worker's name.

    :param name: the member that is the list.
    """
    return [{**each, "worker": worker} for worker, view in views.items() for each in view[name]]


#: The same conversation is known to several workers; where it was used last is where it is.
_latest = listed(
    named("id"), chosen(lambda each: (each["used_at"] or 0.0, each["bound_at"] or 0.0))
)


def conversations(views: Mapping[str, Json], limit: int) -> Json:
    """The most recently used conversations, each with the worker that used it last."""
    found = _latest([], of_workers("conversations", views))
    found.sort(key=lambda each: each["used_at"] or 0.0, reverse=True)
    return {"conversations": found[:limit]}


def turns(views: Mapping[str, Json], limit: int) -> Json:
    """The last turns, the newest last, each with its worker."""
    found = of_workers("turns", views)
    found.sort(key=lambda each: each["ended_at"] or 0.0)
    return {"turns": found[-limit:]}


def keys(views: Mapping[str, Json]) -> Json:
    """The client keys, with what was used in all workers."""
    merge = listed(named("name"), _KEY)
    return {"keys": merged(merge, [[], *(view["keys"] for view in views.values())])}


def memory(views: Mapping[str, Json]) -> Json:
    """All bounded structures; each has its room in every worker."""
    merge = listed(named("name", "unit"), fields({"size": total, "bound": total, "bytes": total}))
    return {"registers": merged(merge, [[], *(view["registers"] for view in views.values())])}


_RECORDED = fields({"recorded": _RULES, "failed": agreed, "turns": total, "bytes": total})


def recorded(views: Mapping[str, Json]) -> Json:
    """What is recorded, and what became of it."""
    nothing: Json = {"recorded": [], "failed": None, "turns": 0, "bytes": 0}
    found: Json = merged(_RECORDED, [nothing, *views.values()])
    return found


def recordings(views: Mapping[str, Json]) -> Json:
    """The same with the newest files, the newest first; all workers write to one directory."""
    files = {each["name"]: each for view in views.values() for each in view["files"]}
    newest = [files[name] for name in sorted(files, reverse=True)[:MAX_FILES]]
    return {**recorded(views), "files": newest}


def recording(views: Mapping[str, Json | None]) -> Json | None:
    """A file of whoever has it."""
    return next((view for view in views.values() if view is not None), None)


# --- why ---------------------------------------------------------------------------------------


def why(views: Mapping[str, Json | None]) -> Json | None:
    """Why a conversation is on its account, as all workers that know it explain it."""
    known = {worker: view for worker, view in views.items() if view is not None}
    if not known:
        return None
    bindings = [
        {**view["binding"], "worker": worker} for worker, view in known.items() if view["binding"]
    ]
    nodes = {
        each["id"]: {**each, "worker": worker}
        for worker, view in known.items()
        for each in view["chain"]["nodes"]
    }
    ordered = sorted(nodes.values(), key=lambda each: each["created_at"])
    return {
        "explanation": _sentences({name: view["explanation"] for name, view in known.items()}),
        "binding": _latest([], bindings)[0] if bindings else None,
        "chain": {"nodes": ordered},
        "turns": turns(known, 10_000)["turns"],
    }


def _sentences(said: Mapping[str, Sequence[str]]) -> list[str]:
    """What all say once; what one of several says with its name."""
    if len(said) == 1:
        return list(next(iter(said.values())))
    all_say = [each for each in next(iter(said.values())) if all(each in s for s in said.values())]
    own = [
        f"Worker {worker}: {each}"
        for worker, sentences in said.items()
        for each in sentences
        if each not in all_say
    ]
    return [*all_say, *own]


# --- what came of an action --------------------------------------------------------------------


#: The results of one action in several workers.
_DONE = fields({"left": total, "responses": total, "state": ranked(STATES)})


def done(results: Mapping[str, Json], silent: Sequence[str] = ()) -> Json:
    """What came of an action that several workers did.

    :param results: by worker; at least one.
    :param silent: those that did not answer.
    """
    found: Json = dict(merged(_DONE, list(results.values())))
    said = {worker: each["result"] for worker, each in results.items()}
    if len(set(said.values())) > 1:
        found["result"] = "; ".join(f"worker {worker}: {each}" for worker, each in said.items())
    if silent:
        missing = ", ".join(f"worker {worker}" for worker in silent)
        found["result"] += f"; no answer of {missing}"
    return found


def dry_run(views: Mapping[str, Json]) -> Json:
    """The choice of the first worker, and those of all where they differ."""
    first = next(iter(views.values()))
    choices = {worker: view["account"] for worker, view in views.items()}
    return {**first, "workers": choices} if len(set(choices.values())) > 1 else first
