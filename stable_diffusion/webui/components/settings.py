"""The sidebar: which model, how it is sampled, how large, how many, and settings saved by name."""

import streamlit as st

from stable_diffusion import catalogue
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import WRITTEN
from stable_diffusion.sampler import SAMPLERS, automatic_of, sampler_by_name, takes_eta
from stable_diffusion.schedules import TITLES
from stable_diffusion.service import loras, presets, values
from stable_diffusion.service.preview import KINDS
from stable_diffusion.service.values import RATIOS, SCHEDULES
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.webui.components import fields, model_choice, session


def sidebar() -> None:
    """Draw the settings that all pages share; their values live in the session state."""
    with st.sidebar:
        model_choice.draw()
        with st.expander("Other models"):
            model_choice.more()
        with st.container():  # always there, so that what follows keeps its place
            _recipe()
        _sampling()
        _size()
        st.number_input("Number of pictures", *values.bounds("n_images"), key="n_images", persist_state="session")
        if st.session_state["combinations"]:
            st.caption("Of each combination of the dynamic prompts")
        _seed()
        with st.expander("Advanced"):
            _advanced()
        with st.expander("Refiner"):
            _refiner()
        with st.expander("How the model is loaded"):
            _of_model()
        with st.expander("Presets"):
            _presets()


def _sampling() -> None:
    titles = {known.key: known.title for known in SAMPLERS}
    left, right = st.columns(2)
    left.selectbox("Sampler", list(titles), key="sampler", format_func=titles.__getitem__, persist_state="session")
    sampler = st.session_state["sampler"]
    schedules = SCHEDULES[sampler]
    if st.session_state.get("schedule") not in schedules:
        st.session_state["schedule"] = values.OWN
    usual = TITLES.get(automatic_of(sampler) or "", "as the model says")
    names = {**TITLES, values.OWN: "Model's own", values.A1111S: f"Automatic ({usual})"}
    right.selectbox(
        "Schedule",
        schedules,
        key="schedule",
        format_func=names.__getitem__,
        disabled=len(schedules) == 1,
        help="How the noise levels are spread over the steps. Automatic: what A1111 takes for the sampler. SGM Uniform "
        "suits models of few steps (Turbo, Lightning, Hyper). PNDM, LCM and TCD have their own times alone.",
        persist_state="session",
    )
    st.slider("Steps", *values.bounds("steps"), key="steps", persist_state="session")
    low, high = values.bounds("cfg")
    if not sampler_by_name(st.session_state["sampler"]).needs_negative:  # for all others 1 and below is the same
        low = 1.0
        st.session_state["cfg"] = max(low, st.session_state["cfg"])
    st.slider(
        "CFG",
        low,
        high,
        step=0.5,
        key="cfg",
        help="How closely the picture follows the prompt. At 1 guidance is off, and each step costs half.",
        persist_state="session",
    )
    if low == st.session_state["cfg"] == 1:
        st.caption("Guidance is off.")


def _recipe() -> None:
    """Say of a model or LoRA for few steps what it is, and offer to take its settings or to leave them."""
    found = session.recipe()
    if found is None:
        return
    followed = session.follows_recipe(found)
    said = found.settings({"steps", "cfg", "sampler"})
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        text = f"{found.what}: {said}." if followed else f"{found.what}, which is made for {said}."
        st.caption(session.plain(text), width="stretch")
        if followed:
            st.button("Undo", key="undo-recipe", type="tertiary", on_click=session.undo_recipe,
                      help="Paint with the settings of an ordinary model")  # fmt: skip
        else:
            st.button("Use these", key="use-recipe", type="tertiary", on_click=session.follow_recipe,
                      help="Set steps, CFG, sampler and schedule to them")  # fmt: skip


def _size() -> None:
    left, right = st.columns(2)
    left.number_input("Width", *values.bounds("width"), step=8, key="width", persist_state="session")
    right.number_input("Height", *values.bounds("height"), step=8, key="height", persist_state="session")
    with st.container(horizontal=True, gap="small"):
        for name, ratio in RATIOS.items():
            st.button(
                name,
                key=f"ratio-{name}",
                type="tertiary",
                help=f"Set width and height to {name}",
                on_click=_set_ratio,
                args=(ratio,),
            )
        st.button("Swap", type="tertiary", help="Exchange width and height", on_click=_swap_sides)


def _set_ratio(ratio: tuple[int, int]) -> None:
    width, height = values.size_of_ratio(ratio, values.usual_size(session.chosen_model()))
    session.put({"width": width, "height": height})


def _swap_sides() -> None:
    session.put({"width": st.session_state["height"], "height": st.session_state["width"]})


def _seed() -> None:
    fields.typed("seed")
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Random",
            icon=":material/casino:",
            help="A new seed for every picture (-1)",
            on_click=session.put,
            args=({"seed": values.FORM["seed"].unset},),
        )
        st.button(
            "Reuse last",
            icon=":material/history:",
            help="The seed of the picture that is shown; of all, the first one's",
            on_click=session.recall_seed,
        )


def _advanced() -> None:
    _loras()
    fields.number("clip_skip")
    _eta()
    fields.slider("guidance_rescale")
    fields.slider("guidance_start")
    fields.slider("guidance_end")
    fields.slider("guidance_min_sigma", step=0.1)
    fields.number("deepcache_interval")
    fields.number("deepcache_branch", disabled=st.session_state["deepcache_interval"] == 1)
    fields.choice("tiling", {"off": "Off", "x": "Left and right", "y": "Top and bottom", "both": "Both"})
    fields.slider("variation_strength")
    fields.typed("variation_seed", disabled=not st.session_state["variation_strength"])
    fields.toggle("vary_all_draws")
    fields.choice("prompt_language", {"a1111": "A1111's", "plain": "Plain"})
    fields.choice("dynamic_prompts", {"": "Automatic", True: "On", False: "Off"})
    fields.toggle("combinations")
    st.pills(
        "Preview",
        list(KINDS),
        selection_mode="multi",
        key="previews",
        format_func=KINDS.__getitem__,
        help="What to show while painting. Automatic: drafts if the machine is quick, else approximate colours. A full "
        "decode is sharper, but slows the painting down.",
        persist_state="session",
    )
    st.toggle(
        values.FORM["attention"].title,
        key="attention",
        help="Record while painting which parts of the picture attend to which word, to look at afterwards, beside the "
        "replay. The picture stays the same. Steps take longer, with a small model nearly twice as long, and each "
        "picture takes some megabytes of memory.",
        persist_state="session",
    )
    fields.choice("file_format", {each.key: each.title for each in WRITTEN})
    fields.toggle("no_record")
    if st.session_state["no_record"]:
        st.caption("The next pictures say neither prompt nor settings, and cannot be painted again from themselves.")


def _eta() -> None:
    """Draw how much noise the sampler adds again; samplers that add none have nothing to set."""
    each, chosen = values.FORM["eta"], st.session_state["eta"]
    steps = (round(i / 20, 2) for i in range(21))
    st.select_slider(
        each.title,
        sorted({each.unset, chosen, *steps}),
        key="eta",
        format_func=lambda value: "sampler's own" if value == each.unset else f"{value:g}",
        disabled=not takes_eta(st.session_state["sampler"]),
        help=fields.sentence(each.help),
        persist_state="session",
    )


def _refiner() -> None:
    """Draw which model takes over, and where."""
    usable = [model.name for model in session.listed_models() if model.present and not model.problem]
    chosen = st.session_state["refiner"]
    fields.select("refiner", {"": "None", **{name: name for name in dict.fromkeys([*usable, *filter(None, [chosen])])}})
    fields.slider("refiner_switch", disabled=not chosen)


def _of_model() -> None:
    """Draw how the model is loaded."""
    st.caption("A change takes effect with the next picture: the model is loaded again for it.")
    here = catalogue.vaes()
    chosen = st.session_state["vae"]
    fields.select("vae", {"": "The model's own", **{name: name for name in sorted({*here, *filter(None, [chosen])})}})
    titles = {"": "As the file says", "epsilon": "Epsilon", "v_prediction": "v", "sample": "Sample"}
    fields.select("prediction_type", titles)
    fields.select("zero_terminal_snr", {"": "As the file says", True: "Yes", False: "No"})
    fields.select("bits", {0: "As it is", 8: "8 bits", 4: "4 bits"})
    fields.toggle("low_memory")


def _loras() -> None:
    """Draw the chosen LoRAs with a strength each; the value is `loras` in the session state, pairs of both."""
    state = st.session_state
    here, chosen = session.loras_here(), dict(state["loras"])
    state["lora_names"] = list(chosen)
    st.multiselect(
        "LoRA",
        sorted({*here, *chosen}, key=str.casefold),
        key="lora_names",
        format_func=lambda name: f"{name} ({here[name]})" if here.get(name) else name,
        max_selections=loras.MAX_CHOSEN,
        placeholder="None" if here else "None in loras/",
        help="Small files that change the model's style or teach it something: those in loras/ and in the folders of "
        "$STABLE_DIFFUSION_LORAS. <lora:name:0.8> in the prompt does the same.",
        on_change=_choose_loras,
    )
    for name, strength in chosen.items():
        key = f"lora_strength_{name}"
        state[key] = strength
        st.slider(session.plain(f"Strength of {name}"), *loras.STRENGTHS, step=0.05, key=key, on_change=_choose_loras)


def _choose_loras() -> None:
    state, before = st.session_state, session.recipe()
    state["loras"] = [(name, state.get(f"lora_strength_{name}", 1.0)) for name in state["lora_names"]]
    session.loras_changed(before)


def _presets() -> None:
    names = sorted(presets.load(session.presets_file()), key=str.casefold)
    if names:
        if st.session_state.get("preset") not in names:
            st.session_state["preset"] = names[0]
        st.selectbox("Preset", names, key="preset")
        with st.container(horizontal=True, gap="small"):
            st.button("Apply", help="Put all its settings into the form", on_click=_apply_preset)
            st.button("Delete preset", on_click=_delete_preset)
    st.text_input("Name of a new preset", key="preset_name", max_chars=presets.MAX_NAME)
    st.button("Save settings", help="Save all settings of the form, the prompts included", on_click=_save_preset)
    if problem := st.session_state.pop("preset_problem", None):
        st.error(session.plain(problem), icon=":material/error:")


def _apply_preset() -> None:
    session.recall_preset(st.session_state["preset"])


def _delete_preset() -> None:
    _reporting(presets.delete, session.presets_file(), st.session_state["preset"])


def _save_preset() -> None:
    name = st.session_state["preset_name"].strip()
    if _reporting(presets.save, session.presets_file(), name, session.settings_of_form()):
        st.session_state.update(preset=name, preset_name="")


def _reporting(function, *arguments) -> bool:
    """Call; on an error keep it for display and return False."""
    try:
        function(*arguments)
    except (StableDiffusionError, OSError) as error:
        st.session_state["preset_problem"] = in_plain_words(error)
        return False
    return True
