"""From the arguments of a painting command to a call of the engine, and to what the pictures record of it."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import catalogue
from ..errors import InputError
from .options import MAX_SEED
from .running import Report

if TYPE_CHECKING:
    from ..diffusion.noise import Seeds
    from ..record.parameters import Parameters
    from ..record.used import Used


class Generation:
    """One run of a painting command: what its arguments and the model's defaults say.

    Everything that can be refused without the model is refused when this is made.
    """

    def __init__(self, args: argparse.Namespace):
        from ..sampler import sampler_by_name

        self.args = args
        self.model = catalogue.find(args.model)
        asked = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(catalogue.Defaults)}
        self.settings = dataclasses.replace(
            self.model.defaults, **{name: value for name, value in asked.items() if value is not None}
        )
        self.negative = self.settings.negative or None
        self.seeds = _seeds(args)
        self.sampler = sampler_by_name(self.settings.sampler)
        self.several = args.n_images > 1 and args.only is None  # `again` keeps one picture of a batch only
        self.strength: float | None = None  # of image to image

    def call(self, **more: Any) -> dict[str, Any]:
        """The arguments of `generate_latents`, but for seeds and numbers of pictures."""
        clip_skip = {} if self.args.clip_skip is None else {"clip_skip": self.args.clip_skip}
        return {
            "text": self.args.prompt,
            "negative_text": self.negative,
            "num_steps": self.settings.steps,
            "cfg_weight": self.settings.cfg,
            "guidance_rescale": self.args.guidance_rescale,
            "width": self.args.width,  # the engine knows the checkpoint's own size best
            "height": self.args.height,
            "sampler": self.sampler,
            "prompt_language": self.args.prompt_language,
            **clip_skip,
            **more,
        }

    def load(self) -> Any:
        """The model, with the LoRAs that lie over it."""
        from .. import StableDiffusion

        report = Report(self.args.quiet)
        try:
            sd = StableDiffusion(
                self.model.source,
                float16=self.args.float16,
                progress=report,
                low_memory=self.args.low_memory,
                **self._asked_of_engine(),
            )
        finally:
            report.end()
        if self.args.lora:
            sd.set_loras(self.args.lora)
        return sd

    def parameters(self, more: Mapping[str, str]) -> Callable[[Used], Parameters]:
        """What every picture of the run records; seeds and sizes come with the pictures.

        `more` is what the command adds.
        """
        from ..record import keys
        from ..record.parameters import Parameters
        from ..sampler import a1111_name

        sampler, schedule = a1111_name(self.sampler)
        clip_skip = {} if self.args.clip_skip is None else {keys.CLIP_SKIP: str(self.args.clip_skip)}
        said = Parameters(
            prompt=self.args.prompt,
            negative=self.negative or "",
            steps=self.settings.steps,
            sampler=sampler,
            schedule=schedule,
            cfg=self.settings.cfg,
            model_hash=catalogue.short_hash(self.model.source),
            strength=self.strength,
            extra={**more, **clip_skip}
            | keys.of_rescale(self.args.guidance_rescale)
            | keys.of_language(self.args.prompt_language)
            | keys.of_asked(**self._asked_of_engine()),
        )
        return lambda used: dataclasses.replace(said, model=used.model, extra=said.extra | keys.of_used(used))

    def _asked_of_engine(self) -> dict[str, Any]:
        names = ("bits", "vae", "prediction_type")
        return {name: value for name in names if (value := getattr(self.args, name)) is not None}


def _seeds(args: argparse.Namespace) -> Seeds:
    from ..diffusion.noise import Seeds

    strength = args.variation_strength
    seeds = {}
    for option, asked in (("--seed", args.seed), ("--variation-seed", args.variation_seed)):
        seeds[option] = secrets.randbelow(2**32 - args.n_images) if asked < 0 else asked
        if seeds[option] + args.n_images - 1 > MAX_SEED:
            raise InputError(
                f"{option} {asked} is too near the largest seed, {MAX_SEED}, for {args.n_images} pictures."
            )
    if args.variation_seed >= 0 and not strength:
        raise InputError("--variation-seed does nothing without --variation-strength, such as 0.1.")
    return Seeds(seeds["--seed"], args.n_images, seeds["--variation-seed"] if strength else 0, strength)
