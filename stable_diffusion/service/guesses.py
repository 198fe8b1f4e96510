"""How many wrong passwords and keys an address may try: one rule for the page and the API."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

LIMITED = 429  # the status of whoever tries more


class Guesses:
    """Counts wrong passwords: ten in a minute from one address, and no more are looked at until it is over."""

    MOST, SECONDS, ADDRESSES = 10, 60, 1000

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[str, list[float]] = {}

    def are_too_many(self, client: str) -> bool:
        """Whether this address has used up its guesses."""
        return len(self._recent(_network(client))) >= self.MOST

    def note(self, client: str) -> None:
        """Count a wrong one."""
        network = _network(client)
        self._times[network] = [*self._recent(network), self._clock()]
        if len(self._times) > self.ADDRESSES:
            del self._times[next(iter(self._times))]

    def _recent(self, network: str) -> list[float]:
        return [each for each in self._times.get(network, ()) if each > self._clock() - self.SECONDS]


def _network(client: str) -> str:
    """An address of version 4, or the 64 bits of version 6 in which one customer can choose freely."""
    try:
        found = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(found, ipaddress.IPv6Address) and not found.ipv4_mapped:
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return client
