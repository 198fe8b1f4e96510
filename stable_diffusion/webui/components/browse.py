"""The gallery: thumbnails to search, choose and open, and one picture with everything known about it."""

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import format_of
from stable_diffusion.record import reading
from stable_diffusion.record.inputs import InputFile
from stable_diffusion.service import shown
from stable_diffusion.service.gallery import MAX_ZIP_BYTES, Gallery
from stable_diffusion.service.gallery_index import SHOWN, TRASHED, Entry, Page, Query
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import details, handover, more_like, session, two_pictures

CARD = 168  # pixels
ALL, FAVOURITES, TRASH = "All", "Favourites", "Trash"
ANY_MODEL = ""
OPENED = "picture"  # query parameter: the id of the open picture
PAIR = "two"  # query parameter: the ids of two pictures to compare
PATIENCE = 1.0  # seconds; the most that one run spends on reading new pictures
state = st.session_state


@st.cache_resource(on_release=lambda made: made.close())
def the_gallery() -> Gallery:
    """The gallery of this server."""
    return Gallery(session.the_worker().outputs)


def show() -> None:
    """Draw the gallery, or the picture that is open."""
    try:
        gallery = the_gallery()
        left = gallery.scan(PATIENCE)
        entry = gallery.get(asked := st.query_params.get(OPENED))
        _said()
        if len(pair := gallery.find(st.query_params.get(PAIR, "").split(",")[:2])) == 2 and entry is None:
            _two(gallery, pair[0], pair[1])
            return
        if asked and entry is None and not left:
            st.info("The picture of this address is no longer in the gallery.", icon=":material/info:")
        if entry is not None:
            _one(gallery, entry, _query())
        else:
            _many(gallery)
        if left:
            st.fragment(_reading, run_every=0.5)()
    except (StableDiffusionError, OSError) as error:
        st.error(session.plain(in_plain_words(error)), icon=":material/error:")


def _reading() -> None:
    left = the_gallery().scan(PATIENCE / 2)
    if not left:
        st.rerun()
    st.caption(f"Reading older pictures, {left:,} to go.")


# --- Many


def _many(gallery: Gallery) -> None:
    _filters(gallery)
    query = _query()
    page = gallery.page(query, state.get("gallery_page", 1))
    state["gallery_page"] = page.number
    if not page.total:
        _nothing(query)
        return
    _bar(gallery, page, query)
    with st.container(horizontal=True, key="gallery_cards"):
        for entry in page.entries:
            _card(gallery, entry)
    _pager(page)


def _filters(gallery: Gallery) -> None:
    models = [ANY_MODEL, *gallery.models()]
    if state.get("gallery_model") not in models:
        state["gallery_model"] = ANY_MODEL
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Search in prompts",
            key="gallery_search",
            placeholder="red house, or a seed",
            on_change=_turn_to_first,
            persist_state="session",
            icon=":material/search:",
            width=280,
        )
        st.selectbox(
            "Made with",
            models,
            key="gallery_model",
            format_func=lambda name: details.one_line(name, 60) or "Any model",
            on_change=_turn_to_first,
            persist_state="session",
            width=220,
        )
        st.segmented_control(
            "Show",
            [ALL, FAVOURITES, TRASH],
            key="gallery_show",
            default=None if "gallery_show" in state else ALL,
            required=True,
            on_change=_turn_to_first,
            persist_state="session",
        )


def _query() -> Query:
    shown = state.get("gallery_show") or ALL
    return Query(
        search=state.get("gallery_search") or "",
        model=state.get("gallery_model") or ANY_MODEL,
        favourites=shown == FAVOURITES,
        state=TRASHED if shown == TRASH else SHOWN,
    )


def _turn_to_first() -> None:
    state["gallery_page"] = 1
    _choose([], fresh=True)


def _nothing(query: Query) -> None:
    with st.container(border=True):
        if query.search or query.model:
            st.markdown("**No picture like that**")
            st.caption("Every word must occur in the prompt. Fewer words find more.")
        elif query.favourites:
            st.markdown("**No favourites yet**")
            st.caption("Open a picture, or choose some, and make them favourites.")
        elif query.state == TRASHED:
            st.markdown("**The trash is empty**")
        else:
            st.markdown("**No pictures yet**")
            st.caption("Finished pictures appear here automatically.")


def _bar(gallery: Gallery, page: Page, query: Query) -> None:
    """Actions for the chosen pictures."""
    chosen = gallery.find(_chosen())
    ids = [entry.id for entry in chosen]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(_count(page, len(chosen)), width="content")
        st.button("Choose all on this page", on_click=_choose, args=([entry.id for entry in page.entries],))
        st.button("Choose none", on_click=_choose, args=([], True), disabled=not ids)
        if query.state == TRASHED:
            st.button("Restore", on_click=_restore, args=(ids,), disabled=not ids)
            _empty_button(page)
            return
        size = sum(entry.bytes for entry in chosen)
        st.download_button(
            "Download as zip",
            data=lambda: gallery.zip(ids),
            file_name="pictures.zip",
            mime="application/zip",
            on_click="ignore",
            disabled=not ids or size > MAX_ZIP_BYTES,
            help=f"Up to {MAX_ZIP_BYTES // 2**20} MB; chosen: {size / 2**20:.1f} MB.",
        )
        st.button(
            "Compare two", icon=":material/compare:", on_click=_pair, args=(ids,), disabled=len(ids) != 2,
            help="Choose two pictures: they are shown side by side or over each other, with what differs",
        )  # fmt: skip
        favourites = bool(chosen) and all(entry.favourite for entry in chosen)
        st.button(
            "Unfavourite" if favourites else "Favourite",
            on_click=_favour,
            args=(ids, not favourites),
            disabled=not ids,
        )
        st.button("Move to trash", on_click=_delete, args=(ids,), disabled=not ids)


def _count(page: Page, chosen: int) -> str:
    pictures = f"{page.total:,} picture{'s' if page.total != 1 else ''}"
    return f"{pictures}, {chosen:,} chosen" if chosen else pictures


def _card(gallery: Gallery, entry: Entry) -> None:
    with st.container(width=CARD, gap="xsmall"):
        _picture(gallery.thumbnail(entry), f"Small picture: {_title(entry, 120)}")
        st.button(
            session.plain(("★ " if entry.favourite else "") + _title(entry, 52)),
            key=f"open-{entry.id}",
            type="tertiary",
            on_click=_open,
            args=(entry.id,),
        )
        st.checkbox(
            session.plain(f"Seed {entry.seed}" if entry.seed else details.one_line(entry.name, 24)),
            value=entry.id in _chosen(),
            key=f"choose-{state.get('gallery_round', 0)}-{entry.id}",
            on_change=_toggle,
            args=(entry.id,),
        )


def _picture(content: bytes | None, alt: str) -> None:
    if content is None:
        st.caption("This picture cannot be read.")
    else:
        st.image(content, width="stretch", output_format="JPEG", alt=alt)


def _title(entry: Entry, length: int) -> str:
    return details.one_line(entry.prompt, length) or details.one_line(entry.name, length)


def _pager(page: Page) -> None:
    if page.pages == 1:
        return
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="center"):
        st.button("Newer", key="page-newer", on_click=_turn, args=(-1,), disabled=page.number == 1)
        st.number_input(f"Page of {page.pages:,}", 1, page.pages, key="gallery_page", width=150)
        st.button("Older", key="page-older", on_click=_turn, args=(1,), disabled=page.number == page.pages)


def _turn(by: int) -> None:
    state["gallery_page"] = state.get("gallery_page", 1) + by


# --- One


def _one(gallery: Gallery, entry: Entry, query: Query) -> None:
    newer, older = gallery.neighbours(entry, query)
    with st.container(horizontal=True):
        st.button("Back to all pictures", on_click=_open, args=(None,), icon=":material/arrow_back:")
        st.button("Newer", on_click=_open, args=(newer and newer.id,), disabled=newer is None)
        st.button("Older", on_click=_open, args=(older and older.id,), disabled=older is None)
    picture, beside = st.columns(2, gap="large")
    path = gallery.file(entry)
    with picture:
        source, kind = shown.for_browser(path)
        st.image(source, width="stretch", output_format=kind, alt=f"Picture: {_title(entry, 300)}")
        made = entry.made_in(st.context.timezone)
        st.caption(session.plain(f"{entry.name} · {entry.width} × {entry.height} · {made:%d %B %Y, %H:%M}"))
    with beside:
        _actions(gallery, entry, older or newer)
        if entry.text:
            details.show(entry.text)
        else:
            st.caption("The file does not say how it was made.")


def _two(gallery: Gallery, first: Entry, second: Entry) -> None:
    with st.container(horizontal=True):
        st.button("Back to all pictures", on_click=_pair, args=([],), icon=":material/arrow_back:")
        st.button("Swap the two", on_click=_pair, args=([second.id, first.id],), icon=":material/swap_horiz:")
        st.button("Open the first", on_click=_open, args=(first.id,))
        st.button("Open the second", on_click=_open, args=(second.id,))
    two_pictures.draw((first, second), (gallery.file(first), gallery.file(second)))


def _actions(gallery: Gallery, entry: Entry, following: Entry | None) -> None:
    with st.container(horizontal=True, gap="small"):
        form = format_of(entry.name)
        st.download_button(
            "Download",
            data=lambda: gallery.file(entry).read_bytes(),
            file_name=entry.name,
            mime=form.mime if form else None,
            on_click="ignore",
            icon=":material/download:",
        )
        if entry.state == TRASHED:
            st.button("Restore", on_click=_restore, args=([entry.id], following))
            return
        parameters = reading.of_text(entry.text).parameters if entry.text else None
        st.button(
            "Reuse all settings",
            on_click=handover.send,
            args=(parameters,),
            disabled=parameters is None,
            icon=":material/edit:",
        )
        st.button("Move to trash", on_click=_delete, args=([entry.id], following), icon=":material/delete:")
    handover.send_buttons(parameters, lambda: _read(gallery, entry))
    more_like.of_record(parameters, entry.id)
    st.toggle(
        "Favourite",
        value=entry.favourite,
        key=f"favourite-{entry.id}-{entry.favourite}",
        on_change=_favour,
        args=([entry.id], not entry.favourite),
    )


def _read(gallery: Gallery, entry: Entry) -> InputFile:
    return InputFile.read(gallery.file(entry))


# --- What a click does


def _open(picture_id: str | None) -> None:
    """Open a picture, or the list; kept in the address, so that reloads, bookmarks and the Back button work."""
    if picture_id:
        st.query_params[OPENED] = picture_id
    else:
        st.query_params.pop(OPENED, None)


def _pair(ids: list[str]) -> None:
    """Compare two pictures, or go back to the list; kept in the address, as `_open` does."""
    if len(ids) == 2:
        st.query_params[PAIR] = ",".join(ids)
    else:
        st.query_params.pop(PAIR, None)


def _chosen() -> list[str]:
    return state.setdefault("gallery_chosen", [])


def _choose(ids: list[str], fresh: bool = False) -> None:
    """Add to the chosen pictures, or replace them; new keys make the checkboxes show it."""
    state["gallery_chosen"] = list(dict.fromkeys([*([] if fresh else _chosen()), *ids]))
    state["gallery_round"] = state.get("gallery_round", 0) + 1


def _toggle(picture_id: str) -> None:
    chosen = _chosen()
    if picture_id in chosen:
        chosen.remove(picture_id)
    else:
        chosen.append(picture_id)


def _delete(ids: list[str], following: Entry | None = None) -> None:
    """Move pictures to the trash, and open the following one, else the list."""
    with _words():
        moved = the_gallery().delete(ids)
        _say(f"{_pictures(len(moved))} moved to the trash.", undo=moved)
    _open(following.id if following else None)
    _choose([], fresh=True)


def _restore(ids: list[str], following: Entry | None = None) -> None:
    """Move pictures out of the trash, and open the following one, else the list."""
    with _words():
        moved = the_gallery().restore(ids)
        _say(f"{_pictures(len(moved))} restored.")
    _open(following.id if following else None)
    _choose([], fresh=True)


def _undo(ids: list[str]) -> None:
    """Bring pictures back from the trash; where one picture is open, that is the first of them."""
    with _words():
        moved = the_gallery().restore(ids)
        _say(f"{_pictures(len(moved))} restored.")
        if OPENED in st.query_params and moved:
            _open(moved[0])
    _choose([], fresh=True)


def _favour(ids: list[str], favourite: bool) -> None:
    with _words():
        the_gallery().favour(ids, favourite)


def _empty_button(page: Page) -> None:
    with st.popover("Empty trash", disabled=not page.total):
        st.markdown("Delete everything in the trash for good? This cannot be undone.")
        st.button("Delete for good", type="primary", on_click=_empty)


def _empty() -> None:
    with _words():
        _say(f"{_pictures(the_gallery().empty_trash())} deleted for good.")
    _choose([], fresh=True)


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' if count != 1 else ''}"


class _words:
    """Report errors from the block at the top of the page instead of raising them."""

    def __enter__(self) -> None:
        _say("")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, (StableDiffusionError, OSError)):
            _say(in_plain_words(error), failed=True)
            return True
        return False


def _say(words: str, undo: list[str] | None = None, failed: bool = False) -> None:
    state["gallery_said"] = (words, undo or [], failed)


def _said() -> None:
    words, undo, failed = state.pop("gallery_said", ("", [], False))
    if failed:
        st.error(session.plain(words), icon=":material/error:")
    elif words:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.success(session.plain(words), width="stretch")
            if undo:
                st.button("Undo", on_click=_undo, args=(undo,))
