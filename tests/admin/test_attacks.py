"""What an attacker tries against the admin side, one test for each; none of it may do anything."""

from __future__ import annotations

import json
from html import escape

import pytest

from gateway.admin.auth import cookie
from gateway.admin.site import MAX_BODY_BYTES, MAX_CONNECTIONS, REQUEST_SECONDS
from gateway.config import AccountSettings
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.errors import ApiError
from gateway.routing.affinity import connection_key, opaque_id
from tests.admin.stage import BEARER, OWN, TOKEN, Admin, Client
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import World

PAUSE = "/admin/accounts/a/pause"
ACTIONS = [
    PAUSE,
    "/admin/accounts/a/drain",
    "/admin/accounts/a/clear",
    "/admin/conversations/00/drop",
    "/admin/log-level",
    "/admin/drain",
    "/admin/resume",
    "/admin/reload",
    "/admin/route-dry-run",
]
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


# --- posts of other sites ----------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        ["origin: https://evil.example"],
        ["origin: null"],
        ["origin: http://localhost:9999"],
        ["origin: http://localhost.evil.example:8081"],
        ["origin: http://localhost:8081@evil.example"],
        ["origin: file://"],
        ["origin: http://localhost:99999999"],
        ["sec-fetch-site: cross-site"],
        ["sec-fetch-site: same-site"],
        ["sec-fetch-site: cross-site", OWN],
        [OWN, "origin: https://evil.example"],
        [],
    ],
)
def test_a_cross_site_post_with_the_operators_cookie_does_nothing(headers: list[str]) -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    for answer in (
        admin.post(PAUSE, None, cookie, *headers),
        admin.post(PAUSE, {}, cookie, *headers),
        admin.form(PAUSE, "", cookie, *headers),
    ):
        assert answer.status == 403, f"a post with {headers} was answered {answer.status}"
    assert admin.world.accounts["a"].health.state.value == "ready"


def test_a_post_of_our_own_page_works() -> None:
    """Else the test above would show nothing."""
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    answer = admin.form(PAUSE, "", cookie, OWN, "sec-fetch-site: same-origin")
    assert (answer.status, answer.headers["location"]) == (303, "/status#accounts")
    assert admin.world.accounts["a"].health.state.value == "disabled"
    assert admin.post("/admin/accounts/a/resume", {}, cookie, OWN).status == 200
    assert admin.world.accounts["a"].health.state.value == "ready"


def test_a_cross_site_login_does_nothing() -> None:
    """Logging the operator in as somebody else would be an attack, too."""
    admin = Admin(TOKEN)
    for headers in (["origin: https://evil.example"], ["sec-fetch-site: cross-site"], []):
        assert admin.form("/login", f"token={TOKEN}", *headers).status == 403
    admin.check_nothing_was_done()


def test_the_cookie_does_not_go_along_with_other_sites_and_scripts_cannot_read_it() -> None:
    said = Admin(TOKEN).log_in().headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in said.split("; "), f"the cookie lacks {part}: {said}"
    assert "Secure" not in said, "the connection was not TLS: the browser would drop the cookie"
    assert "Secure" in cookie("x", secure=True).split("; ")


def test_a_simple_request_cannot_carry_json() -> None:
    """Content types that pages of other sites may send without asking first (Fetch §2.2.2)."""
    admin = Admin(TOKEN)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-json"):
        answer = admin.ask(
            "/admin/log-level",
            BEARER,
            f"content-type: {kind}",
            method="POST",
            body=b'{"level":"debug"}',
        )
        assert answer.status == 415, f"{kind} was answered {answer.status}"
    admin.check_nothing_was_done()


# --- DNS rebinding -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.7:8081",
        "10.1.2.3",
        "xlocalhost",
        "[2001:db8::1]",
        "::ffff:192.0.2.7",
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_forged_host_is_refused(host: str, token: str | None) -> None:
    admin = Admin(token)
    for path in ("/status", "/livez", "/login", "/events"):
        answer = admin.ask(path, BEARER, host=host)
        assert answer.status in (400, 421), f"{path} of {host} was answered {answer.status}"
    assert admin.post(PAUSE, None, BEARER, f"origin: http://{host}", host=host).status >= 400
    admin.check_nothing_was_done()


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8081", "localhost.", "127.0.0.1:8081", "127.8.8.8", "[::1]:1"]
)
def test_the_names_of_loopback_are_served(host: str) -> None:
    assert Admin().ask("/status", host=host).status == 200


def test_a_configured_name_is_served() -> None:
    admin = Admin(TOKEN, loopback=False, hosts=("Gateway.Internal",))
    assert admin.ask("/status", BEARER, host="gateway.internal:8081").status == 200
    assert admin.ask("/status", BEARER, host="other.internal:8081").status == 421


def test_two_hosts_or_none_are_refused() -> None:
    assert Admin().ask("/status", "host: evil.example").status == 400
    client = Admin().client()
    client.sends(b"GET /status HTTP/1.0\r\n\r\n")
    assert client.answer.status == 400


# --- tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic t0ken", "Bearer t0ke"])
def test_without_the_right_token_nobody_acts(path: str, header: str | None) -> None:
    admin = Admin(TOKEN)
    headers = [] if header is None else [f"authorization: {header}"]
    answer = admin.post(path, {"level": "debug"}, *headers)
    assert answer.status == 401
    admin.check_nothing_was_done()


@pytest.mark.parametrize("path", ACTIONS)
def test_where_no_token_is_configured_nobody_acts(path: str) -> None:
    admin = Admin(None)
    for headers in ([], [BEARER], [OWN], ["authorization: Bearer"], ["authorization: Bearer None"]):
        answer = admin.post(path, {"level": "debug"}, *headers)
        assert answer.status == 403
        assert "admin.token" in answer.json["error"], "it should be said how to configure one"
    assert admin.form("/login", "token=", OWN).status == 403
    admin.check_nothing_was_done()


def test_a_token_in_the_address_is_none() -> None:
    admin = Admin(TOKEN)
    for name in ("token", "access_token", "authorization"):
        assert admin.ask(f"/status?{name}={TOKEN}").status == 401


def test_two_tokens_are_none() -> None:
    admin = Admin(TOKEN)
    for second in ("authorization: Bearer wrong", BEARER):
        assert admin.ask("/status", BEARER, second).status == 401
    assert not len(admin.access.bearers), "nobody guessed"


def test_guessing_gets_slower_with_each_try() -> None:
    admin = Admin(TOKEN)
    waits = []
    for _ in range(8):
        assert admin.form("/login", "token=guess", OWN).status == 401
        answer = admin.form("/login", "token=another", OWN)
        assert answer.status == 429, "a guess right after a wrong one was heard"
        waits.append(int(answer.headers["retry-after"]))
        admin.clock.advance(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_nobody_locks_the_operator_out_from_behind_the_same_address() -> None:
    admin = Admin(TOKEN)
    for _ in range(100):
        assert admin.form("/login", "token=guess", OWN).status in (401, 429)
        assert admin.ask("/status", "authorization: Bearer guess").status in (401, 429)
        assert admin.ask("/status", BEARER).status == 200
    cookie = admin.log_in().cookie
    assert admin.ask("/status", cookie).status == 200
    answer = admin.form("/login", "token=guess", OWN)
    assert answer.status == 429, "the operator's success is not the guesser's"


def test_who_guesses_delays_nobody_else() -> None:
    admin = Admin(TOKEN)
    wrong = "authorization: Bearer guess"
    admin.ask("/status", wrong, address="192.0.2.1")
    assert admin.ask("/status", wrong, address="192.0.2.1").status == 429
    assert admin.ask("/status", wrong, address="192.0.2.2").status == 401
    assert admin.ask("/status", BEARER, address="192.0.2.1").status == 200
    assert admin.ask("/livez", "authorization: Bearer guess", address="192.0.2.1").status == 200
    answer = admin.form("/login", f"token={TOKEN}", OWN, address="192.0.2.1")
    assert answer.status == 303, "a wrong Bearer of a scraper must not keep the operator out"


def test_guessing_from_many_addresses_is_bounded_and_lets_the_operator_in() -> None:
    admin = Admin(TOKEN)
    heard = [
        admin.form("/login", "token=guess", OWN, address=f"2001:db8:{number:x}::1").status
        for number in range(200)
    ]
    assert heard.count(401) == 60, "60 guesses a minute are heard, of whomever"
    assert heard[-1] == 429
    assert admin.form("/login", f"token={TOKEN}", OWN, address="203.0.113.9").status == 303
    assert len(admin.access.forms) <= 1024


def test_one_network_of_addresses_is_one_guesser() -> None:
    admin = Admin(TOKEN)
    assert admin.form("/login", "token=guess", OWN, address="2001:db8::1").status == 401
    assert admin.form("/login", "token=guess", OWN, address="2001:db8::2").status == 429


# --- sessions ----------------------------------------------------------------------------


def test_a_session_id_that_somebody_planted_lets_nobody_in() -> None:
    """Session fixation: the id after the login is new, whatever the browser sent."""
    admin = Admin(TOKEN)
    planted = "cookie: gateway_admin=" + "x" * 43
    answer = admin.log_in(planted)
    assert answer.cookie != planted
    assert admin.ask("/status", planted).status == 401
    assert admin.ask("/status", answer.cookie).status == 200


def test_a_login_ends_the_session_before_it() -> None:
    admin = Admin(TOKEN)
    first = admin.log_in()
    second = admin.log_in(first.cookie)
    assert first.cookie != second.cookie
    assert admin.ask("/status", first.cookie).status == 401
    assert admin.ask("/status", second.cookie).status == 200


def test_a_logout_ends_the_session_here_and_not_only_in_the_browser() -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    answer = admin.form("/logout", "", OWN, cookie)
    assert answer.status == 303
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert admin.ask("/status", cookie).status == 401
    assert admin.form("/logout", "", OWN, cookie).status == 303, "twice does no harm"


def test_a_cookie_is_found_beside_others_in_whatever_lines() -> None:
    """Proxies that speak HTTP/2 split them (RFC 9113 §8.2.3)."""
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    assert admin.ask("/status", "cookie: theme=dark", cookie, "cookie: a=b").status == 200


def test_another_site_cannot_log_the_operator_out() -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    assert admin.form("/logout", "", cookie, "origin: https://evil.example").status == 403
    assert admin.ask("/status", cookie).status == 200


def test_sessions_end_by_themselves_and_with_their_token() -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    admin.clock.advance(3601)
    assert admin.ask("/status", cookie).status == 401, "an idle session should end in an hour"
    cookie = admin.log_in().cookie
    for _ in range(14):
        admin.clock.advance(3300)
        admin.ask("/status", cookie)
    assert admin.ask("/status", cookie).status == 401, "no session should last longer than a day"
    cookie = admin.log_in().cookie
    admin.access.reconfigure("another", ())
    assert admin.ask("/status", cookie).status == 401


def test_sessions_are_bounded_and_kept_as_hashes() -> None:
    admin = Admin(TOKEN)
    first = admin.log_in().cookie
    for _ in range(64):
        latest = admin.log_in().cookie
    assert len(admin.access.logins) == 64
    assert admin.ask("/status", first).status == 401
    assert admin.ask("/status", latest).status == 200
    session_id = latest.partition("=")[2]
    assert session_id not in repr(vars(admin.access.logins)), "the id itself is kept"
    audit = admin.ask("/status/audit", latest).body
    assert session_id.encode() not in audit, "the audit log shows what lets anybody in"
    assert TOKEN.encode() not in audit


# --- paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/status/../admin/drain",
        "/livez/..;/status",
        "/livez/..;/admin/drain",
        "/livez/%2e%2e/status",
        "/livez/%252e%252e/status",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../gateway/admin/auth.py",
        "/static/..%2f..%2faccess.py",
        "/static/%2e%2e/source.py",
        "/static//etc/passwd",
        "/static/page.js%00.png",
        "//status",
        "/status//accounts",
        "/status/",
        "/status/accounts/",
        "/./status",
        "/status%00",
        "/status%2faccounts",
        "/STATUS",
        "/status;x=1",
        "/status%20",
        "/%ff%fe",
        "/status/\xe9",
        "/status/%0d%0aset-cookie:%20x=1",
        "http://evil.example/status",
        "*",
        "/" + "a/" * 3000,
        "/status/conversations//why",
        "/status/conversations/%00/why",
        "/status/conversations/../why",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_path_tricks_lead_nowhere(path: str, method: str) -> None:
    admin = Admin(None)
    answer = admin.ask(path, BEARER, method=method)
    assert answer.status in (400, 404, 405), f"{path} was answered {answer.status}: {answer.body!r}"
    assert "set-cookie" not in answer.headers
    admin.check_nothing_was_done()


def test_path_tricks_do_not_get_past_the_token() -> None:
    admin = Admin(TOKEN)
    for path in ("/livez/../status", "/livez;/status", "/status/.", "/status/%2e", "/status?x#y"):
        assert admin.ask(path).status in (401, 404)
    assert admin.post("/admin/accounts/a%2f..%2fb/pause", None, BEARER).status == 404
    assert admin.post("/admin/accounts/a/pause/../resume", None, BEARER).status == 404
    admin.check_nothing_was_done()


def test_a_name_is_decoded_once() -> None:
    world = World(1)
    world.services.pool.reconfigure(
        [_named(world, "50%2e/ä b"), world.accounts["a"]], world.services.pool.routing
    )
    admin = Admin(TOKEN, world=world)
    answer = admin.post("/admin/accounts/50%252e%2F%C3%A4%20b/pause", None, BEARER)
    assert answer.status == 200, answer.body


def _named(world: World, name: str) -> object:
    account = world.accounts["a"]
    return type(account)(
        AccountSettings(name=name, base_url="http://upstream", key="sk-x"),
        account.upstream,
        world.clock.seconds,
    )


# --- sizes and times ---------------------------------------------------------------------


def test_an_oversized_header_is_cut_off() -> None:
    client = Admin().client()
    client.sends(b"GET /status HTTP/1.1\r\nhost: localhost\r\nx: ")
    for _ in range(100):
        client.sends(b"x" * 1000)
        if client.closed:
            break
    assert client.closed, "a header without end was read on"
    many = Admin().ask("/status", *(f"x-{number}: y" for number in range(200)))
    assert many.status == 431


def test_an_oversized_body_is_refused_before_it_is_read() -> None:
    admin = Admin(TOKEN)
    client = admin.client()
    head = f"POST /admin/log-level HTTP/1.1\r\nhost: localhost\r\n{BEARER}\r\n"
    client.sends(f"{head}content-length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
    assert client.answer.status == 413
    client.sends(b"x" * (MAX_BODY_BYTES + 1))
    assert client.closed
    assert client.received.count(b"HTTP/1.1") == 1, "a refused body was answered again"


def test_a_body_whose_size_has_thousands_of_digits_is_refused() -> None:
    client = Admin(TOKEN).client()
    head = f"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: {'9' * 5000}\r\n\r\n"
    client.sends(head.encode())
    assert (client.answer.status, client.closed) == (400, True)


def test_an_oversized_body_that_hides_its_size_is_cut_off() -> None:
    admin = Admin(TOKEN)
    client = admin.client()
    head = f"POST /admin/log-level HTTP/1.1\r\nhost: localhost\r\n{BEARER}\r\n"
    client.sends(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    for _ in range(20):
        client.sends(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    assert client.answer.status == 413
    assert admin.site.limiter.incoming.bytes == 0, "a refused body was kept"
    admin.reactor.advance(2)
    assert client.closed, "a refused body was read on"
    admin.check_nothing_was_done()


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 20_000, b'{"level":' * 5_000]
)
def test_a_body_that_cannot_be_read_is_said_to_be_wrong(body: bytes) -> None:
    admin = Admin(TOKEN)
    kind = "content-type: application/json"
    answer = admin.ask("/admin/log-level", BEARER, kind, method="POST", body=body)
    assert answer.status == 400
    admin.check_nothing_was_done()


@pytest.mark.parametrize("level", [None, 1, "loud", "DEBUG", ["debug"], {"debug": 1}, "debug\n"])
def test_a_level_that_is_none_changes_nothing(level: object) -> None:
    admin = Admin(TOKEN)
    assert admin.post("/admin/log-level", {"level": level}, BEARER).status == 400
    admin.check_nothing_was_done()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /sta",
        b"GET /status HTTP/1.1\r\nhost: localhost\r\nx: y",
        b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\ntoken=",
        b"POST /login HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\ntok",
    ],
)
def test_a_slow_request_is_cut_off(sent: bytes) -> None:
    admin = Admin()
    client = admin.client()
    client.sends(sent)
    for _ in range(70):
        if client.closed:
            break
        admin.reactor.advance(1)
        client.sends(b"" if not sent else b"x")  # a byte a second, for as long as it is let
    assert client.closed, "a request may take for ever"


def test_bytes_in_time_do_not_lengthen_the_time_of_a_request() -> None:
    admin = Admin()
    client = admin.client()
    for _ in range(int(REQUEST_SECONDS) + 1):
        client.sends(b"G")
        admin.reactor.advance(1)
    assert client.closed
    assert client.answer.status == 408
    assert not client.transport.aborted, "the answer should have a moment to get through"
    admin.reactor.advance(2)
    assert client.transport.aborted, "a client that does not take the answer stays for ever"
    client.leaves()
    left = [call for call in admin.reactor.getDelayedCalls() if "_update" not in str(call.func)]
    assert left == [], "a timer outlived its connection"


def listening(admin: Admin) -> Client:
    """A connection that is being answered for as long as it is open."""
    client = admin.client()
    client.sends(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert client.answer.status == 200
    return client


def test_only_so_many_connections_are_answered_and_closed_ones_make_room() -> None:
    admin = Admin()
    admin.site.limiter.max_connections = 3
    clients = [listening(admin) for _ in range(3)]
    one_more = admin.client()
    one_more.sends(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (one_more.answer.status, one_more.closed) == (503, True)
    clients[0].leaves()
    assert admin.ask("/livez").status == 200
    for client in clients[1:]:
        client.leaves()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /sta",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\nGET /sta",
        b"POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\ntoken=",
    ],
)
def test_connections_that_say_nothing_keep_nobody_out(said: bytes) -> None:
    """Those that wait for a request go, the oldest first; who is answered stays."""
    admin = Admin()
    listener = listening(admin)
    silent = []
    for _ in range(MAX_CONNECTIONS + 50):
        silent.append(admin.client())
        silent[-1].sends(said)
    for path in ("/livez", "/readyz", "/metrics"):
        assert admin.ask(path).status == 200, path
    still_open = [client for client in silent if not client.closed]
    assert len(still_open) < MAX_CONNECTIONS
    assert silent[0].closed
    assert not silent[-1].closed
    assert not listener.closed
    listener.leaves()


def test_the_last_files_are_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin()
    listener, silent = listening(admin), [admin.client(), admin.client()]
    files = admin.limiter.files
    monkeypatch.setattr(files, "suffice", lambda transport, reserved: False)
    assert admin.ask("/livez").status == 200
    assert [client.transport.aborted for client in silent] == [True, False]
    assert not listener.transport.aborted
    listener.leaves()


def test_a_connection_that_says_nothing_is_closed_soon() -> None:
    admin = Admin()
    client = admin.client()
    admin.reactor.advance(REQUEST_SECONDS)
    assert client.closed


def test_a_second_request_on_the_connection_is_checked_like_the_first() -> None:
    client = Admin(TOKEN).client()
    head = "host: localhost\r\ncontent-length: 0\r\n"
    client.sends(f"GET /status HTTP/1.1\r\n{head}{BEARER}\r\n\r\n".encode())
    client.sends(f"GET /status HTTP/1.1\r\n{head}\r\n".encode())
    assert client.received.count(b"HTTP/1.1 200") == 1
    assert client.received.count(b"HTTP/1.1 401") == 1


# --- script in what others wrote ---------------------------------------------------------


def _poisoned() -> Admin:
    """An account, a model, an error, a response id and a thread that are scripts."""
    world = World(1)
    account = world.accounts["a"]
    poisoned = _named(world, SCRIPT)
    world.services.pool.reconfigure([poisoned, account], world.services.pool.routing)  # type: ignore[list-item]
    account.health.refused(SCRIPT, Fault(FaultKind.MODEL_REFUSED, SCRIPT, None))
    account.health.refused(None, Fault(FaultKind.UNAUTHORIZED, SCRIPT, None))
    account.health.clear()
    account.health.refused(SCRIPT, Fault(FaultKind.MODEL_REFUSED, SCRIPT, None))
    admin = Admin(TOKEN, world=world)
    poisoned.health.disable()  # type: ignore[attr-defined]
    turn = world.turn([user("hi")], model=SCRIPT)
    turn.start()
    if turn.record.status == "running":
        world.exchanges()[-1].ends(ApiError(400, SCRIPT, SCRIPT, SCRIPT))
    world.completed([user("hi")], turn_events([text_item()], SCRIPT))
    admin.post("/admin/accounts/" + "%3Cscript%3Ex/pause", None, BEARER)
    return admin


def test_script_in_names_and_errors_is_inert_in_json() -> None:
    admin = _poisoned()
    agent = f"user-agent: {SCRIPT}"
    for path in ("/status", "/status/accounts", "/status/turns", "/status/audit", "/status/config"):
        answer = admin.ask(path, BEARER, agent)
        assert answer.headers["content-type"] == "application/json"
        assert b"<" not in answer.body, f"{path} holds a tag: {answer.body!r}"
        json.loads(answer.body)
    shown = admin.ask("/status/accounts", BEARER).json["accounts"]
    assert shown[0]["name"] == SCRIPT, "what is shown is still the name"


def test_script_in_names_and_errors_is_inert_on_the_page() -> None:
    admin = _poisoned()
    conversation = opaque_id(connection_key("laptop", "c-1"))
    query = f"?why={conversation}&q=%3Cscript%3Ealert(1)&account=%3Cscript%3Ealert(2)"
    answer = admin.ask(f"/status{query}", BEARER, "accept: text/html", f"user-agent: {SCRIPT}")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.body.decode()
    for wrong in ("<script>", "<img src=x", "onerror=alert(1)>"):
        assert wrong not in page, f"the page holds {wrong}"
    assert escape("<script>alert(") in page, "the names should be on the page, as text"


def test_script_in_an_error_is_inert() -> None:
    admin = Admin(TOKEN)
    answer = admin.post("/admin/accounts/%3Cscript%3Ealert(1)/pause", None, BEARER)
    assert answer.status == 404
    assert b"<" not in answer.body
    answer = admin.ask("/status", "authorization: Bearer <script>", "accept: text/html")
    assert b"<script>" not in answer.body


def test_a_user_agent_is_shown_nowhere() -> None:
    admin = Admin(TOKEN)
    agent = "user-agent: Mozilla/5.0 (mark)"
    admin.log_in(agent)
    admin.post(PAUSE, None, BEARER, agent)
    assert b"(mark)" not in admin.ask("/status/audit", BEARER, agent).body


# --- reads that act ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [*ACTIONS, "/logout"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "get", "POST "])
def test_a_get_cannot_act(path: str, method: str) -> None:
    admin = Admin(TOKEN)
    cookie = admin.log_in().cookie
    answer = admin.ask(f"{path}?_method=POST", cookie, OWN, BEARER, method=method)
    assert answer.status in (400, 405), f"{method} {path} was answered {answer.status}"
    assert admin.world.accounts["a"].health.state.value == "ready"
    assert not admin.limiter.draining
    assert admin.ask("/status", cookie).status == 200, "it logged somebody out"


def test_a_method_in_a_header_is_ignored() -> None:
    admin = Admin(TOKEN)
    answer = admin.ask(PAUSE, BEARER, "x-http-method-override: POST")
    assert answer.status == 405
    admin.check_nothing_was_done()


def test_reading_everything_changes_nothing() -> None:
    admin = Admin(TOKEN)
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    bindings = admin.world.services.pool.bindings
    identity, before = next(bindings.items(1))
    used_at = before.used_at
    admin.clock.advance(60)
    for path in ("/status", "/status/conversations?q=resp_1", "/status/turns", "/status/memory"):
        admin.json(path, BEARER)
    for name in ("resp_1", identity):
        admin.json(f"/status/conversations/{name}/why", BEARER)
    admin.post("/admin/route-dry-run", {"previous_response_id": "resp_1"}, BEARER)
    identity_after, after = next(bindings.items(1))
    assert (identity_after, after.used_at) == (identity, used_at), "a look used the binding"
    admin.clock.advance(3600 - 30)
    assert admin.world.conversations.get("laptop", "resp_1") is None, (
        "a look kept the response alive"
    )
