"""Lines of the last 15 minutes, drawn here and carried on by the script."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.admin.page.rendering import Html, tag

#: Points of a line: 15 minutes, one every five seconds.
POINTS = 180
_HEIGHT = 32.0


def line(values: Sequence[float | None], label: str, series: str) -> Html:
    """A line chart without axes; its top is the highest value, which stands beside it.

    :param values: the oldest first; None where nothing was measured.
    :param series: where the script finds the next value.
    """
    shown = list(values)[-POINTS:]
    path = _path(shown)
    return tag(
        "svg",
        tag("path", class_="area", d=_area(shown, path)),
        tag("path", class_="stroke", d=path),
        class_="line",
        viewBox=f"0 0 {POINTS - 1} {_HEIGHT + 2:.0f}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        data_series=series,
        data_points=",".join("" if each is None else f"{each:.4g}" for each in shown),
    )


def peak(values: Sequence[float | None]) -> float | None:
    """The highest value."""
    return max((each for each in values if each is not None), default=None)


def _path(values: Sequence[float | None]) -> str:
    top = max(peak(values) or 0.0, 1e-9)
    first = POINTS - len(values)
    steps = []
    pen = "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{first + at} {_HEIGHT + 1 - value / top * _HEIGHT:.1f}")
        pen = "L"
    return "".join(steps) or "M0 0"


def _area(values: Sequence[float | None], path: str) -> str:
    """The ground under the line, where it has no gaps."""
    if not values or any(each is None for each in values):
        return "M0 0"
    bottom = f"{_HEIGHT + 1:.0f}"
    return f"{path}L{POINTS - 1} {bottom}L{POINTS - len(values)} {bottom}Z"
