"""What an upscaler's file holds, from its header alone. Needs no MLX."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, UnsupportedCheckpointError, WeightsError
from ..model_io import describe as checkpoints
from ..model_io.tensor_file import TensorFile, open_tensors
from .architectures import Description, architecture_of, describe, own_keys


def describe_file(path: Path) -> Description:
    """What a file holds, from its header. Raises as `load_network`."""
    with open_tensors(path) as file:
        return described(file)[1]


def described(file: TensorFile) -> tuple[dict[str, str], Description]:
    """The network's names of its tensors -> the file's keys, and what the file holds."""
    keys = own_keys(file.tensors)
    shapes = {name: file.tensors[key].shape for name, key in keys.items()}
    try:
        return keys, describe(shapes)
    except UnsupportedCheckpointError as error:
        other = "" if architecture_of(keys) else _kind(file)
        raise UnsupportedCheckpointError(f"{file.path} {other or error}.") from None
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
        raise senseless(file.path) from None


def _kind(file: TensorFile) -> str:
    """What it is, if it has to do with diffusion, else ""."""
    try:
        found = checkpoints.describe_open(file)
    except (CheckpointError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return ""
    return "" if found.kind.startswith(checkpoints.NOTHING_KNOWN) else f"holds {found.kind}, not an upscaler"


def senseless(path: Path) -> WeightsError:
    """The error for a file whose shapes contradict each other."""
    return WeightsError(f"{path}: the shapes of its tensors make no sense. Download or copy it again.")
