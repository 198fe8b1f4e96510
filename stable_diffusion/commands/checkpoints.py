"""models, samplers, convert and merge: list what there is, and make checkpoints of others."""

from __future__ import annotations

import argparse
from typing import Any

from .. import catalogue
from ..schedules import TITLES
from .options import add_debug, add_setting, number, path
from .running import Report


def add_to(commands: Any) -> None:
    """Add their parsers."""
    listing = commands.add_parser("models", help="list the models", description="List the models to choose from.")
    listing.set_defaults(run=list_models)
    samplers = commands.add_parser(
        "samplers", help="list the samplers and schedules", description="List the samplers and schedules by name."
    )
    samplers.set_defaults(run=list_samplers)
    add_debug(samplers)
    conversion = commands.add_parser(
        "convert",
        help="write a checkpoint in another form or precision",
        description="Write a checkpoint in another form or precision: as a single file in the original layout if "
        "DEST ends in .safetensors, else as a folder in diffusers' form, or with --mlx or --bits as a folder in this "
        "program's own form, which loads fastest and may be quantised. Pictures stay the same but for the precision.",
    )
    conversion.add_argument(
        "source", metavar="SOURCE", help="a name that `models` lists, a folder, a single file, or an id of the hub"
    )
    conversion.add_argument(
        "destination", type=path, metavar="DEST", help="a new folder, or a new file that ends in .safetensors"
    )
    conversion.add_argument("--mlx", action="store_true", help="a folder in this program's own form")
    add_setting(conversion, "bits")
    conversion.add_argument(
        "--float16",
        action="store_true",
        default=None,
        help="half precision: half the size (default: as the source)",
    )
    conversion.add_argument("--float32", action="store_false", dest="float16", help="single precision")
    conversion.add_argument("--force", action="store_true", help="replace an existing checkpoint at DEST")
    conversion.add_argument("--quiet", action="store_true", help="print only the name of what was written")
    conversion.set_defaults(run=convert)
    add_debug(listing)
    add_debug(conversion)
    _add_merge(commands)


def _add_merge(commands: Any) -> None:
    merging = commands.add_parser(
        "merge",
        help="mix two or three checkpoints into a new one",
        description="Mix the weights of checkpoints of one family, as A1111's checkpoint merger does: A and B as their "
        "weighted sum, or with C as A + (B - C) M, which brings what B learnt since C to A.",
    )
    merging.add_argument("sources", nargs="+", metavar="MODEL", help="A and B, or A, B and C: as --model takes them")
    merging.add_argument(
        "--output", type=path, required=True, metavar="FILE", help="a new file that ends in .safetensors"
    )
    merging.add_argument(
        "--multiplier", type=number(0, 2), default=0.3, metavar="M", help="how much of B, or of B - C (default: 0.3)"
    )
    merging.add_argument(
        "--mode",
        choices=("weighted-sum", "add-difference"),
        help="A (1 - M) + B M, or A + (B - C) M (default: by the number of models)",
    )
    merging.add_argument("--float16", action="store_true", help="half precision: half the size")
    merging.add_argument("--force", action="store_true", help="replace an existing file")
    merging.add_argument("--quiet", action="store_true", help="print only the name of what was written")
    merging.set_defaults(run=merge)
    add_debug(merging)


def list_models(args: argparse.Namespace) -> None:
    """Print a table of all models, and what is wrong with those that cannot be used."""
    rows = [("NAME", "FAMILY", "PRECISION", "PREDICTS", "SIZE", "HASH", "LICENCE", "STATUS")]
    listed = catalogue.all()
    for model in listed:
        size = _bytes(model.size_bytes) if model.size_bytes else "?"
        status = model.kind if model.kind != catalogue.HUB else "downloaded" if model.present else "not downloaded"
        known = (model.name, model.family_title or "?", model.precision, model.prediction_type, size)
        hash_ = catalogue.known_hash(model.source) if model.kind == catalogue.LOCAL else None
        if model.problem:
            status = "needs a VAE" if model.lacks_vae else "unusable"
        rows.append((*known, hash_ or "", model.licence or "?", status))
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
--model takes any of these names, or the path of any other folder in diffusers' form or single file (.safetensors,
.ckpt), or any other id of the Hugging Face hub. Hub models are downloaded on first use (with --float16 about half as
much, where the hub has such files). What is in models/ is listed, and in the folders that
${catalogue.FOLDERS_VARIABLE} names (A1111's or ComfyUI's too); a file's hash is shown once it has been used."""
    )


def list_samplers(args: argparse.Namespace) -> None:
    """Print the samplers and the schedules: their names here, and those that other programs show."""
    from ..sampler import SAMPLERS, automatic_of

    width = max(len(name) for name in (*TITLES, *(each.key for each in SAMPLERS)))
    print("Samplers, for --sampler, and the schedule that automatic means for each:")
    for each in SAMPLERS:
        usual = TITLES.get(automatic_of(each.key) or "", "what the model says")
        print(f"{each.key:<{width}}  {each.title:<14}  {usual if each.schedules else 'has none'}")
    print('\nSchedules, for --schedule, or after a sampler\'s name as in euler_karras or "Euler Karras":')
    some: dict[tuple[str, ...], list[str]] = {}
    for key, title in TITLES.items():
        without = tuple(each.key for each in SAMPLERS if key not in each.schedules)
        some.setdefault(without, []).append(f"{key:<{width}}  {title}")
    for without, lines in some.items():
        print(*lines, f"{'':<{width}}  (for all but {', '.join(without)})", sep="\n")


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint, and print where the result is and its size."""
    model = catalogue.find(args.source)

    from ..model_io.convert import convert as write

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


def merge(args: argparse.Namespace) -> None:
    """Merge checkpoints, and print where the result is and its size."""
    from ..model_io.merge import ADD_DIFFERENCE, WEIGHTED_SUM
    from ..model_io.merge import merge as write

    sources = [catalogue.find(name).source for name in args.sources]
    mode = args.mode or (ADD_DIFFERENCE if len(sources) == 3 else WEIGHTED_SUM)
    report = Report(args.quiet)
    try:
        path = write(sources, args.output, args.multiplier, mode, args.float16, args.force, report)
    finally:
        report.end()
    print(path if args.quiet else f"{path}  ({_bytes(path.stat().st_size)})")


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
