"""``responses-gateway-state``: what it tells, what it deletes, and what it leaves alone."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.state.backend import OWNERS, RECORDS, RESPONSES, Row
from gateway.state.command import main
from gateway.state.database import DATABASE, Database
from gateway.state.encryption import Cipher, row_place
from gateway.state.serialization import AccountIds, encode_record
from gateway.state.sqlite import lock_directory
from tests.state.test_durable_conversations import made

LATE = 10.0**10
KEY = "0123456789abcdef0123456789abcdef"
SOME = "simulator: {accounts: 1}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return fill(tmp_path / "kept", "")


def fill(directory: Path, key: str) -> Path:
    directory.mkdir()
    cipher = Cipher(key.encode())
    database = Database(directory / DATABASE, 2**40, 10**9)
    database.open()
    for tenant in ("laptop", "desk"):
        first = made(
            1, None, tenant, text=b'{"role":"user","content":"words of %s"}' % tenant.encode()
        )
        for each in (first, made(2, first, tenant, text=b'{"type":"message"}')):
            record = each.record
            place, value = bytes.fromhex(record.key), encode_record(record, AccountIds())
            written = cipher.encrypt(value.replace(b"out", b"{ }"), row_place(RECORDS, place))
            parent = bytes.fromhex(record.parent or "")
            digest = f"{tenant} {record.id}".encode()
            database.write(
                [
                    Row(RECORDS, place, written, LATE, tenant, each.root, parent),
                    Row(RESPONSES, digest, place, LATE, tenant, each.root),
                    Row(OWNERS, digest, cipher.encrypt(b"a", b""), LATE, tenant),
                ]
            )
    database.close()
    return directory


def run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(arguments, {}, out), out.getvalue()


def of(directory: Path, *arguments: str) -> tuple[int, str]:
    return run("--directory", str(directory), *arguments)


def test_it_tells_what_is_kept(directory: Path) -> None:
    status, said = of(directory, "inspect")
    assert status == 0
    assert "schema version 1" in said
    assert "owners                   4 rows" in said
    assert "client key desk: 1 conversations, 2 responses" in said
    assert "words of" not in said


def test_it_exports_conversations(directory: Path) -> None:
    lines = [
        json.loads(line) for line in of(directory, "export", "--tenant", "desk")[1].splitlines()
    ]
    assert [line["id"] for line in lines] == ["resp_1", "resp_2"]
    assert lines[0]["input"] == [{"role": "user", "content": "words of desk"}]
    assert lines[1]["parent"] == lines[0]["key"]
    assert len(of(directory, "export")[1].splitlines()) == 4


def test_it_exports_what_is_encrypted_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = fill(tmp_path / "kept", KEY)
    status, said = of(directory, "export")
    assert (status, said) == (1, "")
    assert "4 responses cannot be read with this key" in capsys.readouterr().err
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"state: {{directory: '{directory}', encryption_key: {KEY}}}\n{SOME}", encoding="utf-8"
    )
    status, said = run("--config", str(config), "export")
    assert status == 0
    assert "words of laptop" in said


def test_a_tenant_is_deleted_from_the_file(directory: Path) -> None:
    assert of(directory, "delete", "--tenant", "desk")[1].startswith("deleted 1 conversations")
    assert b"words of desk" not in (directory / DATABASE).read_bytes()
    assert b"words of laptop" in (directory / DATABASE).read_bytes()
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        assert connection.execute("SELECT DISTINCT tenant FROM entries").fetchall() == [("laptop",)]
    assert of(directory, "check") == (0, "ok\n")


def test_a_running_gateway_is_left_alone(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = lock_directory(directory)
    for command in (("delete", "--tenant", "desk"), ("vacuum",)):
        assert of(directory, *command) == (1, "")
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "stop the gateway first" in said
    for command in (("inspect",), ("export",), ("check",)):
        assert of(directory, *command)[0] == 0
    os.close(lock)
    assert of(directory, "vacuum")[0] == 0


def test_a_damaged_database_is_one_line(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / DATABASE).write_bytes(b"nothing of the sort\n" * 1000)
    for command in ("inspect", "check", "export"):
        assert of(directory, command) == (1, "")
        assert capsys.readouterr().err.count("\n") == 1


def test_wrong_places_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert of(tmp_path, "inspect") == (1, "")
    assert "has no state.db" in capsys.readouterr().err
    assert run("--config", str(tmp_path / "none.yaml"), "inspect") == (1, "")
    config = tmp_path / "pool.yaml"
    config.write_text("state: {store: memory}\n" + SOME, encoding="utf-8")
    assert run("--config", str(config), "inspect") == (1, "")
    assert "--directory" in capsys.readouterr().err
