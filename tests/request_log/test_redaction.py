"""No secret gets through, wherever it stands and however it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.config.settings import MASK
from gateway.request_log.redaction import SHORTEST_SECRET, RedactionRules, Redactor

SECRET_HEADERS = [
    *("authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "x-api-key", "api-key"),
    *("X-Goog-Api-Key", "ocp-apim-subscription-key", "x-auth-token", "x-amz-security-token"),
]


def redactor(*names: str) -> Redactor:
    return Redactor(RedactionRules(names))


def body(of: Redactor, value: Any) -> Any:
    return json.loads(of.body(json.dumps(value).encode()))


# --- headers and paths -------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRET_HEADERS)
def test_headers_that_carry_credentials_are_hidden(name: str) -> None:
    assert redactor().headers({name: "v"}) == {name: MASK}


@pytest.mark.parametrize(
    "name",
    [
        *("user-agent", "session-id", "thread-id", "x-request-id", "content-type"),
        *("x-ratelimit-remaining-tokens", "x-codex-turn-state", "openai-processing-ms"),
    ],
)
def test_other_headers_are_shown(name: str) -> None:
    assert redactor().headers({name: "value"}) == {name: "value"}


def test_the_operator_names_more_by_patterns_in_any_case() -> None:
    shown = redactor("X-Company-*").headers({"x-company-user": "u", "X-COMPANY-B": "b", "x": "y"})
    assert shown == {"x-company-user": MASK, "X-COMPANY-B": MASK, "x": "y"}


def test_an_account_names_its_own() -> None:
    headers = {"x-project": "p", "accept": "*/*"}
    assert redactor().headers(headers, ["X-Project"]) == {"x-project": MASK, "accept": "*/*"}


def test_what_a_secret_header_carried_is_hidden_everywhere() -> None:
    it = redactor()
    it.learn_headers({"authorization": "Bearer sk-12345678", "cookie": "a=crumbs-crumbs; b=2"})
    assert it.headers({"x-note": "my sk-12345678"}) == {"x-note": f"my {MASK}"}
    assert it.text("crumbs-crumbs") == MASK
    assert body(it, {"sk-12345678": ["is sk-12345678", 2]}) == {MASK: [f"is {MASK}", 2]}


def test_secrets_in_a_query_are_hidden() -> None:
    it = redactor("user")
    it.learn(["known-secret"])
    path = it.path("/v1/x?api_key=abc&user=me&limit=5&a=known-secret")
    assert path == f"/v1/x?api_key={MASK}&user={MASK}&limit=5&a={MASK}"
    assert it.path("/v1/responses") == "/v1/responses"


# --- bodies ------------------------------------------------------------------------------


def test_a_body_without_secrets_stays_as_it_is() -> None:
    value = {"input": [{"role": "user", "content": "Grüße"}], "n": 1.5, "big": 2**70, "no": None}
    assert body(redactor(), value) == value


def test_credentials_of_remote_tools_are_hidden() -> None:
    tool = {
        "type": "mcp",
        "authorization": "oauth-1",
        "headers": {"X-Anything": "secret-2", "n": 1},
        "server_url": "https://mcp.example",
    }
    shown = body(redactor(), {"tools": [tool]})["tools"][0]
    assert shown["authorization"] == MASK
    assert shown["headers"] == {"X-Anything": MASK, "n": 1}
    assert shown["server_url"] == "https://mcp.example"


def test_a_schema_that_names_a_password_stays_a_schema() -> None:
    schema = {"properties": {"password": {"type": "string"}}}
    assert body(redactor(), schema) == schema


def test_members_in_a_text_that_is_json_are_hidden() -> None:
    call = {"type": "function_call", "arguments": '{"who": "x", "ssn": "123-45-6789"}'}
    shown = body(redactor("ssn"), call)
    assert json.loads(shown["arguments"]) == {"who": "x", "ssn": MASK}
    assert body(redactor(), call) == call, "a text with nothing to hide keeps its bytes"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.function_call_arguments.delta", "delta": '{"ssn": "123'},
        {"type": "response.output_text.delta", "delta": "-45-6789"},
        {"choices": [{"delta": {"content": "123-45"}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": '"123-45'}}]}}]},
        {"text": '{"ssn": "123-45-67'},
    ],
)
def test_pieces_of_json_are_hidden_when_members_are(event: Any) -> None:
    assert body(redactor(), event) == event, "without names to hide, pieces are shown"
    shown = json.dumps(body(redactor("ssn"), event))
    assert "123" not in shown
    assert "-45" not in shown


def test_what_is_no_json_becomes_a_text_or_is_hidden() -> None:
    it = redactor()
    it.learn(["known-secret"])
    assert json.loads(it.body(b"<html>known-secret</html>")) == {"text": f"<html>{MASK}</html>"}
    assert json.loads(it.body(b"\xff\xfe")) == {"text": "\ufffd\ufffd"}
    assert json.loads(redactor("ssn").body(b'{"ssn": "1')) == {"text": MASK}


def test_nesting_without_end_is_not_followed() -> None:
    it = redactor("ssn")
    deep: Any = {"ssn": "123-45-6789"}
    for _ in range(300):
        deep = [deep]
    assert b"123-45" not in it.body(json.dumps(deep).encode())
    text = "123-45-6789"
    for _ in range(12):
        text = json.dumps({"ssn": text})
    assert b"123-45" not in it.body(json.dumps({"a": text}).encode())


def test_a_secret_of_digits_is_hidden_as_a_number_too() -> None:
    it = redactor()
    it.learn(["1234567890"])
    assert body(it, {"n": 1234567890, "m": 12}) == {"n": MASK, "m": 12}


# --- properties --------------------------------------------------------------------------

#: Printable ASCII without spaces, as headers carry it; quotes, slashes and backslashes too.
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=12, max_size=40)
names = st.text(min_size=1, max_size=8)


def around(secret: str) -> st.SearchStrategy[Any]:
    """JSON values with a secret anywhere: in texts, names, JSON in texts."""
    texts = st.one_of(
        st.just(secret),
        st.text(max_size=5).map(lambda text: f"{text} {secret} {text}"),
        st.just(json.dumps({"a": secret})),
        st.just(json.dumps([json.dumps({secret: [secret]})])),
    )
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), texts)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.one_of(names, st.just(secret)), inner, max_size=3)
        ),
        max_leaves=8,
    )


def escaped(value: Any, how: int) -> bytes:
    """JSON as different clients write it."""
    text = json.dumps(value, ensure_ascii=how % 2 == 0)
    if how >= 2:
        text = text.replace("/", "\\/")
    if how >= 4:
        text = "".join(f"\\u{ord(c):04x}" if c.isalpha() and c not in "bfnrtu" else c for c in text)
        text = json.dumps(value) if not _same(text, value) else text
    return text.encode()


def _same(text: str, value: Any) -> bool:
    try:
        return bool(json.loads(text) == value)
    except ValueError:
        return False


def every_text(value: Any) -> list[str]:
    """All texts of a value, with those of texts that are JSON."""
    if isinstance(value, dict):
        return [text for name, each in value.items() for text in [name, *every_text(each)]]
    if isinstance(value, list):
        return [text for each in value for text in every_text(each)]
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return [value]
        return [value, *(every_text(inner) if isinstance(inner, (dict, list)) else [])]
    return []


@given(st.data(), secrets, st.sampled_from(SECRET_HEADERS), st.integers(0, 5))
def test_no_secret_of_a_header_reaches_a_body(
    data: st.DataObject, secret: str, header: str, how: int
) -> None:
    assume(";" not in secret and "," not in secret)
    it = redactor()
    it.learn_headers({header: f"Bearer {secret}"})
    value = data.draw(around(secret))
    shown = it.body(escaped(value, how))
    assert secret.encode() not in shown
    assert not [text for text in every_text(json.loads(shown)) if secret in text]
    assert secret not in str(it.headers({header: secret, "x-other": f"a {secret}"}))


@given(st.data(), secrets, names)
def test_no_value_of_a_named_member_reaches_a_body(
    data: st.DataObject, secret: str, name: str
) -> None:
    it = Redactor(RedactionRules([f"hide-{name}".replace("[", "").replace("*", "")]))
    member = f"hide-{name}".replace("[", "").replace("*", "")
    hidden = {member.upper() if member.isascii() else member: data.draw(around(secret))}
    places = [hidden, [hidden], {"arguments": json.dumps(hidden)}, {"a": {"b": json.dumps(hidden)}}]
    shown = it.body(json.dumps(data.draw(st.sampled_from(places))).encode())
    assert not [text for text in every_text(json.loads(shown)) if secret in text]


@given(st.binary(max_size=200))
def test_whatever_comes_is_written_as_one_line_of_json(data: bytes) -> None:
    shown = redactor().body(data)
    json.loads(shown)
    assert b"\n" not in shown


@given(st.text(max_size=SHORTEST_SECRET - 1))
def test_short_values_are_no_secrets(value: str) -> None:
    it = redactor()
    it.learn([value])
    assert it.secrets == ()
