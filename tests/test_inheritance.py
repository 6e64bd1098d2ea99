"""What a process inherits: told once, by name, and closed where nobody has a use for it."""

from __future__ import annotations

import os

import pytest

from gateway.inheritance import (
    NOTHING,
    VARIABLE,
    Succession,
    bequest,
    inherited,
    listener_name,
    succession,
)


def test_a_process_that_nobody_started_inherits_nothing() -> None:
    assert inherited({}) is NOTHING
    assert NOTHING.of("link") == ()
    assert NOTHING.sockets("listen", "tcp:1") == ()
    assert succession({}) is None


def test_files_have_names_and_numbers_of_their_own_in_the_child() -> None:
    files, told = bequest({"listen=tcp:1": [7, 9], "link": [12]})
    assert files == {3: 7, 4: 9, 5: 12}
    assert told == {VARIABLE: '{"listen=tcp:1": [3, 4], "link": [5]}'}


def test_what_is_inherited_is_told_once_and_not_handed_on_by_itself() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    name = listener_name("listen", "tcp:1")
    environ = {VARIABLE: f'{{"{name}": [{reader}], "ready": [{writer}]}}', "HOME": "/"}
    made = inherited(environ)
    assert environ == {"HOME": "/"}
    assert made.sockets("listen", "tcp:1") == [reader]
    assert made.sockets("listen", "tcp:2") == (), "another endpoint has sockets of its own"
    assert not os.get_inheritable(reader)
    made.close_all_but(["ready"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    os.close(writer)


def test_a_successor_knows_the_pidfile_and_the_log() -> None:
    given = Succession("/run/gateway.pid", None)
    environ = dict(given.environ)
    assert succession(environ) == given
    assert environ == {}
