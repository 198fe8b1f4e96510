"""Lanes: parts of one computation run in parallel on a CPU, one thread per core, each with its own MLX stream.

MLX computes element-wise operations on one core and only matrix products on several. Two halves of a batch in two
threads keep both cores busy throughout, with a single BLAS thread in each. What runs in a lane is evaluated there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

import numpy as np
from mlx.utils import tree_map

from .. import backend
from ..backend import mx, nn

Part = TypeVar("Part")
Result = TypeVar("Result")


class _AtEnd:
    """A thread-local object whose deletion, at the thread's end, releases what MLX keeps for the thread.

    MLX requires this of every thread but the main one. Left to the end of the thread, which Python does not wait for,
    it aborts a process whose interpreter is shutting down by then.
    """

    def __del__(self) -> None:
        mx.clear_streams()


class _Here(threading.local):
    at_end: _AtEnd | None = None
    in_lane = False
    spreading = False


_here = _Here()
_turn = threading.Lock()  # one caller at a time, because the BLAS has one thread count per process


def count() -> int:
    """How many lanes the caller may use: 1 inside a lane, or where the BLAS's thread count cannot be set."""
    used = backend.blas()
    return 1 if _here.in_lane or used.set_threads is None else used.threads or 1


def by_batch(function: Callable[..., Any], batch: int, network: nn.Module, *inputs: Any) -> Any:
    """`function(*inputs)` with the batch split among the lanes, if it has at least one example per lane.

    Arrays in `inputs` whose first axis is `batch` long are split, all others go to every lane; the function also reads
    the network's weights, and returns one array or a tuple of them. A model of small products is not split: that would
    only double the cost of starting its operations.
    """
    lanes = count()
    if lanes < 2 or batch < lanes or backend.product_threads() == 1:
        return function(*inputs)
    shares = [slice(batch * i // lanes, batch * (i + 1) // lanes) for i in range(lanes)]
    parts = [tree_map(functools.partial(_share, share, batch), inputs) for share in shares]
    with _spreading():
        done = each(lambda part: function(*part), parts, (network.parameters(), parts))
        return tree_map(lambda *arrays: mx.concatenate(list(arrays)), *done)


def by_blocks(function: Callable[..., Result], *inputs: Any) -> Result:
    """`function(*inputs)`, evaluated; operations inside it distribute their blocks over the lanes (`each`)."""
    if count() < 2:
        return function(*inputs)
    with _spreading():
        result = function(*inputs)
        mx.eval(result)
        return result


def each(function: Callable[[Part], Result], parts: Sequence[Part], inputs: Any = ()) -> list[Result]:
    """`function` of each part, in order; inside `by_blocks` in lanes, with evaluated results.

    `inputs` are the arrays (in lists, tuples or dicts) that the function reads. They are evaluated first, because two
    threads must not evaluate the same array.
    """
    lanes = min(count(), len(parts)) if _here.spreading else 1
    if lanes < 2:
        return [function(part) for part in parts]
    mx.eval(inputs)
    shares = [parts[len(parts) * i // lanes : len(parts) * (i + 1) // lanes] for i in range(lanes)]
    running: list[Future[list[Result]]] = []
    with contextlib.suppress(RuntimeError):  # the main thread has ended and the pool is closed: run the rest here
        for share in shares:
            running.append(_pool(count()).submit(copy_context().run, _run, function, share))
    done = [future.result() for future in running] + [_run(function, share) for share in shares[len(running) :]]
    return [result for results in done for result in results]


def filled(
    shape: Sequence[int], places: Sequence[Any], function: Callable[[Any], mx.array], inputs: Any = ()
) -> mx.array:
    """A float32 array whose part at each place (a numpy index) is `function(place)`, evaluated.

    `each` writes every part into its place as soon as it is ready: joining them at the end would hold them twice.
    """
    result = mx.zeros(shape)
    mx.eval(result, inputs)
    written = np.asarray(result)  # the same memory; nobody else has a reference yet

    def write(place: Any) -> None:
        written[place] = np.asarray(function(place))

    each(write, places, inputs)
    return result


@contextlib.contextmanager
def _spreading() -> Iterator[None]:
    """Keep the BLAS at one thread: threads that it wakes for a product keep spinning after it."""
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
    """Run first in each thread of the pool. A stream belongs to its thread."""
    _here.in_lane = True
    _here.at_end = _AtEnd()
    mx.set_default_stream(mx.new_stream(mx.cpu))
