"""The command line: what is printed where, with which exit status; never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __version__
from gateway.config import Settings
from gateway.options import Options

GOOD = "accounts: [{name: a, base_url: 'https://x/v1', key: '${KEY:-k}'}]\n"
BAD = "accounts: [{name: a, base_url: 'ftp://x', key: k}]\n"
BAD_LINE = (
    "gateway.yaml: accounts[0].base_url: 'ftp://x': expected an http:// or https:// URL "
    "such as https://api.openai.com/v1 or http://[::1]:8000/v1"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, so that messages show short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a parse that ends the process."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_without_arguments_the_settings_are_the_defaults() -> None:
    assert parse().settings == Settings()


@pytest.mark.parametrize("flag", ["--config", "-c"])
def test_config_is_read_with_the_environment(
    flag: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gateway.yaml").write_text(GOOD)
    monkeypatch.setenv("KEY", "from-the-environment")
    assert parse(flag, "gateway.yaml").settings.accounts[0].key == "from-the-environment"


def test_check_prints_one_line_and_status_0(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "gateway.yaml").write_text(GOOD)
    code, out, err = stopped(capsys, "--check", "--config", "gateway.yaml")
    assert (code, err) == (0, "")
    assert out == (
        "gateway.yaml: ok: 1 account, no client keys, listen on tcp:8080:interface=127.0.0.1, "
        "admin on tcp:8081:interface=127.0.0.1\n"
    )


def test_check_without_a_file_checks_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = stopped(capsys, "--check")
    assert (code, err) == (0, "")
    assert out.startswith("no file: ok: 2 simulated accounts, no client keys, listen on tcp:8080")


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["start", "check"])
def test_a_mistake_is_one_line_on_stderr_and_status_1(
    check: list[str], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "gateway.yaml").write_text(BAD)
    assert stopped(capsys, *check, "-c", "gateway.yaml") == (1, "", BAD_LINE + "\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope"], "responses-gateway: option --nope not recognized; "),
        (["--config"], "responses-gateway: option --config requires argument; "),
        (["--check=1"], "responses-gateway: option --check must not have an argument; "),
        (["my.yaml"], "responses-gateway: unexpected argument 'my.yaml'; a file needs --config; "),
        (["-c", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["-c", ""], "responses-gateway: option --config needs the name of a file, got nothing; "),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_1(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = stopped(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_version_is_the_gateway_s(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = stopped(capsys, "--version")
    assert code == 0
    assert out.startswith(f"responses-gateway {__version__} (Twisted ")


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = stopped(capsys, "--help")
    assert code in (0, None)
    for flag in ("--config", "--check", "--help", "--version", "simulator"):
        assert flag in out


# The same through twistd, which has its own ideas about mistakes


def twistd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = "from twisted.scripts.twistd import run; run()"
    command = [sys.executable, "-c", script, "-n", "--pidfile=", "responses-gateway"]
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HOME")}
    return subprocess.run(
        [*command, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=60
    )


@pytest.mark.e2e
@pytest.mark.parametrize("check", [[], ["--check"]], ids=["start", "check"])
def test_twistd_ends_a_mistake_with_its_line_and_status_1(check: list[str], folder: Path) -> None:
    (folder / "gateway.yaml").write_text(BAD)
    done = twistd(*check, "--config", "gateway.yaml", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", BAD_LINE + "\n")


@pytest.mark.e2e
def test_twistd_checks_a_good_file_without_starting_anything(folder: Path) -> None:
    (folder / "gateway.yaml").write_text(GOOD)
    done = twistd("--check", "--config", "gateway.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gateway.yaml: ok: 1 account, ")
    assert [path.name for path in folder.iterdir()] == ["gateway.yaml"]


@pytest.mark.e2e
def test_twistd_shows_the_gateway_s_version(folder: Path) -> None:
    done = twistd("--version", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith(f"responses-gateway {__version__} ")
