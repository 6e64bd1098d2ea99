"""Every way a connection can fail has its sentence; none of them blames the client."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError
from twisted.web.client import (
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)

from gateway.upstream.errors import connection_went_stale, upstream_failure


def never(*reasons: Exception) -> Failure:
    return Failure(ResponseNeverReceived([Failure(reason) for reason in reasons]))


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (error.TimeoutError(), "in time"),
        (error.TCPTimedOutError(), "in time"),
        (error.DNSLookupError(), "host name"),
        (error.ConnectionRefusedError(), "refused the connection"),
        (TLSError([("ssl", "", "bad certificate")]), "TLS connection"),
        (VerificationError(errors=[]), "TLS connection"),
        (error.ConnectionAborted(), "TLS handshake"),
        (error.NoRouteError(), "could not be reached"),
        (error.ConnectionDone(), "closed the connection"),
        (error.ConnectionLost(), "closed the connection"),
        (ParseError("no HTTP", b"SSH-2.0"), "could not be read"),
        (ValueError("sk-secret"), "could not be read"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrap", [Failure, never], ids=["bare", "wrapped"])
def test_each_failure_is_a_502_that_says_what_happened(
    wrap: Callable[[Exception], Failure], cause: Exception, words: str
) -> None:
    found = upstream_failure(wrap(cause))
    assert found.status == 502
    assert words in found.message
    assert "secret" not in found.message


def test_only_timeouts_are_called_timeouts() -> None:
    assert upstream_failure(Failure(error.TimeoutError())).code == "upstream_timeout"
    assert upstream_failure(Failure(error.ConnectionLost())).code == "upstream_error"


@pytest.mark.parametrize(
    ("failure", "stale"),
    [
        (never(error.ConnectionDone()), True),
        (never(error.ConnectionLost(), error.ConnectionDone()), True),
        (Failure(RequestTransmissionFailed([Failure(error.ConnectionLost())])), True),
        (never(error.ConnectionAborted()), False),
        (never(error.ConnectionDone(), ValueError()), False),
        (Failure(ResponseFailed([Failure(error.ConnectionDone())])), False),
        (Failure(error.ConnectionDone()), False),
        (Failure(error.ConnectionRefusedError()), False),
    ],
)
def test_only_an_unanswered_request_on_a_closed_connection_is_sent_again(
    failure: Failure, stale: bool
) -> None:
    assert connection_went_stale(failure) is stale
