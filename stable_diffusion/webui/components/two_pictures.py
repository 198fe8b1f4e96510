"""Two pictures of the gallery: side by side or over each other, and the settings in which they differ."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from PIL import Image

from stable_diffusion.pictures.reading import pillow_formats
from stable_diffusion.record import reading
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.service import differences, shown
from stable_diffusion.service.differences import Row
from stable_diffusion.service.gallery_index import Entry
from stable_diffusion.webui.components import compare, details, session

SIDE_BY_SIDE, SLIDER = "Side by side", "Over each other"
TITLES = ("First", "Second")


def draw(entries: tuple[Entry, Entry], paths: tuple[Path, Path]) -> None:
    """Draw both pictures and what they say of themselves."""
    sizes = [_size(path) for path in paths]
    same_shape = sizes[0][0] * sizes[1][1] == sizes[1][0] * sizes[0][1]
    how = st.segmented_control(
        "How to compare",
        [SIDE_BY_SIDE, SLIDER],
        key="two_how",
        default=None if "two_how" in st.session_state else SIDE_BY_SIDE,
        required=True,
        disabled=not same_shape,
        help="Over each other: a line that you move with the pointer or the arrow keys parts them."
        if same_shape
        else "Pictures of different shapes can only be shown side by side.",
        persist_state="session",
    )
    if how == SLIDER and same_shape:
        before, after = (shown.address(path.read_bytes()) for path in paths)
        alt = f"{_alt(entries[0])}, over {_alt(entries[1])}"
        compare.draw(before, after, max(sizes), alt, f"two-{entries[0].id}-{entries[1].id}", TITLES)
    else:
        for title, column, entry, path in zip(TITLES, st.columns(2), entries, paths, strict=True):
            source, kind = shown.for_browser(path)
            column.image(source, width="stretch", output_format=kind, alt=f"{title} picture: {_alt(entry)}")
            column.caption(session.plain(f"{title}: {details.one_line(entry.name, 80)}"))
    _settings(*(_parameters(entry) for entry in entries))


def _settings(first: Parameters | None, second: Parameters | None) -> None:
    if first is None or second is None:
        which = "Neither picture says" if first is None and second is None else "One of the pictures does not say"
        st.info(f"{which} how it was made.", icon=":material/info:")
        return
    rows = differences.rows(first, second)
    differing, equal = [row for row in rows if not row.equal], [row for row in rows if row.equal]
    if differing:
        _table(differing)
    else:
        st.caption("All their settings are equal.")
    if equal:
        with st.expander(f"Equal settings ({len(equal)})"):
            _table(equal, both=True)


def _table(rows: list[Row], both: bool = False) -> None:
    columns = {"Setting": [details.cell(row.name) for row in rows]}
    if both:
        columns["Both"] = [details.cell(row.first) for row in rows]
    else:
        columns |= {TITLES[0]: [details.cell(row.first) for row in rows]}
        columns |= {TITLES[1]: [details.cell(row.second) for row in rows]}
    st.table(columns, border="horizontal")


def _parameters(entry: Entry) -> Parameters | None:
    return reading.of_text(entry.text).parameters if entry.text else None


def _alt(entry: Entry) -> str:
    return details.one_line(entry.prompt, 200) or details.one_line(entry.name, 80)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=pillow_formats()) as picture:
        return picture.size
