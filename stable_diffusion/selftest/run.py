"""Runs the parts of a selftest one after another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from .. import backend
from ..backend import mx
from . import machine
from .parts import PARTS
from .report import Report
from .shapes import Sizes

ALL_THREADS = 1 << 40  # multiply-adds of products that are worth all threads

Progress = Callable[[str, float | None], None]


def run(sizes: Sizes, progress: Progress | None = None) -> Report:
    """All parts; `progress(message, share)` hears which one begins, and may raise to stop."""
    backend.prepare()
    mx.reset_peak_memory()
    report = Report(machine.describe(), machine.notes())
    for i, (name, part) in enumerate(PARTS.items()):
        if progress is not None:
            progress(f"Testing: {name}", i / len(PARTS))
        backend.fit_threads(ALL_THREADS)
        start = time.perf_counter()
        for finding in part(sizes):
            report.findings.append(finding)
        report.seconds[name] = time.perf_counter() - start
        gc.collect()
        backend.give_back_memory()
    report.peaks = machine.peaks()
    return report
