"""spandrel without torchvision, of which it needs nothing here: PyPI has none for torch's CPU builds."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def import_spandrel() -> Any:
    """The module; in torchvision's place stands an empty one while it is imported, unless there is a real one."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return _with_stubs()
    return pytest.importorskip("spandrel")


def _with_stubs() -> Any:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    for name in names:
        sys.modules[name] = ModuleType(name)
    functional: Any = sys.modules[names[-1]]
    functional.InterpolationMode = functional.rotate = functional.normalize = None
    try:
        return pytest.importorskip("spandrel")
    finally:
        for name in names:  # diffusers asks whether there is one
            del sys.modules[name]
