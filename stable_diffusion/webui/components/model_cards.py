"""The page "Models": what there is on this machine, to search, to look at, to use, and to merge.

Names and notes may come from anywhere, so none of their text is ever interpreted as Markdown or HTML.
"""

from __future__ import annotations

import streamlit as st

from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.service import cards, shown
from stable_diffusion.service.cards import EMBEDDINGS, LORAS, MODELS, TITLES, UPSCALERS, VAES, Card, Entry
from stable_diffusion.service.jobs import State, Task
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import details, handover, live, merging, session

CARD = 176  # pixels
PER_PAGE = 24
REFRESH = 0.4  # seconds
OPENED = "card"  # query parameter: the kind and name of the open card
FOLDERS = {
    MODELS: "models/, and the folders that $STABLE_DIFFUSION_MODELS names",
    LORAS: "loras/, and the folders that $STABLE_DIFFUSION_LORAS names",
    EMBEDDINGS: "embeddings/, and the folders that $STABLE_DIFFUSION_EMBEDDINGS names",
    VAES: "models/VAE/, and next to checkpoints as NAME.vae.safetensors",
    UPSCALERS: "upscalers/, and the folders that $STABLE_DIFFUSION_UPSCALERS names",
}
state = st.session_state


def show() -> None:
    """Draw the list, or the card that is open."""
    listed = cards.listed(session.listed_models())
    kind, _, name = (st.query_params.get(OPENED) or "").partition("/")
    entry = next((each for each in listed.get(kind, ()) if each.name == name), None)
    if name and entry is None:
        st.info(f"{session.plain(details.one_line(name, 100))} is not here any more.", icon=":material/info:")
    if entry is not None:
        _one(cards.card(entry, session.listed_models()))
    else:
        _many(listed)
        st.divider()
        merging.draw()


# --- Many


def _many(listed: dict[str, list[Entry]]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.segmented_control(
            "Kind",
            list(TITLES),
            key="cards_kind",
            default=None if "cards_kind" in state else MODELS,
            required=True,
            format_func=lambda each: f"{TITLES[each]} ({len(listed[each])})",
            on_change=_to_first,
            persist_state="session",
        )
        st.text_input(
            "Search",
            key="cards_search",
            placeholder="a name, a family, a trigger word",
            on_change=_to_first,
            persist_state="session",
            icon=":material/search:",
            width=280,
        )
        st.button(
            "Refresh", key="cards_refresh", icon=":material/refresh:", on_click=session.refresh_lists,
            help="Look for new files now, without loading the page again",
        )  # fmt: skip
    kind = kind or MODELS
    found = cards.matching(listed[kind], state.get("cards_search") or "")
    if not found:
        _nothing(kind, bool(listed[kind]))
        return
    pages = -(-len(found) // PER_PAGE)
    number = state["cards_page"] = min(max(state.get("cards_page", 1), 1), pages)
    with st.container(horizontal=True, key="model_cards"):
        for entry in found[(number - 1) * PER_PAGE : number * PER_PAGE]:
            _small(entry)
    if pages > 1:
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
            st.button("Previous", on_click=_turn, args=(-1,), disabled=number == 1)
            st.caption(f"Page {number} of {pages}, {len(found)} {TITLES[kind]}", width="content")
            st.button("Next", on_click=_turn, args=(1,), disabled=number == pages)


def _nothing(kind: str, any_there: bool) -> None:
    with st.container(border=True):
        if any_there:
            st.markdown("**Nothing like that**")
            st.caption("Every word must occur in the name, the family or the trigger words. Fewer words find more.")
        else:
            st.markdown(f"**No {TITLES[kind]} yet**")
            st.caption(session.plain(f"They are looked for in {FOLDERS[kind]}."))


def _small(entry: Entry) -> None:
    with st.container(width=CARD, border=True, gap="xsmall"):
        preview = cards.preview_of(entry)
        if preview is not None and (small := cards.thumbnail(preview)):
            st.image(
                small, width="stretch", output_format="JPEG", alt=f"Preview of {details.one_line(entry.title, 80)}"
            )
        st.button(
            session.plain(details.one_line(entry.title, 60)),
            key=f"card-{entry.kind}-{entry.name}",
            type="tertiary",
            on_click=_open,
            args=(entry,),
        )
        about = "cannot be used" if entry.problem else " · ".join(entry.about)
        st.caption(session.plain(about))


def _to_first() -> None:
    state["cards_page"] = 1


def _turn(by: int) -> None:
    state["cards_page"] = state.get("cards_page", 1) + by


def _open(entry: Entry | None) -> None:
    """Open a card, or the list; kept in the address, so that reloads, bookmarks and the Back button work."""
    if entry is not None:
        st.query_params[OPENED] = f"{entry.kind}/{entry.name}"
    else:
        st.query_params.pop(OPENED, None)


# --- One


def _one(card: Card) -> None:
    entry = card.entry
    with st.container(horizontal=True):
        st.button("Back to all", on_click=_open, args=(None,), icon=":material/arrow_back:")
    st.subheader(session.plain(details.one_line(entry.title, 120)), anchor=False)
    if entry.problem:
        st.warning(session.plain(entry.problem), icon=":material/warning:")
    left, right = st.columns(2, gap="large")
    with left:
        _preview(card)
        _use(card)
        _words(card)
    with right:
        rows = {session.plain(name): session.plain(" ".join(text.split())) for name, text in card.facts.items()}
        st.table({"Fact": list(rows), "Value": list(rows.values())}, border="horizontal")
        _hash(card)
        if card.description:
            with st.expander("Description", expanded=True):
                st.markdown(session.plain(card.description))


def _preview(card: Card) -> None:
    if card.preview is None:
        return
    try:
        source, kind = shown.for_browser(card.preview)
        st.image(source, width=CARD * 2, output_format=kind, alt=f"Preview of {details.one_line(card.entry.title, 80)}")
    except StableDiffusionError as error:
        st.caption(session.plain(f"Its preview: {in_plain_words(error)}"))


def _words(card: Card) -> None:
    """Show the words that call a LoRA up, each a choice for what is inserted in the prompt."""
    words = [*card.trigger, *card.tags]
    if not words:
        return
    st.pills(
        "Words to insert with it",
        words,
        selection_mode="multi",
        default=list(card.trigger),
        format_func=lambda word: session.plain(details.one_line(word, 60)),
        key=f"words-{card.entry.name}",
        help="First those that its maker asks for, then the commonest ones in the captions that it was trained on.",
    )


def _use(card: Card) -> None:
    entry = card.entry
    with st.container(horizontal=True, gap="small"):
        if entry.kind == MODELS:
            usable = not entry.problem or (card.model is not None and card.model.lacks_vae)
            here = st.session_state["model"] == entry.name
            st.button("Use this model", type="primary", on_click=_use_model, args=(card,), disabled=here or not usable)
            if here:
                st.caption("It is the chosen model.", width="content")
        elif entry.kind == LORAS:
            st.button("Insert in the prompt", type="primary", on_click=_use_lora, args=(card,),
                      disabled=bool(entry.problem))  # fmt: skip
        elif entry.kind == EMBEDDINGS:
            for label, field in (("Insert in the prompt", "prompt"), ("Insert in the negative prompt", "negative")):
                st.button(label, on_click=_use_embedding, args=(card, field), disabled=bool(entry.problem))
        elif entry.kind == VAES:
            st.button("Use this VAE", type="primary", on_click=_use_vae, args=(card,))
        elif entry.kind == UPSCALERS:
            st.button("Use this upscaler", type="primary", on_click=_use_upscaler, args=(card,),
                      disabled=bool(entry.problem))  # fmt: skip


def _go(words: str, page: str = handover.TEXT_PAGE) -> None:
    state["handover_notes"] = [words]
    state["go_to"] = page


def _use_model(card: Card) -> None:
    session.put({"model": card.entry.name})
    session.apply_defaults()
    _go(f"{card.entry.title} is the model now.")


def _use_lora(card: Card) -> None:
    name, before = card.entry.name, session.recipe()
    words = list(state.get(f"words-{name}") or ())
    if tag := cards.tag(card):
        already = tag.rpartition(":")[0] + ":" in state["prompt"]
        state["prompt"] = cards.with_words(state["prompt"], [*words, *([] if already else [tag])])
        said = f"{tag} is in the prompt." if not already else f"{name} was in the prompt already."
    else:  # its name would end the tag
        strength = {**dict(state["loras"]), name: card.weight or 1.0}
        session.put({"loras": list(strength.items()), "prompt": cards.with_words(state["prompt"], words)})
        said = f"{name} is among the LoRAs."
    if card.negative:
        state["negative"] = cards.with_words(state["negative"], [card.negative])
    session.loras_changed(before)
    _go(said)


def _use_embedding(card: Card, field: str) -> None:
    words = list(state.get(f"words-{card.entry.name}") or ()) if field == "prompt" else []
    state[field] = cards.with_words(state[field], [card.entry.name, *words])
    _go(f"{card.entry.name} is in the {'negative prompt' if field == 'negative' else 'prompt'}.")


def _use_vae(card: Card) -> None:
    session.put({"vae": card.entry.name})
    _go(
        f"{card.entry.name} takes the place of the model's VAE, until you choose another under How the model is loaded."
    )


def _use_upscaler(card: Card) -> None:
    state["upscale_by_name"] = card.entry.name
    _go(f"{card.entry.name} is the upscaler now.", handover.UPSCALE_PAGE)


# --- Hashes


def _hash(card: Card) -> None:
    """Draw the hash, or what computes it: a large file takes its time."""
    path = card.file
    if path is None:
        return
    if card.hash:
        st.caption(f"Hash: {card.hash}", help="The beginning of the file's SHA-256, as A1111 and Civitai show it")
        return
    task: Task | None = state.get("hash_task", {}).get(card.entry.path)
    if task is not None and task.active:
        st.fragment(_watch, run_every=REFRESH)(task)
        return
    if task is not None and task.state is State.FAILED:
        st.error(session.plain(task.error), icon=":material/error:")
    st.button(
        "Compute its hash", on_click=_start_hash, args=(card,),
        help="Reads the whole file once; pictures record it, and other programs find the model by it",
    )  # fmt: skip


def _start_hash(card: Card) -> None:
    assert card.file is not None
    try:
        state.setdefault("hash_task", {})[card.file] = cards.hash_task(session.the_worker(), card.file)
    except (StableDiffusionError, OSError) as error:
        st.toast(session.plain(in_plain_words(error)), icon=":material/error:")


def _watch(task: Task) -> None:
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Starting"
    if task.seconds_left is not None:
        note += f", {live.duration(task.seconds_left)} left"
    st.progress(min(1.0, max(0.0, task.fraction)), text=session.plain(note))
    st.button("Stop", key="stop_hash", disabled=task.cancelling, on_click=session.the_worker().cancel, args=(task,))
