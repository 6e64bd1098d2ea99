"""The command line of `twistd responses-gateway`; a mistake is one line and exit status 1."""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar, NoReturn

from twisted.python import usage

from gateway import __version__
from gateway.config import (
    ConfigError,
    Setting,
    Settings,
    describe,
    load_settings,
    read_text,
)


class Options(usage.Options):
    """What the operator may give; after parsing, `settings` holds the whole configuration."""

    synopsis = "[options]"
    longdesc = (
        "Serves the OpenAI Responses API over WebSocket and HTTP from a pool of accounts, "
        "and keeps the thread of each conversation. Without --config it listens on "
        "127.0.0.1:8080 and answers from a built-in simulator, so that it can be tried "
        "without any key."
    )
    optFlags: ClassVar[list[list[Any]]] = [
        [
            "check",
            None,
            "Check the configuration, print a line or all mistakes, exit with status 0 or 1.",
        ],
    ]
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "config",
            "c",
            None,
            "YAML file with the configuration; ${NAME} in it is taken from the environment.",
        ],
    ]

    settings: Settings
    _text: str | None = None

    def opt_version(self) -> NoReturn:
        """Print the gateway's version and exit."""
        from twisted import copyright

        print(f"responses-gateway {__version__} (Twisted {copyright.version})")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse, but never answer a mistake with twistd's help and status 0."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail(f"responses-gateway: {error}; see twistd responses-gateway --help")

    def parseArgs(self, *surplus: str) -> None:
        """Positional arguments are always a mistake, most often a forgotten --config."""
        if surplus:
            raise usage.UsageError(f"unexpected argument '{surplus[0]}'; a file needs --config")

    def read(self) -> Settings:
        """The configuration as it is now.

        :raises ConfigError: when it is not right.
        """
        path = self["config"]
        text = None if path is None else read_text(path)
        settings = Settings() if text is None else load_settings(text, os.environ, path)
        self._text = text
        return settings

    @property
    def source(self) -> str:
        """Where the configuration comes from, for people."""
        return self["config"] or "no file: the defaults"

    def described(self) -> list[Setting]:
        """Every setting as it was read last, and its origin."""
        return describe(self._text, os.environ, self.source)

    def postOptions(self) -> None:
        """Load the configuration, and stop here when only a check was asked for."""
        path = self["config"]
        if path == "":  # a shell's variable that is not set
            raise usage.UsageError("option --config needs the name of a file, got nothing")
        try:
            self.settings = self.read()
        except ConfigError as error:
            _fail(str(error))
        if self["check"]:
            print(f"{path or 'no file'}: ok: {summary(self.settings)}")
            raise SystemExit(0)


def summary(settings: Settings) -> str:
    """The configuration in half a line."""
    if settings.simulator:
        upstream = f"{_count(settings.simulator.accounts, 'simulated account')}"
    else:
        upstream = _count(len(settings.accounts), "account")
    keys = _count(len(settings.keys), "client key") if settings.keys else "no client keys"
    admin = f"admin on {settings.admin.listen}" if settings.admin.listen else "admin off"
    return f"{upstream}, {keys}, listen on {settings.listen}, {admin}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _fail(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(1)
