"""One generation's arguments, checked: everything that can be refused is refused here, before anything is computed."""

from __future__ import annotations

import dataclasses
import math
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from .. import checks
from ..backend import mx
from ..config import SchedulerConfig
from ..errors import InputError, SamplerError
from ..hires import Hires
from ..pictures import TILINGS
from ..sampler import Sampler, eta_of, sampler_by_name, takes_eta, with_eta
from ..text.prompt import Blend, Prompt, check_text, parse
from ..text.script import Script, write_script
from ..text.tags import Strength
from .denoiser import GuidanceInterval
from .guiding import Guidance
from .network import DenoisingNetwork
from .noise import Seeds
from .refining import SWITCH, Expert, Refinement, check_refiner
from .schedule import Plan
from .spacing import FILE_SCHEDULES
from .start import FirstPass, InputLatents, InputPicture, check_task, read_input
from .tiled import Tiles, check_tiles

MAX_IMAGES = 256
MAX_DEEPCACHE = 1000
# Pure noise is taken for x_t of a plan's first level. A level whose ve_sigma is below this share of the schedule's top
# (at most that of Stable Diffusion, about 15) has so much of x_0 in it that noise alone leads to no picture; below the
# second share (four steps of leading spacing) the reference goes on, and models made for few steps look wrong.
FAR_BELOW, BELOW, TOP = 1 / 10, 1 / 3, 14.6


class ModelLimits(Expert, Protocol):
    """What a call is checked against."""

    default_size: tuple[int, int]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def downscale(self) -> int:
        """Pixels to one latent along each side."""

    @property
    def size_multiple(self) -> int:
        """Width and height are multiples of it."""


@dataclass(frozen=True)
class Call:
    """The checked arguments of one generation, which paints a picture for each of the prompts in one batch."""

    prompts: tuple[Prompt, ...]
    negatives: tuple[Prompt | None, ...]
    size: tuple[int, int]  # width, height in pixels
    seeds: Seeds
    cfg_weight: float
    guidance_rescale: float
    guidance_start: float
    guidance_end: float
    guidance_min_sigma: float
    deepcache_interval: int
    deepcache_branch: int
    sampler: Sampler
    plan: Plan
    start: InputPicture | InputLatents | FirstPass | None
    strength: float | None  # with a start: the share of the plan's steps that is run
    noise: mx.array | None  # (B, h, w, C), replaces the seeds' first draw
    clip_skip: int | None
    prompt_language: str
    embeds_guidance: bool
    eta: float | None = None  # the sampler's, where it is not its own
    notes: tuple[str, ...] = ()  # what was changed or looks wrong, in words; warned of as well
    hires: Hires | None = None
    second: Call | None = None  # the pass of `hires`, which starts from what this one paints
    refinement: Refinement | None = None
    tiling: str = "off"  # where copies of the picture meet without a seam
    tiles: Tiles | None = None  # that the network sees in turn, if the picture is larger than one
    guidance: Guidance | None = None

    @property
    def seen(self) -> tuple[int, int]:
        """(width, height) in pixels of what the network sees at once."""
        return self.size if self.tiles is None else self.tiles.seen(self.size)

    @property
    def around(self) -> tuple[int, ...]:
        """The axes of (B, h, w, C) along which the opposite edges meet."""
        return TILINGS[self.tiling]

    @cached_property
    def script(self) -> Script:
        """The texts of each step. Raises `InputError` for weights out of range."""
        return write_script(
            self.prompts,
            self.negatives,
            len(self.plan),
            self.cfg_weight,
            self.embeds_guidance,
            self.sampler.needs_negative,
        )

    @property
    def interval(self) -> GuidanceInterval:
        """Where guidance acts."""
        return GuidanceInterval(len(self.plan), self.guidance_start, self.guidance_end, self.guidance_min_sigma)

    @property
    def changes_nothing(self) -> bool:
        """Whether no step is run, since the picture or latents to begin from are to stay as they are."""
        return self.strength == 0 and isinstance(self.start, InputPicture | InputLatents)

    @property
    def loras(self) -> tuple[tuple[str, Strength], ...]:
        """The LoRAs that the prompts' tags name."""
        return self.prompts[0].loras

    @property
    def passes(self) -> tuple[Call, ...]:
        """This call, and the one that follows it."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def refiner_switch(self) -> float:
        """Where the refiner takes over, if there is one."""
        return SWITCH if self.passes[-1].refinement is None else self.passes[-1].refinement.switch

    @property
    def num_steps(self) -> int:
        """Steps of the whole plan, including those that a start skips."""
        return len(self.plan.levels)

    def only(self, places: Sequence[int]) -> Call:
        """The same call for some of its pictures, each with its own seed."""
        start = self.start
        if isinstance(start, InputLatents) and len(start.x_0) > 1:
            start = InputLatents(start.x_0[mx.array(list(places))])
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[i] for i in places),
            negatives=tuple(self.negatives[i] for i in places),
            seeds=self.seeds.only(places),
            start=start,
            noise=None if self.noise is None else self.noise[mx.array(list(places))],
            second=None if self.second is None else self.second.only(places),
            guidance=None if self.guidance is None else self.guidance.only(places),
        )


def check_passes(model: ModelLimits, network: DenoisingNetwork, *, hires: Hires | None, **asked: Any) -> Call:
    """`check_call` for both passes of a hires fix, or the only one without it. Warns of the notes, and raises alike."""
    own = asked if hires is None else asked | {"refiner": None}  # which takes over in the second pass, as in A1111
    first = check_call(model, network, **own)
    call = first if hires is None else _with_second(model, network, first, hires, asked)
    for note in call.notes:
        warnings.warn(note, stacklevel=3)
    return call


def _with_second(
    model: ModelLimits, network: DenoisingNetwork, first: Call, hires: Hires, asked: dict[str, Any]
) -> Call:
    if not isinstance(hires, Hires):
        raise InputError(f"hires = {hires!r} should be a stable_diffusion.Hires, or None.")
    if first.start is not None:
        raise InputError(
            "hires enlarges what is painted from a text alone: leave out the input_image or input_latents."
        )
    enlarged, (width, height) = hires.sizes(first.size, model.size_multiple)
    run, total = hires.total_steps(asked["num_steps"])
    changes: dict[str, Any] = {
        "width": width,
        "height": height,
        "seed": first.seeds.first,
        "latents": None,
        "num_steps": total,
        "texts": asked["texts"] if hires.prompt is None else [hires.prompt] * len(asked["texts"]),
        "sampler": asked["sampler"] if hires.sampler is None else hires.sampler,
        "cfg_weight": asked["cfg_weight"] if hires.cfg is None else hires.cfg,
    }
    if hires.sampler is not None and not takes_eta(hires.sampler):
        changes["eta"] = None
    if hires.negative is not None:
        changes["negative_texts"] = [hires.negative or None] * len(asked["texts"])
    start = FirstPass(hires.upscaler, enlarged)
    second = check_call(model, network, **asked | changes, first_pass=start, last_steps=run)
    second = dataclasses.replace(second, strength=hires.strength)
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    return dataclasses.replace(first, hires=hires, second=second, notes=notes)


def check_call(
    model: ModelLimits,
    network: DenoisingNetwork,
    *,
    texts: Sequence[str | Blend],
    negative_texts: Sequence[str | None],
    n_images: int,
    num_steps: int,
    cfg_weight: float,
    width: int | None,
    height: int | None,
    seed: int | None,
    input_image: Any,
    denoising_strength: float,
    sampler: str | Sampler,
    latents: Any,
    guidance_rescale: float,
    guidance_start: float,
    guidance_end: float,
    guidance_min_sigma: float,
    deepcache_interval: int,
    deepcache_branch: int,
    variation_seed: int | None,
    variation_strength: float,
    vary_all_draws: bool,
    mask_image: Any,
    masked_content: str,
    clip_skip: int | None,
    prompt_language: str,
    input_latents: Any,
    eta: float | None,
    refiner: Any,
    refiner_switch: float,
    tile: int | None,
    tile_overlap: int,
    tiling: str,
    guidance: Any = None,
    first_pass: FirstPass | None = None,
    last_steps: int = 0,
) -> Call:
    """Check the arguments of `StableDiffusion.generate_latents` and `generate`, whose docstrings explain them.

    `n_images` pictures are painted of each text, in the order of the texts. With a `first_pass` the call starts from
    that, and runs the `last_steps` of its plan. Raises `InputError`, `SamplerError` and `PictureError`.
    """
    if not texts or len(texts) != len(negative_texts):
        raise InputError(
            f"{len(texts)} texts with {len(negative_texts)} negative texts: give as many of both, and at least one."
        )
    prompts = [parse(check_text("text", each), prompt_language) for each in texts]
    negatives = [_negative(each, prompt_language) for each in negative_texts]
    notes = []
    if any(each is not None and each.loras for each in negatives):
        notes.append("LoRA tags in the negative text have no effect; write them into the text.")
    n_images = checks.whole("n_images", n_images, 1, MAX_IMAGES)
    total = checks.whole("the number of pictures", n_images * len(texts), 1, MAX_IMAGES)
    size = check_size(model, width, height)
    shape = (size[1] // model.downscale, size[0] // model.downscale, model.latent_channels)
    seeds = _seeds(seed, total, variation_seed, variation_strength, vary_all_draws)
    noise = None if latents is None else _latents("latents", latents, (total, *shape))
    if noise is not None and seeds.strength:
        raise InputError("latents replace the noise that variation_strength would vary: give one of them.")
    start: InputPicture | InputLatents | FirstPass | None = first_pass or read_input(
        input_image, mask_image, masked_content, *size, model.downscale
    )
    if input_latents is not None:
        if input_image is not None:
            raise InputError("input_image and input_latents exclude each other: give one of them.")
        start = InputLatents(_latents("input_latents", input_latents, (total, *shape), or_one=True))
    check_task(model.name, network.in_channels, model.latent_channels, start)
    sampler = with_eta(sampler_by_name(sampler), eta)
    if sampler.needs_negative and network.embeds_guidance:
        raise SamplerError(
            f"{sampler.title} asks for the negative prompt's own answer, which this model, with guidance as an input, "
            "does not give: choose lcm."
        )
    plan = sampler.plan(model.scheduler_config, num_steps)
    if first_pass is not None:
        plan = plan.tail(last_steps)
    elif start is not None:
        plan = _tail(plan, num_steps, denoising_strength)
    masked = isinstance(start, InputPicture) and start.mask is not None
    from_noise = start is None or (masked and not plan.first and denoising_strength > 0)
    if from_noise and _is_below(plan, FAR_BELOW):
        sampler, plan, note = _from_the_top(sampler, plan, model.scheduler_config)
        notes.append(note)
    elif from_noise and _is_below(plan, BELOW):
        notes.append(f"{_begins(sampler, plan)}. Models made for few steps want a sampler such as euler_sgm_uniform.")
    checks.interval("guidance_start", guidance_start, "guidance_end", guidance_end)
    _check_deep_cache(model.name, network, deepcache_interval, deepcache_branch)
    tiles = check_tiles(tile, tile_overlap, size, model.size_multiple)
    if tiles is not None and deepcache_interval > 1:
        raise InputError("deepcache_interval keeps features of a whole picture, not of tiles: give one of the two.")
    refinement, found = check_refiner(model, refiner, refiner_switch, sampler, plan)
    notes += found
    return Call(
        prompts=tuple(each for each in prompts for _ in range(n_images)),
        negatives=tuple(each for each in negatives for _ in range(n_images)),
        size=size,
        seeds=seeds,
        cfg_weight=checks.number("cfg_weight", cfg_weight, 0.0, math.inf),
        guidance_rescale=checks.number("guidance_rescale", guidance_rescale, 0.0, 1.0),
        guidance_start=float(guidance_start),
        guidance_end=float(guidance_end),
        guidance_min_sigma=checks.number("guidance_min_sigma", guidance_min_sigma, 0.0, math.inf),
        deepcache_interval=deepcache_interval,
        deepcache_branch=deepcache_branch,
        sampler=sampler,
        plan=plan,
        start=start,
        strength=None if start is None else float(denoising_strength),
        noise=noise,
        clip_skip=clip_skip,
        prompt_language=prompt_language,
        embeds_guidance=network.embeds_guidance,
        eta=eta_of(sampler),
        notes=tuple(notes),
        refinement=refinement,
        tiling=check_tiling(tiling),
        tiles=tiles,
        guidance=Guidance.of(guidance, total),
    )


def check_size(model: ModelLimits, width: int | None, height: int | None) -> tuple[int, int]:
    """(width, height) in pixels, None being the model's own; `InputError` unless both are multiples."""
    multiple, sides = model.size_multiple, []
    for name, side, own in zip(("width", "height"), (width, height), model.default_size, strict=True):
        side = own if side is None else checks.whole(name, side, multiple, checks.MAX_SIDE)
        if side % multiple:
            below = side // multiple * multiple
            raise InputError(
                f"{name} = {side} should be a multiple of {multiple}, such as {below} or {below + multiple}."
            )
        sides.append(side)
    return sides[0], sides[1]


def check_tiling(tiling: Any) -> str:
    """Where copies meet without a seam, a key of `TILINGS`. Raises `InputError`."""
    found: str = checks.Choice(tuple(TILINGS))("tiling", tiling)
    return found


def _check_deep_cache(name: str, network: DenoisingNetwork, interval: Any, branch: Any) -> None:
    """Raise `InputError` for an interval below 1, and for a branch that the network does not have."""
    checks.whole("deepcache_interval", interval, 1, MAX_DEEPCACHE)
    if interval > 1 and not network.branches:
        raise InputError(f"{name!r} has no deep features to reuse: deepcache_interval = {interval} should be 1.")
    checks.whole("deepcache_branch", branch, 0, network.branches - 1 if interval > 1 else MAX_DEEPCACHE)


def _negative(text: Any, language: str) -> Prompt | None:
    return None if text is None else parse(checks.text("negative_text", text, checks.MAX_TEXT), language, negative=True)


def _seeds(seed: Any, n_images: int, variation_seed: Any, variation_strength: Any, all_draws: Any) -> Seeds:
    """The seeds of a batch; a random one if `seed` is None."""
    largest = checks.MAX_SEED - n_images + 1
    seed = secrets.randbelow(2**32) if seed is None else checks.whole("seed", seed, 0, largest)
    strength = checks.number("variation_strength", variation_strength, 0.0, 1.0)
    all_draws = checks.Flag()("vary_all_draws", all_draws)
    if variation_seed is not None:
        variation = checks.whole("variation_seed", variation_seed, 0, largest)
        return Seeds(seed, n_images, variation, strength, all_draws=all_draws)
    if strength:
        raise InputError(f"variation_strength = {strength:g} needs a variation_seed to turn towards.")
    return Seeds(seed, n_images)


def _latents(name: str, value: Any, shape: tuple[int, ...], or_one: bool = False) -> mx.array:
    """Latents of numpy or MLX, of the given shape (`or_one` for all pictures), as float32."""
    found = value if isinstance(value, mx.array) else np.asarray(value)
    if tuple(found.shape) != shape and not (or_one and tuple(found.shape) == (1, *shape[1:])):
        raise InputError(
            f"{name} of shape {tuple(found.shape)} do not fit: (n_images, height, width, channels) is {shape} here."
        )
    array = mx.array(found).astype(mx.float32)
    if not mx.isfinite(array).all():
        raise InputError(f"{name} should be finite numbers; some are NaN or infinite.")
    return array


def _tail(plan: Plan, num_steps: int, strength: float) -> Plan:
    """The last int(num_steps * strength) steps of the plan, as the reference counts them; all of it at strength 0."""
    strength = checks.number("denoising_strength", strength, 0.0, 1.0)
    steps = int(num_steps * strength)
    if not strength:
        return plan
    if not steps:
        raise InputError(
            f"denoising_strength = {strength} leaves none of {num_steps} steps; "
            f"it takes at least {math.ceil(100 / num_steps) / 100} to leave one."
        )
    return plan.tail(steps)


def _is_below(plan: Plan, share: float) -> bool:
    top = plan.schedule.level(len(plan.schedule) - 1)
    return plan.levels[0].ve_sigma < share * min(top.ve_sigma, TOP)


def _begins(sampler: Sampler, plan: Plan) -> str:
    steps = len(plan.levels)
    return (
        f"{steps} step{'s' * (steps > 1)} of {sampler.title} with {plan.config.timestep_spacing} spacing "
        f"begin{'s' * (steps == 1)} at time {plan.levels[0].t:g} of {len(plan.schedule) - 1}"
    )


def _from_the_top(sampler: Sampler, plan: Plan, config: SchedulerConfig) -> tuple[Sampler, Plan, str]:
    """The sampler with a schedule from the top, its plan and a note; unchanged if the caller chose its spacing.

    One step of leading or linspace spacing begins at time 1 or 0, where next to nothing is noise.
    """
    num_steps = len(plan.levels)
    named = any(getattr(plan.config, f"use_{name}_sigmas") for name in FILE_SCHEDULES)
    begins = f"{_begins(sampler, plan)}, too far below the top for pure noise"
    others: list[dict[str, str]] = [{"spacing": "linspace"}, {"spacing": "trailing"}]
    if not named:
        others = [{"sigma_schedule": "sgm_uniform"}] if "sgm_uniform" in sampler.schedules else others[1:]
    for options in others if sampler.spacing is None else ():
        other = dataclasses.replace(sampler, **options)
        replaced = other.plan(config, num_steps)
        if not _is_below(replaced, BELOW):
            how = "with the schedule SGM Uniform" if "sigma_schedule" in options else f"with {other.spacing} spacing"
            note = f"{begins}: they are run from the top instead, {how}. A sampler such as euler_sgm_uniform says so."
            return other, replaced, note
    note = (
        f"{begins}: what is painted may be little but noise. Take more steps, or a sampler such as euler_sgm_uniform."
    )
    return sampler, plan, note
