"""Parts of one computation side by side on a CPU: a thread for each core, each with an MLX stream of its own.

MLX computes an element-wise operation on one core, and only its matrix products on several. Two halves of a batch in
two threads use both cores for everything, with the BLAS on one thread in each. What runs in a lane is evaluated there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from mlx.utils import tree_map

from .. import backend
from ..backend import mx, nn

Part = TypeVar("Part")
Result = TypeVar("Result")


class _AtEnd:
    """Dies with the locals of its thread, and takes along what MLX keeps for the thread.

    MLX asks every thread but the main one for this: left to the end of the thread, which Python does not wait for, it
    aborts a process whose interpreter is shutting down by then.
    """

    def __del__(self) -> None:
        mx.clear_streams()


class _Here(threading.local):
    at_end: _AtEnd | None = None
    in_lane = False
    spreading = False


_here = _Here()
_turn = threading.Lock()  # one caller at a time: the number of the BLAS's threads is the process's


def count() -> int:
    """How many lanes there are for a caller: one inside a lane, and where the BLAS's threads cannot be set."""
    used = backend.blas()
    return 1 if _here.in_lane or used.set_threads is None else used.threads or 1


def by_batch(function: Callable[..., mx.array], batch: int, network: nn.Module, *inputs: Any) -> mx.array:
    """`function(*inputs)`, a share of the batch in each lane, where there is an example for every lane at least.

    Arrays in `inputs` whose first axis is `batch` long are shared out, all others go to every lane; the function reads
    the network's weights besides. A model of small products stays together: what starting its operations costs would
    only double.
    """
    lanes = count()
    if lanes < 2 or batch < lanes or backend.product_threads() == 1:
        return function(*inputs)
    shares = [slice(batch * i // lanes, batch * (i + 1) // lanes) for i in range(lanes)]
    parts = [tree_map(functools.partial(_share, share, batch), inputs) for share in shares]
    with _spreading():
        return mx.concatenate(each(lambda part: function(*part), parts, (network.parameters(), parts)))


def by_blocks(function: Callable[..., Result], *inputs: Any) -> Result:
    """`function(*inputs)`, computed; the operations in it share their blocks out among lanes (`each`)."""
    if count() < 2:
        return function(*inputs)
    with _spreading():
        result = function(*inputs)
        mx.eval(result)
        return result


def each(function: Callable[[Part], Result], parts: Sequence[Part], inputs: Any = ()) -> list[Result]:
    """`function` of each part, in their order; inside `by_blocks` in lanes, and then what comes out is computed.

    `inputs` are the arrays (in lists, tuples or dicts) that the function reads: they are computed first, because two
    threads must not compute the same thing.
    """
    lanes = min(count(), len(parts)) if _here.spreading else 1
    if lanes < 2:
        return [function(part) for part in parts]
    mx.eval(inputs)
    shares = [parts[len(parts) * i // lanes : len(parts) * (i + 1) // lanes] for i in range(lanes)]
    running: list[Future[list[Result]]] = []
    with contextlib.suppress(RuntimeError):  # the main thread is over and the pool closed: what is left runs here
        for share in shares:
            running.append(_pool(count()).submit(_run, function, share))
    done = [future.result() for future in running] + [_run(function, share) for share in shares[len(running) :]]
    return [result for results in done for result in results]


def filled(
    shape: Sequence[int], places: Sequence[Any], function: Callable[[Any], mx.array], inputs: Any = ()
) -> mx.array:
    """An array, float32, whose part at each of the places (indices as numpy has them) is `function(place)`, computed.

    Each part goes where it belongs as soon as it is there, by `each`: to join them in the end would hold them twice.
    """
    result = mx.zeros(shape)
    mx.eval(result, inputs)
    written = np.asarray(result)  # the same memory, which nobody else has seen yet

    def write(place: Any) -> None:
        written[place] = np.asarray(function(place))

    each(write, places, inputs)
    return result


@contextlib.contextmanager
def _spreading() -> Iterator[None]:
    """The BLAS has one thread all the while: threads that it wakes for one product go on waiting actively after it."""
    if _here.spreading:
        yield
        return
    with _turn, backend.one_blas_thread():
        _here.spreading = True
        try:
            yield
        finally:
            _here.spreading = False


def _share(share: slice, batch: int, value: Any) -> Any:
    return value[share] if isinstance(value, mx.array) and value.ndim and value.shape[0] == batch else value


def _run(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    results = []
    for part in parts:
        results.append(function(part))
        mx.eval(results[-1])
    return results


@functools.cache
def _pool(lanes: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(lanes, "lane", _enter)


def _enter() -> None:
    """What each thread of the pool does first. A stream belongs to its thread."""
    _here.in_lane = True
    _here.at_end = _AtEnd()
    mx.set_default_stream(mx.new_stream(mx.cpu))
