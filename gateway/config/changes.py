"""What a changed configuration asks of a gateway that runs."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.settings import Section, Settings

# What is built once, at the start. Everything else is read anew: by the next connection (session,
# limits, timeouts, keys), by the next turn (routing, accounts) or at once (log.level, admin.token).
_FIXED = (
    *("listen", "admin.listen", "simulator"),
    *("session.hold_seconds", "session.keepalive_seconds"),
    # The WebSocket factory negotiates with these.
    *("session.compression", "session.max_message_bytes", "timeouts.handshake_seconds"),
    *("ledger.max_bytes", "ledger.ttl_minutes"),
    "log.format",
)


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """The paths of the settings that differ and keep their old values until a restart."""
    return [path for path in changed(old, new) if path.startswith(_FIXED)]


def changed(old: Section, new: Section, path: str = "") -> Iterator[str]:
    """The paths of all settings that differ; lists such as `keys` are one setting."""
    names = zip(old.__struct_fields__, old.__struct_encode_fields__, strict=True)
    for field, name in names:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        here = f"{path}.{name}" if path else name
        if isinstance(before, Section) and isinstance(after, Section):
            yield from changed(before, after, here)
        else:
            yield here
