"""The gateway under twistd: command line, start, log, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import txaio
from twisted.application.service import Application
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, capturedLogs, formatEvent
from twisted.python.components import Componentized

from gateway import __version__
from gateway import tap as daemon
from gateway.config import Settings
from gateway.daemon import on_second_stop, on_signal
from gateway.tap import Options, TwistdService
from tests.support.whole import NoPorts, connected, settings, stopped


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> MemoryReactorClock:
    reactor = MemoryReactorClock()
    monkeypatch.setattr(txaio.config, "loop", reactor)
    return reactor


def options(twistd: dict[str, Any]) -> Options:
    """The command line of a start with ``twistd`` as its own options."""
    made = Options()
    made["config"] = None
    made.settings, made.parent = settings(), twistd
    return made


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start tunes its process; this one is not its own."""
    monkeypatch.setattr(daemon, "collect_rarely", lambda: None)
    monkeypatch.setattr(daemon, "allow_open_files", lambda: None)


def test_in_the_foreground_a_failed_start_is_printed_and_ends_with_1(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, quiet: None
) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text("1")
    twistd = {"nodaemon": True, "pidfile": str(pidfile)}
    with pytest.raises(SystemExit) as caught:
        TwistdService(options(twistd), NoPorts()).startService()
    assert caught.value.code == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("responses-gateway: admin.listen: ")
    assert not pidfile.exists(), "twistd does not get to remove it"


def test_a_daemon_hands_the_line_to_who_waits_for_its_start(tmp_path: Path, quiet: None) -> None:
    reader, writer = os.pipe()
    twistd = {"nodaemon": False, "pidfile": str(tmp_path / "pid"), "statusPipe": writer}
    with pytest.raises(SystemExit):
        TwistdService(options(twistd), NoPorts()).startService()
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read().startswith(b"1 responses-gateway: admin.listen: ")


class Foreground:
    """A gateway that twistd started, and what it answers signals with."""

    def __init__(self, reactor: MemoryReactorClock, patch: pytest.MonkeyPatch, **twistd: Any):
        self.signals: dict[int, Callable[[], object]] = {}
        self.second_stop: Callable[[], object] = lambda: None
        patch.setattr(daemon, "on_signal", self._on_signal)
        patch.setattr(daemon, "on_second_stop", self._on_second_stop)
        self.gateway = TwistdService(options({"nodaemon": True, **twistd}), reactor)
        self.gateway.setServiceParent(Application("test"))

    def _on_signal(self, _: object, number: int, call: Callable[[], object]) -> None:
        self.signals[number] = call

    def _on_second_stop(self, _: object, call: Callable[[], object]) -> None:
        self.second_stop = call


def messages(events: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


def test_the_log_says_what_is_served_where(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch)
    with capturedLogs() as events:
        foreground.gateway.startService()
    (line,) = [line for line in messages(events) if "started" in line]
    assert line == (
        f"responses-gateway {__version__} started with no file: the defaults: 1 account,"
        " no client keys, listen on tcp:8080:interface=127.0.0.1,"
        " admin on tcp:8081:interface=127.0.0.1"
    )
    foreground.gateway.stopService()


def test_the_configuration_in_force_is_not_that_which_waits_for_a_restart(
    reactor: MemoryReactorClock, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.yaml"
    text = "simulator: {accounts: 1}\nlog: {level: %s, format: %s}"
    file.write_text(text % ("info", "text"))
    made = Options()
    made.parseOptions(["--config", str(file)])
    gateway = TwistdService(made, reactor)
    file.write_text(text % ("warn", "json"))
    assert gateway.reloads.reload().endswith("a restart is needed for log.format")
    assert gateway.running_gateway.configuration is not None
    shown = {each.path: each.value for each in gateway.running_gateway.configuration.settings()}
    assert (shown["log.level"], shown["log.format"]) == ("warn", "text")


def test_a_second_signal_to_stop_waits_for_nobody(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch)
    gateway = foreground.gateway
    gateway.startService()
    client = connected(reactor, gateway)
    with capturedLogs() as events:
        for call, args, kwargs in reactor.triggers["before"]["shutdown"]:
            call(*args, **kwargs)
    assert messages(events) == [
        "stopping, connections: 1; turns that run have 30 seconds, or until a second signal"
    ]
    results = stopped(gateway)
    assert (client.abandoned, results) == ([], [])
    foreground.second_stop()
    assert client.abandoned == [reactor.seconds()]
    gateway.limiter.leave(client)
    assert results == [None]


def test_a_log_that_was_put_aside_is_opened_again_at_a_signal(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.log"
    foreground = Foreground(reactor, monkeypatch, logfile=str(path))
    foreground.gateway.startService()
    assert path.exists()
    path.unlink()
    foreground.signals[signal.SIGUSR1]()
    assert path.exists()
    foreground.gateway.stopService()


def test_a_log_that_cannot_be_written_is_one_line(
    reactor: MemoryReactorClock,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "missing" / "gateway.log"
    with pytest.raises(SystemExit) as caught:
        Foreground(reactor, monkeypatch, logfile=str(path))
    assert caught.value.code == 1
    _, err = capfd.readouterr()
    assert err == f"responses-gateway: --logfile '{path}': No such file or directory\n"


def test_without_a_file_of_its_own_no_signal_opens_it_again(
    reactor: MemoryReactorClock, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    foreground = Foreground(reactor, monkeypatch, logfile="-")
    foreground.gateway.startService()
    assert list(foreground.signals) == [signal.SIGHUP, signal.SIGUSR2]
    foreground.gateway.stopService()


def test_it_brings_its_own_log_unless_syslog_is_wanted(reactor: MemoryReactorClock) -> None:
    for twistd, expected in (({"nodaemon": True}, True), ({"syslog": True}, False)):
        application: Componentized = Application("test")
        TwistdService(options(twistd), reactor).setServiceParent(application)
        observer = application.getComponent(ILogObserver, None)
        assert (observer is not None) is expected


# --- the command line ---------------------------------------------------------------------

GOOD = "accounts: [{name: a, base_url: 'https://x/v1', key: '${KEY:-k}'}]\n"
BAD = "accounts: [{name: a, base_url: 'ftp://x', key: k}]\n"
BAD_LINE = (
    "gateway.yaml: accounts[0].base_url: 'ftp://x': expected an http:// or https:// URL "
    "such as https://api.openai.com/v1 or http://[::1]:8000/v1"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, so that messages show short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a parse that ends the process."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_without_arguments_the_settings_are_the_defaults(folder: Path) -> None:
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
    code, out, err = ended(capsys, "--check", "--config", "gateway.yaml")
    assert (code, err) == (0, "")
    assert out == (
        "gateway.yaml: ok: 1 account, no client keys, listen on tcp:8080:interface=127.0.0.1, "
        "admin on tcp:8081:interface=127.0.0.1\n"
    )


def test_check_without_a_file_checks_the_defaults(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, out, err = ended(capsys, "--check")
    assert (code, err) == (0, "")
    assert out.startswith("no file: ok: 2 simulated accounts, no client keys, listen on tcp:8080")


@pytest.mark.parametrize("check", [[], ["--check"]], ids=["start", "check"])
def test_a_mistake_is_one_line_on_stderr_and_status_1(
    check: list[str], capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "gateway.yaml").write_text(BAD)
    assert ended(capsys, *check, "-c", "gateway.yaml") == (1, "", BAD_LINE + "\n")


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
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, out, err = ended(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_version_is_the_gateway_s(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = ended(capsys, "--version")
    assert code == 0
    assert out.startswith(f"responses-gateway {__version__} (Twisted ")


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = ended(capsys, "--help")
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


# --- signals ------------------------------------------------------------------------------

STOPS = (signal.SIGINT, signal.SIGTERM)


class SignalReactor(MemoryReactorClock):
    """One that remembers what it is to do next."""

    def __init__(self) -> None:
        super().__init__()
        self.next: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.next.append(call)

    def shut_down(self) -> None:
        for call, args, kwargs in self.triggers["before"]["shutdown"]:
            call(*args, **kwargs)


@pytest.fixture
def signalled() -> Iterator[SignalReactor]:
    """The handlers of this process are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGUSR2)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    yield SignalReactor()
    for number, handler in before.items():
        signal.signal(number, handler)


def say(words: list[str], word: str) -> Any:
    return lambda: words.append(word)


def test_a_signal_waits_for_the_end_of_what_the_reactor_does(signalled: SignalReactor) -> None:
    words: list[str] = []
    on_signal(signalled, signal.SIGUSR2, say(words, "heard"))
    os.kill(os.getpid(), signal.SIGUSR2)
    assert words == []
    for call in signalled.next:
        call()
    assert words == ["heard"]


@pytest.mark.parametrize("number", STOPS)
def test_only_while_the_reactor_stops_the_next_signal_is_the_second(
    number: signal.Signals, signalled: SignalReactor
) -> None:
    words: list[str] = []
    first = signal.getsignal(number)
    on_second_stop(signalled, say(words, "now"))
    assert signal.getsignal(number) is first, "the first one is Twisted's"
    signalled.shut_down()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert len(signalled.next) == 2
    signalled.next[0]()
    assert words == ["now"]


def test_who_does_not_hear_interrupts_never_will(signalled: SignalReactor) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    on_second_stop(signalled, lambda: None)
    signalled.shut_down()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
