"""Which turns are recorded, and the recording of one.

A configuration asks for turns by key, account and model; an operator asks for one key, account or
conversation for some minutes.  While nobody asks, ``rules`` is empty, and turns are made as if
there were no request logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.config import ContentLogSettings, KeySettings
from gateway.request_log.files import (
    FileSize,
    LogPage,
    RequestLogFiles,
    file_name,
    read_page,
    sizes_in,
)
from gateway.request_log.redaction import RedactionRules, Redactor
from gateway.request_log.writer import MAX_QUEUED_BYTES, InThread, LogEntry, LogWriter, RecordedFile

#: Recordings that operators may ask for at the same time.
MAX_ASKED = 50

#: How long the last lines may take when the gateway stops, in seconds.
_CLOSE_SECONDS = 3.0

#: How long a file may take to be read, in seconds.
_READ_SECONDS = 10.0

_log = Logger(namespace="gateway.request_log")


class RecordingRule:
    """Asks for turns to be recorded.

    :param what: ``configuration``, or what an operator named: ``key``, ``account`` or
        ``conversation``.
    :param name: of that; empty for the configuration.
    :param until: unix seconds, or None for ever.
    :ivar turns: how many it has recorded.
    :ivar is_on: false once it was stopped; the turns that it records then end their files.
    """

    keys: Sequence[str] = ("*",)
    models: Sequence[str] = ("*",)
    accounts: Sequence[str] = ("*",)

    def __init__(self, what: str, name: str, until: float | None) -> None:
        self.what = what
        self.name = name
        self.until = until
        self.turns = 0
        self.is_on = True
        self.timer: IDelayedCall | None = None

    def matches(self, tenant: str, model: str | None, conversation: str | None) -> bool:
        """Whether it asks for a turn, unless its account says otherwise."""
        if self.what == "configuration":
            return _is_any(tenant, self.keys) and _is_any(model or "", self.models)
        return {"key": tenant, "conversation": conversation}.get(self.what, self.name) == self.name

    def takes(self, account: str) -> bool:
        """Whether it asks for turns of an account."""
        if self.what == "account":
            return account == self.name
        return _is_any(account, self.accounts)

    @property
    def takes_any(self) -> bool:
        """Whether it asks for turns of whatever account, also before they have one."""
        return self.what != "account" and "*" in self.accounts


class RequestLog:
    """Decides which turns are recorded, and takes what is written of them.

    :ivar rules: those that are in force; empty while nothing is recorded.
    :ivar failed: why nothing can be written any more, or None; a reload or a new recording of an
        operator tries again.
    :ivar directory: where the files are.
    :ivar turns: turns that were recorded.
    :ivar failures: how often writing failed or lines were lost.
    """

    max_queued_bytes = MAX_QUEUED_BYTES

    def __init__(self, clock: IReactorTime, in_thread: InThread[Any]) -> None:
        self._clock = clock
        self._in_thread = in_thread
        self._writer = LogWriter(in_thread, self._fail)
        self._configured: RecordingRule | None = None
        self._asked: list[RecordingRule] = []
        self._settings: tuple[ContentLogSettings | None] | None = None
        self._is_behind = False
        self.rules: tuple[RecordingRule, ...] = ()
        self.failed: str | None = None
        self.turns = 0
        self.failures = 0
        self.configure(None)

    @property
    def bytes(self) -> int:
        """Bytes that were written."""
        return self._writer.written

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for the disk."""
        return self._writer.queued_bytes

    # --- what is recorded ----------------------------------------------------------------

    def configure(
        self,
        settings: ContentLogSettings | None,
        keys: Iterable[KeySettings] = (),
        secrets: Iterable[str | None] = (),
    ) -> None:
        """Record what the configuration asks for, from now on; what operators asked for stays.

        :param settings: None to record nothing by the configuration.
        :param keys: of clients; each is hidden in its own turns.
        :param secrets: what is hidden in all turns.
        """
        self._keys = {each.name: each.key for each in keys if each.key is not None}
        self._secrets = [each for each in secrets if each]
        if (settings,) == self._settings:  # turns that are recorded go on
            self.failed = None
            self._set_rules()
            return
        self._settings = (settings,)
        wanted = settings or ContentLogSettings(keys=())
        self.directory = wanted.directory or default_directory()
        self._files = RequestLogFiles(self.directory, wanted.max_bytes, wanted.max_files)
        self._redaction = RedactionRules(wanted.redact)
        if self._configured is not None:
            self._configured.is_on = False
        self._configured = None
        if wanted.keys:
            rule = self._configured = RecordingRule("configuration", "", None)
            rule.keys, rule.models, rule.accounts = wanted.keys, wanted.models, wanted.accounts
        self.failed = None
        self._set_rules()

    def record(self, what: str, name: str, seconds: float) -> RecordingRule | None:
        """Record the turns of a key, an account or a conversation for a time.

        :return: None when too much is recorded already.
        """
        self.stop(what, name)
        if len(self._asked) >= MAX_ASKED:
            return None
        rule = RecordingRule(what, name, self._clock.seconds() + seconds)
        rule.timer = self._clock.callLater(seconds, self._end, rule)
        self._asked.append(rule)
        self.failed = None
        self._set_rules()
        return rule

    def stop(self, what: str, name: str) -> bool:
        """Stop what an operator asked for, also in turns that run; whether there was such."""
        found = [rule for rule in self._asked if (rule.what, rule.name) == (what, name)]
        for rule in found:
            self._end(rule)
        return bool(found)

    def close(self) -> Deferred[None]:
        """Record nothing more; fires when the last lines are written, or after a short time."""
        for rule in list(self._asked):
            self._end(rule)
        if self._configured is not None:
            self._configured.is_on = False
        self._configured = self._settings = None
        self._set_rules()
        flushed = self._writer.flushed()
        flushed.addTimeout(_CLOSE_SECONDS, self._clock)
        return flushed.addErrback(lambda _: _log.warn("the last request logs are incomplete"))

    def _end(self, rule: RecordingRule) -> None:
        rule.is_on = False
        if rule.timer is not None and rule.timer.active():
            rule.timer.cancel()
        rule.timer = None
        self._asked.remove(rule)
        self._set_rules()

    def _set_rules(self) -> None:
        configured = () if self._configured is None else (self._configured,)
        self.rules = () if self.failed is not None else (*configured, *self._asked)

    def _fail(self, reason: str) -> None:
        """Nothing can be written: say so once, and go on without."""
        self.failures += 1
        if self.failed is None:
            self.failed = reason
            _log.error(
                "request logs cannot be written to {directory}: {reason}; turns go on, and none is"
                " recorded until the configuration is reloaded",
                directory=self.directory,
                reason=reason,
            )
            self._set_rules()

    # --- files ---------------------------------------------------------------------------

    def list_files(self) -> Deferred[list[FileSize]]:
        """All files, the oldest first; fails with ``TimeoutError`` when the disk is too slow."""
        directory = self.directory
        return self._read(lambda: sizes_in(directory))

    def read(self, name: str, start: int, max_lines: int) -> Deferred[LogPage | None]:
        """Some lines of a file, see :func:`read_page`; fails as :meth:`list_files` does."""
        directory = self.directory
        return self._read(lambda: read_page(directory, name, start, max_lines))

    def _read(self, function: Callable[[], Any]) -> Deferred[Any]:
        return self._in_thread(function).addTimeout(_READ_SECONDS, self._clock)

    # --- turns ---------------------------------------------------------------------------

    def asking(
        self, tenant: str, model: str | None, conversation: str | None
    ) -> list[RecordingRule]:
        """The rules that ask for a turn, unless its account says otherwise.

        :param conversation: the id of its binding, or None.
        """
        return [rule for rule in self.rules if rule.matches(tenant, model, conversation)]

    def recording(
        self, asking: Sequence[RecordingRule], turn: str, tenant: str, accepted_at: float
    ) -> TurnRecording:
        """The recording of a turn.

        :param asking: the rules that ask for it.
        :param turn: its name in the log.
        :param tenant: the name of its client key.
        :param accepted_at: unix seconds.
        """
        name = file_name(turn, accepted_at)
        redactor = Redactor(self._redaction)
        redactor.learn([*self._secrets, self._keys.get(tenant, "")])
        file = RecordedFile(self._files, name, redactor)
        return TurnRecording(self, asking, file, accepted_at)

    def began(self, rules: Iterable[RecordingRule]) -> None:
        """A turn is recorded by these rules."""
        self.turns += 1
        for rule in rules:
            rule.turns += 1

    def put(self, entry: LogEntry) -> None:
        """Write this soon, as far as the disk keeps up."""
        if self.failed is not None:
            return
        if self._writer.put(entry, is_last=entry.kind == "end"):
            self._is_behind = False
            return
        entry.file.dropped += max(len(entry.bodies), 1)
        self.failures += 1
        if not self._is_behind:
            self._is_behind = True
            _log.warn("the disk is too slow for request logs: lines are left out")

    def elapsed_ms(self, since: float) -> float:
        """Milliseconds since then."""
        return round((self._clock.seconds() - since) * 1000, 1)


class TurnRecording:
    """What is written of one turn.

    Before an account is known that the rules ask for, only the request is kept.

    :ivar name: of its file.
    :ivar redactor: removes the secrets of the turn.
    """

    def __init__(
        self,
        log: RequestLog,
        asking: Sequence[RecordingRule],
        file: RecordedFile,
        accepted_at: float,
    ) -> None:
        self._log = log
        self._asking = asking
        self._file = file
        self._accepted_at = accepted_at
        self._held: list[LogEntry] = []
        self.redactor = file.redactor
        self.is_written = False
        self._begin([rule for rule in asking if rule.takes_any])

    @property
    def name(self) -> str:
        """The name of its file."""
        return self._file.name

    def wants(self, account: str) -> bool:
        """Whether an attempt on this account is recorded; from then on all of the turn is."""
        if not self.is_written:
            self._begin([rule for rule in self._asking if rule.takes(account)])
        return self.is_written

    def request(self, fields: Mapping[str, Any], body: bytes | None) -> None:
        """What the client asks for."""
        entry = self._entry("request", fields, () if body is None else (body,))
        if self.is_written:
            self._log.put(entry)
        else:
            self._held.append(entry)

    def note(self, kind: str, fields: Mapping[str, Any], *bodies: bytes) -> None:
        """Something happened; a line for each body, or one without."""
        if not self.is_written or self._file.is_gone:
            return
        if not any(rule.is_on for rule in self._asking):
            self._log.put(self._entry("end", {"status": "no longer recorded"}, ()))
            self.is_written = False
            self._asking = ()
            return
        self._log.put(self._entry(kind, fields, bodies))

    def _begin(self, rules: Sequence[RecordingRule]) -> None:
        """Write what is known, if there are rules that ask for it."""
        if not rules:
            return
        self._asking = rules
        self.is_written = True
        self._log.began(rules)
        held, self._held = self._held, []
        for entry in held:
            self._log.put(entry)

    def _entry(self, kind: str, fields: Mapping[str, Any], bodies: Sequence[bytes]) -> LogEntry:
        return LogEntry(self._file, self._log.elapsed_ms(self._accepted_at), kind, fields, bodies)


def default_directory() -> str:
    """Where the files are if the configuration does not say.

    That is below the service manager's directory for logs or state, or the user's own.
    """
    environ = os.environ
    for variable in ("LOGS_DIRECTORY", "STATE_DIRECTORY"):
        managed = environ.get(variable, "").partition(":")[0]
        if managed:
            return os.path.join(managed, "requests")
    state = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "responses-gateway", "requests")


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return "*" in patterns or any(fnmatchcase(name, each) for each in patterns)
