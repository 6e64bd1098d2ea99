"""Lists of models in the shapes in which services give them (protocol.md §7).

The platform's is ``{"data": [{"id": …}]}``, Codex's ``{"models": [{"slug": …}]}``.  Others give
the bare list, call the name ``name``, or list nothing but names; some answer in two shapes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE


class ListedModel(NamedTuple):
    """What a service says of one of its models.

    :ivar platform: its entry in the platform's shape, as the service wrote it, or None.
    :ivar codex: its entry in Codex's shape, or None.
    """

    platform: msgspec.Raw | None
    codex: msgspec.Raw | None


class _Lists(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")
    models: msgspec.Raw = msgspec.Raw(b"null")


class _ModelEntry(msgspec.Struct):
    id: Any = None
    slug: Any = None
    name: Any = None


_decode = msgspec.json.Decoder(list[msgspec.Raw] | _Lists).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_decode_entry = msgspec.json.Decoder(str | _ModelEntry).decode


def read_model_list(body: bytes) -> dict[str, ListedModel]:
    """The models of an answer to ``GET /models``, by name, in its order.

    Of one name each shape's first entry counts; an entry without a name is skipped.

    :raises ValueError: for what is no list of models; its text says why.
    """
    try:
        decoded = _decode(body)
        both = (decoded,) if isinstance(decoded, list) else (decoded.data, decoded.models)
        found = [each if isinstance(each, list) else _decode_list(each) for each in both]
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from None
    lists = [each for each in found if each is not None]
    if not lists:
        raise ValueError("it has no list of models")
    models: dict[str, ListedModel] = {}
    for entry in (entry for entries in lists for entry in entries):
        _add(models, entry)
    return models


def _add(models: dict[str, ListedModel], entry: msgspec.Raw) -> None:
    try:
        head = _decode_entry(entry)
    except UNREADABLE:
        return
    if isinstance(head, str):
        head = _ModelEntry(name=head)
    names = (head.slug, head.id, head.name)
    named = [isinstance(each, str) and bool(each) for each in names]
    if not any(named):
        return
    name = names[named.index(True)]
    known = models.get(name, ListedModel(None, None))
    models[name] = ListedModel(
        known.platform or (entry if named[1] else None),
        known.codex or (entry if named[0] else None),
    )
