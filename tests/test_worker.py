"""The worker behind the page, with an engine that only pretends: order, cancelling, errors, files, memory."""

import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

import stable_diffusion
from stable_diffusion import catalogue
from stable_diffusion.checks import MAX_SEED
from stable_diffusion.compare import axes
from stable_diffusion.compare.plan import plan
from stable_diffusion.errors import InputError
from stable_diffusion.record import inputs, picture_files
from stable_diffusion.request import Request
from stable_diffusion.service import painting, preview
from stable_diffusion.service import worker as worker_module
from stable_diffusion.service.jobs import State, next_request
from stable_diffusion.service.words import in_plain_words
from stable_diffusion.service.worker import MAX_KEPT, MAX_WAITING, QueueFullError, Worker
from tests import pretend
from tests.pretend import PretendEngine, over, wait


@pytest.fixture
def engine(monkeypatch):
    return PretendEngine().install(monkeypatch)


@pytest.fixture
def worker(engine, tmp_path):
    worker = Worker(tmp_path / "outputs")
    yield worker
    if engine.gate is not None:
        engine.gate.release(10_000)
    worker.close()


def test_a_job_becomes_a_saved_picture_with_its_parameters(worker):
    job = worker.submit(Request("a red house", negative="rain", steps=3, seed=7, cfg=5.0, sampler="dpmpp_2m_karras"))
    over(job)
    assert (job.state, job.error, job.fraction) == (State.DONE, "", 1.0)
    (picture,) = job.pictures
    assert picture.path.parent.parent == worker.outputs
    assert time.strptime(picture.path.parent.name, "%Y-%m-%d")
    found = picture_files.read_parameters(picture.path)
    assert (found.prompt, found.negative, found.steps, found.seed, found.cfg) == ("a red house", "rain", 3, 7, 5.0)
    assert (found.sampler, found.schedule) == ("DPM++ 2M", "Karras")
    assert (found.model, found.size, found.strength) == ("postcards-tiny", "64x64", None)


def test_every_step_is_recorded_and_can_be_shown(worker):
    job = worker.submit(Request("a", steps=12))
    over(job)
    frames = job.pictures[0].frames
    assert [frame.index for frame in frames] == list(range(13)) and [f.begins for f in frames[:2]] == [True, False]
    assert job.latent_space == ("postcards-tiny", "sd1")
    for frame in frames:
        assert frame.latents.dtype == frame.denoised.dtype == np.float16
        np.testing.assert_allclose(frame.latents, frame.index / 12, rtol=1e-3)
        for kind in ("fast", "latents"):
            jpeg = preview.frame_jpeg(frame, kind, job.latent_space)
            assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
            assert len(jpeg) < 20_000


def test_approximate_colours_cost_no_decode(engine, worker):
    over(worker.submit(Request("a", steps=5, previews=("fast", "latents"))))
    assert engine.models[0].decodes == 1


@pytest.mark.parametrize(("previews", "name"), [(("full",), "one"), (("fast",), "unknown")])
def test_a_full_decode_is_made_where_it_is_wished_or_nothing_else_shows_colours(
    engine, worker, monkeypatch, previews, name
):
    monkeypatch.setattr(painting, "DECODE_EVERY", 0.0)
    if name == "unknown":
        monkeypatch.setattr(preview.arrays, "RGB_FACTORS", {})
    job = worker.submit(Request("a", steps=3, model=name, previews=previews))
    over(job)
    frames = job.pictures[0].frames
    assert engine.models[0].decodes >= 2
    assert frames[0].decoded and frames[-1].decoded


def test_full_decodes_are_no_more_frequent_than_they_are_seen(engine, worker, monkeypatch):
    monkeypatch.setattr(painting, "DECODE_EVERY", 60.0)
    job = worker.submit(Request("a", steps=9, previews=("full",)))
    over(job)
    assert [bool(frame.decoded) for frame in job.pictures[0].frames] == [True, *[False] * 8, True]


def test_a_recorded_step_is_decoded_when_a_replay_asks(engine, worker):
    job = worker.submit(Request("a", steps=4))
    over(job)
    frame = job.pictures[0].frames[2]
    task = worker.decode(job, frame)
    assert worker.decode(job, frame) is task
    over(task)
    assert not task.error
    picture = Image.open(io.BytesIO(frame.decoded))
    assert picture.size == (64, 64) and abs(picture.getpixel((5, 5))[0] - 127.5) < 3


def test_old_steps_are_forgotten_when_they_take_too_much(worker, monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_FRAME_BYTES", 15_000)
    job = worker.submit(Request("a", steps=9, n_images=4))
    over(job)
    assert [len(picture.frames) for picture in job.pictures] == [1, 1, 1, 10]
    assert all(picture.finished for picture in job.pictures)


def test_a_picture_can_be_skipped(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = worker.submit(Request("a", steps=5, n_images=2, seed=3))
    engine.gate.release(1)
    wait(lambda: job.frame is not None and job.frame.index == 1)
    worker.skip(job)
    engine.gate.release(6)
    over(job)
    assert job.state is State.DONE and job.fraction == 1.0
    first, second = job.pictures
    assert first.skipped and not first.finished and len(first.frames) == 3
    assert second.finished and second.seed == 4


def test_a_task_is_done_once_and_its_result_kept(engine, worker):
    task = worker.compute("key", lambda model, report: (report("half", 0.5), model.name), "one")
    assert worker.compute("key", lambda model, report: "another", "one") is task
    over(task)
    assert task.result[1] == "one" and worker.task("key") is task
    assert worker.task("other") is None


def test_a_task_that_failed_runs_anew(worker):
    failed = worker.compute("key", lambda model, report: 1 / 0, "one")
    over(failed)
    assert "ZeroDivisionError" in failed.error
    again = worker.compute("key", lambda model, report: 7, "one")
    over(again)
    assert again.result == 7


def test_a_task_can_be_cancelled_where_it_reports(worker):
    began, go = threading.Event(), threading.Event()

    def function(model, report):
        began.set()
        assert go.wait(10)
        report("on", None)
        raise AssertionError("went on after a cancel")

    task = worker.compute("key", function, "one")
    assert began.wait(10)
    worker.cancel(task)
    go.set()
    over(task)
    assert task.state is State.CANCELLED


def test_a_long_task_lets_others_go_first(engine, worker):
    engine.gate = threading.Semaphore(0)
    reached, steps, painted = threading.Event(), threading.Semaphore(0), []

    def train(model, report):
        for step in range(3):
            report(f"step {step}", step / 3)
            reached.set()
            assert steps.acquire(timeout=10)
            worker.give_way()
            painted.append([job.state for job in jobs])
        return "trained"

    task = worker.compute("train", train, yields=True)
    assert reached.wait(10)
    jobs = [worker.submit(Request("a", steps=1)), worker.submit(Request("b", steps=1))]
    other = worker.compute("also", lambda model, report: "later", yields=True)
    assert [worker.position(each) for each in (task, *jobs, other)] == [0, 0, 1, 3]
    steps.release(1)
    wait(lambda: task.state is State.PAUSED)
    assert worker.queue() == [jobs[0], task, jobs[1], other]
    engine.gate.release(2)
    wait(lambda: painted)
    assert painted == [[State.DONE, State.DONE]] and other.state is State.QUEUED
    steps.release(2)
    wait(lambda: not other.active)
    assert (task.state, task.result, other.result) == (State.DONE, "trained", "later")


def test_a_task_that_yields_begins_when_nothing_else_waits(engine, worker):
    engine.gate = threading.Semaphore(0)
    first = worker.submit(Request("a", steps=1))
    task = worker.compute(
        "train", lambda model, report: len([each for each in (first, last) if each.active]), yields=True
    )
    last = worker.submit(Request("b", steps=1))
    engine.gate.release(2)
    wait(lambda: not task.active)
    assert task.result == 0


def test_a_job_that_repeats_and_a_long_task_take_turns(engine, worker):
    forever = worker.submit(Request("a", steps=1), repeat=True)
    over(forever)
    painted = []

    def train(model, report):
        for _ in range(4):
            painted.append(len(engine.models[0].calls))
            worker.give_way()
        return "trained"

    task = worker.compute("train", train, yields=True)
    wait(lambda: not task.active)
    worker.cancel(worker.latest(forever))
    assert (task.state, task.result) == (State.DONE, "trained")
    assert np.diff(painted).tolist() == [1, 1, 1]  # one picture between two steps


def test_a_paused_task_can_be_cancelled(engine, worker):
    engine.gate = threading.Semaphore(0)
    reached, step = threading.Event(), threading.Event()

    def train(model, report):
        reached.set()
        assert step.wait(10)
        worker.give_way()
        report("the next step")
        raise AssertionError("it should have been stopped")

    task = worker.compute("train", train, yields=True)
    assert reached.wait(10)
    job = worker.submit(Request("a", steps=1))
    step.set()
    wait(lambda: task.state is State.PAUSED)
    worker.cancel(task)
    engine.gate.release(1)
    wait(lambda: not task.active)
    assert (task.state, job.state) == (State.CANCELLED, State.DONE)


def test_results_of_tasks_do_not_pile_up(worker, monkeypatch):
    monkeypatch.setattr(worker_module, "MAX_RESULTS", 3)
    for i in range(9):
        over(worker.compute(i, lambda model, report: None, "one"))
    worker.compute(9, lambda model, report: None, "one")
    assert [i for i in range(10) if worker.task(i)] == [6, 7, 8, 9]


def test_a_task_without_a_model_leaves_the_loaded_one_alone(engine, worker):
    first = worker.compute("first", lambda model, report: (model, report("half", 0.5)))
    over(first)
    assert (first.state, first.result, engine.models) == (State.DONE, (None, None), [])
    job = worker.submit(Request("a", steps=1, model="one"))
    task = worker.compute("second", lambda model, report: model)
    again = worker.submit(Request("a", steps=1, model="one"))
    over(job, task, again)
    assert task.state is State.DONE and task.result is None
    assert [model.name for model in engine.models] == ["one"] and engine.released == 0


@pytest.mark.parametrize(("file_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_each_file_format_carries_the_parameters(worker, file_format, kind):
    job = worker.submit(Request("a hüt 🏠 بيت", steps=2, seed=7, file_format=file_format))
    over(job)
    (picture,) = job.pictures
    assert Image.open(picture.path).format == kind
    found = picture_files.read_parameters(picture.path)
    assert (found.prompt, found.seed) == ("a hüt 🏠 بيت", 7)


@pytest.mark.parametrize(
    ("how", "corner", "middle"), [("crop", "red", "red"), ("pad", "white", "red"), ("stretch", "red", "red")]
)
def test_an_input_picture_of_another_shape_is_fitted(engine, worker, how, corner, middle):
    over(worker.submit(Request("a", steps=2, picture=Image.new("RGB", (64, 128), "red"), fit=how)))
    given = engine.models[0].calls[0][1]["input_image"]
    assert given.size == (64, 64)
    assert [given.getpixel(at) for at in ((1, 1), (32, 32))] == [ImageColor.getrgb(c) for c in (corner, middle)]


def test_jobs_are_done_in_the_order_they_came(engine, worker):
    engine.gate = threading.Semaphore(0)
    jobs = [worker.submit(Request(text, steps=1)) for text in "abc"]
    wait(lambda: jobs[0].state is State.RUNNING)
    assert [worker.position(job) for job in jobs] == [0, 1, 2]
    engine.gate.release(3)
    over(*jobs)
    assert [call[0] for call in engine.models[0].calls] == ["a", "b", "c"]
    assert [worker.position(job) for job in jobs] == [0, 0, 0]
    assert jobs[0].ended <= jobs[1].started


def test_a_cancel_takes_effect_within_one_step(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = worker.submit(Request("a", steps=50))
    engine.gate.release(2)
    wait(lambda: job.frame is not None and job.frame.index == 2)
    worker.cancel(job)
    assert job.cancelling
    engine.gate.release(1)
    over(job)
    assert job.state is State.CANCELLED
    assert job.frame.index == 3
    assert engine.models[0].closed == 1


def test_a_waiting_job_is_cancelled_at_once(engine, worker):
    engine.gate = threading.Semaphore(0)
    first, second, third = (worker.submit(Request(text, steps=1)) for text in "abc")
    worker.cancel(second)
    assert second.state is State.CANCELLED
    assert worker.position(third) == 1
    engine.gate.release(2)
    over(first, third)
    assert [call[0] for call in engine.models[0].calls] == ["a", "c"]


def test_what_was_finished_before_a_cancel_stays(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = worker.submit(Request("a", steps=2, n_images=3, seed=5))
    engine.gate.release(3)
    wait(lambda: len(job.pictures) == 2 and job.pictures[1].estimate)
    worker.cancel(job)
    engine.gate.release(1)
    over(job)
    assert job.state is State.CANCELLED
    first, *rest = job.pictures
    assert first.path.exists() and first.seed == 5
    # The second one's last step came with the cancel: a picture that is ready is kept.
    assert [picture.finished for picture in rest] == [True]


def test_a_model_that_is_loading_can_be_cancelled(engine, worker, monkeypatch):
    began, go = threading.Event(), threading.Event()

    def load(name, progress):
        began.set()
        assert go.wait(10)
        progress("Downloading", 0.2)
        raise AssertionError("went on after a cancel")

    monkeypatch.setattr(worker_module, "load_model", load)
    job = worker.submit(Request("a"))
    assert began.wait(10)
    worker.cancel(job)
    go.set()
    over(job)
    assert job.state is State.CANCELLED


def test_picture_i_carries_seed_plus_i(engine, worker):
    given, drawn = (
        worker.submit(Request("a", steps=1, n_images=3, seed=7)),
        worker.submit(Request("a", steps=1, n_images=2)),
    )
    over(given, drawn)
    assert [picture.seed for picture in given.pictures] == [7, 8, 9]
    first = drawn.drawn.seed
    assert [picture.seed for picture in drawn.pictures] == [first, first + 1]
    assert [arguments["seed"] for _, arguments in engine.models[0].calls] == [7, 8, 9, first, first + 1]
    assert len({picture.path for picture in given.pictures + drawn.pictures}) == 5


def test_an_input_picture_and_its_strength_reach_the_engine(engine, worker):
    image = Image.new("RGB", (64, 64))
    job = worker.submit(Request("a", steps=2, picture=image, strength=0.5))
    over(job)
    _, arguments = engine.models[0].calls[0]
    assert arguments["input_image"] is image and arguments["denoising_strength"] == 0.5
    assert picture_files.read_parameters(job.pictures[0].path).strength == 0.5


def test_an_error_is_kept_and_the_next_job_runs(engine, worker):
    bad, good = worker.submit(Request("", steps=1)), worker.submit(Request("a", steps=1))
    over(bad, good)
    assert (bad.state, bad.error) == (State.FAILED, "text = '' is empty: describe a picture.")
    assert good.state is State.DONE


def test_an_error_in_the_middle_keeps_the_steps_so_far(engine, worker):
    engine.fail_at = 3
    job = worker.submit(Request("a", steps=5))
    over(job)
    assert job.state is State.FAILED
    assert "RuntimeError: the wheels came off" in job.error
    assert [frame.index for frame in job.pictures[0].frames] == [0, 1, 2]


def test_the_last_model_is_kept_and_the_old_one_goes_first(engine, worker, monkeypatch):
    over(worker.submit(Request("a", steps=1, model="one")), worker.submit(Request("a", steps=1, model="one")))
    wait(lambda: len(engine.models[0].calls) == 2)
    assert len(engine.models) == 1
    old = weakref.ref(engine.models.pop())
    alive_at_load = []
    load = worker_module.load_model
    monkeypatch.setattr(worker_module, "load_model", lambda *a: (alive_at_load.append(old() is not None), load(*a))[1])
    job = worker.submit(Request("a", steps=1, model="two"))
    over(job)
    assert alive_at_load == [False]
    assert engine.released == 1


def test_a_model_that_is_not_there_leaves_the_worker_usable(engine, worker):
    jobs = [worker.submit(Request("a", steps=1, model=model)) for model in ("one", "absent", "one")]
    over(*jobs)
    assert [job.state for job in jobs] == [State.DONE, State.FAILED, State.DONE]
    assert jobs[1].error == "No model 'absent'."
    assert [model.name for model in engine.models] == ["one", "one"]


def test_a_record_too_long_for_a_jpeg_is_beside_it_and_that_is_said(worker):
    job = worker.submit(Request("a " * 10_000, "b " * 10_000, steps=1, file_format="jpeg"))
    with pytest.warns(UserWarning, match="too long"):
        over(job)
    path = job.pictures[0].path
    assert path.suffix == ".jpg" and ".txt" in job.warning
    assert picture_files.read_parameters(path).negative == "b " * 10_000


def test_a_full_disk_keeps_the_picture_in_memory(engine, worker, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_files, "save_new_picture", full)
    job = worker.submit(Request("a", steps=1))
    over(job)
    assert job.state is State.DONE
    assert "disk is full" in job.warning
    unsaved = io.BytesIO(job.pictures[0].unsaved)
    assert Image.open(unsaved).size == (64, 64)
    assert picture_files.read_parameters(unsaved).prompt == "a"


def test_old_jobs_are_forgotten_and_their_pictures_stay(worker):
    jobs = [worker.submit(Request("a", steps=1)) for _ in range(MAX_KEPT + 3)]
    over(*jobs)
    assert [worker.job(job.id) for job in jobs[:3]] == [None] * 3
    assert worker.job(jobs[3].id) is jobs[3]
    assert all(job.pictures[0].path.exists() for job in jobs)


def test_an_endless_queue_is_refused(engine, worker):
    engine.gate = threading.Semaphore(0)
    first = worker.submit(Request("a", steps=1))
    wait(lambda: first.state is State.RUNNING)
    for _ in range(MAX_WAITING):
        worker.submit(Request("a", steps=1))
    with pytest.raises(QueueFullError, match=f"{MAX_WAITING} jobs"):
        worker.submit(Request("a", steps=1))


def test_progress_and_time_left(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = worker.submit(Request("a", steps=4, n_images=2))
    assert job.seconds_left is None
    for n in (1, 2, 3):
        engine.gate.release()
        wait(lambda n=n: job.frame is not None and job.frame.index == n)
    assert job.fraction == pytest.approx(3 / 8)
    assert job.seconds_left == pytest.approx(5 / job.steps_per_second)
    engine.gate.release(5)
    over(job)
    assert job.fraction == 1.0 and job.seconds_left is None


def test_nobody_finds_a_job_that_never_was(worker):
    assert worker.job("no-such-job") is None
    assert worker.job(None) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("steps = 0 is too few: at least 1."), "steps = 0 is too few: at least 1."),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("[malloc] Unable to allocate 10 bytes"), "ran out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_errors_in_plain_words(error, words):
    assert words in in_plain_words(error)


def test_a_model_deleted_under_the_server(tmp_path, monkeypatch):
    """With the real engine: what is loaded goes on painting, and what has to be loaded again is said to be gone."""
    folder = tmp_path / "models" / "mine"
    shutil.copytree(Path(stable_diffusion.__file__).parent / "checkpoints" / catalogue.DEFAULT, folder)
    monkeypatch.setenv(catalogue.FOLDERS_VARIABLE, str(folder.parent))
    worker = Worker(tmp_path / "outputs")
    try:
        for model, deleted, state in (
            ("mine", False, State.DONE),
            ("mine", True, State.DONE),
            (catalogue.DEFAULT, True, State.DONE),
            ("mine", True, State.FAILED),
            (catalogue.DEFAULT, True, State.DONE),
        ):
            if deleted:
                shutil.rmtree(folder, ignore_errors=True)
            job = worker.submit(Request("a red house", model=model, steps=1, cfg=1.0))
            wait(lambda job=job: not job.active, 60)
            assert job.state is state, job.error
            assert ("mine" in job.error) == (state is State.FAILED)
    finally:
        worker.close()


# --- The queue


def test_the_queue_in_its_order_and_changed(engine, worker):
    engine.gate = threading.Semaphore(0)
    first, second, third = (worker.submit(Request(text, steps=1)) for text in "abc")
    wait(lambda: first.state is State.RUNNING)
    assert worker.queue() == [first, second, third]
    worker.move(third, -1)
    assert worker.queue() == [first, third, second]
    worker.move(third, -1), worker.move(first, 1), worker.move(second, 9)
    assert worker.queue() == [first, third, second], "nothing comes before what runs, or after the end"
    engine.gate.release(3)
    over(first, second, third)
    assert worker.queue() == []
    assert [call[0] for call in engine.models[0].calls] == ["a", "c", "b"]


def test_a_repeating_job_lets_others_have_their_turn_and_ends_when_it_is_cancelled(engine, worker):
    engine.gate = threading.Semaphore(0)
    first = worker.submit(Request("a", steps=1, n_images=2, seed=7), repeat=True)
    other = worker.submit(Request("b", steps=1, seed=1))
    engine.gate.release(3)
    over(first, other)
    wait(lambda: worker.latest(first).state is State.RUNNING)
    again = worker.latest(first)
    assert again is not first and again.series == first.series and again.request.seed == 9
    assert worker.latest(other) is other
    worker.cancel(again)
    engine.gate.release(1)
    over(again)
    assert worker.queue() == [] and worker.latest(first) is again
    assert [arguments["seed"] for _, arguments in engine.models[0].calls] == [7, 8, 1, 9]


def test_a_repeating_job_that_fails_is_not_repeated(engine, worker):
    over(job := worker.submit(Request("", steps=1), repeat=True))
    assert job.state is State.FAILED and worker.latest(job) is job and worker.queue() == []


@pytest.mark.parametrize(
    ("asked", "name", "following"),
    [
        ({"seed": 7, "n_images": 3}, "seed", 10),
        ({}, "seed", None),
        ({"seed": MAX_SEED}, "seed", 0),
        ({"seed": 7, "variation_strength": 0.5, "variation_seed": 1, "n_images": 2}, "variation_seed", 3),
        ({"seed": 7, "variation_strength": 0.5, "variation_seed": 1}, "seed", 7),
    ],
)
def test_what_a_repeating_job_continues_with(asked, name, following):
    continued = next_request(Request("a", **asked))
    assert getattr(continued, name) == following
    continued.with_seeds()


def test_a_stopped_picture_is_kept_with_its_variation(engine, worker):
    engine.gate = threading.Semaphore(0)
    job = worker.submit(Request("a", steps=4, seed=5, variation_strength=0.25, variation_seed=8))
    engine.gate.release(1)
    wait(lambda: job.frame is not None and job.frame.index == 1)
    worker.cancel(job)
    engine.gate.release(1)
    over(job)
    (picture,) = job.pictures
    over(task := worker.keep(job, picture))
    assert task.state is State.DONE and picture.size == (64, 64)
    found = picture_files.read_parameters(picture.path)
    assert found.extra["Stopped after"] == "2 of 4 steps"
    assert (found.seed, found.extra["Variation seed"]) == (5, "8")
    before = picture.path.stat().st_mtime_ns
    over(worker.keep(job, picture))
    assert picture.path.stat().st_mtime_ns == before, "once is enough"


# --- The end of the process


def test_the_thread_frees_what_mlx_keeps_for_it_before_it_ends(engine, monkeypatch, tmp_path):
    freed, idents = [], []
    monkeypatch.setattr(worker_module, "release_thread", lambda: freed.append((threading.get_ident(), engine.released)))
    worker = Worker(tmp_path / "outputs")
    over(worker.submit(Request("a", steps=1)))
    over(worker.compute("key", lambda model, report: idents.append(threading.get_ident())))
    assert freed == []
    worker.close()
    assert freed == [(idents[0], 1)]  # after the model has gone


END = """
import sys, time
from pathlib import Path
from stable_diffusion.request import Request
from stable_diffusion.service.worker import Worker

when, how = sys.argv[1:]
worker = Worker(Path("outputs"))
jobs = [worker.submit(Request("a red house", steps=3 if when == "over" else 1000, cfg=5.0)) for _ in range(2)]
while any(job.active for job in jobs) if when == "over" else jobs[0].frame is None:
    time.sleep(0.001)
assert when == "busy" or all(job.pictures[0].path.is_file() for job in jobs), [job.error for job in jobs]
if how == "close":
    worker.close()
elif how == "give up":
    worker.close(timeout=0.0)
elif how == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("when", ["over", "busy"])
@pytest.mark.parametrize(("how", "status"), [("close", 0), ("give up", 0), ("nothing", 0), ("raise", 3)])
def test_a_plain_script_ends_with_its_own_status(tmp_path, when, how, status):
    """MLX aborts a process (status 134) whose interpreter shuts down while one of its threads still ends."""
    script = [sys.executable, "-c", END, when, how]
    environment = os.environ | {"PYTHONPATH": str(Path(stable_diffusion.__file__).parents[1])}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_model_is_loaded_again_only_where_it_is_asked_for_otherwise(engine, worker):
    asked = [Request("a", steps=1, bits=4), Request("b", steps=1, bits=4), Request("c", steps=1), Request("d", steps=1)]
    over(*(worker.submit(request) for request in asked))
    name = Request.model
    assert engine.loads == [(name, {"bits": 4}), (name, {})]
    job = worker.submit(Request("e", steps=2, low_memory=True))
    over(job)
    over(worker.decode(job, job.pictures[0].frames[0]))
    assert engine.loads[2:] == [(name, {"low_memory": True})], "a replay decodes with the model as it was"


def test_a_vae_is_found_by_its_name_alone(tmp_path, monkeypatch):
    (tmp_path / "models" / "VAE").mkdir(parents=True)
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(tmp_path / "models"))
    worker = Worker(tmp_path / "outputs")
    try:
        for vae in ("gone.safetensors", str(tmp_path / "gone.safetensors"), "../gone.safetensors"):
            over(job := worker.submit(Request("a", steps=1, vae=vae)))
            assert job.state is State.FAILED and "There is no VAE" in job.error
    finally:
        worker.close()


def test_a_refiner_is_loaded_beside_the_model_and_dropped_by_the_next_job_without(engine, worker):
    """What is about the machine is for both, what is about the model's file for the first alone."""
    asked = {"steps": 2, "refiner": "two", "refiner_switch": 0.4, "low_memory": True, "prediction_type": "epsilon"}
    first = worker.submit(Request("a", **asked))
    over(first, worker.submit(Request("b", **asked)))
    name = Request.model
    options = {"low_memory": True, "prediction_type": "epsilon"}
    assert engine.loads == [(name, options), ("two", {"low_memory": True})] and engine.released == 0
    (_, arguments), _ = engine.models[0].calls
    assert arguments["refiner"] is engine.models[1] and arguments["refiner_switch"] == 0.4
    over(worker.decode(first, first.pictures[0].frames[0]))
    assert len(engine.loads) == 2 and engine.released == 0, "looking at a step needs the first alone, and drops nothing"
    over(worker.submit(Request("c", steps=1, low_memory=True, prediction_type="epsilon")))
    assert len(engine.loads) == 2 and engine.released == 1
    over(worker.submit(Request("d", steps=1, model="two", low_memory=True)))
    assert engine.loads[2:] == [("two", {"low_memory": True})]
    over(worker.submit(Request("e", steps=1, model="two", low_memory=True, refiner="two")))
    assert len(engine.loads) == 3 and "refiner" not in engine.models[-1].calls[-1][1]


def test_a_picture_that_nothing_may_change_is_saved_as_it_is(engine, worker, monkeypatch):
    """The engine runs no step; the panel shows a picture without any."""
    monkeypatch.setattr(pretend.PretendModel, "_steps", lambda self, arguments: (step for step in ()))
    given = Image.new("RGB", (64, 64), "teal")
    job = worker.submit(Request("a", picture=given, strength=0.0, seed=9))
    over(job)
    (picture,) = job.pictures
    assert (job.state, job.visible, picture.visible, picture.frames, picture.seed) == (State.DONE, True, True, [], 9)
    assert Image.open(picture.path).getpixel((3, 3)) == (0, 128, 128)
    assert picture_files.read_parameters(picture.path).strength == 0
    over(failed := worker.submit(Request("a", picture=given, strength=0.5)))
    assert failed.state is State.FAILED and "ran no step" in failed.error


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_picture_without_a_record(worker, tmp_path, save, file_format):
    """Not of its prompt, and not of the mask that a PNG would carry."""
    given = Image.new("RGB", (64, 64), "teal")
    asked = {"picture": given, "mask": Image.new("L", (64, 64), 255), "file_format": file_format}
    for no_record in (False, True):
        job = worker.submit(Request("a red house", steps=1, no_record=no_record, **asked), save=save)
        over(job)
        path = job.pictures[0].path or tmp_path / "unsaved"
        data = path.read_bytes() if save else job.pictures[0].unsaved
        path.write_bytes(data)
        assert (picture_files.read_text(io.BytesIO(data)) is None) == no_record
        assert bool(list(inputs.carried(path))) == (save and file_format == "png" and not no_record)


def test_cells_are_decoded_as_their_own_settings_say(engine, worker):
    """Not as those of the first one."""
    seamless = axes.read("tiling=off, x, both")
    over(job := worker.compare(plan(Request("a", steps=1, seed=1), [seamless])))
    assert job.state is State.DONE and engine.models[0].tilings == ["off", "x", "both"]
