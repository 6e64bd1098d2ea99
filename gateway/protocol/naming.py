"""Which event an event is: its ``event:`` line and the ``type`` in its data made one (§4.2).

Clients of event streams may read the first, all clients read the second, and upstreams leave out
either of them.  Here, before anything else reads an event, they are made to say the same.
"""

from __future__ import annotations

import re

from gateway.protocol.error_parsing import from_untyped
from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import ERRORS, PASSED_UNREAD, PREAMBLE, TERMINALS, event_type, typed
from gateway.protocol.sse import Event, covers, read_events
from gateway.protocol.tolerant_json import mended

#: The usual form, and the hot path: the data begins with the type that the line before names.
_USUAL = re.compile(rb'^event: ([^\n]*)\ndata: (\{"type":"\1"[^\n]*)\n\n', re.MULTILINE)

#: The name of an event whose stream gives it none (WHATWG HTML §9.2.6): it says nothing.
_NO_NAMES = frozenset({b"", b"message"})

#: Read by the gateway, and told of where they cannot be read.
_READ = PREAMBLE | TERMINALS.keys() | ERRORS | {b"response.output_item.done"}

#: What clients understand: it counts where the two names contradict each other.
_UNDERSTOOD = PASSED_UNREAD | PREAMBLE | {*TERMINALS.values()} | _READ - TERMINALS.keys()

#: How data says its type, wherever it stands; in a text the quotes would be escaped.  Looking
#: for it costs next to nothing, and an event of the hot path needs no more.
_SAYS_IT = (b'"type":"%b"', b'"type": "%b"')

_DONE = b"[DONE]"


def read_named_events(data: bytes) -> list[Event]:
    """Read whole events, each under its one name; for :class:`.sse.EventStreamParser`."""
    events: list[Event] = _USUAL.findall(data)
    if covers(events, data):
        return events
    return [event for event in map(one_name, read_events(data)) if event is not None]


def one_name(event: Event) -> Event | None:
    """The event under its one name, which its data says, too.

    Where the two contradict each other the ``type`` counts, unless only the other one is
    known to clients.  Data of an ``error`` stays as it is: what it calls its type may be that
    of the error.

    :return: None for what no client could tell what it is.
    """
    name, data = event
    if name in PASSED_UNREAD and any(each % name in data for each in _SAYS_IT):
        return event
    kind = event_type(data)
    if kind == name and kind:
        return event
    if kind and (kind in _UNDERSTOOD or name not in _UNDERSTOOD):
        return kind, data
    if name in _NO_NAMES:
        return (b"error", data) if from_untyped(mended(data)) is not None else None
    if data == _DONE:
        return None
    if name in ERRORS:
        return event
    try:
        return name, typed(mended(data), name)
    except UNREADABLE:
        return event if name in _READ else None
