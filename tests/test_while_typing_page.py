"""Paint while you type, as the page offers it; and pictures that were pasted."""

import threading

import pytest

pytest.importorskip("streamlit")

from stable_diffusion.service.jobs import State
from stable_diffusion.webui.components import session, while_typing
from tests.pretend import over, wait
from tests.test_app import IMAGE_PAGE, button, engine, generate, labelled, open_page, png  # noqa: F401

TOGGLE = "Paint while you type"


@pytest.fixture
def quick(engine, monkeypatch):  # noqa: F811
    """A page on a machine that is quick enough, which has painted a picture."""
    monkeypatch.setenv(while_typing.VARIABLE, "60")
    page = open_page()
    labelled(page.text_area, "Prompt").set_value("a house")
    assert not [each for each in page.toggle if each.label == TOGGLE], "nothing is known of this machine yet"
    over(generate(page))
    page.run()
    return page


def sketch(page):
    return session.the_worker().job(page.session_state[while_typing.SKETCH])


def type_in(page, text):
    labelled(page.text_area, "Prompt").set_value(text)
    page.run()
    assert not page.exception


def pictures():
    return len(list(session.the_worker().outputs.rglob("*.png")))


def test_it_is_offered_where_pictures_are_quick_and_paints_what_is_typed(quick, monkeypatch):
    labelled(quick.toggle, TOGGLE).set_value(True)
    quick.run()
    first = sketch(quick)
    assert first.request.prompt == "a house" and first.sketch and not first.save
    over(first)
    quick.run()
    assert sketch(quick) is first, "nothing has changed"
    type_in(quick, "a tent")
    second = sketch(quick)
    over(second)
    quick.run()
    assert (second.request.prompt, second.request.seed) == ("a tent", first.request.seed)
    before = pictures()
    button(quick, "Keep this one").click()
    quick.run()
    wait(lambda: pictures() == before + 1)
    quick.run()
    assert any("Saved as" in each.value for each in quick.caption)
    labelled(quick.toggle, TOGGLE).set_value(False)
    quick.run()
    type_in(quick, "a boat")
    assert sketch(quick) is second
    monkeypatch.setenv(while_typing.VARIABLE, "0.0")
    quick.run()
    assert not [each for each in quick.toggle if each.label == TOGGLE]


def test_it_waits_while_something_else_is_painted(quick):
    labelled(quick.toggle, TOGGLE).set_value(True)
    quick.run()
    over(first := sketch(quick))
    done = threading.Event()
    task = session.the_worker().compute("other", lambda model, report: done.wait(100))
    wait(lambda: task.state is State.RUNNING)
    type_in(quick, "a tent")
    assert sketch(quick) is first and any("Waits until" in each.value for each in quick.caption)
    done.set()
    over(task)
    quick.run()
    assert sketch(quick).request.prompt == "a tent"


def test_an_unfinished_wildcard_is_said_and_not_painted(quick):
    labelled(quick.toggle, TOGGLE).set_value(True)
    quick.run()
    over(first := sketch(quick))
    type_in(quick, "a __no-such-thing__ house")
    assert sketch(quick) is first
    assert any("no wildcard" in each.value for each in quick.caption)
    type_in(quick, "a house at night")
    assert sketch(quick) is not first


# --- Pasted pictures


def uploaded(page, name, size):
    labelled(page.get("file_uploader"), "Input picture").set_value((name, png(size), "image/png"))
    page.run()
    assert not page.exception


def test_a_pasted_picture_is_said_and_can_be_taken_back(engine):  # noqa: F811
    page = open_page()
    page.switch_page(IMAGE_PAGE).run()
    uploaded(page, "in.png", (90, 60))
    assert not page.toast and "Put back the one before" not in [each.label for each in page.button]
    uploaded(page, "pasted image.png", (64, 40))
    assert [each.value for each in page.toast] == ["A picture was pasted from the clipboard."]
    assert page.session_state["input_picture"].size == (64, 40)
    page.run()
    assert not page.toast, "it is said once"
    button(page, "Put back the one before").click()
    page.run()
    assert page.session_state["input_picture"].size == (90, 60)
    assert "Put back the one before" not in [each.label for each in page.button]


def test_what_is_pasted_is_checked_as_an_upload(engine):  # noqa: F811
    page = open_page()
    page.switch_page(IMAGE_PAGE).run()
    labelled(page.get("file_uploader"), "Input picture").set_value(("pasted image.png", b"no picture", "image/png"))
    page.run()
    assert page.session_state["input_picture"] is None and page.error
