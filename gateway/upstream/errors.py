"""Failures of connections to upstreams, as errors of the API."""

from __future__ import annotations

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet import error
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)

from gateway.protocol.errors import PROXY_ERROR, UNREACHABLE, ApiError
from gateway.upstream.chunk_coalescer import HeadTooLarge
from gateway.upstream.proxy import ProxyError, ProxyFault
from gateway.upstream.tls import WrongCertificate

#: Failures of Twisted's HTTP client that hold the failures behind them as ``reasons``.
_WRAPPERS = (RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed)

_log = Logger(namespace="gateway.upstream")


def reasons_of(failure: Failure) -> list[Failure]:
    """The innermost causes of a failure of Twisted's HTTP client."""
    if not isinstance(failure.value, _WRAPPERS) or not failure.value.reasons:
        return [failure]
    return [inner for reason in failure.value.reasons for inner in reasons_of(reason)]


def connection_went_stale(failure: Failure) -> bool:
    """Whether a connection closed before any byte of the answer came.

    If it closes at once, it is a kept-alive connection that the upstream closed while the
    request was written.
    """
    return bool(failure.check(ResponseNeverReceived, RequestTransmissionFailed)) and all(
        reason.type in (error.ConnectionDone, error.ConnectionLost)
        for reason in reasons_of(failure)
    )


def upstream_failure(failure: Failure) -> ApiError:
    """The 502 that stands for a failed connection or a broken answer."""
    reasons = reasons_of(failure)

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(reason.check(*kinds) for reason in reasons)

    for reason in reasons:
        if isinstance(reason.value, HeadTooLarge):
            return ApiError.bad_gateway(f"The head of the upstream's answer has {reason.value}.")
        if isinstance(reason.value, ProxyError):
            return _proxy_failure(reason.value)
        if isinstance(reason.value, (TLSError, VerificationError, WrongCertificate)):
            return _tls_failure(reason.value)
    if any_is(error.TimeoutError, error.TCPTimedOutError):
        return ApiError.bad_gateway(
            "The upstream could not be reached in time.", "upstream_timeout"
        )
    if any_is(error.DNSLookupError):
        return ApiError.bad_gateway("The upstream's host name could not be resolved.", UNREACHABLE)
    if any_is(error.ConnectionRefusedError):
        return ApiError.bad_gateway("The upstream refused the connection.", UNREACHABLE)
    if any_is(error.ConnectionAborted):
        return ApiError.bad_gateway("The TLS handshake with the upstream did not end in time.")
    if any_is(error.ConnectError):
        return ApiError.bad_gateway("The upstream could not be reached.", UNREACHABLE)
    if any_is(error.ConnectionDone, error.ConnectionLost):
        return ApiError.bad_gateway("The upstream closed the connection before it had finished.")
    _log.warn(
        "unexpected failure of an upstream: {reasons}", reasons=[str(r.value) for r in reasons]
    )
    return ApiError.bad_gateway("The upstream's answer could not be read.")


def _proxy_failure(problem: ProxyError) -> ApiError:
    """The proxy's own failures are not the account's (design law 13).

    Errors for clients do not contain the proxy's address.
    """
    _log.warn("{problem}", problem=str(problem))
    if problem.fault is ProxyFault.PROXY:
        return ApiError.bad_gateway(
            "The proxy of the gateway's account failed; its operator can see why.", PROXY_ERROR
        )
    return ApiError.bad_gateway("The proxy of the gateway's account cannot reach the upstream.")


def _tls_failure(problem: Exception) -> ApiError:
    if isinstance(problem, WrongCertificate):
        why = f"its certificate {problem}"
    elif isinstance(problem, VerificationError):  # Twisted checks it first
        why = "its certificate is for another host"
    else:
        queue = problem.args[0] if problem.args else None
        why = str(queue[-1][-1]) if isinstance(queue, list) and queue else "no reason was given"
    _log.warn("the TLS connection to an upstream failed: {why}", why=why)
    return ApiError.bad_gateway(f"The TLS connection to the upstream failed: {why}.")


def log_bug(failure: Failure) -> None:
    """Log a bug of the gateway with its traceback."""
    _log.failure("the gateway failed while it read an upstream", failure)
