"""Mix the weights of two or three checkpoints into a new single file, tensor by tensor.

The formulas and the metadata are those of A1111 (its modules/extras.py, run_modelmerger).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import atomic
from ..checks import number
from ..errors import InputError
from ..places import expanded
from .convert import SUFFIX, convert
from .describe import describe
from .hashes import full_hash
from .hub import Progress
from .locate import locate
from .safetensors_file import write_arrays
from .tensor_file import StoredTensor, TensorFile, as_floats, open_tensors

WEIGHTED_SUM, ADD_DIFFERENCE = MODES = ("weighted-sum", "add-difference")
NAMES = {WEIGHTED_SUM: "Weighted sum", ADD_DIFFERENCE: "Add difference"}  # A1111's
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MULTIPLIER = 0.3


def merge(
    sources: Sequence[str | os.PathLike],
    destination: str | os.PathLike,
    multiplier: float = MULTIPLIER,
    mode: str = WEIGHTED_SUM,
    float16: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the mixture of checkpoints A and B, or A, B and C, to a new .safetensors file; return its path.

    "weighted-sum" is A (1 - multiplier) + B multiplier, with two sources; "add-difference" A + (B - C) multiplier, with
    three. What is missing in B or C stays as it is in A. Sources are whatever `StableDiffusion` takes; folders are
    written as single files first, to a temporary folder. Memory is bounded by the largest tensor.

    Raises `InputError` for other modes, numbers of sources, shapes that differ, and a destination that exists (unless
    `force`); a subclass of `CheckpointError` for a source; and OSError.
    """
    number("multiplier", multiplier, 0, 2)
    wanted = {WEIGHTED_SUM: 2, ADD_DIFFERENCE: 3}.get(mode)
    if wanted is None:
        raise InputError(f"mode = {mode!r} should be one of {', '.join(MODES)}.")
    if len(sources) != wanted:
        raise InputError(f"{mode} takes {wanted} checkpoints, not {len(sources)}.")
    target = Path(os.path.abspath(expanded(destination)))
    if target.suffix != SUFFIX:
        raise InputError(f"{str(target)!r} cannot be written: end the name in {SUFFIX}.")
    if not target.parent.is_dir():
        raise InputError(f"{str(target)!r} cannot be written: there is no folder {str(target.parent)!r}.")
    if os.path.lexists(target) and not (force and target.is_file()):
        raise InputError(f"{str(target)!r} already exists; --force (force=True) replaces a file.")
    report = progress or (lambda message, fraction: None)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, contextlib.ExitStack() as stack:
        paths = [_single_file(source, Path(folder) / f"{i}{SUFFIX}", report) for i, source in enumerate(sources)]
        _check_families(sources, paths)
        files = [stack.enter_context(open_tensors(path)) for path in paths]
        entries = {key: (tensor.shape, _type(tensor, float16)) for key, tensor in files[0].tensors.items()}
        metadata = _metadata(sources, paths, multiplier, mode, float16)
        with atomic.written(target) as temporary:
            arrays = _mixed(files, entries, multiplier, mode, report)
            write_arrays(Path(temporary), entries, arrays, metadata)
    return Path(expanded(destination))


def mixed(tensors: Sequence[np.ndarray], multiplier: float, mode: str) -> np.ndarray:
    """One tensor of the result, float32, from those of all sources."""
    if mode == WEIGHTED_SUM:
        a, b = tensors
        return a * np.float32(1 - multiplier) + b * np.float32(multiplier)
    a, b, c = tensors
    return a + (b - c) * np.float32(multiplier)


def _mixed(
    files: Sequence[TensorFile],
    entries: dict[str, tuple[tuple[int, ...], str]],
    multiplier: float,
    mode: str,
    report: Progress,
) -> Iterator[np.ndarray]:
    for i, (key, (_, dtype)) in enumerate(entries.items()):
        report("Merging", i / len(entries))
        stored = [file.tensors.get(key) for file in files]
        first = stored[0]
        assert first is not None
        own = files[0].read(first)
        if first.dtype not in FLOATS:
            yield own
            continue
        floats = as_floats(own, first.dtype)
        if all(each is not None for each in stored):
            others = [
                as_floats(f.read(t), t.dtype) for f, t in zip(files[1:], stored[1:], strict=True) if t is not None
            ]
            for file, other in zip(files[1:], others, strict=True):
                if other.shape != floats.shape:
                    raise InputError(
                        f"{key} has the shape {floats.shape} in {str(files[0].path)!r} and {other.shape} in "
                        f"{str(file.path)!r}: only models of one architecture can be merged."
                    )
            floats = mixed([floats, *others], multiplier, mode)
        yield floats.astype(np.float16 if dtype == "F16" else np.float32)


def _type(tensor: StoredTensor, float16: bool) -> str:
    if tensor.dtype not in FLOATS:
        return tensor.dtype
    return "F16" if float16 or tensor.dtype in ("F16", "F8_E4M3", "F8_E5M2") else "F32"


def _single_file(source: str | os.PathLike, temporary: Path, report: Progress) -> Path:
    _, path = locate(source, False, report)
    return path if path.is_file() else convert(source, temporary, progress=report)


def _check_families(sources: Sequence[str | os.PathLike], paths: Sequence[Path]) -> None:
    families = [describe(path).family for path in paths]
    if len(set(families)) > 1:
        named = ", ".join(f"{str(source)!r} ({family})" for source, family in zip(sources, families, strict=True))
        raise InputError(f"These are of different families: {named}. Only models of one family can be merged.")


def _metadata(
    sources: Sequence[str | os.PathLike], paths: Sequence[Path], multiplier: float, mode: str, float16: bool
) -> dict[str, str]:
    hashes = [full_hash(path) for path in paths]
    roles = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
    recipe = {"type": "webui", "interp_method": NAMES[mode], "multiplier": multiplier, "save_as_half": float16}
    recipe |= dict(zip(roles, [*hashes, *[None] * 3], strict=False))
    models = {
        sha256: {"name": Path(source).name, "legacy_hash": None, "sd_merge_recipe": None}
        for sha256, source in zip(hashes, sources, strict=True)
    }
    return {"format": "pt", "sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)}
