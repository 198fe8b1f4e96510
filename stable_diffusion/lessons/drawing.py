"""Charts and small pictures of the lessons."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

PRIMARY, SECOND, THIRD = "#4263eb", "#e8590c", "#2f9e44"
COLOURS = (PRIMARY, SECOND, THIRD, "#9c36b5", "#1098ad")
HEIGHT = 280  # pixels, of a chart
NARROW = 44  # characters of a legend beside each other on a phone


def rows_of(**columns: Any) -> list[dict[str, Any]]:
    """Columns of equal length as rows for a chart, with plain Python numbers."""
    plain = {name: np.asarray(values).tolist() for name, values in columns.items()}
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def scatter(
    groups: Mapping[str, np.ndarray], x: str, y: str, bounds: tuple[float, float, float, float], size: int = 8
) -> Any:
    """Points (N, 2) of each group in a colour of its own; `bounds` are x from, x to, y from, y to."""
    import altair as alt

    rows = [row | {"group": name} for name, points in groups.items() for row in rows_of(x=points[:, 0], y=points[:, 1])]
    axis_x, axis_y = (alt.Scale(domain=list(pair), clamp=True) for pair in (bounds[:2], bounds[2:]))
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_circle(size=size, opacity=0.6)
        .encode(
            x=alt.X("x:Q", title=x, scale=axis_x),
            y=alt.Y("y:Q", title=y, scale=axis_y),
            color=_colours(list(groups)),
        )
        .properties(height=HEIGHT)
    )


def lines(curves: Mapping[str, tuple[Any, Any]], x: str, y: str, log_y: bool = False, log_x: bool = False) -> Any:
    """Curves, each (x values, y values), in a colour of its own."""
    import altair as alt

    rows = [row | {"group": name} for name, (across, up) in curves.items() for row in rows_of(x=across, y=up)]
    kind: dict[bool, Any] = {True: "log", False: "linear"}
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line()
        .encode(
            x=alt.X("x:Q", title=x, scale=alt.Scale(type=kind[log_x], nice=False)),
            y=alt.Y("y:Q", title=y, scale=alt.Scale(type=kind[log_y])),
            color=_colours(list(curves)),
        )
        .properties(height=HEIGHT)
    )


def histogram(groups: Mapping[str, np.ndarray], x: str, edges: np.ndarray) -> Any:
    """How the numbers (N,) of each group are distributed over bins, as shares."""
    import altair as alt

    middles = (edges[:-1] + edges[1:]) / 2
    rows = [
        row | {"group": name}
        for name, values in groups.items()
        for row in rows_of(x=middles, y=np.histogram(values, edges)[0] / max(1, len(values)))
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_area(opacity=0.4, line=True, interpolate="step")
        .encode(
            x=alt.X("x:Q", title=x),
            y=alt.Y("y:Q", title="share", stack=None),
            color=_colours(list(groups)),
        )
        .properties(height=HEIGHT)
    )


def arrows(starts: np.ndarray, ends: np.ndarray, x: str, y: str, bounds: tuple[float, float, float, float]) -> Any:
    """Arrows from points (N, 2) to points (N, 2): a line each, with a dot at its end."""
    import altair as alt

    rows = rows_of(x=starts[:, 0], y=starts[:, 1], to_x=ends[:, 0], to_y=ends[:, 1])
    axis_x, axis_y = (alt.Scale(domain=list(pair), clamp=True) for pair in (bounds[:2], bounds[2:]))
    base = alt.Chart(alt.Data(values=rows))
    shafts = base.mark_rule(color=PRIMARY).encode(
        x=alt.X("x:Q", title=x, scale=axis_x), y=alt.Y("y:Q", title=y, scale=axis_y), x2="to_x:Q", y2="to_y:Q"
    )
    heads = base.mark_circle(color=PRIMARY, size=14).encode(x="to_x:Q", y="to_y:Q")
    return (shafts + heads).properties(height=HEIGHT)


def _colours(names: Sequence[str]) -> Any:
    import altair as alt

    columns = max(1, NARROW // (max(map(len, names)) + 4))  # so that a phone shows all of it
    legend = alt.Legend(title=None, orient="top", columns=columns) if len(names) > 1 else None
    return alt.Color("group:N", scale=alt.Scale(domain=list(names), range=list(COLOURS)), legend=legend, sort=None)


def png(values: np.ndarray, scale: int = 1, low: float = -1.0, high: float = 1.0) -> bytes:
    """Numbers (H, W), grey, or (H, W, 3), from `low` to `high`, as a PNG; each becomes a square of `scale` pixels."""
    array = np.rint((np.asarray(values, dtype=np.float64) - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(array)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
