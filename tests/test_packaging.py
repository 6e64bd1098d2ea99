"""What gets installed: the package list, and the command after a plain `pip install .`."""

from __future__ import annotations

import configparser
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import __version__
from gateway.config import Settings

ROOT = Path(__file__).parent.parent


def listed_packages() -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options"]["packages"].split()


def test_the_package_list_matches_the_directories() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("gateway", "simulator")
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(listed_packages()) == found | {"twisted.plugins"}


def test_every_package_of_ours_has_an_init() -> None:
    for name in listed_packages():
        if name != "twisted.plugins":
            init = ROOT.joinpath(*name.split("."), "__init__.py")
            assert init.is_file(), f"{name} has no __init__.py and would not be found everywhere"


def test_nothing_shadows_twisted() -> None:
    # An __init__.py here would hide the real Twisted from everything on the same path.
    assert not list((ROOT / "twisted").rglob("__init__.py"))
    assert [path.name for path in (ROOT / "twisted" / "plugins").glob("*.py")] == [
        "responses_gateway.py"
    ]


def test_the_types_are_published() -> None:
    assert (ROOT / "gateway" / "py.typed").is_file()


def test_the_version_has_notes() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_systemd_unit_starts_reloads_and_stops_what_is_installed() -> None:
    unit = (ROOT / "config" / "responses-gateway.service").read_text()
    installed_as = re.search(r"config/pool\.yaml (\S+)", unit)
    assert installed_as is not None
    start, check, reload_ = re.findall(r"^Exec(?:Start|Reload)=(.*)$", unit, re.MULTILINE)
    for command in (start, check):
        program, *arguments = command.split()
        assert f"{program} --help" in unit, "the program is not the one whose cache is written"
        options = arguments[arguments.index("responses-gateway") + 1 :]
        assert options[-2:] == ["--config", installed_as[1]]
    assert "--check" in check.split(), "a reload that will be refused must fail"
    assert reload_ == "/bin/kill -HUP $MAINPID"
    # SIGTERM to all would be the second one for workers that stop, and end their turns.
    assert "\nKillMode=mixed\n" in unit
    patience = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert patience is not None
    assert int(patience[1]) > Settings().timeouts.shutdown_seconds + 5, "turns would be cut off"


# A fresh environment


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """A new venv with the gateway from a copy of the tree, its site-packages not writable."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-packaging-"))
    try:
        ours = ("gateway", "simulator", "twisted", "config")
        skip = shutil.ignore_patterns("__pycache__", "dropin.cache")
        for name in (*ours, "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / "tree" / name, ignore=skip)
            elif source.exists():
                shutil.copy(source, folder / "tree" / name)
        run([sys.executable, "-m", "venv", str(folder / "venv")])
        pip = [str(folder / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
        run([*pip, "install", "--quiet", "."], cwd=folder / "tree")
        (folder / "work").mkdir()
        for path in (folder / "venv").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222 | 0o444)
        yield folder
    finally:
        for path in (folder / "venv").rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def unprivileged(installed: Path, require_e2e: bool) -> list[str]:
    """A prefix for commands that makes read-only count even for root."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    target = str(next(installed.glob("venv/lib/python*/site-packages")) / "written")
    try:
        done = subprocess.run([*prefix, "touch", target], capture_output=True, text=True)
        problem = "" if "Permission denied" in done.stderr else f"touch: {done.stderr or 'worked'}"
    except OSError as error:
        problem = str(error)
    if problem and require_e2e:
        pytest.fail(f"root cannot give up its rights here: {problem}")
    if problem:
        pytest.skip(f"root cannot give up its rights here: {problem}")
    return prefix


def run(command: list[str], **options: Any) -> str:
    options.setdefault("env", {"PATH": os.environ.get("PATH", os.defpath)})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.e2e
@pytest.mark.parametrize("package", ["gateway", "simulator"])
def test_every_file_of_a_package_is_installed(package: str, installed: Path) -> None:
    site = next(installed.glob("venv/lib/python*/site-packages"))
    ours = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()]
    missing = [
        str(path)
        for path in ours
        if path.parent.name != "__pycache__" and not (site / path).is_file()
    ]
    assert not missing, f"add these to packages or package_data in setup.cfg: {missing}"


@pytest.mark.e2e
def test_twistd_lists_and_describes_the_command(installed: Path, unprivileged: list[str]) -> None:
    twistd = str(installed / "venv/bin/twistd")
    assert "responses-gateway" in run([*unprivileged, twistd, "--help"], cwd="/")
    described = run([*unprivileged, twistd, "responses-gateway", "--help"], cwd="/")
    assert "--config" in described
    assert f"responses-gateway {__version__} " in run(
        [*unprivileged, twistd, "responses-gateway", "--version"], cwd="/"
    )
    assert not list((installed / "venv").rglob("dropin.cache")), "site-packages was writable"


@pytest.mark.e2e
def test_the_installed_service_runs_without_write_access(
    installed: Path, unprivileged: list[str]
) -> None:
    admin = installed / "work" / "admin.sock"
    config = installed / "work" / "gateway.yaml"
    config.write_text(
        "listen: 'tcp:0:interface=127.0.0.1'\n"
        f"admin: {{listen: 'unix:{admin}'}}\n"
        "simulator: {accounts: 1}\n"
    )
    process = subprocess.Popen(
        [
            *(*unprivileged, str(installed / "venv/bin/twistd"), "-n", "--pidfile="),
            *("responses-gateway", "--config", str(config)),
        ],
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until_alive(admin, process)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    # twistd ends by the signal it was stopped with, once everything is shut down.
    clean = process.returncode in (0, -signal.SIGTERM) and "Server Shut Down." in output
    assert clean, f"expected a clean end after SIGTERM, got {process.returncode}:\n{output}"
    assert "Traceback" not in output


def wait_until_alive(path: Path, process: subprocess.Popen[str]) -> None:
    """Ask /livez on the admin socket until the service answers 200."""
    deadline = time.monotonic() + 60
    while True:
        if process.poll() is not None:
            assert process.stdout is not None
            pytest.fail(f"the service ended with {process.returncode}:\n{process.stdout.read()}")
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(str(path))
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            return
        except OSError:
            assert time.monotonic() < deadline, "the admin side did not answer within 60 s"
            time.sleep(0.1)
        finally:
            connection.close()
