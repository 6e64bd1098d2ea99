"""The origin of each setting: default, file, variable or preset; secrets are masked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.config.environment import Environment
from gateway.config.errors import join_path
from gateway.config.load import Loaded
from gateway.config.presets import additions
from gateway.config.settings import AccountSettings, Section, Settings, masked
from gateway.config.validation import references


class Setting(NamedTuple):
    """One setting as it may be shown.

    :ivar path: its path in the file.
    :ivar value: its value as JSON has it, secrets masked.
    :ivar origin: ``default``, ``file``, ``environment NAME``, ``environment_file NAME`` or
        ``preset NAME``, with ``until a restart`` when the file has another value by now.
    """

    path: str
    value: Any
    origin: str


def described(loaded: Loaded | None) -> list[Setting]:
    """Every setting of a configuration that was loaded; None for a start without a file."""
    if loaded is None:
        return list(_Walk(Environment({})).section(Settings(), {}, ""))
    return list(_Walk(loaded.environ).section(loaded.settings, loaded.value, ""))


def in_force(
    started: Sequence[Setting], now: Sequence[Setting], waiting: Sequence[str]
) -> list[Setting]:
    """The settings in force after the file was read again.

    :param started: the settings at the start.
    :param now: those of the file.
    :param waiting: the paths that keep their old values, as ``needs_restart`` names them.
    """
    kept = [
        each._replace(origin=f"{each.origin}, until a restart")
        for each in started
        if _among(each.path, waiting)
    ]
    mixed = [*kept, *(each for each in now if not _among(each.path, waiting))]
    order = {section: place for place, section in enumerate(dict.fromkeys(map(_section, now)))}
    return sorted(mixed, key=lambda each: order[_section(each)])


def _section(setting: Setting) -> str:
    return setting.path.partition(".")[0]


def _among(path: str, sections: Sequence[str]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in sections)


class _Walk:
    """Walks the settings together with the file's values for them."""

    def __init__(self, environ: Environment) -> None:
        self._environ = environ

    def section(
        self, section: Section, given: Any, path: str, added: Mapping[str, Any] | None = None
    ) -> Iterator[Setting]:
        given = given if isinstance(given, dict) else {}
        added = self._added(section, given) if added is None else added
        names = zip(section.__struct_fields__, section.__struct_encode_fields__, strict=True)
        for field, name in names:
            value, here = getattr(section, field), join_path(path, name)
            raw = given.get(name)
            if isinstance(value, Section):
                yield from self.section(value, raw, here, added.get(name, {}))
            elif isinstance(value, tuple) and value and isinstance(value[0], Section):
                for index, item in enumerate(value):
                    yield from self.section(item, raw[index], f"{here}[{index}]")
            else:
                # `keys:` with all its lines commented out stands for the default.
                written = name in given and (raw is not None or value is None)
                origin = self._origin(raw) if written else added.get(name, "default")
                yield Setting(here, _plain(masked(name, value)), origin)

    @staticmethod
    def _added(section: Section, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The origins of what a preset has filled in; of a section those of its members."""
        if not isinstance(section, AccountSettings) or section.preset is None:
            return {}
        origin = f"preset {section.preset}"
        return {
            name: dict.fromkeys(value, origin) if isinstance(value, Mapping) else origin
            for name, value in additions({**given, "preset": section.preset}).items()
        }

    def _origin(self, raw: Any) -> str:
        names = list(dict.fromkeys(self._variables(raw)))
        return self._environ.origin(names) if names else "file"

    def _variables(self, raw: Any) -> Iterator[str]:
        if isinstance(raw, str):
            yield from references(raw, self._environ)
        elif isinstance(raw, (list, dict)):
            inner: Collection[Any] = raw.values() if isinstance(raw, dict) else raw
            for item in inner:
                yield from self._variables(item)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
