"""What an endpoint string says of its socket; mistakes in it are in ``test_validation.py``."""

from __future__ import annotations

import pytest

from gateway.config.endpoints import is_inherited


@pytest.mark.parametrize(
    ("endpoint", "inherited"),
    [
        ("systemd:domain=INET:index=0", True),
        ("haproxy:systemd:domain=INET:name=clients", True),
        ("tcp:8080", False),
        ("unix:/run/systemd:mode=600", False),
    ],
)
def test_sockets_of_the_service_manager_outlive_a_restart(endpoint: str, inherited: bool) -> None:
    assert is_inherited(endpoint) is inherited
