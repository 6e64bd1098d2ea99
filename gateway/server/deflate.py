"""Which extensions a client may have: permessage-deflate (RFC 7692), where it is well-formed."""

from __future__ import annotations

from typing import Any

from autobahn.websocket.compress import (
    PERMESSAGE_COMPRESSION_EXTENSION,
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
)


def accept_deflate(offers: list[Any]) -> Any:
    """The offer that is taken, or None."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


def is_readable(extension: str, parameters: dict[str, Any]) -> bool:
    """Whether an extension offer can be understood (RFC 7692 §5: decline it otherwise)."""
    if extension not in PERMESSAGE_COMPRESSION_EXTENSION:
        return False
    try:
        offer: Any = PERMESSAGE_COMPRESSION_EXTENSION[extension]["Offer"]
        offer.parse(parameters)
    except Exception:
        return False
    return True
