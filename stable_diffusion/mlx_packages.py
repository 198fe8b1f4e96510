"""Which of MLX's packages are installed. On Linux its library comes in one of three, and only one may be installed.

On a Mac plain `mlx` is enough. A build from source, or conda's, has none of the three and works.
"""

from __future__ import annotations

import contextlib
import os
import sys

from .errors import BackendError

EXTRAS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda12", "mlx-cuda-13": "cuda13"}  # package -> the extra of mlx


def check_single() -> None:
    """Raise `BackendError` if several of the three are installed: each overwrites the others' files."""
    if sys.platform == "linux" and _several_seem_installed() and len(found := _installed()) > 1:
        raise _several(found)


def import_failed(error: ImportError) -> BackendError:
    """The error for an MLX that cannot be imported: what is missing, and the command that installs it."""
    found = _installed()
    if sys.platform != "linux":
        return BackendError(f"MLX cannot be imported ({error}): pip install --force-reinstall mlx")
    if len(found) == 1:
        return BackendError(f"MLX cannot be imported ({error}): {_install(found[0], '--force-reinstall ')}")
    if found:
        return _several(found)
    return BackendError(
        f"MLX's library is not installed: {_install('mlx-cpu')} installs the one for CPUs (with an NVIDIA GPU take "
        "cuda12 or cuda13 instead of cpu)."
    )


def _several(found: list[str]) -> BackendError:
    return BackendError(
        f"{' and '.join(found)} are installed together, and overwrite each other's files. Keep one: "
        f"pip uninstall -y mlx {' '.join(found)} && {_install(found[-1])}"
    )


def _several_seem_installed() -> bool:
    """The same from folders' names alone: `importlib.metadata` takes a tenth of the time that this package loads in."""
    names: list[str] = []
    for folder in sys.path:
        with contextlib.suppress(OSError):
            names += os.listdir(folder or ".")
    found = {name.partition("-")[0].lower() for name in names if name.endswith((".dist-info", ".egg-info"))}
    return len(found & {package.replace("-", "_") for package in EXTRAS}) > 1


def _installed() -> list[str]:
    return [package for package in EXTRAS if _version(package)]


def _install(package: str, options: str = "") -> str:
    version = _version("mlx")
    return f"pip install {options}'mlx[{EXTRAS[package]}]{f'=={version}' if version else ''}'"


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
