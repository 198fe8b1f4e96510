"""k-diffusion's sampling.py by itself: importing its package would pull in training tools that this does not need."""

import importlib.metadata
import importlib.util
import sys
import types

NAME = "k_diffusion_alone"


def load():
    """The module `sampling` of the installed k-diffusion. Raises PackageNotFoundError where it is missing."""
    files = importlib.metadata.files("k-diffusion") or []
    path = next(file.locate() for file in files if file.as_posix() == "k_diffusion/sampling.py")
    package = types.ModuleType(NAME)
    package.__path__ = []
    package.utils = types.ModuleType(f"{NAME}.utils")
    package.utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules |= {NAME: package, f"{NAME}.utils": package.utils}
    spec = importlib.util.spec_from_file_location(f"{NAME}.sampling", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
