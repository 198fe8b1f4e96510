"""A morph: a walk through stations as the requests of its frames, each of which can be painted alone. Needs no MLX."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import prompts
from .compare.plan import Cell
from .errors import InputError
from .record import keys
from .request import Request
from .text import blend
from .text.blend import Frame, Walk
from .text.prompt import Blend, parse


@dataclass(frozen=True)
class Morph:
    """The frames of a walk. `request` is what they share: the settings, and the first station's prompt and seed."""

    request: Request
    walk: Walk
    cells: tuple[Cell, ...]  # a frame each, in their order

    @cached_property
    def order(self) -> list[Cell]:
        """What is painted: each frame once, even if the walk passes it again."""
        return list({cell.digest: cell for cell in self.cells}.values())

    def record(self, fps: float) -> dict[str, str]:
        """The further entries in the record of its strip or film."""
        return keys.of_walk(self.walk, fps)


def plan(
    request: Request,
    texts: Sequence[str],
    seeds: Sequence[int | None] = (),
    n_frames: int = 8,
    loop: bool = False,
    easing: str = "linear",
    to_strength: float | None = None,
    prepare: Callable[[Request], Request] = prompts.prepared,
) -> Morph:
    """The morph of a request through stations: prompts as typed, with seeds of their own (None: the request's).

    With a `to_strength` the denoising strength runs from the request's to that, in whole steps. `prepare` draws the
    prompts. Raises `InputError` for what cannot be painted.
    """
    _check(request, to_strength)
    own = _seed(request, seeds)
    request = dataclasses.replace(request, n_images=1, batch_size=1, combinations=False, seed=own)
    stations = blend.stations(texts, [own if seed is None else seed for seed in seeds] or [own])
    if len(stations) == 1 and to_strength is not None:
        stations *= 2
    drawn: dict[tuple[str, int], Request] = {}
    for each in stations:
        if (each.prompt, each.seed) not in drawn:
            asked = dataclasses.replace(request, prompt=each.prompt, seed=each.seed)
            drawn[each.prompt, each.seed] = prepare(asked).of_picture(0)
    found = [drawn[each.prompt, each.seed] for each in stations]
    strengths = None if to_strength is None else (request.strength, to_strength)
    places = tuple(blend.Station(own.prompt, each.seed) for own, each in zip(found, stations, strict=True))
    walk = Walk(places, n_frames, loop, easing, strengths)
    if len(set(places)) == 1 and (strengths is None or strengths[0] == strengths[1]):
        raise InputError("All stations have the same prompt and seed, so nothing would change from frame to frame.")
    for one, two in itertools.pairwise([*places, places[0]] if loop else places):
        if one.prompt != two.prompt:
            parse(Blend(one.prompt, two.prompt, 0.5), request.prompt_language)  # refuses what cannot be mixed
    first = dataclasses.replace(found[0], seed=stations[0].seed)
    cells = tuple(Cell((i, 0, 0), of_frame(first, frame)) for i, frame in enumerate(walk.frames()))
    return Morph(first, walk, cells)


def of_frame(request: Request, frame: Frame) -> Request:
    """A frame's own request, of one picture; `request` is what all frames share."""
    text = frame.text
    mixed = isinstance(text, Blend)
    changes: dict[str, Any] = {
        "variation_seed": None, "variation_strength": 0.0, "prompt": frame.first_text,
        "blend_prompt": frame.end if mixed else "", "blend_share": frame.share if mixed else 0.0,
        "template": request.template if frame.first_text == request.prompt else "", **frame.seeds,
    }  # fmt: skip
    if frame.strength is not None:
        changes["strength"] = whole_steps(frame.strength, request.steps)
    return dataclasses.replace(request, **changes)


def whole_steps(strength: float, steps: int) -> float:
    """The strength nearest to this one that leaves a whole number of steps: 0 where less than half a step is left."""
    n = round(strength * steps)
    found = round(n / steps, 4)
    return found if int(steps * found) == n else round(found + 1e-4, 4)  # the engine rounds down


def _check(request: Request, to_strength: float | None) -> None:
    """Raise `InputError` for settings that a morph makes itself, or does without."""
    if request.variation_strength:
        raise InputError("A morph turns the noise itself: set the variation strength to 0.")
    if request.blend_prompt:
        raise InputError("A morph mixes the prompts itself: leave out the prompt that is blended with.")
    if request.mask is not None:
        raise InputError("A morph repaints whole pictures: leave out the mask.")
    if to_strength is not None and request.picture is None:
        raise InputError("A strength that changes from frame to frame needs a picture to begin from (--image).")


def _seed(request: Request, seeds: Sequence[int | None]) -> int:
    """The seed of stations that have none of their own: the request's, else the first that is given, else a new one."""
    found = next((seed for seed in (request.seed, *seeds) if seed is not None), None)
    return secrets.randbelow(2**32) if found is None else found
