"""The memory register: every bounded structure, how large it is and how large it may become."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.admin.page import formatting
from gateway.admin.page.layout import bar, numeric, of_limit, table
from gateway.admin.page.rendering import Html, tag
from gateway.admin.page.source import Json


def memory_table(registers: Sequence[Json]) -> Html:
    """One row for each structure."""
    if not registers:
        return tag("p", "Nothing is registered.")
    columns = ["Structure", numeric("Holds"), numeric("Bound"), "", numeric("Memory")]
    columns[3] = tag("th", "Filled", scope="col")
    return table("Memory register", columns, [_row(each) for each in registers], "memory")


def _row(register: Json) -> Html:
    size, bound, unit = register.get("size"), register.get("bound"), register.get("unit")
    part = of_limit(size, bound)
    form = formatting.size if unit == "bytes" else formatting.number
    named = "" if unit in (None, "bytes") else f" {unit}"
    return tag(
        "tr",
        tag("th", register.get("name"), scope="row"),
        tag("td", form(size), named, class_="n"),
        tag("td", form(bound), class_="n"),
        tag("td", bar(part, f"{formatting.share(part)} filled"), class_="filled"),
        tag("td", formatting.size(register.get("bytes")), class_="n"),
        data_key=register.get("name"),
    )
