"""Several machines that work on one run: which of them this process is, who does what, and what they tell each other.

`mlx.launch` starts the same command on each machine, and `mlx.core.distributed` connects the processes, the ranks. Only
its all_gather is used, which every backend has between any two ranks. A thread of its own calls it, so that nobody who
paints waits for anybody, and a signal is heard even if the others are gone and the call never returns.

The ranks meet in beats. MLX's ring waits actively, so whoever came early would burn a core. But all leave a collective
at the same moment: if each then sleeps for the same time, they meet again within milliseconds, whatever their clocks.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import InputError, StableDiffusionError

BEAT = 0.25  # seconds from one exchange to the next
SLOT = 1024  # bytes that each rank gives to each exchange; a longer message takes a second one
JOINING = 120.0  # seconds for all machines to come
LOST = 120.0  # seconds without an exchange after which the others are given up: loading a model may take its time
LEAVING = 3.0  # seconds to tell the others of a failure
COUNT_VARIABLES = ("MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # NCCL by mlx.launch, Open MPI, MPICH
FILE_VARIABLES = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")  # ring and jaccl, with MLX_RANK

TRAINING = "train"  # the command that splits batches, and connects its processes by itself

Message = tuple[dict[str, Any], bytes]


class RankError(StableDiffusionError):
    """Another rank failed, or does not answer."""


@dataclass(frozen=True)
class Sent:
    """Something that another rank has finished: its number, what is said of it, and its bytes."""

    number: int
    said: dict[str, Any]
    data: bytes


class Alone:
    """A process that was started by itself: the only rank."""

    rank, size, steps = 0, 1, 0
    label = ""

    def name(self, rank: int) -> str:
        """A rank in words."""
        return "this machine"

    def tell_all(self, topic: str, value: Any) -> list[Any]:
        """What each rank has to say on a topic, by rank; waits until all have said it."""
        return [value]

    def from_first(self, topic: str, value: Callable[[], Any]) -> Any:
        """A value (for JSON, or bytes) that rank 0 makes, for all; raises there what `value` raises."""
        return value()

    def share(self, n: int) -> Iterator[int]:
        """The numbers below `n` that are this rank's to do; each goes to one rank, whoever is free first."""
        return iter(range(n))

    def advance(self, steps: int, seconds_left: float) -> None:
        """Say how many steps are done in all, and in what time the number in hand will be.

        Raises `RankError` if another rank failed or is lost.
        """

    def send(self, number: int, said: dict[str, Any], data: bytes) -> None:
        """Give rank 0 something that is finished."""

    def arrived(self) -> Iterator[Sent]:
        """What the others have sent; for rank 0. Each stays until the next is asked for: no interruption loses it."""
        return iter(())

    def wait_for_others(self) -> Iterator[None]:
        """Beat by beat, until all other ranks have left and what they sent is here; for rank 0, which leaves last."""
        return iter(())


@dataclass(frozen=True)
class Wire:
    """A connection: this process's rank, how many there are, and how to give each rank's bytes to all, by rank."""

    rank: int
    size: int
    exchange: Callable[[bytes], list[bytes]]


class Group(Alone):
    """A process among several, which `connect` connects in a thread of its own. Raises `RankError` if that fails."""

    def __init__(self, connect: Callable[[], Wire]) -> None:
        self._connect = connect
        self._changed = threading.Condition()
        self._outgoing: list[Message] = []
        self._topics: Counter[str] = Counter()
        self._values: defaultdict[str, dict[int, Any]] = defaultdict(dict)  # by topic and rank
        self._granted: deque[int | None] = deque()  # numbers to do next; None at the end
        self._asked = False
        self._next = 0  # of the numbers, the first that nobody has
        self._of = 0
        self._sent: deque[Sent] = deque()
        self._own_steps = 0
        self._steps: dict[int, int] = {}
        self._left: set[int] = set()
        self._failed: dict[int, str] = {}
        self._hosts: dict[int, str] = {}
        self._problem = ""
        self._connected = False
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="ranks", daemon=True)
        self._thread.start()
        self._wait(lambda: self._connected, JOINING)
        self._hosts = dict(enumerate(self.tell_all("host", socket.gethostname().partition(".")[0])))

    # --- Called by the thread that paints

    @property
    def label(self) -> str:  # type: ignore[override]
        """What ranks other than the first put before their messages."""
        return f"{self.name(self.rank)}: " if self.rank else ""

    def name(self, rank: int) -> str:
        """A rank in words."""
        host = self._hosts.get(rank)
        return f"rank {rank} ({host})" if host else f"rank {rank}"

    def tell_all(self, topic: str, value: Any) -> list[Any]:
        """What each rank has to say on a topic, by rank; waits until all have said it."""
        topic = self._numbered(topic)
        self._post({"kind": "value", "topic": topic, "value": value})
        self._wait(lambda: len(self._values[topic]) == self.size)
        return [value for _, value in sorted(self._values[topic].items())]

    def from_first(self, topic: str, value: Callable[[], Any]) -> Any:
        """A value (for JSON, or bytes) that rank 0 makes, for all; raises there what `value` raises."""
        topic = self._numbered(topic)
        if self.rank == 0:
            made = value()
            if isinstance(made, bytes):
                self._post({"kind": "bytes", "topic": topic}, made)
            else:
                self._post({"kind": "value", "topic": topic, "value": made})
            return made
        self._wait(lambda: 0 in self._values[topic])
        return self._values[topic][0]

    def share(self, n: int) -> Iterator[int]:
        """The numbers below `n` that are this rank's to do; each goes to one rank, whoever is free first."""
        number: int | None = self.rank  # the first ones are clear without asking
        while number is not None and number < n:
            self._of, self._asked = n, False
            yield number
            self._ask()
            self._wait(lambda: self._granted)
            number = self._granted.popleft()

    def advance(self, steps: int, seconds_left: float) -> None:
        """Say how many steps are done in all, and in what time the number in hand will be.

        Raises `RankError` if another rank failed or is lost.
        """
        self._own_steps = steps
        if seconds_left < 2 * BEAT:
            self._ask()
        self._check()

    @property
    def steps(self) -> int:  # type: ignore[override]
        """The steps that the other ranks have done."""
        with self._changed:
            return sum(steps for rank, steps in self._steps.items() if rank != self.rank)

    def send(self, number: int, said: dict[str, Any], data: bytes) -> None:
        """Give rank 0 something that is finished."""
        self._post({"kind": "sent", "number": number, "said": said}, data)

    def arrived(self) -> Iterator[Sent]:
        """What the others have sent; for rank 0. Each stays until the next is asked for: no interruption loses it."""
        while self._sent:
            yield self._sent[0]
            self._sent.popleft()

    def wait_for_others(self) -> Iterator[None]:
        """Beat by beat, until all other ranks have left and what they sent is here; for rank 0, which leaves last."""
        over = False
        while not over:
            with self._changed:
                self._changed.wait(BEAT)
                self._check()
                over = len(self._left) == self.size - 1
            yield

    def leave(self, why: str | None = None) -> None:
        """Say that this rank is done, or why it fails, and wait: for all others to be done, or for them to know."""
        self._post({"kind": "left", "why": why})
        with contextlib.suppress(RankError):  # one failed, perhaps this one, or nobody is there any more
            self._wait(lambda: not self._thread.is_alive(), None if why is None else LEAVING)
        self._thread.join(BEAT)

    def _numbered(self, topic: str) -> str:
        """A topic that may come again, as all ranks number it."""
        self._topics[topic] += 1
        return f"{topic} {self._topics[topic]}"

    def _post(self, what: dict[str, Any], data: bytes = b"") -> None:
        with self._changed:
            self._outgoing.append((what, data))

    def _ask(self) -> None:
        """Ask for the next number, once for each in hand."""
        if not self._asked:
            self._asked = True
            self._post({"kind": "ask", "of": self._of})

    def _wait(self, over: Callable[[], Any], timeout: float | None = None) -> None:
        """Wait until something is so; a signal interrupts it. Raises `RankError`."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not over():
                self._check()
                if end is not None and time.monotonic() > end:
                    raise RankError(f"The other machines did not answer within {timeout:g} s.")
                self._changed.wait(BEAT)

    def _check(self) -> None:
        if self._problem:
            raise RankError(self._problem)
        if self._failed:
            rank, why = min(self._failed.items())
            raise RankError(f"{self.name(rank)} failed: {why}")
        if self._connected and time.monotonic() - self._heard > LOST:
            raise RankError(f"The other machines have not answered for {LOST:g} s: is one of them gone?")

    # --- Called by the thread that talks to the others

    def _serve(self) -> None:
        try:
            wire = self._connect()
            self.rank, self.size, self._next = wire.rank, wire.size, wire.size
            self._note(lambda: setattr(self, "_connected", True))
            while True:
                bodies = wire.exchange(self._packed())
                self._note(lambda bodies=bodies: self._take(bodies))  # type: ignore[misc]
                if self._failed or len(self._left) == self.size:
                    break
                time.sleep(BEAT)
        except Exception as error:
            text = " ".join(str(error).split())
            self._note(lambda: setattr(self, "_problem", f"The machines could not be connected: {text}"))
        finally:
            if mlx := sys.modules.get("mlx.core"):
                mlx.clear_streams()  # MLX expects it of every thread that ends

    def _note(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._heard = time.monotonic()
            self._changed.notify_all()

    def _packed(self) -> bytes:
        """What this rank has to say: the length of a JSON list, the list, and the bytes that belong to its entries."""
        with self._changed:
            said = [({"kind": "steps", "n": self._own_steps}, b""), *self._outgoing]
            self._outgoing = []
        head = json.dumps([[what, len(data)] for what, data in said]).encode()
        return b"".join((struct.pack("<I", len(head)), head, *(data for _, data in said)))

    def _take(self, bodies: list[bytes]) -> None:
        """Note what all have said, in the order of the ranks: so they come to the same decisions."""
        for rank, body in enumerate(bodies):
            (length,) = struct.unpack_from("<I", body)
            place = 4 + length
            for what, size in json.loads(body[4:place]):
                self._hear(rank, what, body[place : place + size])
                place += size

    def _hear(self, rank: int, what: dict[str, Any], data: bytes) -> None:
        match what["kind"]:
            case "steps":
                self._steps[rank] = what["n"]
            case "value":
                self._values[what["topic"]][rank] = what["value"]
            case "bytes":
                self._values[what["topic"]][rank] = data
            case "ask":
                number = self._next if self._next < what["of"] else None
                self._next += number is not None
                if rank == self.rank:
                    self._granted.append(number)
            case "sent":
                if self.rank == 0:
                    self._sent.append(Sent(what["number"], what["said"], data))
            case "left":
                self._left.add(rank)
                if what["why"] is not None:
                    self._failed[rank] = what["why"]


def _connected() -> Wire:
    from .backend import mx

    group = mx.distributed.init(strict=True)
    return Wire(group.rank(), group.size(), functools.partial(_exchange, group))


def _exchange(group: Any, body: bytes) -> list[bytes]:
    import numpy as np

    room = SLOT - 4
    slot = struct.pack("<I", len(body)) + body[:room].ljust(room, b"\0")
    slots = _gathered(group, np.frombuffer(slot, np.uint8))
    lengths = [struct.unpack_from("<I", each)[0] for each in slots]
    longest = max(lengths)
    if longest > room:
        slots = [bytes(4) + each for each in _gathered(group, np.frombuffer(body.ljust(longest, b"\0"), np.uint8))]
    return [each[4 : 4 + length] for each, length in zip(slots, lengths, strict=True)]


def _gathered(group: Any, values: Any) -> list[bytes]:
    import numpy as np

    from .backend import mx

    # On no stream of our choice: MLX takes the CPU's for the ring, the GPU's for NCCL.
    found = mx.distributed.all_gather(mx.array(values), group=group)
    mx.eval(found)
    return [row.tobytes() for row in np.asarray(found).reshape(group.size(), -1)]


# --- This process's place

_group: Alone = Alone()


def group() -> Alone:
    """The ranks that this process belongs to; itself alone, unless `joined`."""
    return _group


@contextlib.contextmanager
def joined(command: str, shares: bool) -> Iterator[None]:
    """Inside, this process is connected with the others that it was launched with, if there are any.

    An exception inside is told to them. Raises `InputError` if the command does not share its work, and `RankError`.
    """
    global _group
    _group = Alone()
    if launched() == 1 or command == TRAINING:
        yield
        return
    if not shares:
        raise InputError(f"{command!r} does not share its work: start it on one machine, without mlx.launch.")
    _group = own = Group(_connected)
    try:
        yield
    except BaseException as error:
        own.leave(" ".join(str(error).split()) or type(error).__name__)
        raise
    else:
        own.leave()


def launched() -> int:
    """How many processes were started together, as far as the environment says; 1 for one alone.

    Raises `InputError` for a file of hosts that is not one.
    """
    for name in FILE_VARIABLES:
        path = os.environ.get(name)
        if path and "MLX_RANK" in os.environ:
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                return max(1, len(json.loads(text))) if text.strip() else 1  # mlx.launch -n 1 leaves it empty
            except (OSError, ValueError, TypeError) as error:
                raise InputError(
                    f"${name} = {path!r} should be a list of hosts, as mlx.launch makes it: {error}"
                ) from None
    counts = (os.environ.get(name, "") for name in COUNT_VARIABLES)
    return next((int(count) for count in counts if count.isdecimal() and int(count) > 0), 1)
