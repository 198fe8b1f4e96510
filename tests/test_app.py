"""The page's logic, without a browser: the script runs for real, the worker too, and only the engine pretends."""

import errno
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

st = pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest  # noqa: E402

from stable_diffusion import catalogue, prompts  # noqa: E402
from stable_diffusion.errors import InputError  # noqa: E402
from stable_diffusion.record import picture_files  # noqa: E402
from stable_diffusion.request import Request  # noqa: E402
from stable_diffusion.service import shared, values  # noqa: E402
from stable_diffusion.service.jobs import Frame, Job, Picture, State  # noqa: E402
from stable_diffusion.webui.components import field_guard, form, live, session  # noqa: E402
from tests.pretend import PretendEngine, over, wait  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
IMAGE_PAGE = "stable_diffusion/webui/pages/image_to_image.py"


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(tmp_path / "outputs"))
    engine = PretendEngine().install(monkeypatch)
    shared.close()
    st.cache_resource.clear()
    yield engine
    if engine.gate is not None:
        engine.gate.release(10_000)
    shared.close()
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
        "text_input": ["Seed"],
        "number_input": ["Width", "Height", "Number of pictures"],
        "button": ["Generate", "Cancel"],
    }.items():
        for label in labels:
            labelled(getattr(page, elements), label)
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.slider, "Denoising strength")
    labelled(page.get("file_uploader"), "Input picture")


def test_it_starts_with_the_embedded_model_and_its_defaults(page):
    defaults = catalogue.find(catalogue.DEFAULT).defaults
    assert labelled(page.selectbox, "Model").value == catalogue.DEFAULT
    assert labelled(page.slider, "Steps").value == defaults.steps
    assert labelled(page.slider, "CFG").value == defaults.cfg
    assert labelled(page.number_input, "Width").value == defaults.width
    assert labelled(page.text_input, "Seed").value == "-1"


def test_a_first_visit_offers_prompts_that_the_model_can_do_something_with(page):
    example = values.examples(catalogue.find(catalogue.DEFAULT))[1]
    button(page, example).click()
    page.run()
    assert labelled(page.text_area, "Prompt").value == example
    labelled(page.selectbox, "Model").set_value(catalogue.find("sdxl-turbo").name)
    page.run()
    assert [each.label for each in page.button if (each.key or "").startswith("example-")] == list(values.EXAMPLES[""])
    labelled(page.selectbox, "Model").set_value(catalogue.DEFAULT)
    over(generate(page))
    page.run()
    assert not [each for each in page.button if (each.key or "").startswith("example-")]


def test_another_model_brings_its_own_defaults(page):
    turbo = catalogue.find("sdxl-turbo")
    labelled(page.selectbox, "Model").set_value(turbo.name)
    page.run()
    assert labelled(page.slider, "Steps").value == turbo.defaults.steps
    assert labelled(page.slider, "CFG").value == 1.0 > turbo.defaults.cfg  # the same: guidance is off
    assert any(caption.value == "Guidance is off." for caption in page.caption)
    assert labelled(page.number_input, "Height").value == turbo.defaults.height
    assert labelled(page.selectbox, "Sampler").value == turbo.defaults.sampler


def test_what_the_form_says_reaches_the_engine(engine, page):
    labelled(page.text_area, "Prompt").set_value("a red house ")
    labelled(page.text_area, "Negative prompt").set_value("rain")
    labelled(page.slider, "Steps").set_value(3)
    labelled(page.slider, "CFG").set_value(2.5)
    labelled(page.text_input, "Seed").set_value("42")
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
        "guidance_rescale": 0.0,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "guidance_min_sigma": 0.0,
        "deepcache_interval": 1,
        "prompt_language": "a1111",
        "with_start": True,
    }
    assert second["seed"] == 43


def test_cancel_can_be_pressed_while_a_job_runs(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    assert [button(page, name).disabled for name in ("Generate", "Cancel")] == [False, True]
    labelled(page.text_area, "Prompt").set_value("a")
    job = generate(page)
    assert [button(page, name).disabled for name in ("Generate", "Cancel")] == [False, False]
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
    labelled(page.text_input, "Seed").set_value("5")
    job = generate(page)
    assert page.query_params["job"] in (job.id, [job.id])
    again = open_page(job=job.id)
    assert labelled(again.text_area, "Prompt").value == "a red house"
    assert labelled(again.slider, "Steps").value == 9
    assert labelled(again.text_input, "Seed").value == "5"
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


def test_a_job_that_failed_before_its_first_step_leaves_the_panel_as_it_was(engine):
    engine.gate, engine.fail_at = threading.Semaphore(0), 1
    page = open_page()
    labelled(page.text_area, "Prompt").set_value("a")
    job = generate(page)  # and drawn while it ran
    wait(lambda: job.state is State.RUNNING)
    page.run()
    engine.gate.release(1)
    over(job)
    page.run()
    assert "the wheels came off" in page.error[0].value.replace("\\", "")
    assert any(text.value == "**Nothing painted yet**" for text in page.markdown)
    button(page, "Reuse last").click()
    page.run()
    assert not page.exception


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
    assert (replay.min, replay.max, replay.value) == (0, 7, 7)
    replay.set_value(2)
    page.run()
    assert not page.exception and not any(live.BEGINNING in caption for caption in captions(page))
    labelled(page.slider, "Step").set_value(0)
    page.run()
    assert any(live.BEGINNING in caption for caption in captions(page))


def captions(page):
    return [caption.value for caption in page.caption]


def test_the_tokens_of_both_prompts_are_counted(page, monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "a *bad* house")
    labelled(page.text_area, "Prompt").set_value("a red house")
    labelled(page.text_area, "Negative prompt").set_value("house " * 80)
    page.run()
    assert session.plain("3 / 75 tokens") in captions(page)
    assert session.plain("88 / 150 tokens") in captions(page)


def test_what_the_signs_of_a_prompt_mean_stands_under_it(page):
    labelled(page.text_area, "Prompt").set_value("a (red *house*:1.3) [on:by:0.5] <b>hills</b> :red[x] ((`y`))")
    labelled(page.text_area, "Negative prompt").set_value("clouds")
    page.run()
    (row,) = [caption for caption in captions(page) if "badge" in caption]
    badges = [session.plain(words) for words in ("on → by after 50 %", "red *house* ×1.3", "`y` ×1.21")]
    for words in badges:
        assert f":gray-badge[{words}]" in row
    assert session.plain("0 / 75 tokens") not in captions(page)
    assert not page.exception
    labelled(page.text_area, "Prompt").set_value(" ".join(f"(word{i}:1.{i})" for i in range(1, 20)))
    page.run()
    assert f":gray-badge[{session.plain('and 7 more')}]" in next(each for each in captions(page) if "badge" in each)


def test_a_default_negative_prompt_is_shown_and_added(engine, page, monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "low *res*")
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.text_area, "Negative prompt").set_value("rain")
    over(job := generate(page))
    assert engine.models[0].calls[0][1]["negative_text"] == "rain, low *res*"
    assert f"Added to every generation: {session.plain('low *res*')}" in captions(page)
    again = open_page(job=job.id)
    assert labelled(again.text_area, "Negative prompt").value == "rain"


def test_a_default_negative_prompt_can_be_left_out(engine, page, monkeypatch):
    monkeypatch.setenv(prompts.NEGATIVE_VARIABLE, "rain")
    labelled(page.text_area, "Prompt").set_value("a")
    page.run()
    button(page, "Leave it out").click()
    over(generate(page))
    assert engine.models[0].calls[0][1]["negative_text"] is None
    button(page, "Add the default negative prompt").click()
    over(generate(page))
    assert engine.models[0].calls[1][1]["negative_text"] == "rain"


def test_a_dynamic_prompt_shows_an_example_and_its_mistakes(engine, page):
    labelled(page.text_area, "Prompt").set_value("a {red|red} house")
    page.run()
    assert any(each.startswith("Drawn for every picture, such as: a red house") for each in captions(page))
    over(generate(page))
    assert engine.models[0].calls[0][0] == "a red house"
    labelled(page.text_area, "Prompt").set_value("__nothing__")
    page.run()
    assert any("no wildcard" in error.value for error in page.error)
    button(page, "Generate").click()
    page.run()
    assert len(engine.models[0].calls) == 1 and not page.exception


def test_styles_are_made_applied_and_deleted(engine, page, monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    labelled(page.text_area, "Prompt").set_value("a house")
    labelled(page.text_input, "Name of the style").set_value("Ink")
    labelled(page.text_area, "Prompt of the style").set_value("{prompt}, ink")
    button(page, "Save style").click()
    page.run()
    labelled(page.multiselect, "Styles").set_value(["Ink"])
    page.run()
    assert session.plain("a house, ink") in " ".join(captions(page))
    over(generate(page))
    assert engine.models[0].calls[0][0] == "a house, ink"
    labelled(page.text_input, "Name of the style").set_value("Chalk")
    button(page, "Save style").click()
    page.run()
    assert labelled(page.multiselect, "Styles").value == ["Chalk"]
    button(page, "Delete style").click()
    page.run()
    assert labelled(page.multiselect, "Styles").value == [] and not page.exception
    (tmp_path / "styles.csv").write_text("broken")
    page.run()
    assert any("line 1" in error.value for error in page.error) and not page.exception


def test_the_schedule_goes_with_the_sampler(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.selectbox, "Sampler").set_value("dpmpp_2m")
    page.run()
    schedule = labelled(page.selectbox, "Schedule")
    assert schedule.options == [
        "Model's own", "Automatic (Karras)", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform",
        "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta",
    ]  # fmt: skip
    schedule.set_value("karras")
    over(job := generate(page))
    assert engine.models[0].calls[0][1]["sampler"] == "dpmpp_2m_karras"
    again = open_page(job=job.id)
    assert labelled(again.selectbox, "Sampler").value == "dpmpp_2m"
    assert labelled(again.selectbox, "Schedule").value == "karras"
    labelled(again.selectbox, "Sampler").set_value("ddim")
    again.run()
    assert labelled(again.selectbox, "Schedule").options == [
        "Model's own", "Automatic (as the model says)", "Uniform", "SGM Uniform", "Simple", "Normal", "DDIM",
    ]  # fmt: skip
    labelled(again.selectbox, "Schedule").set_value("sgm_uniform")
    over(job := generate(again))
    assert engine.models[0].calls[-1][1]["sampler"] == "ddim_sgm_uniform"
    assert picture_files.read_parameters(job.pictures[0].path).schedule == "SGM Uniform"


def test_ratios_and_swap_set_the_size(page):
    for name, size in (("3:2", (160, 104)), ("Swap", (104, 160)), ("1:1", (128, 128))):
        button(page, name).click()
        page.run()
        assert tuple(labelled(page.number_input, side).value for side in ("Width", "Height")) == size


def test_the_seed_of_the_last_picture_comes_back_and_goes(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    over(job := generate(page))
    page.run()
    assert labelled(page.text_input, "Seed").value == "-1"
    button(page, "Reuse last").click()
    page.run()
    assert labelled(page.text_input, "Seed").value == str(job.pictures[0].seed)
    button(page, "Random").click()
    page.run()
    assert labelled(page.text_input, "Seed").value == "-1"


def test_the_seed_of_the_picture_that_is_shown_comes_back(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.text_input, "Seed").set_value("7")
    labelled(page.number_input, "Number of pictures").set_value(3)
    over(generate(page))
    page.run()
    for chosen, seed in ((1, "8"), (2, "9"), (live.ALL, "7")):
        labelled(page.button_group, "Picture").set_value(chosen)
        page.run()
        button(page, "Reuse last").click()
        page.run()
        assert labelled(page.text_input, "Seed").value == seed


def test_the_variation_that_is_shown_comes_back(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.text_input, "Seed").set_value("7")
    labelled(page.slider, "Variation strength").set_value(0.5)
    labelled(page.number_input, "Number of pictures").set_value(2)
    over(job := generate(page))
    page.run()
    labelled(page.button_group, "Picture").set_value(1)
    page.run()
    button(page, "Reuse last").click()
    page.run()
    assert labelled(page.text_input, "Seed").value == "7"
    assert labelled(page.text_input, "Variation seed").value == str(job.drawn.variation_seed + 1)


def test_a_seed_of_64_bits_reaches_the_engine_and_comes_back(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.text_input, "Seed").set_value(str(2**64 - 1))
    over(job := generate(page))
    assert engine.models[0].calls[0][1]["seed"] == 2**64 - 1
    again = open_page(job=job.id)
    assert labelled(again.text_input, "Seed").value == str(2**64 - 1)


@pytest.mark.parametrize("seed", ["-5", str(2**64), "x", "1.5"])
def test_nothing_is_painted_while_a_seed_is_not_valid(engine, page, seed):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.text_input, "Seed").set_value(seed)
    button(page, "Generate").click()
    page.run()
    assert not page.exception and engine.models == []
    assert labelled(page.text_input, "Seed").value == seed, "what is wrong stays to be seen"
    assert [error.value for error in page.error].count(
        session.plain(f"Seed: {seed!r} should be a whole number from -1 to {2**64 - 1}.")
    ) == 2, "beside the field and beside the button"
    labelled(page.text_input, "Seed").set_value("5")
    over(generate(page))
    page.run()
    assert not page.error and engine.models[0].calls[0][1]["seed"] == 5


def test_a_seed_of_a_variation_counts_only_with_one(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.slider, "Variation strength").set_value(0.5)
    page.run()
    labelled(page.text_input, "Variation seed").set_value("x")
    button(page, "Generate").click()
    page.run()
    assert engine.models == [] and "Variation seed" in page.error[-1].value
    labelled(page.slider, "Variation strength").set_value(0.0)
    page.run()
    over(job := generate(page))
    assert job.state is State.DONE


def test_a_field_that_refuses_its_value_is_named(monkeypatch):
    field = {"label": "Width", "value": "99999", "low": "64", "high": "2048"}
    for sent, words in (
        ({"invalid": [field]}, "Width: 99999 should be a number from 64 to 2048."),
        ({"invalid": [field | {"value": ""}]}, "Width: this should be a number from 64 to 2048."),
        ({"invalid": ["nonsense"]}, ""),
        ({"invalid": []}, ""),
        (None, ""),
    ):
        monkeypatch.setattr(field_guard.st, "session_state", {field_guard.KEY: sent})
        if words:
            with pytest.raises(InputError) as refused:
                field_guard.check()
            assert str(refused.value) == words
        else:
            field_guard.check()


# --- The queue


def start(page, prompt):
    labelled(page.text_area, "Prompt").set_value(prompt)
    button(page, "Generate").click()
    page.run()
    assert not page.exception
    return next(job for job in reversed(session.the_worker()._jobs.values()) if job.request.prompt == prompt)


def rows(page):
    """The rows of the queue, and what each can be asked to do."""
    works = session.the_worker().queue()
    keys = [button.key or "" for button in page.button]
    return [[key.partition("-")[0] for key in keys if key.endswith(work.id)] for work in works]


def press(page, key):
    next(button for button in page.button if button.key == key).click()
    page.run()
    assert not page.exception


def test_one_tab_queues_several_jobs_and_follows_them(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    first, second, third = (start(page, prompt) for prompt in "abc")
    wait(lambda: first.state is State.RUNNING)
    page.run()
    assert job_of(page) is first
    assert rows(page) == [["stop"], ["show", "stop"], ["show", "earlier", "stop"]]
    press(page, f"earlier-{third.id}")
    assert session.the_worker().queue() == [first, third, second]
    press(page, f"stop-{second.id}")
    assert second.state is State.CANCELLED
    engine.gate.release(20)
    over(first)
    wait(lambda: third.state is State.RUNNING)
    page.run()
    assert job_of(page) is third
    engine.gate.release(20)
    over(third)
    page.run()
    assert job_of(page) is third and labelled(page.slider, "Step")
    assert [call[0] for call in engine.models[0].calls] == ["a", "c"]


def test_a_fresh_tab_sees_what_another_one_began_and_can_stop_it(engine):
    engine.gate = threading.Semaphore(0)
    prompt = "a *red* house <b>x</b> :red[y]"
    job = start(open_page(), prompt)
    wait(lambda: job.state is State.RUNNING)
    fresh = open_page()
    assert button(fresh, "Cancel").disabled
    (row,) = [text for text in captions(fresh) if session.plain(prompt) in text]
    assert "running" in row or "%" in row
    fresh.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    assert rows(fresh)[0] == ["show", "stop"]
    fresh.switch_page("stable_diffusion/webui/pages/text_to_image.py").run()
    press(fresh, f"show-{job.id}")
    fresh.run()
    assert job_of(fresh) is job and not button(fresh, "Cancel").disabled
    other = open_page()
    press(other, f"stop-{job.id}")
    engine.gate.release(1)
    over(job)
    assert job.state is State.CANCELLED
    fresh.run()
    assert button(fresh, "Cancel").disabled


def test_a_double_click_counts_once(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    start(page, "a"), start(page, "a")
    assert len(session.the_worker().queue()) == 1
    page.session_state["submitted"] = (0.0, None)
    start(page, "a")
    assert len(session.the_worker().queue()) == 2


def test_forever_paints_on_with_new_seeds_until_it_is_switched_off(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    labelled(page.text_input, "Seed").set_value("7")
    labelled(page.slider, "Steps").set_value(1)
    labelled(page.toggle, "Generate forever").set_value(True)
    first = start(page, "a")
    engine.gate.release(2)
    wait(lambda: len(engine.models[0].calls) == 3)
    page.run()
    job = job_of(page)
    assert job is not first and job.series == first.series and job.request.seed == 9
    assert not button(page, "Cancel").disabled, "the tab follows"
    assert labelled(open_page(job=job.id).toggle, "Generate forever").value
    labelled(page.toggle, "Generate forever").set_value(False)
    page.run()
    engine.gate.release(1)
    over(job)
    page.run()
    assert session.the_worker().queue() == []
    assert [arguments["seed"] for _, arguments in engine.models[0].calls] == [7, 8, 9]


def test_what_a_cancelled_picture_has_come_to_can_be_kept(engine, tmp_path):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    labelled(page.slider, "Steps").set_value(9)
    job = start(page, "a red house")
    engine.gate.release(2)
    wait(lambda: job.frame is not None and job.frame.index == 2)
    button(page, "Cancel").click()
    page.run()
    engine.gate.release(1)
    over(job)
    page.run()
    assert not list(tmp_path.rglob("*.png"))
    button(page, "Keep the picture so far").click()
    page.run()
    assert not page.exception
    (file,) = tmp_path.rglob("*.png")
    found = picture_files.read_parameters(file)
    assert (found.prompt, found.steps, found.extra["Stopped after"]) == ("a red house", 9, "3 of 9 steps")
    assert found.seed == job.pictures[0].seed
    page.run()
    assert [each.label for each in page.get("download_button")] == ["Download"]
    assert not [each for each in page.button if each.label == "Keep the picture so far"]


def test_the_picture_takes_its_own_size_or_shape(engine, page):
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", png((301, 200)), "image/png"))
    page.run()
    button(page, "Take the picture's size").click()
    page.run()
    assert tuple(labelled(page.number_input, side).value for side in ("Width", "Height")) == (304, 200)
    button(page, "Take the picture's shape").click()
    page.run()
    assert tuple(labelled(page.number_input, side).value for side in ("Width", "Height")) == (160, 104)


def test_pictures_that_cannot_be_saved_leave_every_page_standing(engine, page, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(session.the_worker(), "outputs", tmp_path / "file" / "outputs")
    labelled(page.text_area, "Prompt").set_value("a")
    over(job := generate(page))
    page.run()
    assert "Download it from here to keep it" in page.warning[0].value.replace("\\", "")
    assert picture_files.read_parameters(io.BytesIO(live._bytes(job.pictures[0]))).prompt == "a"
    st.cache_resource.clear()
    page.switch_page("stable_diffusion/webui/pages/gallery.py").run()
    assert not page.exception


@pytest.fixture
def lora_files(engine, tmp_path, monkeypatch):
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("ink", "wash *bold*"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder))


def test_loras_and_their_strengths_are_chosen_kept_and_recalled(lora_files, engine):
    page = open_page()
    labelled(page.multiselect, "LoRA").set_value(["wash *bold*", "ink"])
    page.run()
    labelled(page.slider, "Strength of ink").set_value(0.5)
    labelled(page.text_area, "Prompt").set_value("a")
    page.run()
    page.switch_page(IMAGE_PAGE).run()
    page.switch_page("stable_diffusion/webui/pages/text_to_image.py").run()
    over(job := generate(page))
    assert job.request.loras == (("wash *bold*", 1.0), ("ink", 0.5))
    again = open_page(job=job.id)
    assert labelled(again.multiselect, "LoRA").value == ["wash *bold*", "ink"]
    assert labelled(again.slider, "Strength of ink").value == 0.5
    labelled(again.multiselect, "LoRA").set_value(["ink"])
    again.run()
    assert again.session_state["loras"] == [("ink", 0.5)]


def test_clip_skip_and_variation_reach_the_request_and_come_back(engine, page):
    assert labelled(page.text_input, "Variation seed").disabled
    labelled(page.number_input, "Clip skip").set_value(2)
    labelled(page.slider, "Variation strength").set_value(0.25)
    labelled(page.text_area, "Prompt").set_value("a")
    page.run()
    labelled(page.text_input, "Variation seed").set_value("7")
    over(job := generate(page))
    request = job.request
    assert (request.clip_skip, request.variation_seed, request.variation_strength) == (2, 7, 0.25)
    again = open_page(job=job.id)
    assert labelled(again.number_input, "Clip skip").value == 2
    assert labelled(again.text_input, "Variation seed").value == "7"
    assert labelled(again.slider, "Variation strength").value == 0.25


def test_presets_keep_all_settings(page):
    labelled(page.text_area, "Prompt").set_value("a 🌙 بيت")
    labelled(page.slider, "Steps").set_value(33)
    labelled(page.selectbox, "Sampler").set_value("heun")
    labelled(page.text_input, "Name of a new preset").set_value("night")
    button(page, "Save settings").click()
    page.run()
    assert labelled(page.text_input, "Name of a new preset").value == ""
    other = open_page()
    assert labelled(other.selectbox, "Preset").value == "night"
    button(other, "Apply").click()
    other.run()
    assert labelled(other.text_area, "Prompt").value == "a 🌙 بيت"
    assert labelled(other.slider, "Steps").value == 33
    assert labelled(other.selectbox, "Sampler").value == "heun"
    button(other, "Delete preset").click()
    other.run()
    assert [element for element in other.selectbox if element.label == "Preset"] == []


def test_a_preset_without_a_name_is_refused_in_words(page):
    button(page, "Save settings").click()
    page.run()
    assert "name for a preset" in page.error[0].value.replace("\\", "")


def test_several_pictures_are_shown_together_and_one_by_one(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.number_input, "Number of pictures").set_value(3)
    labelled(page.slider, "Steps").set_value(2)
    over(job := generate(page))
    page.run()
    assert [element.label for element in page.get("download_button")] == ["Download as one sheet"]
    labelled(page.button_group, "Picture").set_value(1)
    page.run()
    assert not page.exception
    assert labelled(page.slider, "Step").value == 2
    sheet = Image.open(io.BytesIO(live._sheet(job.pictures)))
    assert picture_files.read_parameters(io.BytesIO(live._sheet(job.pictures))).seed == job.pictures[0].seed
    assert sheet.size == (132, 132)


def test_a_finished_picture_can_be_the_next_ones_start(engine, page):
    labelled(page.text_area, "Prompt").set_value("a red house")
    over(generate(page))
    page.run()
    button(page, "Send to image to image").click()
    page.run()
    assert not page.exception
    assert labelled(page.slider, "Denoising strength")
    assert page.session_state["input_picture"].size == (64, 64)
    assert labelled(page.text_area, "Prompt").value == "a red house"


def test_a_picture_in_hand_can_be_skipped(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    labelled(page.text_area, "Prompt").set_value("a")
    labelled(page.number_input, "Number of pictures").set_value(2)
    job = generate(page)
    engine.gate.release(1)
    wait(lambda: job.frame is not None and job.frame.index == 1)
    button(page, "Skip").click()
    page.run()
    engine.gate.release(100)
    over(job)
    page.run()
    assert [picture.finished for picture in job.pictures] == [False, True]
    assert labelled(page.button_group, "Picture").options[0] == "1 (unfinished)"


def test_a_replay_decodes_a_step_when_it_is_asked_to(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    over(job := generate(page))
    page.run()
    labelled(page.slider, "Step").set_value(3)
    labelled(page.button_group, "Show").set_value(["full"])
    page.run()
    assert not page.exception
    assert job.pictures[0].frames[3].decoded and not job.pictures[0].frames[4].decoded


def test_a_model_that_is_not_downloaded_asks_first(engine, page, monkeypatch):
    began, go = threading.Event(), threading.Event()

    def fetch(source, report):
        began.set()
        report("Downloading", 0.5)
        assert go.wait(10)
        report("Downloading", 0.6)

    monkeypatch.setattr(session.the_downloads(), "_fetch", fetch)
    turbo = catalogue.find("sdxl-turbo")
    labelled(page.selectbox, "Model").set_value(turbo.name)
    page.run()
    assert any("(not downloaded)" in option for option in labelled(page.selectbox, "Model").options)
    assert any("Download" in text.value and "GB" in text.value for text in page.markdown)
    assert any(session.plain(turbo.licence) in caption for caption in captions(page))
    labelled(page.text_area, "Prompt").set_value("a")
    button(page, "Generate").click()
    page.run()
    assert "is not downloaded yet" in page.error[0].value.replace("\\", "")
    assert engine.models == []
    button(page, "Download").click()
    page.run()
    assert began.wait(10)
    download = session.the_downloads().get(turbo.name)
    button(page, "Cancel download").click()
    page.run()
    go.set()
    wait(lambda: not download.active)
    page.run()
    assert button(page, "Download")


def test_a_model_that_went_away_leaves_the_page_standing(engine, page, monkeypatch):
    other = catalogue.Model("mine", catalogue.LOCAL, "/nowhere/mine", "Mine", "sd1")
    listed = catalogue.all()
    monkeypatch.setattr(session, "listed_models", lambda: [*listed, other])
    page.run()
    labelled(page.selectbox, "Model").set_value("mine")
    page.run()
    monkeypatch.setattr(session, "listed_models", lambda: listed)
    page.run()
    assert not page.exception
    assert labelled(page.selectbox, "Model").value == catalogue.DEFAULT
    assert "no longer there" in page.error[0].value


def test_a_model_that_cannot_be_used_says_why(engine, page, monkeypatch):
    broken = catalogue.Model("mine", catalogue.LOCAL, "/nowhere/mine", "Mine", problem="'mine' is cut short.")
    listed = catalogue.all()
    monkeypatch.setattr(session, "listed_models", lambda: [*listed, broken])
    page.run()
    labelled(page.selectbox, "Model").set_value("mine")
    labelled(page.text_area, "Prompt").set_value("a")
    page.run()
    assert "Mine (cannot be used)" in labelled(page.selectbox, "Model").options
    button(page, "Generate").click()
    page.run()
    assert page.warning[0].value == page.error[0].value == session.plain("'mine' is cut short.")
    assert engine.models == []


def test_what_others_put_into_the_form_is_made_showable(engine):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    given = dict.fromkeys(("prompt", "negative"), "") | dict.fromkeys(("width", "height"), 7) | {"seed": -1}
    given |= {"n_images": 1, "fit": "crop", "file_format": "png", "previews": [], "cfg": 5.0, "strength": 0.5}
    for key, value in (given | {"model": catalogue.DEFAULT, "sampler": "dpmpp_2m_karras", "steps": 10**6}).items():
        page.session_state[key] = value
    page.run()
    assert not page.exception
    assert labelled(page.selectbox, "Sampler").value == "dpmpp_2m"
    assert labelled(page.selectbox, "Schedule").value == "karras"
    assert labelled(page.slider, "Steps").value == 150
    assert labelled(page.number_input, "Width").value == 64


@pytest.mark.parametrize(
    "prompt", ["x" * 1000, "🏠" * 1000, "بيت أحمر على تلال خضراء " * 42, "a\u202eb\u0000c", "*a* <b>b</b> $x$ :red[y]"]
)
def test_any_prompt_is_taken_as_it_is(engine, page, prompt):
    labelled(page.text_area, "Prompt").set_value(prompt)
    over(job := generate(page))
    page.run()
    assert not page.exception
    assert job.state is State.DONE, job.error
    assert engine.models[0].calls[0][0] == prompt.strip()
    assert labelled(page.text_area, "Prompt").value == prompt


def damaged(kind):
    good = png()
    return {
        "text": b"not a picture",
        "empty": b"",
        "cut short": good[: len(good) // 2],
        "another kind": b"GIF89a" + bytes(20),
        "bomb": good[:16] + (60_000).to_bytes(4, "big") * 2 + good[24:],
        "html": b"<svg onload=alert(1)></svg>",
    }[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "cut short", "another kind", "bomb", "html"])
def test_every_bad_upload_is_refused_in_words_and_nothing_is_lost(engine, page, kind):
    labelled(page.text_area, "Prompt").set_value("a red house")
    page.run()
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", damaged(kind), "image/png"))
    page.run()
    assert not page.exception
    assert len(page.error) == 1
    assert labelled(page.text_area, "Prompt").value == "a red house"
    assert page.session_state["input_picture"] is None


def test_a_full_disk_is_said_and_the_picture_can_be_had(engine, page, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(picture_files, "save_new_picture", full)
    labelled(page.text_area, "Prompt").set_value("a")
    over(job := generate(page))
    page.run()
    assert "disk is full" in page.warning[0].value
    assert [element.label for element in page.get("download_button")] == ["Download"]
    assert Image.open(io.BytesIO(live._bytes(job.pictures[0]))).size == (64, 64)


# --- How it works


@pytest.fixture
def lessons(monkeypatch):
    """The lessons' page with a function in the place of one of its lessons."""
    import dataclasses

    from stable_diffusion.lessons.chapters import LESSONS

    def open_lesson(name, function):
        lesson = dataclasses.replace(LESSONS[name], compute=lambda model, report, values: function(model, report))
        monkeypatch.setitem(LESSONS, name, lesson)
        page = open_page()
        page.session_state["lesson"] = name
        page.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
        return page

    return open_lesson


def settle(page):
    wait(lambda: session.the_worker()._in_hand is None and not session.the_worker()._waiting)
    page.run()
    assert not page.exception


def test_a_lesson_is_computed_once_and_then_shown(engine, lessons):
    from stable_diffusion.lessons.schedule import Schedule

    asked = []
    curve = np.linspace(0.1, 1, 10)
    page = lessons("schedule", lambda model, report: asked.append(model.name) or Schedule(curve, curve, curve))
    settle(page)
    assert len(page.get("arrow_vega_lite_chart")) == 3 or len(page.get("vega_lite_chart")) == 3
    page.slider(key="schedule-share").set_value(80)
    page.run()
    assert "At t = 8" in " ".join(element.value for element in page.markdown)
    other = open_page()
    other.session_state["lesson"] = "schedule"
    other.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    settle(other)
    assert asked == [catalogue.DEFAULT]


def lesson_page(name):
    page = open_page()
    page.session_state["lesson"] = name
    page.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    settle(page)
    return page


def test_the_training_that_was_made_is_shown(engine):
    page = lesson_page("training")
    assert len(page.get("arrow_vega_lite_chart")) + len(page.get("vega_lite_chart")) == 1
    assert len(page.get("latex")) == 1
    assert "After 15962 steps." in [element.value for element in page.caption]
    page.slider(key="training-share").set_value(0)
    page.run()
    assert not page.exception
    assert "After 546 steps." in [element.value for element in page.caption]


def test_the_next_lesson_is_a_click_away_and_the_address_names_it(engine):
    page = lesson_page("joint")
    assert page.subheader[0].value == "What there is to learn"
    button(page, "Next: Noise, and the way back").click()
    page.run()
    assert page.subheader[0].value == "Noise, and the way back"
    assert page.query_params["lesson"] in ("score", ["score"])
    assert page.expander, "its code"
    assert "def learn_score" in page.code[0].value


def test_a_tour_leads_along_its_route_and_can_be_left(engine, lessons):
    from stable_diffusion.lessons.system_map import Shapes

    page = lessons("map", lambda model, report: Shapes("77", "77 × 64", "8 × 8 × 4", "64 × 64", "1 M", "× 8"))
    settle(page)
    page.segmented_control(key="map-route").set_value("inpainting").run()
    button(page, "Take the tour: inpainting, 12 lessons").click().run()
    seen = [page.query_params["lesson"]]
    while following := [each for each in page.button if each.label.startswith("Next")]:
        following[0].click().run()
        seen.append(page.query_params["lesson"])
    keys = [each[0] if isinstance(each, list) else each for each in seen]
    assert keys[:3] == ["tokens", "strength", "inpainting"] and keys[-1] == "denoising"
    assert len(keys) == len(set(keys)) == 12
    assert f"Tour: inpainting, {len(keys)} of {len(keys)}" in [each.value for each in page.caption]
    button(page, "Leave the tour").click().run()
    assert any(each.label == "Next: What there is to learn" for each in page.button)


def test_an_address_opens_its_lesson(engine):
    page = open_page()
    page.query_params["lesson"] = "norms"
    page.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    settle(page)
    assert page.subheader[0].value == "Norms: who shares a mean"


def test_a_lesson_that_fails_says_so_and_can_be_tried_again(engine, lessons):
    page = lessons("schedule", lambda model, report: 1 / 0)
    settle(page)
    assert "ZeroDivisionError" in page.error[0].value
    button(page, "Try again").click()
    page.run()
    settle(page)
    assert len(page.error) == 1


@pytest.fixture
def training_page(engine):
    """The lessons' page at the lesson that asks nothing of a model."""
    page = open_page()
    page.session_state["lesson"] = "training"
    page.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    settle(page)
    return page


@pytest.mark.parametrize(("error", "said"), [(1e-6, "Everything agrees."), (1.0, "this machine may be wrong")])
def test_the_machine_is_tested_without_a_model(engine, training_page, monkeypatch, error, said):
    from stable_diffusion.selftest import run, shapes
    from stable_diffusion.selftest.report import Comparison, Report

    asked = []

    def tested(sizes, progress):
        progress("Testing: noise", 0.0)
        asked.append(sizes)
        return Report({"machine": "a Mac"}, [], [Comparison("noise", "numbers", error, 1e-3)], {"noise": 0.1})

    monkeypatch.setattr(run, "run", tested)
    page, loads = training_page, len(engine.loads)
    assert not page.code
    button(page, "Test this machine").click()
    page.run()
    settle(page)
    assert asked == [shapes.QUICK] and len(engine.loads) == loads
    assert said in (page.success[0] if error < 1 else page.error[0]).value
    assert "machine   a Mac" in page.code[0].value
    button(page, "Test again").click()
    page.run()
    settle(page)
    assert len(asked) == 2


def test_a_selftest_that_fails_says_so(training_page, monkeypatch):
    from stable_diffusion.selftest import run

    monkeypatch.setattr(run, "run", lambda sizes, progress: 1 / 0)
    page = training_page
    button(page, "Test this machine").click()
    page.run()
    settle(page)
    assert "ZeroDivisionError" in page.error[0].value and button(page, "Test again")


def test_the_live_panel_is_a_strip_beside_a_lesson(engine):
    engine.gate = threading.Semaphore(0)
    page = open_page()
    labelled(page.text_area, "Prompt").set_value("a")
    job = generate(page)
    page.switch_page("stable_diffusion/webui/pages/how_it_works.py").run()
    button(page, "Cancel").click()
    page.run()
    engine.gate.release(5)
    over(job)
    assert job.state is State.CANCELLED


@pytest.mark.parametrize(
    ("strength", "steps", "words"),
    [
        (0.7, 20, "last 14 of 20"),
        (1.0, 20, "last 20 of 20"),
        (0.29, 100, "last 28 of 100"),
        (0.0, 20, "as it is"),
        (0.04, 20, "none of 20"),
    ],
)
def test_a_strength_in_words(strength, steps, words):
    assert words in form.strength_in_words(strength, steps)


def test_a_draft_stands_in_for_newer_steps_until_drafts_are_given_up():
    job = Job(Request("a"))
    job.state, job.latent_space = State.RUNNING, ("sd1",)
    latents = np.zeros((8, 8, 4), np.float16)
    newest = Frame(2, 20, 1.0, latents, latents)
    job.pictures.append(Picture([Frame(1, 20, 1.0, latents, latents, draft=b"draft"), newest]))
    assert live._jpeg(job, newest, "auto")[0] == b"draft"
    assert live._jpeg(job, newest, "full") is None
    job.drafting = False
    assert live._jpeg(job, newest, "auto") == live._jpeg(job, newest, "fast")
    job.state = State.DONE
    assert live._jpeg(job, newest, "auto")[0] != b"draft", "a replay shows the step that was chosen"


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


def test_a_hires_fix_is_switched_on_and_off(engine, page):
    assert not [each for each in page.slider if each.label == "Upscale by"]
    page.text_area(key="prompt").set_value("a red house")
    labelled(page.toggle, "Hires fix").set_value(True).run()
    assert any("128 × 128 becomes 256 × 256." in each.value for each in page.caption)
    labelled(page.slider, "Upscale by").set_value(1.5)
    labelled(page.selectbox, "Upscaler").set_value("Lanczos")
    labelled(page.selectbox, "Hires sampler").set_value("dpmpp_2m_karras")
    page.text_area(key="hires_prompt").set_value("a blue house").run()
    over(generate(page))
    hires = engine.models[0].calls[-1][1]["hires"]
    assert (hires.scale, hires.upscaler, hires.sampler, hires.prompt, hires.cfg) == (
        1.5, "Lanczos", "dpmpp_2m_karras", "a blue house", None
    )  # fmt: skip
    page.number_input(key="hires_width").set_value(16).run()
    assert any("smaller than the first picture" in each.value for each in page.caption)
    labelled(page.toggle, "Hires fix").set_value(False).run()
    over(generate(page))
    assert "hires" not in engine.models[0].calls[-1][1]


def test_a_recalled_second_pass_is_shown(page):
    page.session_state["hires_width"] = 256
    page.session_state["hires_upscaler"] = "one that has gone"
    page.run()
    assert not page.exception and labelled(page.toggle, "Hires fix").value
    assert labelled(page.selectbox, "Upscaler").value == "one that has gone"


def test_progress_tells_the_pass():
    job = Job(Request("a", hires_scale=2.0))
    frame = Frame(
        3, 8, 1.0, np.zeros((4, 4, 4), np.float16), np.zeros((4, 4, 4), np.float16), pass_number=2, n_passes=2
    )
    job.pictures.append(Picture(frames=[frame]))
    job.note, job.note_fraction = "Enlarging with Lanczos", 0.25
    assert live.progress_in_words(job).startswith("Pass 2 of 2 · Step 3 of 8")
    assert live.progress_in_words(job).endswith("Enlarging with Lanczos 25%")


def test_an_input_picture_is_enlarged_and_painted_in_tiles(engine, page):
    page.switch_page(IMAGE_PAGE).run()
    page.session_state["input_picture"] = Image.new("RGB", (90, 60), "teal")
    page.text_area(key="prompt").set_value("a red house")
    labelled(page.selectbox, "Enlarge by").set_value(2.0)
    page.number_input(key="tile").set_value(128).run()
    assert any("90 × 60 becomes 176 × 120." in each.value for each in page.caption)
    over(generate(page))
    given = engine.models[0].calls[-1][1]
    assert (given["width"], given["height"], given["tile"], given["tile_overlap"]) == (176, 120, 128, 64)


def test_eta_is_offered_where_a_sampler_takes_it(page):
    eta = labelled(page.select_slider, "Eta")
    assert eta.disabled and eta.value == -1
    labelled(page.selectbox, "Sampler").set_value("euler_a").run()
    assert not labelled(page.select_slider, "Eta").disabled
    over(job := generate(page))
    assert job.request.eta is None
    labelled(page.select_slider, "Eta").set_value(0.35)
    over(job := generate(page))
    assert job.request.eta == 0.35
    labelled(page.selectbox, "Sampler").set_value("euler")
    over(job := generate(page))
    assert job.request.eta is None
    over(job := session.the_worker().submit(Request("a", sampler="euler_a", eta=0.33)))  # as a picture may have it
    assert labelled(open_page(job=job.id).select_slider, "Eta").value == 0.33


def look_up(page, name):
    labelled(page.text_input, "Model of the Hugging Face hub").set_value(name)
    button(page, "Look up").click()
    page.run()
    asked = page.session_state["look_up"]
    if asked is not None:  # else it is chosen already
        wait(lambda: not asked.active)
        page.run()
    assert not page.exception


def test_a_model_of_the_hub_is_typed_looked_up_and_downloaded(engine, page, monkeypatch):
    asked, go = [], threading.Event()
    new = "stable-diffusion-v1-5/stable-diffusion-inpainting"
    found = catalogue.Model(new, catalogue.HUB, new, new, "sd1", "openrail", 4_000_000_000, 2_000_000_000)

    def offered(name):
        asked.append(name)
        if "nothing" in name:
            raise InputError(f"{name!r} is not an id of the hub.")
        return found

    downloads = session.the_downloads()
    monkeypatch.setattr(downloads, "_look_up", offered)
    monkeypatch.setattr(downloads, "_fetch", lambda source, report: go.wait(10))
    look_up(page, "nothing")
    assert "'nothing' is not an id" in page.error[0].value.replace("\\", "")
    assert labelled(page.selectbox, "Model").value == catalogue.DEFAULT
    look_up(page, "runwayml/stable-diffusion-inpainting")
    assert asked == ["nothing", "runwayml/stable-diffusion-inpainting"]
    assert labelled(page.selectbox, "Model").value == new and not page.error
    said = " ".join(captions(page)).replace("\\", "")
    assert "is no longer on the hub" in said and "openrail" in said and "4.0 GB" in said
    button(page, "Download").click()
    page.run()
    assert button(page, "Cancel download") and downloads.get(new).active
    go.set()
    wait(lambda: not downloads.get(new).active)


def test_lists_are_refreshed_without_a_reload(engine, page, monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(tmp_path))
    button(page, "Refresh the lists").click()
    page.run()
    (tmp_path / "mine.safetensors").write_bytes(b"")
    button(page, "Refresh the lists").click()
    page.run()
    assert "New: mine" in page.toast[0].value.replace("\\", "")
    assert any(option.startswith("mine") for option in labelled(page.selectbox, "Model").options)
