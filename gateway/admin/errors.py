"""What the admin side answers when it does not do what it was asked."""

from __future__ import annotations

from collections.abc import Mapping


class AdminError(Exception):
    """An HTTP status, and a sentence for the operator.

    :param headers: that the answer carries besides.
    """

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})


def not_found(what: str = "nothing is here; see /status") -> AdminError:
    """404."""
    return AdminError(404, what)


def bad_request(sentence: str) -> AdminError:
    """400."""
    return AdminError(400, sentence)
