"""Interrupts that come after a closed socket: clients that cancel by closing send one as well (SillyTavern).

The closed socket has stopped its own job by then, and A1111's interrupt names no job: it would hit the next client's.
So an interrupt from an address whose socket has just been closed belongs to that, and does nothing more.
"""

from __future__ import annotations

import threading
import time
from collections import deque

BELONGS = 3.0  # seconds in which an interrupt belongs to a closed socket
MOST = 100

_lock = threading.Lock()
_closed: deque[tuple[str, float]] = deque(maxlen=MOST)


def note(client: str) -> None:
    """A client has closed the socket of a job that was not over."""
    with _lock:
        _closed.append((client, time.monotonic()))


def explains(client: str) -> bool:
    """Whether an interrupt of this client belongs to a socket that it has closed; each explains one interrupt."""
    with _lock:
        while _closed and time.monotonic() - _closed[0][1] > BELONGS:
            _closed.popleft()
        found = next((each for each in _closed if each[0] == client), None)
        if found is not None:
            _closed.remove(found)
        return found is not None
