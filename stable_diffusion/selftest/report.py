"""What a selftest has found, as text to paste into an issue and as JSON. No MLX."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

MEANING = """\
Something disagrees: pictures made on this machine may be wrong. What disagrees with plain forms too comes from MLX or
the machine, where another version of MLX may help; if only this program's own forms disagree, then setting
STABLE_DIFFUSION_OPS=plain in the environment avoids them. Please open an issue with what selftest has printed."""


@dataclass(frozen=True)
class Comparison:
    """`error` is the largest difference relative to the largest value, unless `what` says otherwise."""

    part: str
    what: str
    error: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """False for what is not a number, too."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Measurement:
    """A speed; `ratio` is the seconds relative to those of plain forms on the CPU."""

    part: str
    what: str
    seconds: float
    ratio: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A part that was left out, and why."""

    part: str
    reason: str


Finding = Comparison | Measurement | Skipped


@dataclass
class Report:
    """All that was found."""

    machine: dict[str, str]
    notes: list[str]
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of each part
    peaks: dict[str, float] = field(default_factory=dict)  # GiB, by who counts them

    def of(self, kind: type[Any]) -> list[Any]:
        """The findings of one kind."""
        return [each for each in self.findings if isinstance(each, kind)]

    @property
    def disagreeing(self) -> list[Comparison]:
        """The comparisons that failed."""
        return [each for each in self.of(Comparison) if not each.agrees]

    @property
    def agrees(self) -> bool:
        """Whether all of them passed."""
        return not self.disagreeing

    def headline(self) -> str:
        """One line."""
        compared, failed = len(self.of(Comparison)), len(self.disagreeing)
        parts = [f"{compared - failed} comparisons agree"]
        parts += [f"{failed} DISAGREE"] * bool(failed)
        skipped = len(self.of(Skipped))
        parts += [f"{skipped} part{'s' * (skipped > 1)} skipped"] * bool(skipped)
        return f"selftest: {', '.join(parts)} ({sum(self.seconds.values()):.0f} s)"

    def block(self) -> str:
        """The text to paste into an issue."""
        return "\n".join(["```", self.headline(), *self._lines(), "```"])

    def as_json(self) -> dict[str, Any]:
        """The same as data; infinite errors are null."""
        found: dict[str, list[dict[str, Any]]] = {"comparisons": [], "speed": [], "skipped": []}
        for each in self.findings:
            row = asdict(each)
            if isinstance(each, Comparison):
                row |= {"error": each.error if math.isfinite(each.error) else None, "agrees": each.agrees}
            found[{Comparison: "comparisons", Measurement: "speed", Skipped: "skipped"}[type(each)]].append(row)
        return {
            "agrees": self.agrees,
            "machine": self.machine,
            "notes": self.notes,
            **found,
            "seconds": self.seconds,
            "peak_gib": self.peaks,
        }

    def _lines(self) -> Iterator[str]:
        for name, value in self.machine.items():
            yield f"{name:9} {value}"
        for note in self.notes:
            yield f"{'note':9} {note}"
        for each in sorted(self.of(Comparison), key=lambda each: each.agrees):
            verdict = "agree" if each.agrees else "DISAGREE"
            yield f"{verdict:9} {each.part}: {each.what}: {each.error:.1e} (allowed: {each.allowed:.0e})"
        for each in self.of(Measurement):
            ratio = "" if each.ratio is None else f", {each.ratio:.2f} of the plain forms' on the CPU"
            yield f"{'speed':9} {each.what}: {each.seconds:.2f} s{ratio}"
        for each in self.of(Skipped):
            yield f"{'skipped':9} {each.part}: {each.reason}"
        if self.peaks:
            yield f"{'peak':9} {', '.join(f'{size:.1f} GiB ({name})' for name, size in self.peaks.items())}"
        yield f"{'time':9} {', '.join(f'{part} {seconds:.1f} s' for part, seconds in self.seconds.items())}"
