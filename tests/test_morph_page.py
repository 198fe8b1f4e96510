"""Morphs in the queue, and the page that paints and plays them."""

from __future__ import annotations

import io
import threading

import pytest
from PIL import Image

pytest.importorskip("streamlit")

from stable_diffusion import morph
from stable_diffusion.record import picture_files
from stable_diffusion.request import Request
from stable_diffusion.service import values
from stable_diffusion.service.films import film_of
from stable_diffusion.service.jobs import Morphing, State
from stable_diffusion.service.worker import Worker
from stable_diffusion.text.prompt import Blend
from stable_diffusion.webui.components import morph_player, session
from tests.pretend import over, wait
from tests.test_app import button, engine, labelled, open_page, page  # noqa: F401

PAGE = "stable_diffusion/webui/pages/morph.py"


@pytest.fixture
def worker(engine, tmp_path):  # noqa: F811
    worker = Worker(tmp_path / "outputs")
    yield worker
    if engine.gate is not None:
        engine.gate.release(10_000)
    worker.close()


def planned(*texts, seeds=(), **more):
    return morph.plan(Request("", seed=5, steps=2), texts or ("a", "b"), seeds, **{"n_frames": 3} | more)


def painted(engine):  # noqa: F811
    """The texts and seeds that were painted, without those that were only checked."""
    return [(text, arguments["seed"]) for text, arguments in engine.models[0].calls]


def test_every_frame_is_painted_with_its_text_and_noise(engine, worker):  # noqa: F811
    found = planned("a", "b", seeds=[5, 6])
    job = worker.morph(found)
    over(job)
    assert job.state is State.DONE and not job.problems and worker.latest_morph() is job
    checks = len({(cell.request.prompt, cell.request.blend_prompt) for cell in found.cells})
    assert painted(engine)[checks:] == [("a", 5), (Blend("a", "b", 0.5), 5), ("b", 6)]
    said = [picture_files.read_parameters(job.picture_of(cell).path) for cell in found.cells]
    assert [each.extra.get("Blend share") for each in said] == [None, "0.5", None]
    assert said[1].extra["Variation seed"] == "6" and said[1].extra["Variation of all noise"] == "True"
    assert Request.from_record(said[1])[0].text == Blend("a", "b", 0.5)


def test_a_loop_of_two_stations_paints_each_frame_once(engine, worker):  # noqa: F811
    job = worker.morph(planned(loop=True, n_frames=4))
    over(job)
    assert (len(job.morph.cells), job.n_images, len(job.pictures)) == (6, 4, 4)
    with Image.open(io.BytesIO(film_of(job, ".gif", 8))) as found:
        assert "Blend loop: True" in found.info["comment"].decode()
    data = morph_player._data(job, 8)
    assert [frame["picture"] for frame in data["frames"]] == [0, 1, 2, 3, 2, 1] and data["loop"]
    assert data["frames"][1]["name"] == "Frame 2 of 6: a, 33% of the way to b"


def test_a_morph_that_was_stopped_goes_on_and_shows_what_is_there(engine, worker):  # noqa: F811
    engine.gate = threading.Semaphore(4)  # two frames
    found = planned(n_frames=4)
    job = worker.morph(found)
    wait(lambda: len(job.finished()) == 2)
    worker.cancel(job)
    engine.gate.release(1)
    over(job)
    assert job.state is State.CANCELLED and len(job.finished()) == 2
    states = [each["state"] for each in morph_player._data(job, 8)["pictures"]]
    assert states[:2] == ["finished"] * 2 and states[3] == "missing"
    with Image.open(io.BytesIO(film_of(job, ".png", 8))) as strip:
        assert strip.width == 128, "what is there can be taken away"
    engine.gate.release(100)
    again = worker.morph(found, job.finished())
    over(again)
    assert len(again.cells) == 2 and len(again.finished()) == 4


def test_what_the_engine_refuses_is_said_before_the_first_frame(engine, worker):  # noqa: F811
    job = worker.morph(planned("a", ""))
    over(job)
    assert job.state is State.FAILED and "is empty" in job.error and not job.pictures


@pytest.mark.parametrize(
    ("more", "said"),
    [({"variation_strength": 0.5}, "variation strength"), ({"blend_prompt": "c"}, "blended with"),
     ({"mask": Image.new("L", (8, 8)), "picture": Image.new("RGB", (8, 8))}, "mask")],
)  # fmt: skip
def test_settings_that_a_morph_makes_itself_are_refused(more, said):
    with pytest.raises(morph.InputError, match=said):
        morph.plan(Request("", seed=5, **more), ["a", "b"])


# --- The page


@pytest.fixture
def morphs(page):  # noqa: F811
    page.switch_page(PAGE)
    page.run()
    assert not page.exception
    labelled(page.number_input, "Frames from station to station").set_value(3)
    page.run()
    return page


def prompts(page):  # noqa: F811
    return [each.value for each in page.text_area if each.label.startswith("Prompt of station")]


def paint(page):  # noqa: F811
    button(page, "Paint frames").click()
    page.run()
    assert not page.exception
    job = session.the_worker().latest_morph()
    if job is not None:
        over(job)
        page.run()
        assert not page.exception
    return job


def told(page):  # noqa: F811
    return [each.value for each in (*page.error, *page.warning)]


def test_the_page_begins_with_two_stations_and_paints_them(morphs, engine):  # noqa: F811
    tent, windmill = prompts(morphs)
    assert (tent, windmill) == values.MORPHS["postcards-tiny"] and "windmill" in windmill
    assert any("3 frames, 0.4 seconds" in each.value for each in morphs.caption)
    job = paint(morphs)
    assert isinstance(job, Morphing) and len({arguments["seed"] for _, arguments in engine.models[0].calls}) == 1
    assert any("3 of 3 frames" in each.value for each in morphs.caption)
    morphs.session_state["morph_open"] = 1
    morphs.run()
    assert any("50% of the way to" in each.value.replace("\\", "") for each in morphs.markdown) and not morphs.exception
    button(morphs, "Reuse all settings").click()
    morphs.run()
    assert not morphs.exception and labelled(morphs.text_area, "Blended with").value == windmill
    assert labelled(morphs.slider, "Share of the second text").value == 0.5
    assert labelled(morphs.text_area, "Prompt").value == tent


def test_stations_are_added_moved_and_removed(morphs):
    tent, windmill = prompts(morphs)
    button(morphs, "Add a station").click()
    morphs.run()
    assert any("Station 3 has no prompt" in each for each in told(morphs))
    labelled(morphs.text_area, "Prompt of station 3").set_value("a boat")
    labelled(morphs.text_input, "Seed of station 3").set_value("12x")
    morphs.run()
    assert any("Seed of station 3" in each for each in told(morphs))
    labelled(morphs.text_input, "Seed of station 3").set_value("12")
    morphs.run()
    assert not told(morphs) and prompts(morphs) == [tent, windmill, "a boat"]
    [each for each in morphs.button if each.label == "Up"][2].click()
    morphs.run()
    assert (
        prompts(morphs) == [tent, "a boat", windmill] and labelled(morphs.text_input, "Seed of station 2").value == "12"
    )
    next(each for each in morphs.button if each.label == "Remove").click()
    morphs.run()
    assert prompts(morphs) == ["a boat", windmill]
    job = paint(morphs)
    assert [station.prompt for station in job.morph.walk.stations] == ["a boat", windmill]
    assert job.morph.walk.stations[0].seed == 12


def test_mistakes_are_said_and_nothing_is_painted(morphs, engine):  # noqa: F811
    next(each for each in morphs.button if each.label == "Remove").click()
    morphs.run()
    assert any("1 station" in each or "nothing would change" in each for each in told(morphs))
    labelled(morphs.toggle, "Begin from a picture").set_value(True)
    morphs.run()
    button(morphs, "Paint frames").click()
    morphs.run()
    assert any("Choose a picture" in each for each in told(morphs)) and not morphs.exception
    labelled(morphs.toggle, "Begin from a picture").set_value(False)
    button(morphs, "Add a station").click()
    morphs.run()
    labelled(morphs.text_area, "Prompt of station 2").set_value("b")
    labelled(morphs.number_input, "Frames from station to station").set_value(200)
    morphs.run()
    button(morphs, "Paint frames").click()
    morphs.run()
    assert any("tick the box" in each for each in told(morphs))
    assert session.the_worker().latest_morph() is None and not engine.models


def test_a_picture_to_begin_from_and_another_tab(morphs, engine):  # noqa: F811
    morphs.session_state["input_picture"] = Image.new("RGB", (64, 64), "teal")
    labelled(morphs.toggle, "Begin from a picture").set_value(True)
    morphs.run()
    labelled(morphs.toggle, "Another strength at the end").set_value(True)
    morphs.run()
    labelled(morphs.slider, "Denoising strength of the last frame").set_value(1.0)
    labelled(morphs.slider, "Denoising strength").set_value(0.5)
    morphs.run()
    job = paint(morphs)
    assert [cell.request.strength for cell in job.morph.cells] == [0.5, 0.75, 1.0]
    assert all("input_image" in arguments for _, arguments in engine.models[0].calls)
    other = open_page()
    assert not other.exception and job.id not in str(other.query_params)
