"""What becomes of a request's prompts before anything is painted: styles, the default negative prompt, dynamic prompts.

Needs no MLX.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable
from typing import Any

from . import catalogue
from .errors import CheckpointError, InputError
from .request import PROMPTS, Request
from .text import dynamic, styles
from .text.prompt import A1111
from .text.wildcards import Wildcards

NEGATIVE_VARIABLE = "STABLE_DIFFUSION_NEGATIVE"
# Words for the variable: a start for an installation that others use. It is no safety filter.
NAMED = {"public": "nudity, racism, oppression, exploitation"}


def prepared(request: Request) -> Request:
    """A copy that can be painted: seeds drawn, and the prompts of all pictures.

    First the styles are applied, then the default negative prompt is added, then dynamic prompts are drawn, which may
    be in any of these. Picture i has the prompts of its own seed, as in sd-dynamic-prompts; with `combinations` it has
    the i-th of all. A prompt that is mixed in is drawn once. The same becomes of a hires fix's own prompts; choices
    that stand at the same place in both are drawn alike. Raises `InputError` for what cannot be drawn.
    """
    found = _prepared(request)
    if not request.blend_prompt:
        return found
    second = _prepared(
        dataclasses.replace(
            request, prompt=request.blend_prompt, blend_prompt="", n_images=1, combinations=False, texts=(),
            seed=found.seed, variation_seed=found.variation_seed,
        )
    )  # fmt: skip
    return dataclasses.replace(found, blend_prompt=second.of_picture(0).prompt)


def _prepared(request: Request) -> Request:
    chosen = styles.find(request.styles)
    prompt, negative = styles.apply(request.prompt, request.negative, chosen)
    second = styles.apply(request.hires_prompt, request.hires_negative, chosen)
    hires_prompt, hires_negative = (text and styled for text, styled in zip(_second(request), second, strict=True))
    if request.default_negative:
        negative = with_default(negative, _default_of(request.model))
        hires_negative = hires_negative and with_default(hires_negative, _default_of(request.model))
    texts: dict[str, Any] = dict(zip(PROMPTS, (prompt, negative, hires_prompt, hires_negative), strict=True))
    request = dataclasses.replace(request, **texts, styles=(), default_negative=False)
    if request.texts or not is_dynamic(request):
        return request.with_seeds()
    lines = Wildcards().lines
    for text in texts.values():
        dynamic.check(text, lines)
    if request.combinations:
        return _all_combinations(request, lines)
    request = request.with_seeds()
    seeds = [request.seeds_of(place)["seed"] for place in range(request.n_images)]
    drawn = [_drawn(texts.values(), seed, i, lines) for i, seed in enumerate(seeds)]
    return dataclasses.replace(request, texts=tuple(drawn))


def _second(request: Request) -> tuple[str, str]:
    return request.hires_prompt, request.hires_negative


def _drawn(texts: Iterable[str], seed: int, place: int, lines: dynamic.Lines) -> tuple[str, ...]:
    """Prompts and negative prompts in turn, of one picture."""
    seeds: Iterable[int | str] = itertools.cycle((seed, f"{seed} negative"))
    return tuple(dynamic.draw(text, own, place, lines) for text, own in zip(texts, seeds, strict=False))


def _all_combinations(request: Request, lines: dynamic.Lines) -> Request:
    seed = request.seed or 0  # for what is drawn all the same
    found = [dynamic.combinations(text, seed, lines) for text in (request.prompt, request.negative)]
    total = len(found[0]) * len(found[1]) * request.n_images
    if total > dynamic.MAX_COMBINATIONS:
        raise InputError(
            f"{len(found[0])} x {len(found[1])} combinations of the prompts, {request.n_images} of each, are more than "
            f"{dynamic.MAX_COMBINATIONS} pictures."
        )
    pairs = list(itertools.product(found[0], found[1])) * request.n_images
    texts = tuple((*pair, *_drawn(_second(request), seed + i, i, lines)) for i, pair in enumerate(pairs))
    return dataclasses.replace(request, n_images=total, texts=texts, combinations=False).with_seeds()


def is_dynamic(request: Request) -> bool:
    """Whether its prompts are drawn: as it says, else where there is something to draw from.

    Plain prompts are drawn from only on request, since they are literal.
    """
    if request.dynamic_prompts is not None:
        return request.dynamic_prompts
    some = any(dynamic.has_syntax(getattr(request, name)) for name in PROMPTS)
    return some and request.prompt_language == A1111


# --- The default negative prompt


def default_negative(model: catalogue.Model) -> str:
    """What is added to every negative prompt: the model's own, and the installation's."""
    return ", ".join(dict.fromkeys(part for part in (model.negative, of_installation()) if part))


def of_installation() -> str:
    """What $STABLE_DIFFUSION_NEGATIVE asks for: a text, or a word for one."""
    text = os.environ.get(NEGATIVE_VARIABLE, "").strip()
    return NAMED.get(text.lower(), text)


def _default_of(name: str) -> str:
    try:
        return default_negative(catalogue.find(name))
    except CheckpointError:  # said when it is loaded
        return of_installation()


def with_default(negative: str, default: str) -> str:
    """A negative prompt with the default one at its end, once."""
    if not default:
        return negative
    return ", ".join(part for part in (without_default(negative, default).strip(), default) if part)


def without_default(negative: str, default: str) -> str:
    """A negative prompt as it was typed, when the default one stands at its end."""
    if default and negative.strip().endswith(default):
        return negative.strip()[: -len(default)].rstrip().removesuffix(",").rstrip()
    return negative
