"""The interface of an account's credentials, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from gateway.config import AccountSettings
from gateway.credentials.file import FileCredentials
from gateway.credentials.oauth import OAuthCredentials
from gateway.credentials.static import KeyCredentials


class Credentials(Protocol):
    """The credentials of an account."""

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The headers that authorize a request now, names in lower case.

        The Deferred fails with an :class:`~gateway.protocol.errors.ApiError` when the account
        has no usable credentials.
        """

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        """An upstream answered 401 to a request with the headers ``used``.

        :return: whether :meth:`headers` now gives others, worth one more try.  The Deferred
            fails as that of :meth:`headers` does.
        """

    def secrets(self) -> Sequence[str]:
        """The current secrets, which must never be shown."""

    def close(self) -> object:
        """Stop what runs; returns a Deferred or None."""


def credentials_for(
    settings: AccountSettings, reactor: Any, http_client: HTTPClient
) -> Credentials:
    """The credentials of an account by its settings.

    :param http_client: reaches a token endpoint the way the account's requests go.
    """
    if settings.oauth is not None:
        return OAuthCredentials(
            settings.name,
            settings.oauth,
            reactor,
            http_client,
            # A disk may take long to sync, and streams must go on.
            lambda function: deferToThreadPool(reactor, reactor.getThreadPool(), function),
            settings.auth_header,
        )
    if settings.key_file is not None:
        return FileCredentials(settings.key_file, reactor.seconds, settings.auth_header)
    assert settings.key is not None, "the configuration lets no account without credentials pass"
    return KeyCredentials(settings.key, settings.auth_header)
