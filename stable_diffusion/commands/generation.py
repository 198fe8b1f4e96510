"""What the painting commands share: from arguments to a request, and from a request to a loaded model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import catalogue
from ..hires_upscalers import upscaler_named
from ..request import Request
from ..upscaling import upscalers
from .agreement import agreed
from .output import Output
from .running import Painter, Report

if TYPE_CHECKING:
    from ..recipes import Recipe
    from ..record.inputs import InputFile


TILED_STRENGTH = 0.1  # of a picture that keeps its composition, unless another one is asked for


def request_of(args: argparse.Namespace, **more: Any) -> Request:
    """`asked_request`, prepared and `agreed` on; warns of a negative prompt without effect."""
    request = agreed(asked_request(args, **more), args)
    warn_of_negative(request)
    return request


def warn_of_negative(request: Request) -> None:
    """Warn of a negative prompt without effect."""
    from ..sampler import sampler_by_name

    if request.negative and request.cfg <= 1 and not sampler_by_name(request.sampler).needs_negative:
        note = f"The negative prompt has no effect at CFG {request.cfg:g}, but for prompts with AND: give more than 1."
        warnings.warn(note, stacklevel=3)


def asked_request(args: argparse.Namespace, **more: Any) -> Request:
    """The request of a command's arguments, with the model's defaults for options not given.

    `more` are fields that the command makes, such as pictures. Raises what finding the model raises, and `InputError`
    for what can be refused before loading it.
    """
    from ..adapters.lora_recipe import first_recipe
    from ..sampler import key_of, sampler_by_name

    asked = {name: value for name, value in vars(args).items() if value is not None}
    model = catalogue.find(args.model)
    recipe = first_recipe(args.loras, args.prompt, names_only=False) or model.recipe
    defaults = dataclasses.asdict(catalogue.with_recipe(model.defaults, recipe))
    if recipe is not None:
        _say(recipe, asked, args)
    if args.refiner is not None:
        catalogue.find(args.refiner)  # before the first one is loaded
    values = {name: value for name, value in defaults.items() if value is not None and name not in ("width", "height")}
    sampler, schedule = asked.get("sampler", defaults["sampler"]), asked.get("schedule")
    if schedule is not None:
        given = "sampler" in asked  # else the schedule takes the place of the model's own
        sampler = sampler_by_name(sampler if given else sampler_by_name(sampler).key, schedule)
    values |= asked | {"sampler": key_of(sampler), "loras": tuple(args.loras)}
    if asked.get("hires_sampler"):
        values["hires_sampler"] = key_of(asked["hires_sampler"])
    if asked.get("hires_upscaler"):
        values["hires_upscaler"] = upscaler_named(asked["hires_upscaler"])
    if asked.get("upscaler"):
        values["upscaler"] = upscalers.find(asked["upscaler"]).name
    if (asked.get("by") or asked.get("tile")) and more.get("picture") is not None and "strength" not in asked:
        values["strength"] = TILED_STRENGTH
    values |= {"styles": tuple(args.styles)}
    return Request.from_values(values, **{"picture": None, "mask": None} | more)


def _say(recipe: Recipe, asked: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Print what a recipe sets that was not asked for otherwise."""
    own = {"steps", "cfg", "sampler"} - asked.keys() - ({"sampler"} if "schedule" in asked else set())
    if own and not getattr(args, "quiet", False):
        print(f"{recipe.what}: {recipe.settings(own)}.", file=sys.stderr)


def load(request: Request, quiet: bool) -> Any:
    """Load the request's model, with its LoRAs."""
    options = request.to_load()
    if request.vae is not None:
        options["vae"] = catalogue.vae_source(request.vae)
    sd = _loaded(request.model, options, quiet)
    if request.loras:
        sd.set_loras(list(request.loras))
    return sd


def load_refiner(request: Request, quiet: bool) -> Any:
    """Load the request's refiner; None if it has no other model than the first."""
    if request.refiner is None or catalogue.find(request.refiner).source == catalogue.find(request.model).source:
        return None
    return _loaded(request.refiner, request.to_load(refiner=True), quiet)


def _loaded(model: str, options: dict[str, Any], quiet: bool) -> Any:
    from .. import StableDiffusion

    report = Report(quiet)
    try:
        return StableDiffusion(catalogue.find(model).source, progress=report, **options)
    finally:
        report.end()


def paint(args: argparse.Namespace, request: Request) -> list[Path]:
    """Load the request's model, paint its pictures, save them, and print where."""
    output = Output(args.output, request.n_images > 1 and args.only is None, carried(request, args), args.no_record)
    models = load(request, args.quiet), load_refiner(request, args.quiet)
    return Painter(*models, request, output, args.preview, args.quiet).paint(args.only)


def carried(request: Request, args: argparse.Namespace) -> list[InputFile]:
    """The input files to embed in the pictures."""
    files = (request.picture_file, request.mask_file)
    return [file for file in files if file is not None] if args.embed_inputs else []
