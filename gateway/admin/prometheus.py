"""``/metrics``: everything that is counted, as Prometheus and OpenMetrics read it.

The client library makes the text; its own resource for Twisted would run in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway.admin.exposed.accounts import account_families
from gateway.admin.exposed.turns import turn_families
from gateway.admin.exposed.whole import whole_families
from gateway.admin.running import Running
from gateway.metrics.collector import MetricsCollector


class Metrics(Collector):
    """Reads the running gateway when it is scraped.

    Labels are bounded: names of accounts and keys come from the configuration, models and
    errors are counted up to a number (see :mod:`~gateway.metrics.turns`), and no label holds
    anything of a session, a conversation or a response.
    """

    def __init__(self, running: Running, collector: MetricsCollector) -> None:
        self._running = running
        self._collector = collector
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        self._collector.tally.catch_up()
        yield from whole_families(self._running, self._collector)
        yield from turn_families(self._collector.tally)
        yield from account_families(self._running.services.pool.accounts, self._collector.tally)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the text.

        :param accept: the client's ``Accept`` header; who asks for OpenMetrics gets it.
        """
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)
