"""The lessons of the page "How it works": a few words, the equation, and what the model itself makes of it."""

import hashlib
from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st
from PIL import Image

from stable_diffusion import catalogue
from stable_diffusion.errors import StableDiffusionError
from stable_diffusion.pictures.formats import UPLOADS
from stable_diffusion.pictures.reading import open_picture
from stable_diffusion.service import lessons, word_maps
from stable_diffusion.service.jobs import Report, State, Task
from stable_diffusion.service.preview import data_url
from stable_diffusion.webui.components import session, training_lesson
from stable_diffusion.webui.components.model_choice import model_or_default

REFRESH = 0.3  # seconds
CELL = 120  # pixels: how wide a picture of a strip is
PRIMARY = "#4263eb"
MAX_TEXTS = 24
MAX_TOKENS = 16  # of the drawing of the causal mask
STEPS = 20
SEED = 1
EXAMPLE = "a red house on green hills at sunset, with clouds"
OTHER = "a blue tent by the sea at night, with stars"
TEXTS = {
    catalogue.DEFAULT: [
        "a red house", "a blue house", "a red tent", "a blue tent", "a red balloon", "a cactus in the desert",
        "a pine tree on snowy mountains", "a sailboat on the sea", "a lighthouse by the ocean",
    ],
    "": ["cat", "cute", "ball", "a cute cat", "a cat with a ball", "dog", "a cute dog", "a red ball"],
}  # fmt: skip


def draw() -> None:
    """Draw the page."""
    model = model_or_default()
    st.header("How it works")
    st.caption(f"Everything here except the training is computed live, with {session.plain(model.title)}.")
    name = st.segmented_control(
        "Lesson", list(LESSONS), default=next(iter(LESSONS)), required=True, key="lesson", persist_state="session"
    )
    LESSONS[name or next(iter(LESSONS))](model)


def _schedule(model: catalogue.Model) -> None:
    st.markdown(
        "A diffusion model learns to undo noise. In training, noise is added to a picture in small portions βₜ, until "
        "after T steps nothing of the picture is left. ᾱₜ is the share of it that remains at time t, and σₜ is how "
        "many times stronger than the picture the noise is; samplers choose a few of these levels and step down them."
    )
    st.latex(
        r"\bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad \sigma_t = \sqrt{\frac{1 - \bar\alpha_t}{\bar\alpha_t}}"
    )
    found = _computed(("schedule", model.name), model, lessons.schedule)
    if found is None:
        return
    curves = {"β, noise added at time t": found.beta, "ᾱ, what is left": found.alpha_bar, "σ, noise": found.sigma}
    for column, (title, curve) in zip(st.columns(3), curves.items(), strict=True):
        table = pd.DataFrame({"t": range(len(curve)), title: curve})
        chart = alt.Chart(table.iloc[:: max(1, len(table) // 200)]).mark_line(color=PRIMARY)
        scale = alt.Scale(type="log") if curve is found.sigma else alt.Scale()
        chart = chart.encode(x=alt.X("t", title="time t"), y=alt.Y(title, scale=scale))
        column.altair_chart(chart.properties(height=240), width="stretch")


def _tokens(model: catalogue.Model) -> None:
    st.markdown(
        "The text encoder reads numbers, not letters. Its vocabulary holds frequent words and pieces of words; a rare "
        "word is put together from several. It reads 77 of them, its marks for start and end included, and a shorter "
        "prompt is filled up."
    )
    st.latex(r"\text{prompt} \;\to\; (\text{start}, w_1, \dots, w_n, \text{end}, \dots) \in \{0, \dots, V - 1\}^{77}")
    text = _prompt()
    found = _computed(("tokens", model.name, text), model, lambda m, report: lessons.tokens(m, report, text))
    if found is not None:
        rows = [{"Position": token.position, "Token": token.text, "Number": token.id} for token in found]
        st.dataframe(pd.DataFrame(rows), hide_index=True, width="content")
        st.caption(f"{len(found) - 2} tokens, and the two marks.")


def _forward(model: catalogue.Model) -> None:
    st.markdown(
        "Noise is not added to the pixels but to the latents: the autoencoder's much smaller picture of the picture, "
        "where one number stands for a patch. Training goes this way; painting goes it backwards. Below "
        "each time stand the latents' channels, and what the decoder makes of them."
    )
    st.latex(
        r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim N(0, I)"
    )
    picture = _picture()
    settings = _settings(model)
    key = ("forward", model.name, settings, _digest(picture))
    found = _computed(key, model, lambda m, report: lessons.forward(m, report, picture, settings))
    if found is not None:
        for column, noised in zip(_cells(len(found)), found, strict=True):
            where = f"time {noised.t}"
            column.image(data_url(noised.picture), width="stretch", alt=f"The noised picture, decoded, at {where}")
            column.image(data_url(noised.latents), width="stretch", alt=f"The noised latents at {where}")
            column.caption(f"t = {noised.t}  \n{noised.alpha:.2f} x₀ + {noised.sigma:.2f} ε")


def _space(model: catalogue.Model) -> None:
    st.markdown(
        "The text encoder turns a text into points of a space with hundreds of dimensions; texts with similar "
        "meanings lie close together. Here each text is one point, the mean of its tokens' states, projected so that "
        "most of the differences show. On the right, the similarity of each pair: 1 is the same direction."
    )
    st.latex(r"\cos(a, b) = \frac{a \cdot b}{\lVert a \rVert\, \lVert b \rVert}")
    own = TEXTS.get(model.name, TEXTS[""])
    written = st.text_area("Texts, one a line", "\n".join(own), height=200, key=f"texts-{model.name}")
    texts = tuple(dict.fromkeys(line.strip() for line in written.splitlines() if line.strip()))[:MAX_TEXTS]
    if not texts:
        st.caption("Write a text or two.")
        return
    found = _computed(("space", model.name, texts), model, lambda m, report: lessons.space(m, report, texts))
    if found is not None:
        plane, matrix = st.columns(2)
        plane.altair_chart(_plane(found), width="stretch")
        plane.caption(f"These two directions hold {found.share:.0%} of the differences.")
        matrix.altair_chart(_matrix(found), width="stretch")


def _plane(space: lessons.Space) -> alt.LayerChart:
    table = pd.DataFrame({"text": space.texts, "first": space.points[:, 0], "second": space.points[:, 1]})
    base = alt.Chart(table).encode(
        x=alt.X("first", title="first principal component", scale=alt.Scale(padding=40)),
        y=alt.Y("second", title="second principal component", scale=alt.Scale(padding=20)),
        tooltip="text",
    )
    names = base.mark_text(dy=-12).encode(text="text")
    return (base.mark_circle(size=80, color=PRIMARY) + names).properties(height=360)


def _matrix(space: lessons.Space) -> alt.Chart:
    rows = [
        {"text": a, "other": b, "cosine": round(float(space.similarity[i, j]), 3)}
        for i, a in enumerate(space.texts)
        for j, b in enumerate(space.texts)
    ]
    order = list(space.texts)
    axis = alt.Axis(labelLimit=140)
    return (
        alt.Chart(pd.DataFrame(rows))
        .mark_rect()
        .encode(
            x=alt.X("other:N", title=None, sort=order, axis=axis),
            y=alt.Y("text:N", title=None, sort=order, axis=axis),
            color=alt.Color("cosine:Q", scale=alt.Scale(scheme="blues"), title="cos"),
            tooltip=["text", "other", "cosine"],
        )
        .properties(height=360)
    )


def _denoising(model: catalogue.Model) -> None:
    st.markdown(
        "Painting starts from pure noise. At each step the U-Net looks at xₜ and says which part of it is noise; "
        "taking all of that away at once gives its estimate of the picture, x₀, which is blurred at first, since many "
        "pictures would fit. So the sampler moves only a little in its direction, and asks again."
    )
    st.latex(r"\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\varepsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}")
    settings = _settings(model, _prompt())
    key = ("denoising", model.name, settings)
    found = _computed(key, model, lambda m, report: lessons.denoising(m, report, settings))
    if found is not None:
        for column, moment in zip(_cells(len(found)), found, strict=True):
            where = f"step {moment.index} of {moment.total}"
            column.image(data_url(moment.x_t), width="stretch", alt=f"The noisy picture, {where}")
            column.image(data_url(moment.x_0), width="stretch", alt=f"The estimate of the finished picture, {where}")
            column.caption(f"Step {moment.index}, σ = {moment.sigma:.3g}")
        st.caption("Above: xₜ, decoded. Below: the estimate of x₀ at the same step.")


def _attention(model: catalogue.Model) -> None:
    st.markdown(
        "In attention, every place asks, and others answer: a query q is compared with the keys k of all that may "
        "answer, and the better two match, the more of that value v is taken. In **self-attention** the places of a "
        "picture ask each other, so that both halves of a roof have one colour; so do the tokens of a prompt, but "
        "through a **causal mask** M, which is −∞ for what comes later: a token knows only those before it. In "
        "**cross-attention** the places of the picture ask the prompt's tokens. What each word is given there shows "
        "where it acts."
    )
    st.latex(r"\text{attention}(q, k, v) = \text{softmax}\!\left(\frac{q k^\top}{\sqrt d} + M\right) v")
    text = _prompt()
    settings = _settings(model, text)
    tokens = _computed(("tokens", model.name, text), model, lambda m, report: lessons.tokens(m, report, text))
    if tokens is None:
        return
    found = _computed(("attention", model.name, settings), model, lambda m, report: lessons.acting(m, report, settings))
    if found is None:
        return
    _causal([token.text for token in tokens][:MAX_TOKENS])
    maps = found.maps
    if not maps.words:
        st.caption("This prompt has no words.")
        return
    word = st.selectbox(
        "Where it acts",
        range(len(maps.words)),
        index=word_maps.telling(maps),
        format_func=lambda number: maps.words[number].text,
        key=f"lesson-word-{text}",
    )
    name = maps.words[word].text
    st.caption("In the first steps, where the picture is mostly noise, and later")
    for column, stage in zip(_cells(1 + len(maps.stages)), (None, *range(len(maps.stages))), strict=True):
        if stage is None:
            column.image(data_url(found.picture), width="stretch", alt="The painted picture")
            column.caption("The picture")
            continue
        title = word_maps.stage_title(maps, stage)
        column.image(
            data_url(lessons.overlaid(found, word, stage)), width="stretch", alt=f"Where “{name}” acts: {title}"
        )
        column.caption(title)
    st.caption("On the U-Net's way down, where its places become larger, and up again")
    for column, level in zip(_cells(len(maps.levels)), maps.levels, strict=True):
        title = word_maps.level_title(maps, level)
        column.image(
            data_url(lessons.overlaid(found, word, level=level)), width="stretch", alt=f"Where “{name}” acts: {title}"
        )
        column.caption(title)


def _causal(tokens: list[str]) -> None:
    """Draw which token may ask which, in the text encoder."""
    names = [f"{i} {text}" for i, text in enumerate(tokens)]
    rows = [
        {"asks": asks, "answers": answers, "may": "yes" if j <= i else "no"}
        for i, asks in enumerate(names)
        for j, answers in enumerate(names)
    ]
    scale = alt.Scale(domain=["yes", "no"], range=[PRIMARY, "#8886"])
    chart = alt.Chart(pd.DataFrame(rows)).mark_rect(stroke="#8888")
    chart = chart.encode(
        x=alt.X("answers", sort=names, title="is asked"),
        y=alt.Y("asks", sort=names, title="asks"),
        color=alt.Color("may", scale=scale, legend=None),
        tooltip=["asks", "answers", "may"],
    )
    st.caption("The causal mask: in the text encoder each token asks itself and those before it")
    st.altair_chart(chart.properties(width=340, height=280))


def _guidance(model: catalogue.Model) -> None:
    st.markdown(
        "The model is asked twice at each step, once with the prompt and once without it (or with the negative "
        "prompt), and the difference is exaggerated by the CFG weight w. At 1 the prompt is followed loosely; a high "
        "weight follows it closely, with less variety, and in the end with harsh colours. All start from one noise."
    )
    st.latex(
        r"\tilde\varepsilon = \varepsilon_\theta(x_t, \varnothing)"
        r" + w \left(\varepsilon_\theta(x_t, \text{prompt}) - \varepsilon_\theta(x_t, \varnothing)\right)"
    )
    settings = _settings(model, _prompt())
    key = ("guidance", model.name, settings)
    found = _computed(key, model, lambda m, report: lessons.guidances(m, report, settings))
    if found is not None:
        for column, (cfg, picture) in zip(_cells(len(found)), found, strict=True):
            column.image(data_url(picture), width="stretch", alt=f"The picture painted with CFG {cfg:g}")
            column.caption(f"CFG {cfg:g}")


def _strength(model: catalogue.Model) -> None:
    st.markdown(
        "Image to image does not start from pure noise but from a picture, brought to a noise level on the way. The "
        "strength says how far up: a low one repaints only details, 1 nearly everything. The "
        "sampler runs only the last part of its steps."
    )
    st.latex(r"\text{steps run} = \lfloor \text{strength} \cdot n \rfloor")
    picture = _picture()
    other = _prompt("Prompt to paint over it with", OTHER)
    settings = _settings(model)
    key = ("strength", model.name, settings, other, _digest(picture))
    found = _computed(key, model, lambda m, report: lessons.strengths(m, report, picture, settings, other))
    if found is not None:
        for column, (strength, image) in zip(_cells(len(found)), found, strict=True):
            column.image(data_url(image), width="stretch", alt=f"Painted over with strength {strength:g}")
            column.caption(f"Strength {strength:g}" if strength else "The picture")


LESSONS: dict[str, Callable[[catalogue.Model], None]] = {
    "Noise": _schedule,
    "Tokens": _tokens,
    "Forward": _forward,
    "Meaning": _space,
    "Denoising": _denoising,
    "Attention": _attention,
    "Guidance": _guidance,
    "Strength": _strength,
    "Training": training_lesson.draw,
}


def _computed(key: tuple, model: catalogue.Model, function: Callable[[Any, Report], Any]) -> Any:
    """The lesson's result, or None while it is computed (which is shown) or where it failed (which is said)."""
    worker = session.the_worker()
    task = worker.task(key)
    heavy = model.name != catalogue.DEFAULT and task is None
    if heavy and not st.button("Compute this with the model", key=f"compute-{key[0]}"):
        st.caption("A large model may take a while for this.")
        return None
    if task is None:
        try:
            task = worker.compute(key, function, model.name)
        except StableDiffusionError as error:
            st.error(session.plain(str(error)), icon=":material/error:")
            return None
    if task.active:
        st.fragment(_watch, run_every=REFRESH)(task)
        return None
    if task.state is State.DONE:
        return task.result
    st.error(session.plain(task.error or "It was cancelled."), icon=":material/error:")
    if st.button("Try again"):
        worker.compute(key, function, model.name)
        st.rerun()
    return None


def _watch(task: Task) -> None:
    if not task.active:
        st.rerun()
    position = session.the_worker().position(task)
    note = f"Queued, position {position}" if position else task.note or "Computing"
    st.progress(min(1.0, max(0.0, task.note_fraction or 0.0)), text=session.plain(note))
    st.button("Stop", on_click=session.the_worker().cancel, args=(task,))


def _prompt(label: str = "Prompt of this lesson", example: str = EXAMPLE) -> str:
    text = st.text_input(label, example, max_chars=1000, key=f"lesson-{label}", persist_state="session")
    return text.strip() or example


def _settings(model: catalogue.Model, prompt: str = EXAMPLE) -> lessons.Settings:
    own = model.defaults
    return lessons.Settings(prompt, own.negative or "", min(STEPS, own.steps), own.cfg, SEED, own.sampler)


def _picture() -> Image.Image | None:
    upload = st.file_uploader("Your own picture, instead of a painted one", type=UPLOADS)
    if upload is None:
        return None
    try:
        return open_picture(upload)
    except StableDiffusionError as error:
        st.error(session.plain(str(error)), icon=":material/error:")
        return None


def _digest(picture: Image.Image | None) -> str:
    return "" if picture is None else hashlib.sha256(picture.tobytes()).hexdigest()


def _cells(count: int) -> list:
    """Places of a strip of small pictures, which goes on in the next line where the screen is narrow."""
    strip = st.container(horizontal=True, gap="small")
    return [strip.container(width=CELL) for _ in range(count)]
