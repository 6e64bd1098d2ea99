"""Reads `/metrics` of a running gateway the way Prometheus does."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class Scrape(NamedTuple):
    """One answer.

    `samples` holds every sample by its name and labels.
    """

    text: str
    content_type: str
    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        wanted = set(labels.items())
        return sum(n for (each, have), n in self.samples.items() if each == name and wanted <= have)

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The sums by these labels, those of nothing left out."""
        sums: dict[tuple[str, ...], float] = {}
        for (each, have), number in self.samples.items():
            if each == name and number:
                key = tuple(dict(have)[label] for label in labels)
                sums[key] = sums.get(key, 0) + number
        return sums

    def rising(self) -> list[tuple[str, dict[str, str], float]]:
        """All samples of counters, histograms and summaries."""
        rising = ("_total", "_bucket", "_count", "_sum")
        return [
            (name, dict(labels), value)
            for (name, labels), value in self.samples.items()
            if name.endswith(rising)
        ]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def scrape(port: int, accept: str = "text/plain") -> Scrape:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return read(answer.read().decode(), answer.headers["content-type"])


def read(text: str, content_type: str = "text/plain") -> Scrape:
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            where = sample.name, frozenset(sample.labels.items())
            assert where not in samples, f"{where} is there twice"
            samples[where] = sample.value
    return Scrape(text, content_type, samples)
