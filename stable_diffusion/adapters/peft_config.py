"""peft's settings of an adapter: alpha and rank of each layer, from a safetensors header or adapter_config.json.

Reference: peft/utils/other.py get_pattern_key, peft/tuners/lora/model.py and lokr/model.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WeightsError

HEADER_KEY = "lora_adapter_metadata"  # as diffusers writes it into a file's header
CONFIG_FILE = "adapter_config.json"
PATTERNS = ("alpha_pattern", "rank_pattern")
MAX_PATTERN = 500  # characters
MAX_REPEATS = 3  # Python's regular expressions take exponential time, and a file comes from anybody
# Ways to begin training that also change the base model's weights, without which an adapter is incomplete.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

NOT_SUPPORTED = (
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
)


@dataclass(frozen=True)
class PeftConfig:
    """The settings for one network's layers."""

    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""  # for errors

    def alpha(self, module: str) -> float | None:
        """A layer's alpha, None if it is not given. Raises `WeightsError` for something else than a number."""
        return self._number("alpha", module, "alpha_pattern", self.values.get("lora_alpha", self.values.get("alpha")))

    def rank(self, module: str) -> float | None:
        """The rank by which a layer's alpha is divided, None if it is not given. Raises `WeightsError`."""
        rank = self._number("rank", module, "rank_pattern", self.values.get("r"))
        if rank is not None and rank <= 0:
            raise WeightsError(f"{self.source}: the rank is {rank!r}, which is not a positive number.")
        return rank

    @property
    def root(self) -> bool:
        """Whether alpha is divided by the rank's square root."""
        return bool(self.values.get("use_rslora"))

    def not_honoured(self) -> list[str]:
        """The settings that change the result and are ignored, in words."""
        start = str(self.values.get("init_lora_weights")).lower()
        found = [f"init_lora_weights = {start!r}"] * start.startswith(CHANGE_THE_BASE)
        found += [f"{name} = {self.values[name]!r}" for name in NOT_SUPPORTED if self.values.get(name)]
        for name in PATTERNS:
            found += [f"{pattern!r} in {name}" for pattern in self._patterns(name) if not _is_plain(pattern)]
        return found

    def _patterns(self, name: str) -> Mapping[str, Any]:
        patterns = self.values.get(name)
        return patterns if isinstance(patterns, dict) else {}

    def _number(self, what: str, module: str, name: str, usual: Any) -> float | None:
        """The value of the first pattern that matches the module's name or its end."""
        matching = (
            value
            for pattern, value in self._patterns(name).items()
            if _is_plain(pattern) and re.match(rf"(.*\.)?({pattern})$", module)
        )
        value = next(matching, usual)
        if value is not None and type(value) not in (int, float):
            raise WeightsError(f"{self.source}: {what} is {value!r} in its metadata, which is not a number.")
        return value


def read_configs(path: Path, metadata: Mapping[str, str], components: Iterable[str]) -> dict[str, PeftConfig]:
    """The settings for each component: the file's header, for one network or several, or the file next to it."""
    header = _json(metadata.get(HEADER_KEY))
    components = list(components)
    prefixed = any(key.startswith(f"{each}.") for key in header for each in components)
    beside = {} if header else _json(path.with_name(CONFIG_FILE))
    found = {}
    for each in components:
        own = {key.removeprefix(f"{each}."): value for key, value in header.items() if key.startswith(f"{each}.")}
        found[each] = PeftConfig(own if prefixed else header or beside, str(path))
    return found


def _is_plain(pattern: str) -> bool:
    """Whether a regular expression is valid, and cannot take long on a module's name."""
    if len(pattern) > MAX_PATTERN or re.search(r"\)[*+{?]|\(\?|\\\d", pattern):
        return False
    if len(re.findall(r"(?<!\\)[*+{]", pattern)) > MAX_REPEATS:
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _json(source: str | Path | None) -> dict[str, Any]:
    try:
        values = json.loads(source.read_text(encoding="utf-8") if isinstance(source, Path) else source or "{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
