"""What the machines of one run must have in common, compared before anybody paints; nothing to do for one alone."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, prompts, ranks
from ..catalogue import WEIGHTS
from ..ranks import RankError

if TYPE_CHECKING:
    from ..record.inputs import InputFile
    from ..record.used import Used
    from ..request import Request

OWN = ("run", "output", "preview", "quiet", "debug", "others")  # arguments that may differ: not what is painted
PICTURES = ("picture", "picture_file", "mask", "mask_file")  # rank 0 reads them for all
MENDS = {
    "program": "Install the same version on all machines.",
    "weights": "Give all machines the same model.",
    "VAE": "Give all machines the same VAE.",
    "refiner": "Give all machines the same refiner.",
    "precision": "Give --float16 or --no-float16.",
    "LoRAs": "Give all machines the same files.",
    "embeddings": "Give all machines the same files.",
}


def input_file(path: str | Path | InputFile) -> InputFile:
    """`InputFile.read` on rank 0, whose file all take: the others need not have it. Raises `PictureError` there."""
    from ..record.inputs import InputFile, recordable

    group = ranks.group()
    if group.size == 1 or isinstance(path, InputFile):
        return InputFile.read(path)
    return InputFile(recordable(path), group.from_first(f"file {path}", lambda: InputFile.read(path).data))


def agreed(request: Request, args: argparse.Namespace) -> Request:
    """`prompts.prepared`, with what rank 0 draws and finds: seeds, styles, wildcards. Raises what that raises.

    Raises `RankError` if the machines were asked for different things.
    """
    group = ranks.group()
    if group.size == 1:
        return prompts.prepared(request)
    fields = {each.name: getattr(request, each.name) for each in dataclasses.fields(request)}
    asked = {name: repr(value) for name, value in (vars(args) | fields).items() if name not in (*OWN, *PICTURES)}
    _compare("settings", {"program": __version__} | asked)

    def changes() -> dict[str, Any]:
        made = prompts.prepared(request)
        return {
            name: getattr(made, name) for name in fields if name not in PICTURES and getattr(made, name) != fields[name]
        }

    told = group.from_first("prepared", changes)
    return dataclasses.replace(request, **{name: _tuples(value) for name, value in told.items()})


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def agree_on_engine(sd: Any, used: Used) -> None:
    """Compare what was loaded. Raises `RankError` for other files, and warns of another MLX or kind of device."""
    if ranks.group().size == 1:
        return
    vae = None if used.vae is None else [used.vae, used.vae_hash or fingerprint(Path(used.vae))]
    found = {
        "weights": used.model_hash or fingerprint(sd.path),
        "VAE": vae,
        "refiner": [used.refiner, used.refiner_hash],
        "precision": used.precision,
        "LoRAs": dict(used.lora_hashes),
        "embeddings": dict(used.embedding_hashes),
    }
    _compare("engine", found)
    versions = ranks.group().tell_all("version", used.version)
    if len(set(versions)) > 1 and not ranks.group().rank:
        listed = ", ".join(f"{ranks.group().name(rank)}: {version}" for rank, version in enumerate(versions))
        warnings.warn(f"The machines differ, so their pictures may by rounding ({listed}).", stacklevel=2)


def fingerprint(path: Path | None) -> str:
    """Hex digits for the weights of a file or folder, from sizes and some bytes of each file, so that it is quick."""
    digest = hashlib.sha256()
    for file in _weights(path):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for place in (0, size // 3, size // 2, size - 4096):
                opened.seek(max(0, place))
                digest.update(opened.read(4096))
    return digest.hexdigest()[:10]


def _weights(path: Path | None) -> list[Path]:
    if path is None or not path.exists():
        return []
    suffixes = (*WEIGHTS, ".bin")
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix in suffixes)


def _compare(topic: str, found: dict[str, Any]) -> None:
    group = ranks.group()
    first, *others = group.tell_all(topic, found)
    for rank, other in enumerate(others, 1):
        for name in first:
            if other.get(name) != first[name]:
                mend = MENDS.get(name, "Start all with the same command.")
                raise RankError(
                    f"{group.name(rank)} has {name} = {other.get(name)}, {group.name(0)} {first[name]}. {mend}"
                )
