"""The lesson on training: the equations, and what came of them when a model was made with this program."""

import json
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from stable_diffusion import catalogue
from stable_diffusion.places import packaged

RECORD = packaged("service", "training_record")  # a log and sample sheets of each part
PRIMARY = "#4263eb"
WINDOW = 9  # points that are averaged for the line


def draw(model: catalogue.Model) -> None:
    """Draw it; whatever the chosen model, the record is of a small one that was trained with `train`."""
    st.markdown(
        "A model learns from examples: a picture goes in, an error comes out, and every weight is moved a little in "
        "the direction that makes the error smaller. It is trained in two parts, one after the other. These are the "
        "curves and sheets of a small model, as this program made it on two cores of a CPU."
    )
    st.subheader("The autoencoder")
    st.markdown(
        "It learns to pass a picture through a bottleneck: the 192 numbers of a patch of 8 by 8 pixels become 4. The "
        "second term, weighted little, keeps these latents near a normal distribution."
    )
    st.latex(
        r"z = \mu(x) + \sigma(x)\,\varepsilon, \qquad "
        r"L = \lVert x - D(z) \rVert^2 + \lambda\, D_{KL}\left(N(\mu, \sigma^2)\,\Vert\,N(0, 1)\right)"
    )
    _part("vae", "Postcards held out of the training; below each row, what the autoencoder makes of it")
    st.markdown(
        "The decoder can be trained further on its own: edges become finer, and since the latents stay the same, a "
        "diffusion model that was trained on them still fits."
    )
    _part("decoder", "The same postcards, as the decoder learnt on")
    st.subheader("The diffusion")
    st.markdown(
        "Then the text encoder and the U-Net learn together. A latent is mixed with noise at a random time, and the "
        "U-Net has to say from the mixture, the time and the caption what was mixed: the noise ε, or v, which is noise "
        "less picture. One caption in ten is left out, for guidance. Painting is the same thing backwards, in steps."
    )
    st.latex(r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon \qquad\text{(forward)}")
    st.latex(
        r"L = \mathbb{E}_{x_0, \varepsilon, t}\; w_t \left\lVert v_t - v_\theta(x_t, t, \text{text}) \right\rVert^2,"
        r"\qquad v_t = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1 - \bar\alpha_t}\, x_0 \qquad\text{(loss)}"
    )
    st.latex(
        r"\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v_\theta, \qquad "
        r"x_{t'} = \sqrt{\bar\alpha_{t'}}\, \hat x_0 + \sqrt{1 - \bar\alpha_{t'}}\, \hat\varepsilon "
        r"\qquad\text{(sampling step)}"
    )
    _part("diffusion", "The same sixteen prompts with the same noise")


def _part(name: str, alt_text: str) -> None:
    table = curve(RECORD / f"{name}.jsonl")
    chart = alt.Chart(table).encode(x=alt.X("step", title="step"))
    scale = alt.Scale(type="log", nice=False)
    points = chart.mark_circle(size=12, opacity=0.3, color=PRIMARY).encode(y=alt.Y("loss", title="loss", scale=scale))
    line = chart.mark_line(color=PRIMARY).encode(y=alt.Y("mean", title="loss", scale=scale))
    st.altair_chart((points + line).properties(height=220), width="stretch")
    sheets = sorted(RECORD.glob(f"{name}-*.jpg"))
    if sheets:
        by_step = {int(sheet.stem.rpartition("-")[2]): sheet for sheet in sheets}
        step = st.select_slider("Sheet after step", list(by_step), list(by_step)[-1], key=f"sheet-{name}")
        st.image(str(by_step[step]), width="stretch", caption=f"{alt_text}, after {step} steps.")


def curve(log: Path) -> pd.DataFrame:
    """The steps of a log, their losses, and the mean of each one's neighbours."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    table = pd.DataFrame([row for row in rows if "loss" in row])[["step", "loss"]]
    return table.assign(mean=table["loss"].rolling(WINDOW, center=True, min_periods=1).mean())
