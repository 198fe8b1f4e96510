"""What runs side by side comes out as it would one after another."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stable_diffusion import backend, ops
from stable_diffusion.backend import mx, nn
from stable_diffusion.config import UNetConfig
from stable_diffusion.ops import lanes, plain
from stable_diffusion.unet import UNet

SMALL = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=16,
    attention_head_dim=4,
    norm_num_groups=8,
)


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A BLAS of three threads; returns the numbers of threads that it is set to."""
    numbers: list[int] = []
    real = backend.blas()
    monkeypatch.setattr(backend, "_blas", dataclasses.replace(real, threads=3, fixed=False, set_threads=numbers.append))
    monkeypatch.setattr(backend, "_threads", None)
    return numbers


def test_results_keep_their_order_and_are_computed_in_several_threads(blas):
    meeting = threading.Barrier(3, timeout=20)

    def square(i: int) -> mx.array:
        if i % 2 == 0:
            meeting.wait()  # parts 0, 2 and 4 are the first ones of three lanes
        return mx.array(float(i)) ** 2

    assert [x.item() for x in lanes.by_blocks(lanes.each, square, range(6))] == [0, 1, 4, 9, 16, 25]
    assert blas == [1, 3]


def test_outside_of_lanes_blocks_come_one_after_another(blas):
    here = threading.get_ident()
    assert lanes.each(lambda i: threading.get_ident(), [1, 2, 3]) == [here] * 3
    assert blas == []


def test_inside_a_lane_there_are_no_more_lanes(blas):
    assert lanes.count() == 3

    def inner(part: int) -> tuple[int, list[int]]:
        here = threading.get_ident()
        threads = lanes.by_blocks(lanes.each, lambda i: threading.get_ident(), [part, -part])
        return lanes.count(), [thread - here for thread in threads]

    assert lanes.by_blocks(lanes.each, inner, [1, 2, 3]) == [(1, [0, 0])] * 3
    assert blas == [1, 3]


@pytest.mark.parametrize("spread", [True, False])
def test_an_array_is_filled_place_by_place(blas, spread):
    places = [(i, slice(j, j + 2)) for i in range(2) for j in range(0, 5, 2)]  # the last slices reach over the end

    def function(place: tuple[int, slice]) -> mx.array:
        return mx.full((min(place[1].stop, 5) - place[1].start, 3), 10.0 * place[0] + place[1].start)

    fill = lanes.filled if not spread else lambda *arguments: lanes.by_blocks(lanes.filled, *arguments)
    result = fill((2, 5, 3), places, function)
    assert result[..., 0].tolist() == [[0, 0, 2, 2, 4], [10, 10, 12, 12, 14]]
    assert (result * 2)[1, 4].tolist() == [28, 28, 28]


def test_an_error_in_a_lane_comes_out_and_the_threads_are_set_back(blas):
    backend.fit_threads(1)  # a small model has one
    with pytest.raises(ZeroDivisionError):
        lanes.by_blocks(lanes.each, lambda i: 1 // i, [1, 0, 2])
    assert blas == [1, 1, 1]
    assert [x.item() for x in lanes.by_blocks(lanes.each, mx.array, [1, 2, 3])] == [1, 2, 3]


def test_without_a_blas_of_ours_nothing_runs_side_by_side(monkeypatch):
    monkeypatch.setattr(backend, "_blas", backend.Blas("another"))
    here = threading.get_ident()
    assert lanes.count() == 1
    assert lanes.by_blocks(lanes.each, lambda i: threading.get_ident(), [1, 2]) == [here, here]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 3))
def test_a_batch_in_shares_is_the_batch(batch, n_lanes):
    x, one = mx.random.normal((batch, 5)), mx.random.normal((1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backend, "_blas", dataclasses.replace(backend.blas(), threads=n_lanes, set_threads=lambda n: None)
        )
        patch.setattr(backend, "_threads", None)
        rows = []

        def function(x: mx.array, tree: dict, nothing: None, number: float) -> mx.array:
            assert nothing is None
            rows.append(len(x))
            return x * tree["x"][0] + tree["one"] * number

        result = lanes.by_batch(function, batch, nn.Module(), x, {"x": (x,), "one": one}, None, 2.0)
    assert np.array_equal(np.array(result), np.array(x * x + one * 2.0))
    assert sorted(rows) == sorted([batch] if batch < n_lanes else [len(part) for part in np.array_split(x, n_lanes)])


def test_a_model_of_small_products_stays_together(blas, monkeypatch):
    for threads, expected in ((1, [4]), (3, [1, 1, 2]), (None, [1, 1, 2])):
        rows: list[int] = []
        monkeypatch.setattr(backend, "_threads", threads)
        lanes.by_batch(lambda x: rows.append(len(x)) or x, 4, nn.Module(), mx.zeros((4, 3)))  # noqa: B023
        assert sorted(rows) == expected


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_unet_in_lanes_is_the_unet(blas, batch):
    mx.random.seed(batch)
    unet = UNet(SMALL)
    x, text, t = mx.random.normal((batch, 16, 16, 4)), mx.random.normal((batch, 7, 16)), mx.array([500.0])
    context = unet.project_text(text)
    in_lanes = np.array(unet(x, t, context))
    shared = np.array(unet(x, t, unet.project_text(text[:1])))
    with ops.use(dataclasses.replace(ops.forms(), by_batch=plain.by_batch)):
        assert np.abs(in_lanes - np.array(unet(x, t, context))).max() < 1e-5
        assert np.abs(shared - np.array(unet(x, t, unet.project_text(text[:1])))).max() < 1e-5


def test_two_callers_take_turns(blas):
    """The page's worker and another thread may both paint."""
    results: dict[int, list[float]] = {}

    def call(offset: int) -> None:
        def function(i: int) -> float:
            return np.array(mx.arange(1000).sum() + i).item()

        results[offset] = lanes.by_blocks(lanes.each, function, range(offset, offset + 6))

    callers = [threading.Thread(target=call, args=(offset,)) for offset in (0, 100)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert results == {offset: [499500 + i for i in range(offset, offset + 6)] for offset in (0, 100)}
    assert blas == [1, 3, 1, 3]


def test_a_thread_that_outlives_the_main_one_does_the_work_itself():
    """Python closes every pool when the main thread ends, although it waits for the others."""
    script = """
import dataclasses, threading
from stable_diffusion import backend
from stable_diffusion.backend import mx
from stable_diffusion.ops import lanes

backend._blas = dataclasses.replace(backend.blas(), threads=3, fixed=False, set_threads=lambda number: None)

def square(i):
    return mx.array(float(i)) ** 2

def call():
    print([x.item() for x in lanes.by_blocks(lanes.each, square, range(6))])

def late():
    call()
    threading.main_thread().join()
    lanes._pool(3).shutdown()
    call()
    mx.clear_streams()

threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0.0, 1.0, 4.0, 9.0, 16.0, 25.0]\n" * 2, "")
