"""The page's logic, without a browser: the script runs for real, the worker too, and only the engine pretends."""

import io
import threading
from pathlib import Path

import pytest
from PIL import Image

st = pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest  # noqa: E402

import models  # noqa: E402
from tests.pretend import PretendEngine, over, wait  # noqa: E402
from webui.components import form, live, session  # noqa: E402
from webui.jobs import Frame, Job, Picture, Request, State  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
IMAGE_PAGE = "webui/pages/image_to_image.py"


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(tmp_path / "outputs"))
    engine = PretendEngine().install(monkeypatch)
    st.cache_resource.clear()
    yield engine
    if engine.gate is not None:
        engine.gate.release(10_000)
    session.the_worker().close()
    st.cache_resource.clear()


@pytest.fixture
def page(engine):
    return open_page()


def open_page(**query):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def labelled(elements, label):
    (found,) = [element for element in elements if element.label == label]
    return found


def button(page, label):
    return labelled(page.button, label)


def generate(page):
    button(page, "Generate").click()
    page.run()
    assert not page.exception
    return job_of(page)


def job_of(page):
    return session.the_worker().job(page.session_state["job_id"])


def png(size=(90, 60)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    return buffer.getvalue()


def test_the_names_that_people_and_tests_hold_on_to(page):
    for elements, labels in {
        "text_area": ["Prompt", "Negative prompt"],
        "selectbox": ["Model", "Sampler"],
        "slider": ["Steps", "CFG"],
        "number_input": ["Seed", "Width", "Height", "Number of pictures"],
        "button": ["Generate", "Cancel"],
    }.items():
        for label in labels:
            labelled(getattr(page, elements), label)
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.slider, "Denoising strength")
    labelled(page.get("file_uploader"), "Input picture")


def test_it_starts_with_the_embedded_model_and_its_defaults(page):
    defaults = models.find(models.DEFAULT).defaults
    assert labelled(page.selectbox, "Model").value == models.DEFAULT
    assert labelled(page.slider, "Steps").value == defaults.steps
    assert labelled(page.slider, "CFG").value == defaults.cfg
    assert labelled(page.number_input, "Width").value == defaults.width
    assert labelled(page.number_input, "Seed").value == -1


def test_another_model_brings_its_own_defaults(page):
    turbo = models.find("sdxl-turbo")
    labelled(page.selectbox, "Model").set_value(turbo.name)
    page.run()
    assert labelled(page.slider, "Steps").value == turbo.defaults.steps
    assert labelled(page.slider, "CFG").value == turbo.defaults.cfg
    assert labelled(page.number_input, "Height").value == turbo.defaults.height
    assert labelled(page.selectbox, "Sampler").value == turbo.defaults.sampler


def test_what_the_form_says_reaches_the_engine(engine, page):
    labelled(page.text_area, "Prompt").set_value("a red house ")
    labelled(page.text_area, "Negative prompt").set_value("rain")
    labelled(page.slider, "Steps").set_value(3)
    labelled(page.slider, "CFG").set_value(2.5)
    labelled(page.number_input, "Seed").set_value(42)
    labelled(page.number_input, "Width").set_value(192)
    labelled(page.number_input, "Number of pictures").set_value(2)
    job = generate(page)
    over(job)
    assert job.state is State.DONE, job.error
    (text, arguments), (_, second) = engine.models[0].calls
    assert text == "a red house"
    assert arguments == {
        "negative_text": "rain",
        "num_steps": 3,
        "cfg_weight": 2.5,
        "width": 192,
        "height": 128,
        "seed": 42,
        "sampler": "euler",
    }
    assert second["seed"] == 43


def test_generate_and_cancel_change_places_while_a_job_runs(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    assert [button(page, name).disabled for name in ("Generate", "Cancel")] == [False, True]
    labelled(page.text_area, "Prompt").set_value("a")
    job = generate(page)
    assert [button(page, name).disabled for name in ("Generate", "Cancel")] == [True, False]
    wait(lambda: job.state is State.RUNNING)
    button(page, "Cancel").click()
    page.run()
    engine.gate.release(1)
    over(job)
    page.run()
    assert job.state is State.CANCELLED
    assert [button(page, name).disabled for name in ("Generate", "Cancel")] == [False, True]


def test_a_job_is_found_again_after_a_reload_with_all_its_settings(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    labelled(page.text_area, "Prompt").set_value("a red house")
    labelled(page.slider, "Steps").set_value(9)
    labelled(page.number_input, "Seed").set_value(5)
    job = generate(page)
    assert page.query_params["job"] in (job.id, [job.id])
    again = open_page(job=job.id)
    assert labelled(again.text_area, "Prompt").value == "a red house"
    assert labelled(again.slider, "Steps").value == 9
    assert labelled(again.number_input, "Seed").value == 5
    assert not button(again, "Cancel").disabled


def test_a_second_tab_waits_its_turn(engine):
    engine.gate = threading.Semaphore(0)
    first, second = open_page(), open_page()
    for page in (first, second):
        labelled(page.text_area, "Prompt").set_value("a")
        job = generate(page)
    assert session.the_worker().position(job) == 1


def test_an_error_is_shown_as_it_was_written_and_nothing_is_lost(engine, page):
    labelled(page.text_area, "Negative prompt").set_value("rain")
    over(generate(page))
    page.run()
    (error,) = page.error
    assert error.value == session.plain("text = '' is empty: describe a picture.")
    assert labelled(page.text_area, "Negative prompt").value == "rain"
    assert not button(page, "Generate").disabled


def test_an_unknown_job_in_the_address_is_no_error(engine):
    page = open_page(job="no-such-job")
    assert not button(page, "Generate").disabled
    assert "job" not in page.query_params


def test_image_to_image_needs_a_picture(engine, page):
    page.switch_page(IMAGE_PAGE).run()
    button(page, "Generate").click()
    page.run()
    assert [error.value for error in page.error] == [session.plain("Choose an input picture first.")]
    assert engine.models == []


def test_an_upload_and_its_strength_reach_the_engine(engine, page):
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", png(), "image/png"))
    page.run()
    labelled(page.slider, "Denoising strength").set_value(0.5)
    page.run()
    assert any("last 10 of 20 steps" in caption.value for caption in page.caption)
    job = generate(page)
    over(job)
    assert job.state is State.DONE, job.error
    (_, arguments) = engine.models[0].calls[0]
    assert arguments["input_image"].size == (128, 128)
    assert arguments["denoising_strength"] == 0.5


def test_an_upload_that_is_no_picture_is_refused_in_words(engine, page):
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", b"not a picture", "image/png"))
    page.run()
    assert len(page.error) == 1
    assert not page.exception


def test_what_was_typed_survives_a_change_of_pages(page):
    labelled(page.text_area, "Prompt").set_value("a red house")
    labelled(page.slider, "Steps").set_value(33)
    page.run()
    page.switch_page(IMAGE_PAGE).run()
    assert labelled(page.text_area, "Prompt").value == "a red house"
    assert labelled(page.slider, "Steps").value == 33


def test_the_steps_of_a_finished_picture_can_be_replayed(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.slider, "Steps").set_value(7)
    over(generate(page))
    page.run()
    replay = labelled(page.slider, "Step")
    assert (replay.min, replay.max, replay.value) == (1, 7, 7)
    replay.set_value(2)
    page.run()
    assert not page.exception


@pytest.mark.parametrize(
    ("strength", "steps", "words"),
    [
        (0.7, 20, "last 14 of 20"),
        (1.0, 20, "last 20 of 20"),
        (0.29, 100, "last 28 of 100"),
        (0.0, 20, "none of 20"),
        (0.04, 20, "none of 20"),
    ],
)
def test_a_strength_in_words(strength, steps, words):
    assert words in form.strength_in_words(strength, steps)


def test_progress_in_words():
    job = Job(Request("a", n_images=2))
    job.state = State.RUNNING
    job.pictures.append(Picture(frames=[Frame(5, 20, 1.0, b"", b"")]))
    job.step_seconds.extend([2.0, 2.0])
    assert live.progress_in_words(job) == "Picture 1 of 2 · Step 5 of 20 · 1 min 10 s left · 2.0 s a step"
    job.cancel_event.set()
    assert live.progress_in_words(job) == "Picture 1 of 2 · Step 5 of 20 · cancelling"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (125, "2 min 5 s"), (4800, "1 h 20 min")])
def test_durations(seconds, words):
    assert live.duration(seconds) == words


def test_plain_text_escapes_whatever_markdown_would_read():
    assert session.plain("*a* <b> :red[x] $y$") == r"\*a\* \<b\> \:red\[x\] \$y\$"
