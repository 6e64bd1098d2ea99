"""What docs/ says is what the code cites and what there is: sections, checks, laws, map, links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GATEWAY = ROOT / "gateway"
PROTOCOL = ROOT / "docs" / "protocol.md"
DESIGN = ROOT / "docs" / "design.md"
README = ROOT / "README.md"
DOCUMENTS = sorted([README, *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
SOURCES = sorted(
    [
        *GATEWAY.rglob("*.py"),
        *ROOT.glob("simulator/*.py"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("docs/*.md"),
    ]
)

#: A section of protocol.md, or the first and the last of several: other documents' sections have
#: the document's name right before them.
SECTION = re.compile(r"(?<!RFC \d{4} )(?<!WHATWG )(?<!HTML )(?<!Fetch )§(\d+(?:\.\d+)*)(?:-(\d+))?")
LAW = re.compile(r"\b[Ll]aw (\d+)")
#: Spellings that the two above do not see.
MISSPELT = re.compile(r"protocol\.md (?:section )?\d|\b[Ll]aws \d|§ ")

CHECK_ROW = re.compile(r"\| 10\.(\d+) \| .* \| (.*) \|$")
CHECK_TEST = re.compile(r"def test_10_(\d\d\d?)(?:_to_(\d\d\d?))?_")
MAP_ROW = re.compile(r"^\| `(gateway/[\w/.]+)` \|", re.MULTILINE)


# --- numbers -------------------------------------------------------------------------------


def numbers_of(document: Path) -> set[str]:
    """Its headings, the rules of its lists (8.3.9: the ninth of 8.3), its checks."""
    numbers, section = set(), ""
    for line in document.read_text().splitlines():
        if heading := re.match(r"#+ (\d+(?:\.\d+)*)\.? ", line):
            section = heading[1]
            numbers.add(section)
        elif rule := re.match(r"(\d+)\. ", line):
            numbers.add(f"{section}.{rule[1]}".lstrip("."))
        elif check := re.match(r"\| (10\.\d+) \|", line):
            numbers.add(check[1])
    return numbers


def cited(line: str) -> Iterator[tuple[str, str, Path]]:
    """What a line cites: its spelling there, the number, and where that has to be."""
    for found in SECTION.finditer(line):
        yield found[0], found[1], PROTOCOL
        if found[2]:
            yield found[0], f"{found[1].rpartition('.')[0]}.{found[2]}", PROTOCOL
    for found in CHECK_TEST.finditer(line):
        yield from ((found[0], f"10.{int(each)}", PROTOCOL) for each in found.groups() if each)
    for found in LAW.finditer(line):
        yield found[0], found[1], DESIGN


def lines() -> Iterator[tuple[str, str]]:
    """All lines that may cite something, each after its place."""
    for path in SOURCES:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_every_citation_leads_somewhere() -> None:
    there = {document: numbers_of(document) for document in (PROTOCOL, DESIGN)}
    dangling = [
        f"{place}: {words} is not in {document.relative_to(ROOT)}"
        for place, line in lines()
        for words, number, document in cited(line)
        if number not in there[document]
    ]
    assert not dangling, "\n".join(dangling)


def test_citations_are_spelt_so_that_they_are_found() -> None:
    misspelt = [
        f"{place}: write §8.3 and law 4, each with its own sign, not {found[0]}"
        for place, line in lines()
        if (found := MISSPELT.search(line))
    ]
    assert not misspelt, "\n".join(misspelt)


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("(protocol.md §8.3.9, §10.7; law 4)", ["8.3.9", "10.7", "4"]),
        ("§5.1-§5.4, §10.52-55, §8.3.4-5", ["5.1", "5.4", "10.52", "10.55", "8.3.4", "8.3.5"]),
        ("RFC 9110 §15.5.20, WHATWG HTML §9.2.6 (Fetch §3.2)", []),
    ],
)
def test_citations_are_read(line: str, numbers: list[str]) -> None:
    assert [number for _, number, _ in cited(line)] == numbers


# --- checks --------------------------------------------------------------------------------


def conformance_tests() -> dict[int, set[str]]:
    """The files with tests of each check."""
    files: dict[int, set[str]] = {}
    for path in ROOT.glob("tests/conformance/test_*.py"):
        for first, last in CHECK_TEST.findall(path.read_text()):
            for number in range(int(first), int(last or first) + 1):
                files.setdefault(number, set()).add(path.name)
    return files


def test_every_check_says_where_its_tests_are() -> None:
    files, numbers, wrong = conformance_tests(), [], []
    for place, line in enumerate(PROTOCOL.read_text().splitlines(), 1):
        if row := CHECK_ROW.match(line):
            numbers.append(int(row[1]))
            expected = ", ".join(f"`{name}`" for name in sorted(files.get(int(row[1]), ())))
            if row[2] != (expected or "not built yet"):
                wrong.append(f"docs/protocol.md:{place}: expected {expected or 'not built yet'}")
    assert not wrong, "\n".join(wrong)
    assert numbers == list(range(1, len(numbers) + 1))


# --- the map -------------------------------------------------------------------------------


def the_map() -> list[str]:
    """The parts of the gateway as design.md has them, whoever may import others first."""
    return MAP_ROW.findall(DESIGN.read_text())


def test_every_package_and_top_level_module_is_on_the_map() -> None:
    packages = {f"{path.parent.relative_to(ROOT)}/" for path in GATEWAY.rglob("__init__.py")}
    modules = {str(path.relative_to(ROOT)) for path in GATEWAY.glob("*.py")}
    shown = the_map()
    assert len(shown) == len(set(shown)), "something is on the map twice"
    assert (packages | modules) - set(shown) == {"gateway/", "gateway/__init__.py"}
    assert not set(shown) - packages - modules, "the map shows what is not there"


def part_of(path: str) -> str:
    """The first name below the gateway, of a file, a row of the map or a dotted name."""
    return re.split(r"[/.]", path)[1]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a module imports of the gateway: line and dotted name."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("gateway."))


def test_imports_point_down_the_map() -> None:
    order = {part: place for place, part in enumerate(dict.fromkeys(map(part_of, the_map())))}
    upward = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}, which the map has above it"
        for path in sorted(GATEWAY.rglob("*.py"))
        for line, name in imports_of(path)
        if order.get(part_of(name), len(order))
        < order.get(part_of(str(path.relative_to(ROOT))), -1)
    ]
    assert not upward, "\n".join(upward)


def test_the_readme_names_every_package() -> None:
    where = README.read_text().partition("Where things are")[2]
    for path in GATEWAY.glob("*/__init__.py"):
        assert f"`gateway/{path.parent.name}/`" in where, (
            f"gateway/{path.parent.name}/ is not named"
        )


# --- links ---------------------------------------------------------------------------------


def anchors_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        linked = document.parent / target if target else document
        assert linked.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{document.name} links to #{anchor}"
    for path in re.findall(r"`((?:gateway|simulator|tests|docs|config|bench)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), f"{document.name} names {path}"


def test_what_design_md_calls_by_name_is_there() -> None:
    sources = "".join(path.read_text() for path in GATEWAY.rglob("*.py"))
    for name in re.findall(r"`(_\w+|TRANSITIONS|[A-Z][a-z]\w+)`", DESIGN.read_text()):
        assert re.search(rf"\b{name}\b", sources), f"docs/design.md names {name}"
