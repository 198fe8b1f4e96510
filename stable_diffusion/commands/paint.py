"""txt2img and img2img: pictures from a text, or from a picture and a text."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from pathlib import Path
from typing import Any

import models

from ..errors import InputError
from .options import MAX_SEED, add_embed_inputs, add_generation_options, number
from .running import Output, Painter, Report


def add_to(kinds: Any) -> None:
    """Add the parsers of both."""
    text = kinds.add_parser(
        "txt2img",
        help="paint a picture from a text",
        description="Paint a picture from a text.",
        usage="%(prog)s PROMPT [options]",
    )
    text.set_defaults(run=generate, picture=None, strength=None, embed_inputs=False)
    add_generation_options(text)

    image = kinds.add_parser(
        "img2img",
        help="repaint a picture after a text",
        description="Repaint a picture after a text. The picture is cropped to the size that is painted.",
        usage="%(prog)s PICTURE PROMPT [options]",
    )
    image.add_argument("picture", metavar="PICTURE", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file to start from")
    image.set_defaults(run=generate)
    how = add_generation_options(image)
    add_embed_inputs(image)
    how.add_argument(
        "--strength",
        type=number(0, 1),
        metavar="S",
        help="how much may change: near 0 almost nothing, 1 everything (default: the model's, usually 0.7)",
    )


def generate(args: argparse.Namespace) -> None:
    """txt2img and img2img: paint, save, and print where."""
    model = models.find(args.model)
    asked = {field.name: getattr(args, field.name) for field in dataclasses.fields(models.Defaults)}
    settings = dataclasses.replace(
        model.defaults, **{name: value for name, value in asked.items() if value is not None}
    )
    seed = secrets.randbelow(2**32 - args.n_images) if args.seed < 0 else args.seed
    if seed + args.n_images - 1 > MAX_SEED:
        raise InputError(f"--seed {seed} is too near the largest seed, {MAX_SEED}, for {args.n_images} pictures.")

    from ..provenance import InputFile, record
    from ..sampler import a1111_name, sampler_by_name

    sampler = sampler_by_name(settings.sampler)
    sampler_title, schedule_title = a1111_name(sampler)
    source = None if args.picture is None else InputFile.read(args.picture)
    picture = source and source.open()
    carry = [source] if source and args.embed_inputs else []
    output = Output(args.output, args.n_images > 1, carry)
    call: dict[str, Any] = {
        "text": args.prompt,
        "negative_text": settings.negative,
        "num_steps": settings.steps,
        "cfg_weight": settings.cfg,
        "width": args.width,  # the engine knows the checkpoint's own size best
        "height": args.height,
        "sampler": sampler,
    }
    if picture is not None:
        call |= {"input_image": picture, "denoising_strength": settings.strength}

    from utils import Parameters

    from .. import StableDiffusion

    report = Report(args.quiet)
    given = {name: value for name in ("bits", "vae", "prediction_type") if (value := getattr(args, name)) is not None}
    sd = StableDiffusion(model.source, float16=args.float16, progress=report, **given)
    report.end()
    if args.lora:
        sd.set_loras(args.lora)
    parameters = Parameters(
        prompt=args.prompt,
        negative=settings.negative or "",
        steps=settings.steps,
        sampler=sampler_title,
        schedule=schedule_title,
        cfg=settings.cfg,
        model_hash=models.short_hash(model.source),
        model=sd.name,
        strength=None if picture is None else settings.strength,
        extra=record(source) | _overlaid(args, sd),
    )
    seeds = range(seed, seed + args.n_images)
    Painter(sd, call, output, args.preview, args.quiet).paint(seeds, args.batch_size, parameters)


def _overlaid(args: argparse.Namespace, sd: Any) -> dict[str, str]:
    """What lies over the model, for a picture's parameters; the hashes are A1111's."""
    from ..adapters.files import short_hash
    from ..adapters.tags import take_loras

    extra = {} if args.vae is None else {"VAE": Path(args.vae).name}
    if args.lora:
        extra["LoRA"] = ", ".join(f"{name}:{strength.unet:g}" for name, strength in sd.loras)
    if args.lora or take_loras(args.prompt)[1]:
        hashes = {name: short_hash(path) for name, path in sd.lora_files(args.prompt).items()}
        extra["Lora hashes"] = ", ".join(f"{name}: {digits}" for name, digits in hashes.items())
    return extra
