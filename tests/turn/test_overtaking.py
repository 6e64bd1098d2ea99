"""Who waits for an account is served before who comes later."""

from __future__ import annotations

from gateway.config import AccountSettings, RoutingSettings
from gateway.routing.account import Account
from tests.support.events import user
from tests.turn.fakes import World


def test_who_comes_just_as_a_minute_is_over_does_not_overtake_who_waits() -> None:
    world = World(routing=RoutingSettings(queue_seconds=100.0))
    about = AccountSettings(name="a", base_url="http://up", key="sk-a", requests_per_minute=1)
    account = Account(about, world.upstreams["a"], world.clock.seconds)
    world.services.pool.reconfigure([account], world.services.pool.routing)
    turns = [world.turn([user(text)]) for text in ("first", "waits", "later")]
    turns[0].start()
    turns[1].start()
    world.clock.rightNow += 60.2  # between two looks at the clock
    turns[2].start()
    said = [each.body["input"] for each in world.exchanges()]
    assert said == [[user("first")], [user("waits")]]
    for each in turns:
        each.cancel()
    world.check_rest()
