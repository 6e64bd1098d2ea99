"""Request logs: what is recorded at present, the files, and one of them as a timeline."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from gateway.admin.requests import AdminError
from gateway.admin.running_gateway import RunningGateway
from gateway.protocol.errors import UNREADABLE
from gateway.request_log.files import FileSize, LogLine, LogPage

#: The newest files that are listed.
MAX_FILES = 200

#: Lines of a timeline on one page, and what is shown of each, in characters.
MAX_LINES = 100
_SHOWN = 20_000

#: The beginning of a line that is too long to be shown whole.
_HEAD = re.compile(rb'\{"ms":(-?[0-9.]+),"kind":"([a-z_]+)"')

#: Members of a line that stand beside the others, not among them.
_BESIDE = ("ms", "kind", "attempt", "account")

#: Who speaks to whom, by kind; the account of an attempt takes the place of ``account``.
_WAYS = {
    "request": "client → gateway",
    "attempt": "gateway → account",
    "sent": "gateway → account",
    "answer": "account → gateway",
    "from_account": "account → gateway",
    "attempt_ended": "gateway",
    "head": "gateway → client",
    "to_client": "gateway → client",
    "keep_alive": "gateway → client",
    "end": "gateway",
}

_WORDS = {
    "request": "request",
    "attempt": "request",
    "sent": "on a connection",
    "answer": "answers",
    "attempt_ended": "attempt over",
    "head": "answer begins",
    "keep_alive": "keep-alive",
    "end": "end",
}


def rules(running: RunningGateway) -> list[dict[str, Any]]:
    """What is recorded: ``[{what, name, until, turns}]``."""
    return [
        {"what": rule.what, "name": rule.name, "until": rule.until, "turns": rule.turns}
        for rule in running.services.request_log.rules
    ]


def recorded(running: RunningGateway) -> dict[str, Any]:
    """What is recorded, and what became of it."""
    log = running.services.request_log
    return {
        "recorded": rules(running),
        "failed": log.failed,
        "turns": log.turns,
        "bytes": log.bytes,
    }


def recordings(running: RunningGateway) -> Deferred[dict[str, Any]]:
    """What is recorded, what became of it, and the newest files, the newest first.

    Fails with :class:`AdminError` when the disk does not answer.
    """

    def shown(files: Sequence[FileSize]) -> dict[str, Any]:
        newest = files[: -MAX_FILES - 1 : -1]
        listed = [{"name": each.name, "bytes": each.size} for each in newest]
        return {**recorded(running), "files": listed}

    return running.services.request_log.list_files().addCallbacks(shown, _slow)


def recording(
    running: RunningGateway, name: str, start: int = 0
) -> Deferred[dict[str, Any] | None]:
    """Some steps of one turn; None when there is no such file any more.

    Fails as :func:`recordings` does.

    :param name: of the file.
    :param start: where they begin, in bytes.
    """

    def shown(page: LogPage | None) -> dict[str, Any] | None:
        return None if page is None else timeline(name, page)

    return running.services.request_log.read(name, start, MAX_LINES).addCallbacks(shown, _slow)


def _slow(failure: Failure) -> NoReturn:
    failure.trap(TimeoutError)
    raise AdminError(503, "the disk does not answer; try again later")


def timeline(name: str, page: LogPage) -> dict[str, Any]:
    """Some lines of a file.

    :return: ``{file, size, start, next, steps}``; ``next`` is None at the end of the file.  Each
        step has its time, its way, a title and its text, and says how long its line is.
    """
    return {
        "file": name,
        "size": page.size,
        "start": page.start,
        "next": page.end if page.end < page.size and page.lines else None,
        "steps": [_step(line) for line in page.lines],
    }


def _step(line: LogLine) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line.data)
        if not isinstance(value, dict):
            raise ValueError
    except (*UNREADABLE, ValueError):
        return _unread(line)
    kind, account = str(value.get("kind")), value.get("account")
    return {
        "ms": _number(value.get("ms")),
        "kind": kind,
        "way": _way(kind, account),
        "attempt": _number(value.get("attempt")),
        "title": _title(kind, value),
        "text": _shortened(_text(value)),
        "bytes": line.size,
        "is_whole": True,
    }


def _unread(line: LogLine) -> dict[str, Any]:
    """A line that is too long to be read whole, or was not written to its end."""
    found = _HEAD.match(line.data)
    kind = found[2].decode() if found else ""
    return {
        "ms": _number(found and found[1].decode()),
        "kind": kind,
        "way": _way(kind, None),
        "attempt": None,
        "title": _WORDS.get(kind, kind),
        "text": _shortened(line.data.decode("utf-8", "replace")),
        "bytes": line.size,
        "is_whole": False,
    }


def _way(kind: str, account: object) -> str:
    way = _WAYS.get(kind, "")
    return way.replace("account", account) if isinstance(account, str) else way


def _title(kind: str, value: dict[str, Any]) -> str:
    """The step in a few words: the type of an event, or a status."""
    body = value.get("body")
    if kind in ("from_account", "to_client") and isinstance(body, dict):
        said = body.get("type") or ("error" if "error" in body else body.get("object"))
        return str(said or "body")[:100]
    details = (value.get("status"), value.get("error"))
    words = [_WORDS.get(kind, kind), *(str(each) for each in details if each is not None)]
    return " ".join(words)[:200]


def _text(value: dict[str, Any]) -> str:
    """The rest of a line, as people read JSON."""
    rest = {name: each for name, each in value.items() if name not in _BESIDE}
    return json.dumps(rest, indent=1, ensure_ascii=False)[2:-2] if rest else ""


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}\n… {len(text) - _SHOWN} more characters"


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
