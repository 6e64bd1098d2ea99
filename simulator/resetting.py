"""Resets a connection once everything written to it has left the process."""

from __future__ import annotations

from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer


@implementer(IPullProducer)
class Reset:
    """Takes a connection over from its protocol; asked for more bytes, it resets it.

    An immediate reset would throw away what was written in the same turn of the event loop,
    and a busy machine decides what that is.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._registered = False
        connection.unregisterProducer()
        connection.registerProducer(self, False)
        self._registered = True
        connection.startWriting()

    def resumeProducing(self) -> None:
        """Asked at the registration, and again when nothing is left to write."""
        if self._registered:
            self._connection.abortConnection()

    def stopProducing(self) -> None:
        """The reader was faster."""
