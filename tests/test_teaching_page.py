"""The page "Train" and what it queues: runs with their folders, stopped, resumed, and letting paintings go first."""

import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("mlx.core")
pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from stable_diffusion.adapters import files
from stable_diffusion.errors import InputError
from stable_diffusion.request import Request
from stable_diffusion.service import teaching
from stable_diffusion.service.jobs import State
from stable_diffusion.service.teaching import Asked, Example, Teaching
from stable_diffusion.service.worker import Worker
from stable_diffusion.webui.components import session
from tests.pretend import PretendEngine, wait

APP = str(Path(__file__).parents[1] / "app.py")


def png(colour="orange"):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


EXAMPLES = [Example("a.png", png()), Example("a.txt", b"a lantern by day"), Example("b.png", png("blue"))]


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def engine(monkeypatch):
    return PretendEngine().install(monkeypatch)


@pytest.fixture
def worker(engine, house):
    worker = Worker(house / "outputs")
    yield worker
    worker.close()


class PretendRun:
    """A row of the table whose training waits for `steps` to be released."""

    title, help = "LoRA", "pretended"

    def __init__(self):
        self.steps, self.calls = threading.Semaphore(0), []

    @property
    def options(self):
        return teaching.RUNS["lora"].options

    def defaults(self, values):
        return teaching.RUNS["lora"].defaults(values)

    def states(self, output):
        return output.with_name("states")

    def start(self, output, limit, report, between, progress, **values):
        self.calls.append((limit, values))
        progress("reading", None)
        for step in range(1, limit.steps + 1):
            if not between():
                break
            assert self.steps.acquire(timeout=10)
            report(SimpleNamespace(step=step, figures={"loss": 1 / step}, done=step / limit.steps, sheet=None,
                                   seconds_left=1.0))  # fmt: skip
        output.write_bytes(b"learnt")


@pytest.fixture
def run(monkeypatch):
    run = PretendRun()
    monkeypatch.setitem(teaching.TEACHING, "lora", run)
    return run


def asked(**changes):
    return Asked(**({"run": "lora", "name": "lantern", "model": "postcards-tiny", "steps": 3} | changes))


def test_a_run_is_a_folder_and_what_it_learns_is_found_by_its_name(worker, run, house):
    begun = teaching.begin(asked(values={"rank": 4, "trigger": "zorb", "flip": False, "alpha": None}), EXAMPLES)
    assert sorted(os.listdir(begun.pictures)) == ["a.png", "a.txt", "b.png"]
    assert (begun.pictures / "a.txt").read_bytes() == b"a lantern by day"
    run.steps.release(3)
    work = Teaching(worker, begun)
    wait(lambda: not work.task.active)
    assert (work.task.state, work.task.error) == (State.DONE, "")
    ((limit, values),) = run.calls
    assert limit.steps == 3 and limit.minutes is None
    assert {name: values[name] for name in ("rank", "trigger", "flip")} == {"rank": 4, "trigger": "zorb", "flip": False}
    assert values["data"] == str(begun.pictures) and values["model"] and "alpha" not in values
    assert work.losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert files.listed(files.LORAS)["lantern"].read_bytes() == b"learnt"
    assert (begun.tag, asked(run="inversion").tag) == ("<lora:lantern:1>", "lantern")
    assert teaching.past() == [begun]
    teaching.delete(begun)
    assert teaching.past() == [] and files.listed(files.LORAS)


def test_a_stopped_run_keeps_what_it_has_and_is_resumed_with_more(worker, run):
    begun = teaching.begin(asked(), EXAMPLES)
    work = Teaching(worker, begun)
    run.steps.release(1)
    wait(lambda: work.losses)
    worker.cancel(work.task)
    run.steps.release(1)
    wait(lambda: not work.task.active)
    assert work.task.state is State.CANCELLED and begun.file.is_file() and begun.installed.is_file()
    run.steps.release(10)
    teaching.note(more := asked(steps=5, values=begun.values))
    again = Teaching(worker, more)
    wait(lambda: not again.task.active)
    assert again.task.state is State.DONE and run.calls[-1][0].steps == 5
    assert teaching.latest(worker) is again and teaching.past()[0].steps == 5


def test_a_picture_is_painted_between_two_steps(worker, run):
    work = Teaching(worker, teaching.begin(asked(), EXAMPLES))
    wait(lambda: run.calls)
    job = worker.submit(Request("a house", steps=1))
    run.steps.release(1)
    wait(lambda: not job.active)
    assert job.state is State.DONE and work.task.active and len(work.losses) == 1
    run.steps.release(5)
    wait(lambda: not work.task.active)
    assert work.task.state is State.DONE


@pytest.mark.parametrize(
    ("changes", "examples", "words"),
    [
        ({"name": "../x"}, EXAMPLES, "'../x' cannot be a name"),
        ({"name": "x" * 61}, EXAMPLES, "cannot be a name"),
        ({"name": "a."}, EXAMPLES, "cannot be a name"),
        ({}, [], "no pictures to learn from"),
        ({}, [EXAMPLES[1]], "no pictures to learn from"),
        ({}, [Example("x.png", b"nothing")], r"None of these can be opened: x.png"),
        ({}, [EXAMPLES[0], EXAMPLES[0]], "two files named 'a.png'"),
        ({"values": {"rank": 0}}, EXAMPLES, "rank = 0"),
        ({"values": {"layers": "all"}}, EXAMPLES, "layers = 'all'"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_folder(changes, examples, words):
    with pytest.raises(InputError, match=words):
        teaching.begin(asked(**changes), examples)
    assert teaching.past() == [] and not list(teaching.folder().glob("*"))


def test_a_name_is_taken_once(house):
    begun = teaching.begin(asked(), EXAMPLES)
    with pytest.raises(InputError, match="a run 'lantern' already"):
        teaching.begin(asked(), EXAMPLES)
    assert len(os.listdir(begun.pictures)) == 3
    (house / "loras").mkdir()
    (house / "loras" / "own.safetensors").touch()
    with pytest.raises(InputError, match="exists already"):
        teaching.begin(asked(name="own"), EXAMPLES)


def test_a_broken_picture_is_skipped_and_named():
    begun = teaching.begin(asked(), [*EXAMPLES, Example("broken.png", b"nothing")])
    assert sorted(os.listdir(begun.pictures)) == ["a.png", "a.txt", "b.png"]
    (skipped,) = begun.skipped
    assert skipped.startswith("broken.png (")


def test_a_run_of_the_engine_itself(house):
    worker = Worker(house / "outputs")
    try:
        values = {"trigger": "zorb", "rank": 2, "batch": 1, "samples": 0}
        work = Teaching(worker, teaching.begin(asked(steps=2, values=values), EXAMPLES[::2]))
        wait(lambda: not work.task.active, 120)
        assert (work.task.state, work.task.error) == (State.DONE, "")
        job = worker.submit(Request("zorb <lora:lantern:1>", steps=1))
        wait(lambda: not job.active, 120)
        assert (job.state, job.error) == (State.DONE, "")
    finally:
        worker.close()


# --- The page


@pytest.fixture
def page(engine, house, monkeypatch):
    worker = Worker(house / "outputs")
    monkeypatch.setattr(session, "the_worker", lambda: worker)
    page = AppTest.from_file(APP, default_timeout=30).run()
    page.switch_page("stable_diffusion/webui/pages/train.py").run()
    assert not page.exception
    yield page
    worker.close()


def button(page, label):
    (found,) = [each for each in page.button if each.label == label]
    return found


def test_the_page_trains_stops_and_resumes(page, run):
    assert button(page, "Train").disabled
    page.text_input(key="teaching_name").set_value("lantern")
    page.file_uploader(key="teaching_uploads").set_value([(each.name, each.data, "image/png") for each in EXAMPLES])
    page.segmented_control(key="teaching_how").set_value("Steps").run()
    page.number_input(key="teaching_steps").set_value(3)
    page.text_input(key="teaching-lora-trigger").set_value("zorb").run()
    assert "2 pictures, 1 captions" in [each.value for each in page.caption]
    button(page, "Train").click().run()
    assert not page.exception
    work = teaching.latest(session.the_worker())
    run.steps.release(2)
    wait(lambda: len(work.losses) == 2)
    page.run()
    assert button(page, "Train").disabled
    button(page, "Stop").click().run()
    run.steps.release(1)
    wait(lambda: not work.task.active)
    page.run()
    assert any("Its state is kept" in each.value for each in page.info)
    assert page.code[0].value == "<lora:lantern:1> zorb"
    run.steps.release(9)
    page.number_input(key="teaching-more-lantern").set_value(4).run()
    button(page, "Resume").click().run()
    again = teaching.latest(session.the_worker())
    assert again is not work and run.calls[-1][0].steps == 4
    wait(lambda: not again.task.active)
    page.run()
    assert any("lantern has been learnt" in each.value for each in page.success)


def test_a_refusal_is_said_on_the_page(page, run):
    page.text_input(key="teaching_name").set_value("a/b")
    page.file_uploader(key="teaching_uploads").set_value([("a.png", png(), "image/png")]).run()
    button(page, "Train").click().run()
    assert "cannot be a name" in page.toast[0].value and not run.calls


def test_a_broken_picture_is_named_before_it_is_skipped(page, run):
    files = [("a.png", png(), "image/png"), ("broken.png", b"nothing", "image/png")]
    page.file_uploader(key="teaching_uploads").set_value(files).run()
    assert not page.exception
    assert any("broken\\.png cannot be opened" in each.value for each in page.caption)
