"""Pictures enlarged by the worker: progress, cancelling, what is kept, what goes wrong."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from stable_diffusion.errors import InputError
from stable_diffusion.record import picture_files
from stable_diffusion.record.parameters import Parameters
from stable_diffusion.request import Request
from stable_diffusion.service import upscaling
from stable_diffusion.service.jobs import State
from stable_diffusion.service.upscaling import Enlarging, Source
from stable_diffusion.service.worker import Worker
from stable_diffusion.upscaling.settings import DEFAULT, Upscaling
from tests.pretend import PretendEngine, over


@pytest.fixture
def engine(monkeypatch):
    return PretendEngine().install(monkeypatch)


@pytest.fixture
def worker(engine, tmp_path):
    worker = Worker(tmp_path / "outputs")
    yield worker
    worker.close()


def source(name: str = "a.png", size=(6, 4), said: Parameters | None = None) -> Source:
    return Source(name, picture_files.encoded(Image.new("RGB", size, "red"), ".png", said))


def test_pictures_are_enlarged_and_saved_without_a_model(worker, engine):
    work = Enlarging(
        worker, [source(said=Parameters("a cat", seed=7, steps=4)), source("b.png")], Upscaling("Nearest", 2)
    )
    over(work.task)
    assert (work.task.state, work.task.fraction, engine.models) == (State.DONE, 1.0, [])
    first, second = work.results
    assert [each.path.name for each in work.results] == ["00001-7.png", "00002.png"]
    assert first.size == second.size == (12, 8) and Image.open(io.BytesIO(first.read())).size == (12, 8)
    found = picture_files.read_parameters(first.path)
    assert (found.prompt, found.extra["Postprocess upscaler"]) == ("a cat", "Nearest")
    first.path.unlink()
    assert first.read() is None


def test_the_upscaler_stays_in_memory_until_its_file_changes_or_a_model_goes(worker, monkeypatch):
    made, load = [], upscaling.Enlarger
    monkeypatch.setattr(upscaling, "Enlarger", lambda upscaler: made.append(upscaler.name) or load(upscaler))
    mixed = Upscaling(DEFAULT, 2, second="Nearest", visibility=1)
    for settings in (Upscaling(DEFAULT, 2), Upscaling(DEFAULT, 4), mixed):
        work = Enlarging(worker, [source()], settings)
        over(work.task)
        assert work.task.state is State.DONE, work.task.error
    assert made == [DEFAULT, "Nearest"]
    over(worker.submit(Request("a", steps=1)))
    over(worker.unload())
    assert not worker.kept


def test_a_cancelled_task_keeps_what_is_finished(worker, monkeypatch):
    enlarge = upscaling.Upscale.__call__

    def stop_at_the_second(self, picture, progress):
        if work.results:
            work.task.cancel_event.set()
        return enlarge(self, picture, progress)

    monkeypatch.setattr(upscaling.Upscale, "__call__", stop_at_the_second)
    work = Enlarging(worker, [source("a.png"), source("b.png")], Upscaling("Nearest", 2))
    over(work.task)
    assert work.task.state is State.CANCELLED and [each.source.name for each in work.results] == ["a.png"]


def test_a_full_disk_loses_nothing(worker, monkeypatch):
    def full(*of, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(picture_files, "save_new_picture", full)
    work = Enlarging(worker, [source()], Upscaling("Nearest", 2))
    over(work.task)
    (found,) = work.results
    assert found.path is None and Image.open(io.BytesIO(found.read())).size == (12, 8)
    assert "disk is full" in work.warning


def test_one_of_several_that_breaks_is_named_and_the_others_go_on(worker):
    broken = Source("b.png", source(size=(50, 50)).data[:80])
    work = Enlarging(worker, [source("a.png"), broken, source("c.png")], Upscaling("Nearest", 2))
    over(work.task)
    assert work.task.state is State.DONE and len(work.results) == 2
    ((name, why),) = work.failures
    assert name == "b.png" and "truncated or damaged" in why
    alone = Enlarging(worker, [broken], Upscaling("Nearest", 2))
    over(alone.task)
    assert alone.task.state is State.FAILED and alone.task.refused and "truncated" in alone.task.error


@pytest.mark.parametrize(
    ("data", "said"), [(b"no picture", "'x' is not a picture"), (source(size=(9000, 1000)).data, "million")]
)
def test_what_cannot_be_enlarged_never_waits(worker, data, said):
    with pytest.raises(InputError, match=said):
        Enlarging(worker, [Source("x", data)], Upscaling("Nearest", 4))
    assert not worker.queue()
