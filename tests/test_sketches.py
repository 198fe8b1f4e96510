"""Sketches, as painted while one types: they replace one another, give way, and are saved only when asked for."""

import io
import threading

import pytest

from stable_diffusion.errors import InputError
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service.jobs import State
from stable_diffusion.service.paces import LAST, MAX_KINDS, Paces
from stable_diffusion.service.worker import MAX_KEPT, Worker
from tests.pretend import PretendEngine, over, wait

A, B = Request("a house", steps=2, seed=3), Request("a tent", steps=2, seed=3)


@pytest.fixture
def engine(monkeypatch):
    return PretendEngine().install(monkeypatch)


@pytest.fixture
def worker(engine, tmp_path):
    worker = Worker(tmp_path / "outputs")
    over(worker.submit(Request("a", steps=1)))  # loads the model
    yield worker
    for model in engine.models:
        if model.gate is not None:
            model.gate.release(10_000)
    worker.close()


def hold(engine):
    """Let the model's next steps wait; returns what releases them."""
    gate = engine.models[-1].gate = threading.Semaphore(0)
    return gate


def saved(worker):
    return list(worker.outputs.rglob("*.png"))


def test_a_sketch_is_painted_and_not_saved(worker):
    before = saved(worker)
    job = worker.sketch(A)
    over(job)
    assert job.state is State.DONE and job.pictures[0].finished
    assert job.pictures[0].path is None and saved(worker) == before


def test_a_sketch_is_kept_when_asked_for_with_its_record(worker):
    before = saved(worker)
    job = worker.sketch(A)
    over(job)
    (picture,) = job.pictures
    data = picture.unsaved
    over(task := worker.keep(job, picture))
    assert not task.error and picture.unsaved is None and picture.path.read_bytes() == data
    assert set(saved(worker)) - set(before) == {picture.path}
    found = picture_files.read_parameters(picture.path)
    assert (found.prompt, found.seed) == ("a house", 3) and "-3." in picture.path.name
    assert picture_files.read_parameters(io.BytesIO(data)) == found


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_a_sketch_keeps_its_format(worker, file_format):
    job = worker.sketch(Request("a", steps=1, file_format=file_format, no_record=True))
    over(job)
    over(worker.keep(job, job.pictures[0]))
    assert job.pictures[0].path.suffix == {"jpeg": ".jpg", "webp": ".webp"}[file_format]


def test_a_newer_sketch_stops_the_one_before(engine, worker):
    gate = hold(engine)
    first = worker.sketch(A)
    wait(lambda: first.state is State.RUNNING)
    second = worker.sketch(B, first)
    gate.release(10)
    over(first, second)
    assert (first.state, second.state) == (State.CANCELLED, State.DONE)


def test_a_sketch_waits_for_nobody_and_gives_way_to_all(engine, worker):
    gate = hold(engine)
    sketch = worker.sketch(A)
    wait(lambda: sketch.state is State.RUNNING)
    waiting = worker.sketch(B)  # another tab's
    job = worker.submit(Request("mine", steps=1))
    assert sketch.cancelling and waiting.state is State.CANCELLED
    assert worker.sketch(A) is None, "something else is to be done"
    gate.release(10)
    over(sketch, job)
    assert (sketch.state, job.state) == (State.CANCELLED, State.DONE)
    task = worker.compute("key", lambda model, report: 7)
    over(task)
    over(again := worker.sketch(A))
    assert again.state is State.DONE


def test_a_sketch_loads_no_model(engine, worker):
    assert worker.sketch(Request("a", model="another")) is None
    over(worker.unload())
    assert worker.sketch(A) is None
    assert [name for name, _ in engine.loads] == ["postcards-tiny"]


def test_a_prompt_that_cannot_be_drawn_from_is_refused(worker):
    with pytest.raises(InputError, match="wildcard"):
        worker.sketch(Request("__no such thing__", dynamic_prompts=True))


def test_sketches_push_out_no_job(worker):
    job = worker.submit(Request("mine", steps=1))
    over(job)
    last = None
    for i in range(MAX_KEPT + 5):
        last = worker.sketch(Request(f"a {i}", steps=1), last)
        over(last)
    assert worker.job(job.id) is job and worker.job(last.id) is last


# --- How long pictures take


def test_a_pace_is_known_after_a_picture(worker):
    assert worker.paces.expected(A) > 0
    assert worker.paces.expected(Request("a", width=128)) is None


def test_expected_times():
    paces = Paces()
    assert paces.expected(A) is None
    paces.note(Request("a", steps=4, width=64), 1.0, [0.2, 0.2, 0.4])
    assert paces.expected(Request("b", steps=4, width=64)) == pytest.approx(1.0)
    assert paces.expected(Request("b", steps=1, width=64)) == pytest.approx(0.4)
    for other in ({"width": 128}, {"model": "x"}, {"cfg": 1.0}, {"sampler": "heun"}, {"loras": (("ink", 1.0),)}):
        assert paces.expected(Request("a", **{"steps": 4, "width": 64} | other)) is None, other


def test_the_quickest_of_the_last_pictures_counts():
    paces = Paces()
    for seconds in (0.1, 9.0, 2.0, 3.0):
        paces.note(A, seconds, [])
    assert LAST == 3 and paces.expected(A) == pytest.approx(2.0)


def test_paces_do_not_pile_up():
    paces = Paces()
    for i in range(MAX_KINDS + 1):
        paces.note(Request("a", model=str(i)), 1.0, [])
    assert paces.expected(Request("a", model="0")) is None
    assert paces.expected(Request("a", model="1")) is not None
