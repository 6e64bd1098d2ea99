"""What the OpenAI SDK keeps at an account is there after a restart: responses, jobs, compactions.

Each run is a generator that yields where the gateway is restarted: killed the first time, stopped
the second.  Two accounts serve the model; the runs begin on the second one, to which a gateway that
had forgotten them would not go.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from simulator import SimulatedAccount
from tests.e2e.conftest import Scene
from tests.e2e.restarts import Restarter, restarter
from tests.simulator.running import RunningSimulator
from tests.support.gateway import CLIENT_KEYS, account

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.responses import Response

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.e2e

MODEL = "gpt-5.5"
WORD = "The code word is heron."
WHICH = "What was the code word?"
TOKEN = "token-of-the-operator"
SECONDS = 60.0
LONG, SHORT = 600.0, 3.0
RUNNING = ("queued", "in_progress")


class Client:
    """An SDK client of one key, and what its runs share."""

    def __init__(self, gateway: Restarter, running: RunningSimulator, key: str = "laptop") -> None:
        self.gateway = gateway
        self.running = running
        base_url = f"http://127.0.0.1:{gateway.gateway.port}/v1"
        self.sdk: OpenAI = openai.OpenAI(
            base_url=base_url, api_key=CLIENT_KEYS[key], max_retries=2, timeout=SECONDS
        )

    def ask(self, given: Any, **more: Any) -> Response:
        """One answer, of the second account."""
        raw = self.sdk.responses.with_raw_response.create(model=MODEL, input=given, **more)
        assert raw.headers["x-gateway-account"] == "south"
        response: Response = raw.parse()
        return response

    def background(self, seconds: float) -> Response:
        """A job that takes so long."""
        self.running.simulator.background_seconds = seconds
        return self.ask("hello", background=True)


Run = Callable[[Client], Iterator[None]]


def a_chain_of_ids(client: Client) -> Iterator[None]:
    first = client.ask(WORD)
    yield
    second = client.ask("And now?", previous_response_id=first.id)
    yield
    assert WORD in client.ask(WHICH, previous_response_id=second.id).output_text
    assert WORD in client.ask(WHICH, previous_response_id=first.id).output_text, "a fork"


def a_response_that_is_read(client: Client) -> Iterator[None]:
    made = client.ask(WORD)
    for _ in range(2):
        yield
        assert client.sdk.responses.retrieve(made.id).output_text == made.output_text


def its_input(client: Client) -> Iterator[None]:
    said: Any = [{"role": "user", "content": str(number)} for number in range(3)]
    made = client.ask(said)
    for _ in range(2):
        yield
        page = client.sdk.responses.input_items.list(made.id, limit=2, order="asc")
        texts = [item.content[0].text for item in page if item.type == "message"]
        assert texts == ["0", "1", "2"]


def a_response_that_is_deleted(client: Client) -> Iterator[None]:
    made = client.ask(WORD)
    yield
    client.sdk.responses.delete(made.id)
    yield
    with pytest.raises(openai.NotFoundError):
        client.sdk.responses.retrieve(made.id)


def a_job_that_is_polled(client: Client) -> Iterator[None]:
    made = client.background(SHORT)
    assert made.status in RUNNING
    yield
    while (now := client.sdk.responses.retrieve(made.id)).status != "completed":
        assert now.status in RUNNING
    yield
    answer = client.ask("What did I say first?", previous_response_id=made.id)
    assert "hello" in answer.output_text


def a_job_that_is_cancelled(client: Client) -> Iterator[None]:
    made = client.background(LONG)
    yield
    assert client.sdk.responses.retrieve(made.id).status in RUNNING
    assert client.sdk.responses.cancel(made.id).status == "cancelled"
    yield
    assert client.sdk.responses.retrieve(made.id).status == "cancelled"


def a_compaction(client: Client) -> Iterator[None]:
    first = client.ask(WORD)
    yield
    compacted = client.sdk.responses.compact(model=MODEL, previous_response_id=first.id)
    given: Any = [item.to_dict(warnings=False) for item in compacted.output]
    yield
    answer = client.ask([*given, {"role": "user", "content": WHICH}])
    assert answer.output_text == WORD


def encrypted_reasoning(client: Client) -> Iterator[None]:
    """Unstored, with the whole history in each request."""
    options: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"]}
    given: Any = [{"role": "user", "content": WORD}]
    for _ in range(2):
        made = client.ask(given, **options)
        given += [item.to_dict(warnings=False) for item in made.output]
        given.append({"role": "user", "content": WHICH})
        yield
    assert WORD in client.ask(given, **options).output_text


def turn_state(client: Client) -> Iterator[None]:
    """As Codex brings it back, without anything else that tells the conversation."""
    raw = client.sdk.responses.with_raw_response.create(model=MODEL, input=WORD)
    name = "x-codex-turn-state"
    for number in range(2):
        yield
        client.ask(f"new {number}", extra_headers={name: raw.headers[name]})


def an_unstored_response(client: Client) -> Iterator[None]:
    """It may not be written: its id is unknown, in the words of the protocol."""
    made = client.ask(WORD, store=False)
    for _ in range(2):
        yield
        with pytest.raises(openai.BadRequestError) as refused:
            client.ask(WHICH, previous_response_id=made.id)
        assert refused.value.code == "previous_response_not_found"


def a_paused_account(client: Client) -> Iterator[None]:
    administer(client.gateway, "third", "pause")
    for _ in range(2):
        yield
        assert states(client.gateway)["third"] == "disabled"


def another_clients_response(client: Client) -> Iterator[None]:
    made = client.ask(WORD)
    stranger = Client(client.gateway, client.running, "desk")
    for _ in range(2):
        yield
        with pytest.raises(openai.NotFoundError):
            stranger.sdk.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.sdk.responses.create(model=MODEL, input=WHICH, previous_response_id=made.id)
        assert refused.value.code == "previous_response_not_found"


RUNS: list[Run] = [
    a_chain_of_ids,
    a_response_that_is_read,
    its_input,
    a_response_that_is_deleted,
    a_job_that_is_polled,
    a_job_that_is_cancelled,
    a_compaction,
    encrypted_reasoning,
    turn_state,
    an_unstored_response,
    a_paused_account,
    another_clients_response,
]


def administer(gateway: Restarter, name: str, action: str) -> None:
    url = f"http://127.0.0.1:{gateway.gateway.admin_port}/admin/accounts/{name}/{action}"
    request = Request(url, method="POST", headers={"Authorization": f"Bearer {TOKEN}"})
    urlopen(request, timeout=SECONDS).close()


def states(gateway: Restarter) -> dict[str, str]:
    """Of all accounts, by name."""
    url = f"http://127.0.0.1:{gateway.gateway.admin_port}/status"
    request = Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urlopen(request, timeout=SECONDS) as answer:
        status = json.load(answer)
    return {each["name"]: each["state"] for each in status["accounts"]}


@pytest_twisted.async_yield_fixture
async def running() -> AsyncIterator[RunningSimulator]:
    names = ("north", "south", "third")
    models = {"third": ("another",)}
    simulator = RunningSimulator(
        accounts=[
            SimulatedAccount(name, key=f"upstream-secret-{name}", models=models.get(name, (MODEL,)))
            for name in names
        ]
    )
    yield simulator
    await simulator.stop()


@pytest_twisted.ensureDeferred
async def test_what_is_kept_at_an_account_across_restarts(
    scene: Scene, running: RunningSimulator
) -> None:
    await deferToThread(functools.partial(across_restarts, scene, running))


def across_restarts(scene: Scene, running: RunningSimulator) -> None:
    url = running.service.base_url
    accounts = [
        account("north", url("north"), models=[MODEL], background=True),
        account("south", url("south"), models=[MODEL], background=True),
        account("third", url("third"), models=["another"]),
    ]
    gateway = restarter(scene, accounts, admin={"token": TOKEN})
    client = Client(gateway, running)
    administer(gateway, "north", "pause")
    runs = {run.__name__: run(client) for run in RUNS}
    failed: dict[str, str] = {}
    step(runs, failed)
    administer(gateway, "north", "resume")
    for how in ("kill", "stop"):
        gateway.restart(how)
        step(runs, failed)
    for run in RUNS:
        print(f"  {run.__name__}: {failed.get(run.__name__, 'pass')}")
    assert not failed


def step(runs: dict[str, Iterator[None]], failed: dict[str, str]) -> None:
    """Let every run go on to its next restart, or to its end."""
    for name, run in list(runs.items()):
        try:
            next(run, None)
        except (Exception, pytest.fail.Exception) as error:
            failed[name] = f"FAIL {error!r}"
            del runs[name]
