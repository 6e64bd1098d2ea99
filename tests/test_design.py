"""The rules of the house that ruff has no rule for: imports, names, sizes, docstrings.

``tests/test_docs.py`` holds the direction of imports to the map in docs/design.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Lines of a module, blank lines and docstrings included.
SHORTEST, LONGEST = 40, 550


@cache
def modules() -> dict[str, ast.Module]:
    """The modules of both packages by their dotted names."""
    found = {}
    for package in ("gateway", "simulator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


def file_of(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return str(path.relative_to(ROOT))


def imported(module: str) -> Iterator[str]:
    """The dotted names that a module imports, in functions and for type checkers, too."""
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def classes() -> Iterator[tuple[str, str]]:
    """The classes of the gateway, each with its module."""
    for module, tree in modules().items():
        if module.startswith("gateway"):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    yield node.name, module


# --- imports -------------------------------------------------------------------------------


def test_imports_make_no_circle() -> None:
    graph = {
        name: {each for each in imported(name) if each in modules() and each != name}
        for name in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(
            f"these modules import each other in a circle: {' <- '.join(error.args[1])}. Move what "
            "both need into the lower module, also if only a type checker imports it"
        )


@pytest.mark.parametrize("package", ["twisted", "zope", "autobahn", "treq"])
def test_the_rules_of_the_api_need_no_twisted(package: str) -> None:
    wrong = [
        f"{file_of(module)} imports {name}"
        for module in modules()
        if module.startswith("gateway.protocol")
        for name in imported(module)
        if name.partition(".")[0] == package
    ]
    assert not wrong, f"gateway/protocol/ is plain functions without I/O: {wrong}"


def test_the_simulator_imports_nothing_of_the_gateway() -> None:
    wrong = [
        f"{file_of(module)} imports {name}"
        for module in modules()
        if module.partition(".")[0] == "simulator"
        for name in imported(module)
        if name.partition(".")[0] == "gateway"
    ]
    assert not wrong, f"the simulator judges the gateway and must not share code with it: {wrong}"


# --- names and sizes -----------------------------------------------------------------------


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for name, module in classes():
        places.setdefault(name, []).append(file_of(module))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice, f"one class name stands for one thing; rename one of: {twice}"


def test_a_module_is_one_whole_concept() -> None:
    wrong = []
    for module in modules():
        file = file_of(module)
        lines = len((ROOT / file).read_text().splitlines())
        if lines > LONGEST:
            wrong.append(f"{file} has {lines} lines: split it into two concepts")
        elif lines < SHORTEST and not file.endswith("__init__.py"):
            wrong.append(f"{file} has {lines} lines: bring it into the module of its concept")
    assert not wrong, f"a module has {SHORTEST} to {LONGEST} lines: {'; '.join(wrong)}"


@pytest.mark.parametrize("word", ["utils", "util", "helpers", "common", "misc"])
def test_modules_have_nouns_of_the_field(word: str) -> None:
    wrong = [module for module in modules() if word in module.split(".")]
    assert not wrong, f"a module is named by what it is about, not {word}"


# --- docstrings ----------------------------------------------------------------------------


def docstrings() -> Iterator[tuple[str, str]]:
    """The docstrings of both packages, each with its place."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                line = getattr(node, "lineno", 1)
                yield f"{file_of(module)}:{line}", text


# That there is a docstring, and how it is laid out, is checked by ruff (rules D).


def test_docstrings_say_something_themselves() -> None:
    wrong = [place for place, text in docstrings() if re.match(r"See (also )?[:`]", text)]
    assert not wrong, f"say the purpose in a sentence instead of 'See ...': {wrong}"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (r"(?<![`:\w])`[^`\n]+`(?!`)", "``code`` with two backticks, or a role such as :class:"),
        (r"^ *(Args|Arguments|Parameters|Raises|Returns):?$", ":param x:, :return: or :raises X:"),
        (r":returns:|:rtype:|:type ", ":return:, and types in the signature alone"),
    ],
    ids=["code", "sections", "fields"],
)
def test_docstrings_have_one_style(wrong: str, expected: str) -> None:
    places = [
        f"{place} has {found[0].strip()!r}"
        for place, text in docstrings()
        if (found := re.search(wrong, text, re.MULTILINE))
    ]
    assert not places, f"write {expected}: {'; '.join(places)}"
