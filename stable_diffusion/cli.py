"""What the command line does: paint pictures into files, list and convert models, tell how a picture was made.

Each command takes the parsed arguments of `__main__`, and raises what the engine raises. What is slow to import (MLX,
the engine, numpy, tqdm) is imported where it is needed, once the arguments have been checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models

from .errors import InputError, PictureError

if TYPE_CHECKING:
    from utils import Parameters

MAX_SEED = 2**64 - 1
BAR = "{desc}{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}, {elapsed} gone, {remaining} left"


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

    from .picture import open_picture
    from .sampler import a1111_name, sampler_by_name

    sampler = sampler_by_name(settings.sampler)
    sampler_title, schedule_title = a1111_name(sampler)
    picture = None if args.picture is None else open_picture(args.picture)
    output = Output(args.output, several=args.n_images > 1)
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

    from . import StableDiffusion

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
        extra=_overlaid(args, sd),
    )
    seeds = range(seed, seed + args.n_images)
    Painter(sd, call, output, args.preview, args.quiet).paint(seeds, args.batch_size, parameters)


def _overlaid(args: argparse.Namespace, sd: Any) -> dict[str, str]:
    """What lies over the model, for a picture's parameters; the hashes are A1111's."""
    from .adapters.files import short_hash
    from .adapters.tags import take_loras

    extra = {} if args.vae is None else {"VAE": Path(args.vae).name}
    if args.lora:
        extra["LoRA"] = ", ".join(f"{name}:{strength.unet:g}" for name, strength in sd.loras)
    if args.lora or take_loras(args.prompt)[1]:
        hashes = {name: short_hash(path) for name, path in sd.lora_files(args.prompt).items()}
        extra["Lora hashes"] = ", ".join(f"{name}: {digits}" for name, digits in hashes.items())
    return extra


def list_models(args: argparse.Namespace) -> None:
    """A table of all models, and below it what is wrong with those that cannot be used."""
    rows = [("NAME", "FAMILY", "PRECISION", "PREDICTS", "SIZE", "HASH", "LICENCE", "HERE")]
    listed = models.all()
    for model in listed:
        size = _bytes(model.size_bytes) if model.size_bytes else "?"
        here = {models.EMBEDDED: "comes along", models.LOCAL: "yes"}.get(model.kind, "yes" if model.present else "no")
        told = (model.name, model.family_title or "?", model.precision, model.prediction_type, size)
        hash_ = models.known_hash(model.source) if model.kind == models.LOCAL else None
        rows.append((*told, hash_ or "", model.licence or "?", "unusable" if model.problem else here))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(model.problem for model in listed):
        print("\nUnusable:")
    for model in listed:
        if model.problem:
            print(f"  {model.name}: {' '.join(model.problem.split())}")
    print(
        f"""
After --model stands one of these names, any other folder in diffusers' form, any other single file (.safetensors,
.ckpt), or any other id of the Hugging Face hub. What is not here is downloaded when it is first used (about half as
much with --float16, where the hub has it so). Files and folders inside models/, and inside those that
${models.FOLDERS_VARIABLE} names (A1111's or ComfyUI's too), are listed here; a file's hash once it was used."""
    )


def convert(args: argparse.Namespace) -> None:
    """Write a checkpoint in another form, and print where and how large it is."""
    model = models.find(args.source)

    from .model_io.convert import convert as write

    report = Report(args.quiet)
    try:
        path = write(
            model.source,
            args.destination,
            mlx=args.mlx,
            float16=args.float16,
            bits=args.bits,
            force=args.force,
            progress=report,
        )
    finally:
        report.end()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    print(path if args.quiet else f"{path}  ({_bytes(size)})")


def show_info(args: argparse.Namespace) -> None:
    """The parameters of a picture, for a person or as JSON."""
    import utils

    parameters = utils.read_parameters(args.picture)
    if parameters is None:
        raise PictureError(f"{args.picture!r} carries no parameters.")
    values = {name: value for name, value in dataclasses.asdict(parameters).items() if value not in (None, "", {})}
    if args.json:
        print(json.dumps(values, ensure_ascii=False, indent=2))
        return
    extra = values.pop("extra", {})
    if parameters.size:
        values["size"] = parameters.size
        del values["width"], values["height"]
    for name, value in [*((name.replace("_", " "), value) for name, value in values.items()), *extra.items()]:
        text = str(value).replace("\n", "\n" + " " * 17)
        # A stranger's file must not command the terminal.
        print("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in f"{name + ':':<16} {text}"))


class Output:
    """Where pictures go: to a file, which is replaced as `cp` does, or into a folder, under new names."""

    def __init__(self, where: str | None, several: bool):
        """Make the folder. Raises `InputError` for a file that is no picture, OSError where nothing can be written."""
        import utils

        path = Path("outputs", date.today().isoformat()) if where is None else Path(where)
        self.several = several
        self.into_folder = where is None or where.endswith(("/", "\\")) or path.is_dir() or not path.suffix
        if not self.into_folder and path.suffix.lower() not in utils.FORMATS:
            raise InputError(
                f"--output {where!r} should end in {', '.join(utils.FORMATS)}, or in a slash to mean a folder."
            )
        self.path = path
        self.folder = path if self.into_folder else path.parent
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, picture: Any, number: int, parameters: Parameters) -> Path:
        """Save picture `number` (from 1) of the run, and return where."""
        import utils

        if self.into_folder:
            return utils.save_new_picture(picture, self.folder, parameters)
        return utils.save_picture(picture, self._file(number), parameters)

    def preview(self, number: int, seed: int) -> Path:
        """The preview's file beside the one that picture `number` will get."""
        import utils

        name = utils.free_path(self.folder, seed) if self.into_folder else self._file(number)
        return name.with_name(f"{name.stem}.preview.png")

    def _file(self, number: int) -> Path:
        return self.path.with_stem(f"{self.path.stem}-{number}") if self.several else self.path


class Painter:
    """Runs the generations of one command: a bar, previews, and every picture saved as soon as it is there."""

    def __init__(self, sd: Any, call: dict[str, Any], output: Output, preview_every: int, quiet: bool):
        self.sd = sd
        self.call = call
        self.output = output
        self.preview_every = preview_every
        self.quiet = quiet

    def paint(self, seeds: range, batch_size: int, parameters: Parameters) -> None:
        """Paint one picture for each seed, `batch_size` at a time, and print the files, also after an interruption."""
        from tqdm import tqdm

        batches = [seeds[i : i + batch_size] for i in range(0, len(seeds), batch_size)]
        lines = []
        bar = tqdm(total=0, bar_format=BAR, disable=self.quiet, leave=True)
        try:
            for batch in batches:
                first = batch[0] - seeds[0] + 1
                for i, picture in enumerate(self._pictures(batch, first, bar, len(batches))):
                    height, width = picture.shape[:2]
                    made = dataclasses.replace(parameters, seed=batch[i], width=width, height=height)
                    path = self.output.save(picture, first + i, made)
                    lines.append(str(path) if self.quiet else f"{path}  (seed {batch[i]})")
        finally:
            bar.close()
            for line in lines:
                print(line)

    def _pictures(self, seeds: range, first: int, bar: Any, n_batches: int) -> Any:
        """The pictures of one batch (B, H, W, 3); its preview file lives no longer than this call."""
        import numpy as np

        preview = self.output.preview(first, seeds[0]) if self.preview_every else None
        latents = None
        try:
            for step in self.sd.generate_latents(**self.call, n_images=len(seeds), seed=seeds[0]):
                latents = step.latents
                np.asarray(latents)  # computes them: the bar shows what is done, not what is planned
                bar.total = step.total * n_batches
                bar.update()
                if preview and step.index % self.preview_every == 0 and step.index < step.total:
                    self._write_preview(np.asarray(self.sd.decode(step.denoised)), preview)
            return np.asarray(self.sd.decode(latents))
        finally:
            if preview:
                preview.unlink(missing_ok=True)

    @staticmethod
    def _write_preview(pictures: Any, path: Path) -> None:
        import utils

        utils.save_picture(utils.grid(list(pictures)), path)


class Report:
    """What the engine says while it downloads and loads, on stderr; on a terminal with the share that is done."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.message = ""
        self.live = sys.stderr.isatty()

    def __call__(self, message: str, fraction: float | None = None) -> None:
        if self.quiet:
            return
        new = message != self.message
        if new:
            self.end()
            self.message = message
        if self.live:
            share = "" if fraction is None else f" {fraction:4.0%}"
            print(f"\r\033[K{message}{share}", end="", file=sys.stderr, flush=True)
        elif new:
            print(message, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Finish the line."""
        if self.live and self.message:
            print(file=sys.stderr)
        self.message = ""


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
