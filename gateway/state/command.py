"""``responses-gateway-state``: looks into a state directory, exports from it, deletes in it."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from gateway.config import ConfigError, Settings, StateSettings, load_settings, read_text
from gateway.state.backend import RECORDS, StateError
from gateway.state.database import DATABASE, Database, migrations
from gateway.state.encryption import Cipher, passphrase, row_place
from gateway.state.serialization import described
from gateway.state.sqlite import lock_directory, state_directory

_NAME = "responses-gateway-state"

_ABOUT = """\
Looks into the state directory of a gateway. inspect, export and check may be used while the gateway
runs; delete and vacuum need it stopped."""

#: Bounds do not matter here: nothing is trimmed.
_NO_BOUND = 2**62


def main(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    out: TextIO = sys.stdout,
) -> int:
    """Run one command; an error is one line on standard error.

    :return: the exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options, environ)
        directory = state_directory(settings, environ)
        if not (directory / DATABASE).is_file():
            raise StateError(f"{directory} has no {DATABASE}; see --directory and --config")
        return int(options.run(options, settings, directory, out))
    except BrokenPipeError:
        return 1
    except (StateError, ConfigError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{_NAME}: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(_NAME, description=_ABOUT)
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="the gateway's configuration, for directory and key"
    )
    parser.add_argument(
        "-d", "--directory", metavar="DIR", help="the state directory, if not as configured"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    command("inspect", _inspect, "Tell what is kept: by table, and by client key.")
    export = command(
        "export", _export, "Write the conversations as JSON lines, one for each response."
    )
    export.add_argument("--tenant", metavar="KEY", help="only of the client key of this name")
    delete = command("delete", _delete, "Delete all that is kept of one client key.")
    delete.add_argument("--tenant", metavar="KEY", required=True, help="the name of the client key")
    command("vacuum", _vacuum, "Give back the room of what was deleted.")
    command("check", _check, "Check that the database is whole.")
    return parser


def _settings(options: argparse.Namespace, environ: Mapping[str, str]) -> StateSettings:
    path = options.config
    loaded = Settings() if path is None else load_settings(read_text(path), environ, path)
    settings = loaded.state
    if options.directory is not None:
        return StateSettings(
            directory=options.directory,
            encryption_key=settings.encryption_key,
            encryption_key_file=settings.encryption_key_file,
        )
    if settings.store != "sqlite":
        raise StateError("the configuration keeps no state in a directory; name one: --directory")
    return settings


def _reading(directory: Path) -> sqlite3.Connection:
    """Opened for reading, beside a gateway that writes."""
    uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != len(migrations()):
        connection.close()
        raise StateError(f"the schema is version {version}, not {len(migrations())}")
    return connection


# --- the commands --------------------------------------------------------------------------


def _inspect(_: argparse.Namespace, settings: StateSettings, directory: Path, out: TextIO) -> int:
    with closing(_reading(directory)) as connection:
        print(f"directory  {directory}", file=out)
        for suffix in ("", "-wal"):
            file = Path(f"{directory / DATABASE}{suffix}")
            if file.exists():
                print(f"{file.name:<13} {file.stat().st_size:>14,} bytes", file=out)
        print(f"schema version {len(migrations())}", file=out)
        entries = connection.execute("SELECT name, count(*) FROM entries GROUP BY name")
        for name, count in [*entries.fetchall(), *_counts(connection)]:
            print(f"  {name:<15} {count:>10,} rows", file=out)
        tenants = connection.execute(
            "SELECT tenant, count(*), sum(bytes), min(used_at), max(used_at),"
            " (SELECT count(*) FROM responses JOIN conversations AS mine"
            "  ON mine.id = responses.conversation WHERE mine.tenant = conversations.tenant)"
            " FROM conversations GROUP BY tenant ORDER BY sum(bytes) DESC"
        ).fetchall()
    for tenant, conversations, size, oldest, newest, responses in tenants:
        print(
            f"client key {tenant or '(none)'}: {conversations:,} conversations,"
            f" {responses:,} responses, {size:,} bytes,"
            f" used {_when(oldest)} to {_when(newest)}",
            file=out,
        )
    return 0


def _counts(connection: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    for table in ("conversations", "records", "responses"):
        yield table, connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def _export(
    options: argparse.Namespace, settings: StateSettings, directory: Path, out: TextIO
) -> int:
    """Conversation by conversation, so that the log of a gateway that writes stays short."""
    cipher, unreadable = Cipher(passphrase(settings)), 0
    with closing(_reading(directory)) as connection:
        names = connection.execute(
            "SELECT id FROM conversations WHERE ?1 IS NULL OR tenant = ?1 ORDER BY used_at",
            (options.tenant,),
        ).fetchall()
        for (name,) in names:
            found = connection.execute(
                "SELECT key, parent, value FROM records WHERE conversation = ? ORDER BY rowid",
                (name,),
            ).fetchall()
            for key, parent, value in found:
                plain = cipher.decrypt(value, row_place(RECORDS, key))
                record = None if plain is None else described(plain)
                if record is None:
                    unreadable += 1
                    continue
                line = {"conversation": name, "key": key.hex(), "parent": parent.hex() or None}
                print(json.dumps({**line, **record}), file=out)
    if unreadable:
        raise StateError(f"{unreadable} responses cannot be read with this key")
    return 0


def _delete(
    options: argparse.Namespace, settings: StateSettings, directory: Path, out: TextIO
) -> int:
    with closing(_Stopped(directory)) as stopped:
        count = stopped.database.delete_tenant(options.tenant)
        stopped.database.vacuum()
    print(f"deleted {count:,} conversations of the client key '{options.tenant}'", file=out)
    return 0


def _vacuum(_: argparse.Namespace, settings: StateSettings, directory: Path, out: TextIO) -> int:
    with closing(_Stopped(directory)) as stopped:
        before = stopped.database.figures().file_bytes
        stopped.database.vacuum()
        after = stopped.database.figures().file_bytes
    print(f"{before:,} bytes before, {after:,} bytes now", file=out)
    return 0


def _check(_: argparse.Namespace, settings: StateSettings, directory: Path, out: TextIO) -> int:
    with closing(_reading(directory)) as connection:
        found = [text for (text,) in connection.execute("PRAGMA integrity_check(20)")]
        (orphans,) = connection.execute(
            "SELECT count(*) FROM records WHERE parent != x''"
            " AND parent NOT IN (SELECT key FROM records)"
        ).fetchone()
    if found != ["ok"]:
        raise StateError(f"{directory / DATABASE} is damaged: {'; '.join(found)}")
    if orphans:
        raise StateError(f"{orphans} responses lack the one that they continued")
    print("ok", file=out)
    return 0


class _Stopped:
    """The database of a gateway that does not run.

    :raises StateError: when it runs.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._lock = lock_directory(directory)
        except StateError as error:
            raise StateError(f"{str(error).partition(';')[0]}: stop the gateway first") from None
        self.database = Database(directory / DATABASE, _NO_BOUND, _NO_BOUND)
        self.database.open()

    def close(self) -> None:
        self.database.close()
        os.close(self._lock)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


if __name__ == "__main__":
    raise SystemExit(main())
