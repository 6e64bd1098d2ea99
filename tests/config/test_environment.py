"""The variables of files: their syntax, what wins, what is refused and how it is told."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ConfigError, described, load, load_settings
from gateway.config.environment import parse_variables

SECRET = "sk-leak-0123456789"
ACCOUNT = "accounts: [{name: one, base_url: 'http://x.test/v1', key: '${KEY}'}]\n"


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\n  # A=1\n; B=2\n\n C=3 \n", {"C": "3"}),
        ("export A=1\nexport  \tB=2", {"A": "1", "B": "2"}),
        ("A=", {"A": ""}),
        ("A=one two  ", {"A": "one two"}),
        ("A= one", {"A": "one"}),
        ("A =one", {"A": "one"}),
        ("A=one # two", {"A": "one # two"}),
        ("A='one # \\ two '", {"A": "one # \\ two "}),
        ('A="one \\"two\\" \\$x \\n"', {"A": 'one "two" $x \\n'}),
        ("A=\"a\"'b'c", {"A": "abc"}),
        ("A='one\ntwo'\nB=3", {"A": "one\ntwo", "B": "3"}),
        ("A=one\\\ntwo\nB=3", {"A": "onetwo", "B": "3"}),
        ('A="one\\\ntwo"', {"A": "onetwo"}),
        ("A=a\\ b", {"A": "a b"}),
        ("A=a=b", {"A": "a=b"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A='' ", {"A": ""}),
        ("", {}),
    ],
)
def test_it_reads_what_systemd_reads(text: str, variables: dict[str, str]) -> None:
    assert parse_variables(text) == variables


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"A=1\n{SECRET}", 2, "expected NAME=value"),
        (f"# one\n\n2A={SECRET}", 3, "expected NAME=value"),
        (f"A B={SECRET}", 1, "expected NAME=value"),
        (f"A='{SECRET}\nB=2\n", 1, "its ' is not closed"),
        (f"B='\n'\nA=\"{SECRET}\\\"", 3, 'its " is not closed'),
        (f"A={SECRET}\0", 1, "NUL"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(ACCOUNT + f"environment_file: {path}", {}, "gateway.yaml")
    (told,) = caught.value.lines
    assert told.startswith(f"gateway.yaml: environment_file: '{path}': line {line}: ")
    assert words in told
    assert SECRET not in told


def file(folder: Path, text: str, name: str = "environment", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_wins_over_the_process_and_a_later_one_over_an_earlier_one(tmp_path: Path) -> None:
    first = file(tmp_path, "KEY=first\nNAME=of-the-first\n", "first")
    second = file(tmp_path, "KEY=second\n", "second")
    text = (
        "accounts: [{name: '${NAME}', base_url: '${URL}', key: '${KEY}'}]\n"
        f"environment_file: ['{first}', '${{FOLDER}}/{second.name}']\n"
    )
    process = {"KEY": "of-the-process", "URL": "http://x.test/v1", "FOLDER": str(tmp_path)}
    (account,) = load_settings(text, process, "gateway.yaml").accounts
    assert (account.name, account.key) == ("of-the-first", "second")
    assert account.base_url == "http://x.test/v1"


@pytest.mark.parametrize("form", ["'{}'", "['{}']"])
def test_one_path_needs_no_list(tmp_path: Path, form: str) -> None:
    path = str(file(tmp_path, "KEY=k\n"))
    settings = load_settings(ACCOUNT + f"environment_file: {form.format(path)}", {}, "g.yaml")
    assert settings.environment_file == (path,)


def test_a_file_that_need_not_exist(tmp_path: Path) -> None:
    text = ACCOUNT + f"environment_file: '-{tmp_path}/none'"
    assert load_settings(text, {"KEY": "k"}, "g.yaml").accounts[0].key == "k"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("{folder}/none", "cannot be read: No such file or directory"),
        ("{folder}", "cannot be read: Is a directory"),
        ("/dev/zero", "expected a file"),
        ("{folder}/latin", "line 2: not UTF-8 text"),
        ("{folder}/long", "expected at most 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_the_only_mistake_told(
    tmp_path: Path, setting: str, words: str
) -> None:
    (tmp_path / "latin").write_bytes(b"A=1\nB=\xe9\n")
    (tmp_path / "long").write_bytes(b"#" * (2**20 + 1))
    path = setting.format(folder=tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_settings(ACCOUNT + f"environment_file: {path}", {}, "g.yaml")
    assert caught.value.lines == [f"g.yaml: environment_file: '{path}': {words}"]


@pytest.mark.parametrize("prefix", ["", "-"])
def test_a_variable_in_the_name_of_a_file_that_is_not_set_is_the_mistake(prefix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(ACCOUNT + f"environment_file: '{prefix}${{FOLDER}}/none'", {}, "g.yaml")
    (told,) = caught.value.lines
    assert told.startswith(
        "g.yaml: environment_file: ${FOLDER}: the environment variable FOLDER is not set"
    )


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("${NAME:-environment}", {"NAME": ""}),
        ("${NAME:-none}", {"NAME": "environment"}),
        ("$${NAME}", {"NAME": "none"}),
    ],
)
def test_a_name_of_a_file_is_read_as_every_text(
    tmp_path: Path, name: str, process: dict[str, str]
) -> None:
    file(tmp_path, "KEY=k\n")
    file(tmp_path, "KEY=k\n", "${NAME}")
    text = ACCOUNT + f"environment_file: '{tmp_path}/{name}'"
    loaded = load(text, process, "g.yaml")
    (shown,) = loaded.settings.environment_file
    assert Path(shown).exists()
    assert loaded.settings.accounts[0].key == "k"


@pytest.mark.parametrize("value", ["7", "{a: b}", "[7]", "''"])
def test_a_wrong_type_is_told_like_that_of_any_setting(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(ACCOUNT + f"environment_file: {value}", {"KEY": "k"}, "g.yaml")
    assert "environment_file" in str(caught.value)


def test_one_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    private = file(tmp_path, "KEY=k\n", "private", 0o640)
    public = file(tmp_path, "A=1\n", "public", 0o644)
    text = ACCOUNT + f"environment_file: ['{private}', '{public}']"
    (warning,) = load(text, {}, "g.yaml").environ.warnings
    assert str(public) in warning
    assert os.stat(public).st_mode & 0o777 == 0o644, "it is not the gateway's to change"


def test_the_page_says_that_a_value_is_from_a_file_but_not_the_secret(tmp_path: Path) -> None:
    path = file(tmp_path, f"KEY={SECRET}\n")
    text = ACCOUNT + f"environment_file: {path}\nlisten: '${{LISTEN}}'\n"
    shown = {
        each.path: each
        for each in described(load(text, {"LISTEN": "tcp:1:interface=127.0.0.1"}, "g"))
    }
    assert shown["accounts[0].key"][1:] == ("<hidden>", "environment_file KEY")
    assert shown["environment_file"][1:] == ([str(path)], "file")
    assert shown["listen"].origin == "environment LISTEN"
    assert SECRET not in str(shown)


_NAMES = st.text(string.ascii_letters + "_", min_size=1)
_VALUES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"))


@given(st.dictionaries(_NAMES, _VALUES))
def test_what_is_quoted_is_read_back(variables: dict[str, str]) -> None:
    lines = []
    for name, value in variables.items():
        escaped = value
        for char in '\\"`$':
            escaped = escaped.replace(char, "\\" + char)
        lines.append(f'{name}="{escaped}"')
    assert parse_variables("\n".join(lines)) == variables


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_variables(text)
    except ValueError:
        return
    assert all(name.isidentifier() for name in found)
