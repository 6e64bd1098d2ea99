"""What the README shows is what the gateway takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import Settings, load_settings
from gateway.protocol.errors import ApiError
from gateway.server.websocket import PATHS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

SECRETS = {
    "GATEWAY_ADMIN_TOKEN": "admin",
    "GATEWAY_KEY": "laptop-key",
    "OPENAI_API_KEY": "sk-one",
    "OPENAI_API_KEY_2": "sk-two",
}


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_configuration_shown_is_accepted() -> None:
    (shown,) = snippets("yaml")
    settings = load_settings(shown, SECRETS, "README.md")
    assert [account.name for account in settings.accounts] == ["primary", "second"]
    assert [key.name for key in settings.keys] == ["laptop"]


def test_the_python_snippets_compile_and_name_the_default_address() -> None:
    websocket, http, agents = snippets("python")
    compile(websocket + http, "README.md", "exec")
    compile(agents, "README.md", "exec")
    port = re.search(r"tcp:(\d+)", Settings().listen)
    assert port is not None
    for shown in (websocket, agents):
        assert f'base_url="http://127.0.0.1:{port[1]}/v1"' in shown


def test_the_codex_snippet_points_at_the_default_address() -> None:
    (shown,) = snippets("toml")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    provider = tomllib.loads(shown)["model_providers"]["gateway"]
    port = re.search(r"tcp:(\d+)", Settings().listen)
    assert port is not None
    assert provider["base_url"] == f"http://127.0.0.1:{port[1]}/v1"
    assert provider["supports_websockets"] is True


def test_every_path_and_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is not a target"
    for path in re.findall(r"\]\((config/[^)]+)\)", README):
        assert (ROOT / path).is_file(), f"the README links to {path}"
    for path in set(re.findall(r"`(gateway/[\w/.]+)`", README)):
        assert (ROOT / path).exists(), f"the README names {path}"
    for path in PATHS:
        assert path in README


def test_error_codes_named_are_those_the_gateway_uses() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    table = README.partition("## When something goes wrong")[2].partition("\n## ")[0]
    for code in set(re.findall(r"`(?:\d{3} )?([a-z]+(?:_[a-z]+)+)`", table)):
        assert f'"{code}"' in sources, f"the README names {code}, the gateway never says it"
    assert ApiError.bad_gateway("x").code == "upstream_error"
