"""Attention: who may ask whom, and where each word acts over steps and levels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..attention import AttentionMaps, PictureMaps
from ..layers import Attention
from ..pictures import heat
from ..service import word_maps
from ..service.painting import MAPS_SIDE
from ..service.preview import jpeg
from .common import PROMPT, decoded, painted, prompt_of
from .drawing import PRIMARY
from .lesson import Block, Chart, Choose, Lesson, Options, Paper, Report, Say, Shown, Strip, Values
from .tokens import pieces_of

N_STAGES = 6
MAX_TOKENS = 16  # of the drawing of the causal mask
STEPS, LEVELS, MASK = "over the steps", "over the levels", "the causal mask"


@dataclass(frozen=True)
class Acting:
    """A painted picture as a JPEG, where each word of its prompt acted, and the prompt's tokens."""

    picture: bytes
    maps: PictureMaps
    tokens: tuple[str, ...]


def compute(model: Any, report: Report, values: Values) -> Acting:
    """Paint a picture, and record where each word acts."""
    maps = AttentionMaps(N_STAGES)
    latents = painted(model, report, values, "Painting a picture", attention=maps)
    tokens = tuple(token.text for token in pieces_of(model.tokenizer, prompt_of(values)))
    return Acting(decoded(model, latents), maps.pictures[0].smaller(MAPS_SIDE), tokens)


def overlaid(found: Acting, word: int, stages: list[int] | None = None, levels: list[str] | None = None) -> bytes:
    """A word's place at some stages and levels, over the picture, as a JPEG."""
    picture = Image.open(io.BytesIO(found.picture))
    return jpeg(heat.overlay(picture, found.maps.heat_map(word, stages, levels)))


def words(found: Acting) -> tuple[str, ...]:
    """The prompt's words, numbered, since one may stand there twice."""
    return tuple(f"{i + 1} {word.text}" for i, word in enumerate(found.maps.words))


def usual(found: Acting) -> int:
    """The number of the word that tells most."""
    return word_maps.telling(found.maps) if found.maps.words else 0


def show(found: Acting, values: Values) -> Sequence[Block]:
    if values["what"] == MASK:
        return [Chart(causal(found.tokens[:MAX_TOKENS]), "Which token may ask which, in the text encoder")]
    maps = found.maps
    if not maps.words:
        return [Say("This prompt has no words.")]
    word = usual(found) if values.get("word") is None else int(values["word"])
    name = maps.words[word].text
    if values["what"] == STEPS:
        titled = [(word_maps.stage_title(maps, i), overlaid(found, word, [i])) for i in range(len(maps.stages))]
        said = "From left to right: the first steps, where the picture is mostly noise, to the last."
    else:
        titled = [(word_maps.level_title(maps, each), overlaid(found, word, levels=[each])) for each in maps.levels]
        said = "From left to right: down the U-Net, where its places become larger, and up again."
    cells = [Shown(image, f"Where “{name}” acts: {title}", title) for title, image in titled]
    return [Strip([Shown(found.picture, "The painted picture", "the picture"), *cells]), Say(said)]


def causal(tokens: Sequence[str]) -> Any:
    """A table of who may ask whom: each token asks itself and those before it."""
    import altair as alt

    names = [f"{i} {text}" for i, text in enumerate(tokens)]
    rows = [
        {"asks": asks, "answers": answers, "may": "yes" if j <= i else "no"}
        for i, asks in enumerate(names)
        for j, answers in enumerate(names)
    ]
    scale = alt.Scale(domain=["yes", "no"], range=[PRIMARY, "#8886"])
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_rect(stroke="#8888")
        .encode(
            x=alt.X("answers:N", sort=names, title="is asked"),
            y=alt.Y("asks:N", sort=names, title="asks"),
            color=alt.Color("may:N", scale=scale, legend=None),
            tooltip=["asks:N", "answers:N", "may:N"],
        )
        .properties(height=360)
    )


LESSON = Lesson(
    key="attention",
    title="Attention",
    text=(
        "In *attention* every place asks, and others answer: a query q is compared with the keys k of all that may "
        "answer, and the better two match, the more of that value v is taken. In *self-attention* the places of a "
        "picture ask each other, so that both halves of a roof have one colour. So do the tokens of a prompt, but "
        "through a *causal mask* M, which is −∞ for what comes later: a token knows only those before it. In "
        "*cross-attention* the places of the picture ask the prompt's tokens; how much each word is given at each "
        "place shows where it acts."
    ),
    equations=(r"\text{attention}(q, k, v) = \text{softmax}\!\left(\frac{q k^\top}{\sqrt d} + M\right) v",),
    compute=compute,
    show=show,
    asks=(PROMPT,),
    views=(
        Options("what", "Show", (STEPS, LEVELS, MASK)),
        Choose("word", "Where it acts", words, usual),
    ),
    papers=(
        Paper("Vaswani et al. 2017, Attention is all you need", "https://arxiv.org/abs/1706.03762"),
        Paper("Tang et al. 2022, What the DAAM", "https://arxiv.org/abs/2210.04885"),
    ),
    code=(Attention,),
    cost="one picture, and its maps",
)
