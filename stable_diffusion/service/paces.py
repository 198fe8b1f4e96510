"""How long pictures take on this machine, from the last ones, by what that depends on."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable

from ..request import Request

LAST = 3  # pictures of a kind whose times are kept; the quickest counts, since the first one is slow
MAX_KINDS = 100


class Paces:
    """Measured times by kind of picture: its model and how that is loaded, its size, and whatever else costs time.

    All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, deque[tuple[float, float]]] = OrderedDict()

    def note(self, request: Request, seconds: float, step_seconds: Iterable[float]) -> None:
        """Note that one picture took `seconds` in all, and those of its steps that were measured, these."""
        step = min([*step_seconds, seconds / request.steps])  # the first and the last one do other things, too
        rest = seconds - step * request.steps
        with self._lock:
            self._found.setdefault(_kind(request), deque(maxlen=LAST)).append((step, rest))
            self._found.move_to_end(_kind(request))
            while len(self._found) > MAX_KINDS:
                self._found.popitem(last=False)

    def expected(self, request: Request) -> float | None:
        """The seconds that one picture of a request should take with its model in memory; None if that is not known."""
        with self._lock:
            found = self._found.get(_kind(request))
            return min(step * request.steps + rest for step, rest in found) if found else None


def _kind(request: Request) -> Hashable:
    options = tuple(sorted(request.to_load().items()))
    return (
        request.model,
        options,
        request.width,
        request.height,
        request.sampler,
        request.cfg > 1,
        request.loras,
        bool(request.blend_prompt),
        request.deepcache_interval,
        request.picture is not None,
    )
