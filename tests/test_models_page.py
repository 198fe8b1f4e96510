"""The page of models, without a browser: lists, searches, cards, and what their buttons do to the form."""

import pytest
from PIL import Image

st = pytest.importorskip("streamlit")

from stable_diffusion import catalogue  # noqa: E402
from stable_diffusion.model_io import hashes  # noqa: E402
from stable_diffusion.service import cards, shared  # noqa: E402
from stable_diffusion.webui.components import session  # noqa: E402
from tests.pretend import PretendEngine, over  # noqa: E402
from tests.test_app import button, captions, labelled, open_page  # noqa: E402
from tests.test_cards import INK, home, lora  # noqa: E402, F401  (a fixture)

PAGE = "stable_diffusion/webui/pages/models.py"


@pytest.fixture
def page(home, monkeypatch):  # noqa: F811
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(home / "outputs"))
    PretendEngine().install(monkeypatch)
    shared.close()
    st.cache_resource.clear()
    lora(home / "loras" / "ink.safetensors", metadata=INK)
    lora(home / "loras" / "wa:sh.safetensors")
    Image.new("RGB", (64, 64), "teal").save(home / "loras" / "ink.png")
    page = open_page()
    page.switch_page(PAGE).run()
    assert not page.exception
    yield page
    shared.close()
    st.cache_resource.clear()


def opened(page, kind, name):
    labelled(page.button_group, "Kind").set_value(kind)
    page.run()
    page.button(f"card-{kind}-{name}").click()
    page.run()
    assert not page.exception
    return {row.replace("\\", ""): cell.replace("\\", "") for row, cell in page.table[0].value.values.tolist()}


def names(page):
    return [each.label.replace("\\", "") for each in page.button if (each.key or "").startswith("card-")]


def test_kinds_are_counted_listed_and_searched(page):
    assert "LoRAs (2)" in labelled(page.button_group, "Kind").options
    assert names(page)[0] == catalogue.KNOWN[0].title
    labelled(page.text_input, "Search").set_value("xl turbo")
    page.run()
    assert names(page) == ["SDXL Turbo (1 to 4 steps)"]
    labelled(page.text_input, "Search").set_value("")
    labelled(page.button_group, "Kind").set_value("loras")
    page.run()
    assert names(page) == ["ink", "wa:sh"] and len(page.image) == 1
    labelled(page.text_input, "Search").set_value("nothing")
    page.run()
    assert not names(page) and any("Nothing like that" in each.value for each in page.markdown)


def test_a_loras_card_inserts_its_tag_and_words(page):
    facts = opened(page, "loras", "ink")
    assert (facts["Family"], facts["Rank"]) == ("SD 1.x", "4")
    assert page.query_params["card"] == "loras/ink"
    assert labelled(page.button_group, "Words to insert with it").value == ["inkstyle"]
    button(page, "Insert in the prompt").click()
    page.run()
    assert labelled(page.text_area, "Prompt").value == "inkstyle, <lora:ink:1>"
    page.switch_page(PAGE).run()
    opened(page, "loras", "wa:sh")  # a name that cannot stand in a tag
    button(page, "Insert in the prompt").click()
    page.run()
    assert page.session_state["loras"] == [("wa:sh", 1.0)]
    assert labelled(page.text_area, "Prompt").value == "inkstyle, <lora:ink:1>"


def test_a_models_card_chooses_it(page):
    facts = opened(page, "models", "stabilityai/sdxl-turbo")
    assert facts["Licence"].startswith("Stability AI") and "4 steps" in facts["Paints by default with"]
    button(page, "Use this model").click()
    page.run()
    assert labelled(page.selectbox, "Model").value == "stabilityai/sdxl-turbo"
    assert labelled(page.slider, "Steps").value == 4


def test_an_upscalers_card_leads_to_the_page_that_enlarges(page):
    opened(page, "upscalers", "Lanczos")
    button(page, "Use this upscaler").click()
    page.run()
    assert labelled(page.selectbox, "Upscaler").value == "Lanczos"


def test_a_hash_is_computed_on_demand(page, home):  # noqa: F811
    opened(page, "loras", "ink")
    button(page, "Compute its hash").click()
    page.run()
    path = home / "loras" / "ink.safetensors"
    over(cards.hash_task(session.the_worker(), path))
    page.run()
    assert f"Hash: {hashes.known_hash(path)}" in captions(page)


def test_a_card_that_has_gone_is_said(page):
    page.query_params["card"] = "loras/none *such*"
    page.run()
    assert "none *such* is not here" in page.info[0].value.replace("\\", "")


def test_many_are_turned_over_in_pages(page, home):  # noqa: F811
    for i in range(30):
        lora(home / "loras" / f"style {i:02}.safetensors")
    labelled(page.button_group, "Kind").set_value("loras")
    page.run()
    assert len(names(page)) == 24
    button(page, "Next").click()
    page.run()
    assert len(names(page)) == 8 and button(page, "Next").disabled
