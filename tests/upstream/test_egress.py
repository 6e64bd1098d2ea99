"""Which accounts share the fate of a proxy, and what endpoints they get."""

from __future__ import annotations

import gc

import pytest
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.task import Clock
from twisted.web.client import URI

from gateway.upstream.agent import EgressEndpoints
from gateway.upstream.egress import EgressPath, EgressPaths
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.tls import TLSFileError
from tests.upstream.wire import Reactor


@pytest.fixture
def paths() -> EgressPaths:
    return EgressPaths(Clock().seconds, 60)


def breaks(egress: EgressPath) -> None:
    assert egress.health is not None
    for _ in range(3):
        attempt = egress.health.attempt()
        assert attempt is not None, "three failures are needed"
        egress.health.failed(attempt, "The proxy broke")


def test_accounts_behind_one_proxy_share_what_is_known_of_it(paths: EgressPaths) -> None:
    one, two = (paths.egress("http://u:p@proxy.test:3128") for _ in range(2))
    others = [
        paths.egress("http://v:p@proxy.test:3128"),
        paths.egress("http://proxy.test:3128"),
        paths.egress("socks5://u:p@proxy.test:3128"),
        paths.egress(),
        EgressPath(),
    ]
    breaks(one)
    barred = two.unavailable()
    assert barred is not None
    assert barred.why == "The proxy broke"
    assert 0 < barred.until <= 60
    assert [each.unavailable() for each in others] == [None] * len(others)


def test_a_proxy_that_nobody_uses_any_more_is_forgotten(paths: EgressPaths) -> None:
    first = paths.egress("http://proxy.test:3128")
    breaks(first)
    del first
    gc.collect()
    assert paths.egress("http://proxy.test:3128").unavailable() is None


def test_bad_settings_are_refused_without_being_shown(paths: EgressPaths) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        paths.egress("ftp://u:hush@proxy.test:1")
    assert "hush" not in str(caught.value)
    with pytest.raises(TLSFileError, match="ca_file"):
        paths.egress(ca_file="/nowhere/ca.pem")


def test_endpoints_are_made_once_for_each_place(paths: EgressPaths) -> None:
    egress = paths.egress("socks5://proxy.test:1080")
    endpoints = EgressEndpoints(Reactor(), 10, egress)
    urls = [b"http://a.test/v1/x", b"https://a.test/v1/x", b"https://[::1]:8443/", b"http://b.test"]
    made = [endpoints.endpointForURI(URI.fromBytes(url)) for url in urls]
    assert isinstance(made[0], ProxyEndpoint)
    assert len(set(made)) == len(urls)
    assert endpoints.endpointForURI(URI.fromBytes(b"https://a.test/v1/other")) is made[1]


def test_without_a_proxy_connections_go_straight() -> None:
    made = EgressEndpoints(Reactor(), 10, EgressPath()).endpointForURI(
        URI.fromBytes(b"http://a.test")
    )
    assert isinstance(made, HostnameEndpoint)
