"""The last turns, filtered."""

from __future__ import annotations

from typing import Any

from gateway.admin.running import Running
from gateway.turn.turn_log import TurnRecord


def turns(
    running: Running,
    account: str | None = None,
    key: str | None = None,
    status: str | None = None,
    conversation: str | None = None,
    limit: int = 500,
) -> dict[str, Any]:
    """The last turns, the newest last.

    :param account: only those that it served or refused.
    :param key: only those of this client key.
    :param status: only those that ended so.
    :param conversation: only those of the binding with this id.
    """

    def fits(record: TurnRecord) -> bool:
        return (
            (account is None or any(each.account == account for each in record.attempts))
            and key in (None, record.key)
            and status in (None, record.status)
            and conversation in (None, record.conversation)
        )

    found = [record.as_dict() for record in running.services.turn_log.latest() if fits(record)]
    return {"turns": found[-limit:]}
