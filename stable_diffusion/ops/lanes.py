"""Parts of one computation side by side on a CPU: a thread for each core, each with an MLX stream of its own.

MLX computes an element-wise operation on one core, and only its matrix products on several. Two halves of a batch in
two threads use both cores for everything, with the BLAS on one thread in each. What runs in a lane is evaluated there.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mlx.utils import tree_map

from .. import backend
from ..backend import mx

Part = TypeVar("Part")
Result = TypeVar("Result")


class _Here(threading.local):
    in_lane = False


_here = _Here()
_turn = threading.Lock()  # one caller at a time: the number of the BLAS's threads is the process's


def count() -> int:
    """How many lanes there are for a caller: one inside a lane, and where the BLAS's threads cannot be set."""
    used = backend.blas()
    return 1 if _here.in_lane or used.set_threads is None else used.threads or 1


def each(function: Callable[[Part], Result], parts: Sequence[Part], inputs: Any = ()) -> list[Result]:
    """`function` of each part, in their order; where there are lanes, the arrays that come out are computed.

    `inputs` are the arrays (in lists, tuples or dicts) that the function reads: they are computed first, because two
    threads must not compute the same thing.
    """
    lanes = min(count(), len(parts))
    if lanes < 2:
        return [function(part) for part in parts]
    mx.eval(inputs)
    shares = [parts[len(parts) * i // lanes : len(parts) * (i + 1) // lanes] for i in range(lanes)]
    with _turn, backend.one_blas_thread():
        done = list(_pool(count()).map(functools.partial(_run, function), shares))
    return [result for results in done for result in results]


def by_batch(function: Callable[..., mx.array], batch: int, weights: Any, *inputs: Any) -> mx.array:
    """`function(*inputs)`, a share of the batch in each lane, where there is an example for every lane at least.

    Arrays in `inputs` whose first axis is `batch` long are shared out, all others go to every lane. `weights` are
    what the function reads besides.
    """
    lanes = count()
    if lanes < 2 or batch < lanes:
        return function(*inputs)
    shares = [slice(batch * i // lanes, batch * (i + 1) // lanes) for i in range(lanes)]
    parts = [tree_map(functools.partial(_share, share, batch), inputs) for share in shares]
    return mx.concatenate(each(lambda part: function(*part), parts, (weights, parts)))


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
    mx.set_default_stream(mx.new_stream(mx.cpu))
