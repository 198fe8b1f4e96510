"""Blends: pictures between prompts, between seeds, or both at once, from station to station.

    for frame in blend.frames("a house by day", "a boat at night", 8, seed=7):
        for step in sd.generate_latents(**frame.arguments, num_steps=20):
            ...

Prompts are blended linearly by their embeddings, seeds by their noise along an arc (`noise.slerp`), which keeps unit
variance. A frame at a station is the station's own picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import checks
from ..errors import InputError
from .prompt import Blend

MAX_FRAMES = 10_000
MAX_STATIONS = 1000
# From the share of the frames between two stations that have passed, to the share of the way.
EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
    "in-out": lambda t: t * t * (3 - 2 * t),
}


@dataclass(frozen=True)
class Station:
    """A text and a seed that a walk passes."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Frame:
    """One picture of a walk, `share` of the way from the station before it (0) to the next one (1)."""

    index: int  # 0 .. total - 1
    total: int
    share: float
    start: str
    end: str
    seed: int
    to_seed: int | None
    strength: float | None = None  # the denoising strength, where it begins from a picture and that changes

    @property
    def text(self) -> str | Blend:
        """The text to paint; the first and the last frame have the prompts themselves."""
        if self.start == self.end or self.share == 0:
            return self.start
        return self.end if self.share == 1 else Blend(self.start, self.end, self.share)

    @property
    def first_text(self) -> str:
        """The text, or the first text of a blend."""
        return self.text.start if isinstance(self.text, Blend) else self.text

    @property
    def seeds(self) -> dict[str, Any]:
        """The arguments of `StableDiffusion.generate_latents` for its noise; at a station, the station's seed."""
        if self.to_seed in (None, self.seed) or self.share == 0:
            return {"seed": self.seed}
        if self.share == 1:
            return {"seed": self.to_seed}
        return {
            "seed": self.seed,
            "variation_seed": self.to_seed,
            "variation_strength": self.share,
            "vary_all_draws": True,
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The frame's own arguments of `StableDiffusion.generate_latents`."""
        strength = {} if self.strength is None else {"denoising_strength": self.strength}
        return {"text": self.text, **self.seeds, **strength}


@dataclass(frozen=True)
class Walk:
    """The way through two or more stations, with `n_frames` from each to the next, both ends included.

    A station that ends one stretch begins the next, and stands in one frame. A `loop` returns from the last station to
    the first, whose frame is not repeated at the end; through two stations it returns on the same frames. `easing` is
    one of EASINGS. `strengths` are the denoising strengths of the first and the last frame, for walks that begin from
    a picture; in a loop, of the first frame and of the one half way. Raises `InputError`.
    """

    stations: tuple[Station, ...]
    n_frames: int = 8
    loop: bool = False
    easing: str = "linear"
    strengths: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.stations) <= MAX_STATIONS:
            raise InputError(
                f"A blend of {len(self.stations)} station{'s' * (len(self.stations) != 1)}: it leads through 2 to "
                f"{MAX_STATIONS}, each a prompt with a seed."
            )
        for station in self.stations:
            checks.text("the prompt of a station", station.prompt, checks.MAX_TEXT)
            checks.whole("the seed of a station", station.seed, 0, checks.MAX_SEED)
        checks.whole("n_frames", self.n_frames, 2, MAX_FRAMES)
        checks.Choice(tuple(EASINGS))("easing", self.easing)
        for strength in self.strengths or ():
            checks.number("strength", strength, 0.0, 1.0)
        if self.total > MAX_FRAMES:
            raise InputError(f"The walk has {self.total} frames: {MAX_FRAMES} are the most.")

    @property
    def n_stretches(self) -> int:
        """Pairs of neighbouring stations."""
        return len(self.stations) if self.loop else len(self.stations) - 1

    @property
    def total(self) -> int:
        """The number of frames."""
        return self.n_stretches * (self.n_frames - 1) + (not self.loop)

    def frames(self) -> list[Frame]:
        """All frames, in order: frame i of n between two stations lies at i / (n - 1), eased."""
        ease, last = EASINGS[self.easing], self.n_frames - 1
        if self.loop and len(self.stations) == 2:
            there = [self._frame(i, 0, ease(i / last)) for i in range(self.n_frames)]
            return there + [self._frame(i, 0, ease((2 * last - i) / last)) for i in range(last + 1, self.total)]
        found = [
            self._frame(stretch * last + i, stretch, ease(i / last))
            for stretch in range(self.n_stretches)
            for i in range(last)
        ]
        return found if self.loop else [*found, self._frame(self.total - 1, self.n_stretches - 1, 1.0)]

    def at(self, share: float) -> Frame:
        """The only frame at a share of the whole way, which is not eased."""
        place = checks.number("share", share, 0.0, 1.0) * self.n_stretches
        stretch = min(int(place), self.n_stretches - 1)
        return self._frame(0, stretch, place - stretch, total=1, strength=self._strength(share, 1))

    def _frame(
        self, index: int, stretch: int, share: float, total: int | None = None, strength: float | None = None
    ) -> Frame:
        start, end = self.stations[stretch], self.stations[(stretch + 1) % len(self.stations)]
        if total is None:
            strength = self._strength(index, self.total if self.loop else self.total - 1)
        to_seed = None if start.seed == end.seed else end.seed
        return Frame(index, total or self.total, share, start.prompt, end.prompt, start.seed, to_seed, strength)

    def _strength(self, passed: float, whole: float) -> float | None:
        if self.strengths is None:
            return None
        first, last = self.strengths
        return first + (last - first) * (2 * min(passed, whole - passed) if self.loop else passed) / whole


def frames(start: str, end: str, n_frames: int, seed: int, to_seed: int | None = None) -> list[Frame]:
    """The frames of a blend of two stations at even shares, both ends included. Raises `InputError`."""
    stations = Station(start, seed), Station(end, seed if to_seed is None else to_seed)
    return Walk(stations, n_frames).frames()


def stations(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Station, ...]:
    """Stations of equally many prompts and seeds; one of either stands at all of them. Raises `InputError`."""
    n = max(len(prompts), len(seeds))
    if len(prompts) not in (1, n) or len(seeds) not in (1, n):
        raise InputError(
            f"{len(prompts)} prompts and {len(seeds)} seeds: give a seed for each prompt, one seed for all, or one "
            "prompt for all seeds."
        )
    return tuple(
        Station(prompt, seed)
        for prompt, seed in zip(
            prompts if len(prompts) == n else [*prompts] * n, seeds if len(seeds) == n else [*seeds] * n, strict=True
        )
    )
