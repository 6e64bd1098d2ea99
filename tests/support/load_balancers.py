"""A real HAProxy and a real nginx, with the configuration that the gateway ships."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.gateway import ROOT, Gateway
from tests.support.ports import free_port
from tests.support.redis import wait_for_port

_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


def program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path=_SBIN) or name


def checks(command: Sequence[str]) -> None:
    """The program accepts its configuration."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warn" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr


def replaced(text: str, words: Mapping[str, str]) -> str:
    """The text with these words in place of others, each of which must be there."""
    for old, new in words.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text


class LoadBalancer:
    """One of them in front of two gateways.

    :ivar port: for clients.
    """

    name = ""

    def __init__(self, folder: Path, gateways: Sequence[Gateway]) -> None:
        self.port = free_port()
        self._folder = folder
        self._log = folder / f"{self.name}-{self.port}.log"
        command = self.prepare(gateways)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_for_port(self.port, self.process)

    def prepare(self, gateways: Sequence[Gateway]) -> list[str]:
        """Write the configuration and check it; returns the command that runs it."""
        raise NotImplementedError

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class HAProxy(LoadBalancer):
    name = "haproxy"

    def prepare(self, gateways: Sequence[Gateway]) -> list[str]:
        one, two = gateways
        words = {
            "bind :8080": f"bind 127.0.0.1:{self.port}",
            "10.0.0.11:8080 port 8081": f"127.0.0.1:{one.port} port {one.admin_port}",
            "10.0.0.12:8080 port 8081": f"127.0.0.1:{two.port} port {two.admin_port}",
            "10.0.0.11:8080": f"127.0.0.1:{one.port}",
            "10.0.0.12:8080": f"127.0.0.1:{two.port}",
        }
        path = self._folder / f"haproxy-{self.port}.cfg"
        path.write_text(replaced((ROOT / "config/haproxy.cfg").read_text(), words))
        checks([program("haproxy"), "-c", "-f", str(path)])
        return [program("haproxy"), "-db", "-f", str(path)]


class Nginx(LoadBalancer):
    name = "nginx"

    def prepare(self, gateways: Sequence[Gateway]) -> list[str]:
        one, two = gateways
        folder = self._folder / f"nginx-{self.port}"
        folder.mkdir()
        own = "".join(
            f" {each}_temp_path {folder}/{each};"
            for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        words = {
            "listen 8080": f"listen 127.0.0.1:{self.port}",
            "10.0.0.11:8080": f"127.0.0.1:{one.port}",
            "10.0.0.12:8080": f"127.0.0.1:{two.port}",
            "http {": f"http {{ access_log off;{own}",
        }
        path = folder / "nginx.conf"
        path.write_text(replaced((ROOT / "config/nginx.conf").read_text(), words))
        alone = f"pid {folder}/nginx.pid; error_log {folder}/error.log;"
        command = [program("nginx"), "-p", str(folder), "-c", str(path)]
        checks([*command, "-g", alone, "-t"])
        return [*command, "-g", f"{alone} daemon off;"]
