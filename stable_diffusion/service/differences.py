"""In which settings two pictures differ, from what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from ..record.parameters import Parameters

MISSING = "—"  # of a setting that only the other picture has


@dataclass(frozen=True)
class Row:
    """One setting of two pictures, in words."""

    name: str
    first: str
    second: str

    @property
    def equal(self) -> bool:
        """Whether both have the same value."""
        return self.first == self.second


def named(parameters: Parameters) -> dict[str, str]:
    """Name and value of each recorded setting other than the prompts, in words."""
    found = {
        "Model": parameters.model,
        "Model hash": parameters.model_hash,
        "Sampler": parameters.sampler,
        "Schedule": parameters.schedule,
        "Steps": parameters.steps,
        "CFG": parameters.cfg,
        "Seed": parameters.seed,
        "Size": f"{parameters.width} × {parameters.height}" if parameters.size else None,
        "Denoising strength": parameters.strength,
        **parameters.extra,
    }
    return {
        name: f"{value:.10g}" if isinstance(value, float) else str(value)
        for name, value in found.items()
        if value not in (None, "")
    }


def rows(first: Parameters, second: Parameters) -> list[Row]:
    """The settings of both, the prompts first; those that only one has stand as `MISSING` in the other."""
    prompts = [Row("Prompt", first.prompt, second.prompt), Row("Negative prompt", first.negative, second.negative)]
    one, two = named(first), named(second)
    names = dict.fromkeys([*one, *two])
    return [
        *(row for row in prompts if row.first or row.second),
        *(Row(name, one.get(name, MISSING), two.get(name, MISSING)) for name in names),
    ]
