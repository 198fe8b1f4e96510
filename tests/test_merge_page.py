"""Merging on the page, without a browser: what is chosen, queued, refused, and listed afterwards."""

import threading
from pathlib import Path

import pytest

st = pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest  # noqa: E402

from stable_diffusion import catalogue  # noqa: E402
from stable_diffusion.errors import InputError  # noqa: E402
from stable_diffusion.model_io.merge import ADD_DIFFERENCE  # noqa: E402
from stable_diffusion.service import merging, shared  # noqa: E402
from stable_diffusion.service.jobs import State  # noqa: E402
from tests import single_files  # noqa: E402
from tests.pretend import PretendEngine, over  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MODELS = "stable_diffusion/webui/pages/models.py"


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A home with two checkpoints of one family, and an engine that only pretends."""
    monkeypatch.setenv("STABLE_DIFFUSION_HOME", str(tmp_path))
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv(catalogue.FOLDERS_VARIABLE, "")
    (tmp_path / "models").mkdir()
    given = single_files.tensors("sd1")
    for name in ("ink", "oil"):
        single_files.write(tmp_path / "models" / f"{name}.safetensors", given)
        given = {key: value * 2 if value.dtype.kind == "f" else value for key, value in given.items()}
    PretendEngine().install(monkeypatch)
    shared.close()
    st.cache_resource.clear()
    yield tmp_path / "models"
    shared.close()
    st.cache_resource.clear()


def open_page():
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    page.run()
    page.switch_page(MODELS)
    page.run()
    assert not page.exception
    return page


def labelled(elements, label):
    (found,) = [element for element in elements if element.label == label]
    return found


def choose(page, a, b, name):
    labelled(page.selectbox, "A").set_value(a)
    labelled(page.selectbox, "B").set_value(b)
    labelled(page.text_input, "Name of the new model").set_value(name)
    page.run()


def test_two_models_become_a_third_in_the_list(models):
    page = open_page()
    assert labelled(page.button, "Merge").disabled
    choose(page, "ink.safetensors", "oil.safetensors", "both")
    labelled(page.slider, "Weight of B").set_value(0.5)
    page.run()
    assert any("A × 0.50 + B × 0.50" in caption.value for caption in page.caption)
    labelled(page.button, "Merge").click()
    page.run()
    work = page.session_state["merge_work"]
    over(work.task)
    page.run()
    assert work.task.state is State.DONE and (models / "both.safetensors").is_file()
    assert any("both" in each.value for each in page.success)
    assert "both.safetensors" in labelled(page.selectbox, "A").options
    labelled(page.button, "Merge").click()
    page.run()
    assert any("already" in each.value for each in page.error)


def test_a_third_model_is_asked_for_where_the_method_has_one(models):
    page = open_page()
    assert not [each for each in page.selectbox if each.label == "C"]
    page.session_state["merge_mode"] = ADD_DIFFERENCE
    page.run()
    labelled(page.selectbox, "C")
    assert any("A + (B − C) × 0.30" in caption.value for caption in page.caption)


def test_what_cannot_be_merged_is_said(models):
    page = open_page()
    choose(page, "ink.safetensors", "ink.safetensors", "x")
    labelled(page.button, "Merge").click()
    page.run()
    assert any("chosen twice" in each.value for each in page.error) and "merge_work" not in page.session_state


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "x" * 101, "a\nb", "INK", "ink.safetensors"])
def test_names_that_are_refused(models, name):
    with pytest.raises(InputError):
        merging.target(name)
    assert merging.target("new 1").parent == models


def test_a_cancelled_merge_leaves_nothing(models, monkeypatch):
    ink, oil = (catalogue.find(f"{name}.safetensors") for name in ("ink", "oil"))
    worker, ready = shared.the_worker(), threading.Event()

    def cancelling(sources, target, *rest, progress):
        worker.cancel(work.task)
        progress("Merging", 0.1)

    monkeypatch.setattr(merging, "merge", cancelling)
    gate = worker.compute("gate", lambda model, report: ready.wait(10))
    work = merging.Merging(worker, [ink, oil], "new", 0.3, "weighted-sum")
    ready.set()
    over(gate, work.task)
    assert work.task.state is State.CANCELLED and not list(models.glob("new*"))
