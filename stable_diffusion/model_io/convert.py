"""Any checkpoint -> a diffusers folder, a single file, or a folder in our own form; never a partial one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .. import atomic
from ..backend import mx
from ..errors import InputError
from ..listing import is_companion, visible
from ..places import expanded
from ..text.tokenizer import Tokenizer
from . import export
from .checkpoint import Checkpoint
from .describe import describe
from .hub import COMPONENTS, Progress
from .locate import load, locate
from .quantised import check_bits, quantise
from .safetensors_file import write_safetensors
from .single_file_terms import check_terms
from .strict import HALVES, read_header

SINGLE_FILE, FOLDER, OWN = "single file", "diffusers", "mlx"
SUFFIX = ".safetensors"
OTHER_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
OWN_NAMES = {*COMPONENTS, "model_index.json"}  # of a checkpoint folder
SPARE = 1 << 20  # bytes on the disk, for configurations


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    mlx: bool = False,
    float16: bool | None = None,
    bits: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint in another form or precision, and return where.

    `source` is whatever `StableDiffusion` takes. A `destination` ending in .safetensors is a single file in the
    original layout; any other is a folder, in diffusers' form or, with `mlx` or `bits` (8 or 4), in this engine's own,
    which loads without conversion and may be quantised. `float16` None keeps half precision if the source has it.
    `force` replaces what is at `destination`: a file, or a folder that holds a checkpoint and nothing else.

    Raises `InputError` for a destination that exists or a form that cannot hold this checkpoint, a subclass of
    `CheckpointError` for the source, and OSError for the disk (ENOSPC before anything is written).
    """
    check_bits(bits)
    named = expanded(destination)
    target = Path(os.path.abspath(named))
    form = _form(target, mlx, bits)
    _check_free(target, form, force)
    report = progress or (lambda message, fraction: None)
    _, path = locate(source, bool(float16), progress)
    if float16 is None:
        float16 = _is_half(path)
    dtype = mx.float16 if float16 else mx.float32
    texts, weights = _contents(_loaded(path, dtype, bits, report), path, form, dtype, target.stem)
    _write_to(target, form, texts, weights, force, report)
    return named


def write_checkpoint(
    checkpoint: Checkpoint, source: Path, destination: str | os.PathLike, force: bool = False, check_only: bool = False
) -> None:
    """Write a checkpoint in memory in float16, in the forms of `convert` that are not quantised.

    Configurations come from the folder or file `source` that it was loaded from. With `check_only` nothing is written.
    Raises what `convert` raises.
    """
    target = Path(os.path.abspath(expanded(destination)))
    form = _form(target, mlx=False, bits=None)
    if check_only and form == SINGLE_FILE:
        _check_tokenizers(checkpoint)
    if not check_only:
        texts, weights = _contents(checkpoint, source, form, mx.float16, target.stem)
        _write_to(target, form, texts, weights, force, lambda message, fraction: None)


def _write_to(
    target: Path, form: str, texts: dict[str, bytes], weights: export.Weights, force: bool, report: Progress
) -> None:
    size = sum(tensor.nbytes for tensors, _ in weights.values() for tensor in tensors.values())
    size += sum(map(len, texts.values()))
    _check_space(target, size)
    with _disk_errors(target, size), _replaced(target, form, force) as temporary:
        _write(temporary, texts, weights, size, report)


def _form(target: Path, mlx: bool, bits: int | None) -> str:
    own = mlx or bits is not None
    if target.suffix in OTHER_SUFFIXES:
        raise InputError(f"{str(target)!r} cannot be written: end the name in {SUFFIX}, or in nothing for a folder.")
    if target.suffix == SUFFIX and own:
        raise InputError(f"{str(target)!r} cannot be written: MLX's form and quantised weights need a folder.")
    return SINGLE_FILE if target.suffix == SUFFIX else OWN if own else FOLDER


def _check_free(target: Path, form: str, force: bool) -> None:
    """Refuse to overwrite anything; with `force`, anything but a checkpoint."""
    if not target.parent.is_dir():
        raise InputError(f"{str(target)!r} cannot be written: there is no folder {str(target.parent)!r}.")
    if not os.path.lexists(target) or (form != SINGLE_FILE and target.is_dir() and not any(target.iterdir())):
        return
    if target.is_symlink() or (target.is_file() if form != SINGLE_FILE else not target.is_file()):
        raise InputError(f"{str(target)!r} already exists and is not a {'file' if form == SINGLE_FILE else 'folder'}.")
    if not force:
        raise InputError(f"{str(target)!r} already exists; --force (force=True) replaces it.")
    if target.is_dir():
        foreign = sorted({entry.name for entry in target.iterdir() if not is_companion(entry.name)} - OWN_NAMES)
        if foreign:
            raise InputError(
                f"{str(target)!r} holds more than a checkpoint ({', '.join(foreign[:3])}), so it is not replaced; "
                f"choose another name."
            )


def _is_half(path: Path) -> bool:
    """True if float16 holds all values of a checkpoint's U-Net; bfloat16 becomes float32."""
    if path.is_file():
        return describe(path).precision in ("float16", "float8")
    unet = path / "unet"
    files = [file for file in visible(unet) if file.suffix == SUFFIX] if unet.is_dir() else []
    plain = [file for file in files if ".fp16." not in file.name] or files
    return bool(plain) and any(dtype in HALVES for _, dtype in list(read_header(plain[0]).values())[:3])


def _loaded(path: Path, dtype: mx.Dtype, bits: int | None, report: Progress) -> Checkpoint:
    checkpoint = load(path, dtype, report)
    if bits is not None:
        quantise(checkpoint.unet, checkpoint.text_encoders, bits, report)
    return checkpoint


def _contents(
    checkpoint: Checkpoint, path: Path, form: str, dtype: mx.Dtype, name: str
) -> tuple[dict[str, bytes], export.Weights]:
    """What to write. Nothing here keeps the checkpoint, so that weights leave memory as they are written."""
    if form == SINGLE_FILE:
        _check_tokenizers(checkpoint)
        weights = export.single_file_weights(checkpoint, dtype, name)
        check_terms(checkpoint, weights[""][0])
        return {}, weights
    texts = export.folder_texts(checkpoint, path, own=form == OWN)
    return texts, (export.own_weights if form == OWN else export.diffusers_weights)(checkpoint, dtype)


def _check_tokenizers(checkpoint: Checkpoint) -> None:
    clip = Tokenizer.clip()
    if any(tokenizer.vocab_size != clip.vocab_size for tokenizer in checkpoint.tokenizers):
        raise InputError(
            "A single file carries no tokenizer, and this checkpoint's is not CLIP's: write a folder instead."
        )


def _write(temporary: Path, texts: dict[str, bytes], weights: export.Weights, size: int, report: Progress) -> None:
    done = sum(map(len, texts.values()))

    def written(count: int) -> None:
        nonlocal done
        done += count
        report("Writing", min(done / max(size, 1), 1.0))

    for name, content in texts.items():
        file = temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name in list(weights):
        tensors, metadata = weights.pop(name)
        file = temporary / name if name else temporary
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, tensors, metadata, written)


# --- The disk


@contextlib.contextmanager
def _replaced(target: Path, form: str, force: bool) -> Iterator[Path]:
    """A temporary name next to the target, which replaces it on success and is removed on failure."""
    with atomic.temporary(target) as temporary:
        yield temporary
        _check_free(target, form, force)  # a conversion takes a while
        if target.is_dir() and any(target.iterdir()):
            old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
            target.rename(old)
            try:
                temporary.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(target)


def _check_space(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size + SPARE:
        raise _full(target, size, free)


@contextlib.contextmanager
def _disk_errors(target: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _full(target, size, shutil.disk_usage(target.parent).free) from error


def _full(target: Path, size: int, free: int) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"The disk has too little room: {size / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free",
        str(target),
    )
