"""Who issued a seal is remembered, whatever a client wraps around it (law 9)."""

from __future__ import annotations

import json

from gateway.conversations.issuers import ContentIssuers


def reasoning(seal: str, **members: object) -> bytes:
    return json.dumps({"type": "reasoning", **members, "encrypted_content": seal}).encode()


def test_the_issuer_of_a_seal_is_known() -> None:
    issuers = ContentIssuers()
    issuers.issued(reasoning("gA"), "primary")
    issuers.issued(reasoning("gB"), "backup")
    assert issuers.issuer_of(reasoning("gA")) == "primary"
    assert issuers.issuer_of(reasoning("gB")) == "backup"
    assert issuers.issuer_of(reasoning("gC")) is None


def test_a_client_may_dress_a_seal_differently() -> None:
    issuers = ContentIssuers()
    issuers.issued(reasoning("gA", id="rs_1", summary=[], status="completed"), "primary")
    assert issuers.issuer_of(reasoning("gA")) == "primary"
    assert issuers.issuer_of(b'{"encrypted_content" : "gA","type":"reasoning"}') == "primary"


def test_what_is_not_sealed_has_no_issuer() -> None:
    issuers = ContentIssuers()
    for raw in (b'{"type":"reasoning"}', b'{"encrypted_content":null}', b"nonsense"):
        issuers.issued(raw, "primary")
        assert issuers.issuer_of(raw) is None
    assert len(issuers) == 0


def test_the_newest_issuer_counts() -> None:
    issuers = ContentIssuers()
    issuers.issued(reasoning("gA"), "primary")
    issuers.issued(reasoning("gA"), "backup")
    assert issuers.issuer_of(reasoning("gA")) == "backup"
    assert len(issuers) == 1


def test_the_oldest_seals_are_forgotten_beyond_the_bound() -> None:
    issuers = ContentIssuers(max_seals=2)
    for name in ("gA", "gB", "gA", "gC"):
        issuers.issued(reasoning(name), "primary")
    assert len(issuers) == 2
    kept = [name for name in ("gA", "gB", "gC") if issuers.issuer_of(reasoning(name))]
    assert kept == ["gA", "gC"]


def test_a_seal_costs_the_same_however_long_it_is() -> None:
    issuers = ContentIssuers()
    issuers.issued(reasoning("g" * 100_000), "primary")
    assert issuers.issuer_of(reasoning("g" * 100_000)) == "primary"
    assert issuers.issuer_of(reasoning("g" * 99_999)) is None
