"""Which credentials an account has, by its settings."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.threads import deferToThreadPool

from gateway.config import AccountSettings
from gateway.credentials.file import FileCredentials
from gateway.credentials.interface import Credentials
from gateway.credentials.oauth import OAuthCredentials
from gateway.credentials.static import KeyCredentials


def credentials_for(
    settings: AccountSettings, reactor: Any, http_client: HTTPClient
) -> Credentials:
    """The account's credentials.

    :param http_client: goes to a token endpoint the way the account's requests go.
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
