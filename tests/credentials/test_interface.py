"""Which credentials an account gets, and those that are one key for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from gateway.config import AccountSettings, OAuthSettings
from gateway.credentials.file import FileCredentials
from gateway.credentials.interface import credentials_for
from gateway.credentials.oauth import OAuthCredentials
from gateway.credentials.static import KeyCredentials, worth_hiding


def chosen(**fields: Any) -> Any:
    return credentials_for(AccountSettings(name="a", **fields), Clock(), None)  # type: ignore[arg-type]


def test_each_kind_of_account_has_its_credentials(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-in-a-file")
    oauth = OAuthSettings(
        token_url="http://auth.test/token", client_id="c", token_file=str(tmp_path / "tokens")
    )
    assert isinstance(chosen(key="sk-a-key"), KeyCredentials)
    assert isinstance(chosen(key_file=str(key_file)), FileCredentials)
    assert isinstance(chosen(oauth=oauth), OAuthCredentials)


@pytest.mark.parametrize(
    ("auth_header", "headers"),
    [
        ("authorization", {"authorization": "Bearer sk-a-key"}),
        ("Authorization", {"authorization": "Bearer sk-a-key"}),
        ("api-key", {"api-key": "sk-a-key"}),
    ],
)
def test_a_key_goes_into_the_accounts_header(auth_header: str, headers: dict[str, str]) -> None:
    credentials = chosen(key="sk-a-key", auth_header=auth_header)
    assert credentials.headers() == headers
    assert credentials.refused(headers) is False
    assert list(credentials.secrets()) == ["sk-a-key"]
    assert credentials.close() is None


def test_a_word_in_place_of_a_key_is_no_secret() -> None:
    """Messages of a local server may say "unused" and mean it."""
    assert list(chosen(key="unused").secrets()) == []


def test_what_holds_another_secret_is_struck_out_first() -> None:
    assert worth_hiding("sk-abcdef", None, "", "sk-abcdefgh", "sk-abcdef") == (
        "sk-abcdefgh",
        "sk-abcdef",
    )
