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


class _Head(msgspec.Struct):
    id: Any = None
    slug: Any = None
    name: Any = None


_decode = msgspec.json.Decoder(list[msgspec.Raw] | _Lists).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw] | None).decode
_decode_entry = msgspec.json.Decoder(str | _Head).decode


def read_model_list(body: bytes) -> dict[str, ListedModel]:
    """The models of an answer to ``GET /models``, by name, in its order.

    :raises ValueError: for what is no list of models; its text says why.
    """
    try:
        decoded = _decode(body)
        found = [decoded] if isinstance(decoded, list) else [*map(_decode_list, _lists(decoded))]
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from None
    lists = [each for each in found if each is not None]
    if not lists:
        raise ValueError("it has no list of models")
    models: dict[str, ListedModel] = {}
    for entry in (entry for entries in lists for entry in entries):
        _add(models, entry)
    return models


def _lists(decoded: _Lists) -> tuple[msgspec.Raw, msgspec.Raw]:
    return decoded.data, decoded.models


def _add(models: dict[str, ListedModel], entry: msgspec.Raw) -> None:
    """An entry without a name is passed over; of one name each shape's first counts."""
    try:
        head = _decode_entry(entry)
    except UNREADABLE:
        return
    if isinstance(head, str):
        head = _Head(name=head)
    names = (head.slug, head.id, head.name)
    name = next((each for each in names if isinstance(each, str) and each), None)
    if name is None:
        return
    known = models.get(name, ListedModel(None, None))
    models[name] = ListedModel(
        known.platform or (entry if _names(head.id) else None),
        known.codex or (entry if _names(head.slug) else None),
    )


def _names(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
