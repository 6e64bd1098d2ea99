"""What a process inherits from the gateway that started it: open files by name, and its place.

A supervisor's workers and the successor of an upgrade get listening sockets, which keep their
queues of new connections whoever accepts from them.  The numbers of the files are in an environment
variable, because the child may be given them in any order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from gateway.worker_link import Link

#: The environment variable: JSON, the numbers of open files by name.
VARIABLE = "RESPONSES_GATEWAY_DESCRIPTORS"

#: The environment variable of a successor: JSON, what twistd gave the process before it.
_SUCCESSION = "RESPONSES_GATEWAY_SUCCESSION"

#: Names of files: the link to the supervisor, where a successor says that it is ready, and the lock
#: of the state directory.
LINK = "link"
READY = "ready"
LOCK = "state.lock"

#: Standard input, output and errors come before all others.
_FIRST = 3

#: Names by which everything is handed on.
Descriptors = Mapping[str, Sequence[int]]


class Inheritance(NamedTuple):
    """What this process inherits.

    :ivar descriptors: open files by name.
    :ivar link: to the supervisor, in a worker.
    :ivar worker: the worker's number, from 1; None in any other process.
    """

    descriptors: Descriptors = MappingProxyType({})
    link: Link | None = None
    worker: int | None = None

    def of(self, name: str) -> Sequence[int]:
        """The open files of a name, none if it was not inherited."""
        return self.descriptors.get(name, ())

    def sockets(self, setting: str, endpoint: str) -> Sequence[int]:
        """The sockets of a listener, none if they were not inherited."""
        return self.of(listener_name(setting, endpoint))

    def close_all_but(self, names: Iterable[str]) -> None:
        """Close what this process has no use for."""
        for name in self.descriptors.keys() - set(names):
            for number in self.descriptors[name]:
                os.close(number)


class Succession(NamedTuple):
    """What a successor has from twistd by way of the process before it.

    :ivar pidfile: its path, or "".
    :ivar logfile: its path, or None for standard output.
    """

    pidfile: str
    logfile: str | None

    @property
    def environ(self) -> dict[str, str]:
        """The environment variable that tells a successor."""
        return {_SUCCESSION: json.dumps(self)}


def succession(environ: MutableMapping[str, str]) -> Succession | None:
    """What the environment of a successor tells, once; None for a first process."""
    text = environ.pop(_SUCCESSION, None)
    return None if text is None else Succession(*json.loads(text))


def listener_name(setting: str, endpoint: str) -> str:
    """The name of a listener's sockets: those of another endpoint are not its own.

    :param setting: its path in the configuration.
    """
    return f"{setting}={endpoint}"


#: A process that nobody of the gateway started.
NOTHING = Inheritance()


def inherited(environ: MutableMapping[str, str]) -> Inheritance:
    """What the environment tells; it is told once, so that no further child takes it for its own.

    :raises ValueError: the variable is not what the gateway writes.
    """
    text = environ.pop(VARIABLE, None)
    if text is None:
        return NOTHING
    descriptors = {
        str(name): [int(each) for each in some] for name, some in json.loads(text).items()
    }
    for numbers in descriptors.values():
        for number in numbers:
            os.set_inheritable(number, False)
    return Inheritance(descriptors)


def bequest(descriptors: Descriptors) -> tuple[dict[int, int], dict[str, str]]:
    """How a child process inherits open files.

    :return: for ``spawnProcess`` the file of this process by its number in the child, and the
        environment variable.
    """
    files: dict[int, int] = {}
    told: dict[str, list[int]] = {}
    for name, numbers in descriptors.items():
        told[name] = []
        for number in numbers:
            place = _FIRST + len(files)
            files[place] = number
            told[name].append(place)
    return files, {VARIABLE: json.dumps(told)}
