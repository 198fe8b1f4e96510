"""What follows a finished picture, without a browser: variations, two compared, and samples to begin from."""

import pytest

st = pytest.importorskip("streamlit")

from stable_diffusion.record import picture_files  # noqa: E402
from stable_diffusion.record.parameters import Parameters  # noqa: E402
from stable_diffusion.request import Request  # noqa: E402
from stable_diffusion.service import differences, samples, variations  # noqa: E402
from stable_diffusion.webui.components import session  # noqa: E402
from tests.pretend import over  # noqa: E402
from tests.test_app import IMAGE_PAGE, generate  # noqa: E402
from tests.test_app import open_page as open_app  # noqa: E402
from tests.test_pages import GALLERY, labelled, open_card, open_page, outputs, press, save  # noqa: E402, F401

INPAINT = "stable_diffusion/webui/pages/inpaint.py"


# --- More like this


def test_variations_have_the_pictures_own_settings_and_seed():
    request = Request("a house", seed=7, steps=5, n_images=3, batch_size=3, template="a {house|tent}").with_seeds()
    found = variations.variations(request.of_picture(1), 0.3, 4)
    assert (found.prompt, found.seed, found.steps, found.n_images, found.batch_size) == ("a house", 8, 5, 4, 1)
    assert (found.variation_strength, found.variation_seed, found.dynamic_prompts) == (0.3, None, False)
    sibling = variations.variations(found.with_seeds().of_picture(2), 0.1, 2)
    assert (sibling.seed, sibling.variation_seed, sibling.variation_strength) == (8, None, 0.1)


def test_more_like_a_picture_of_the_panel(outputs):  # noqa: F811
    page = open_app()
    labelled(page.text_area, "Prompt").set_value("a red house")
    labelled(page.number_input, "Number of pictures").set_value(2)
    over(job := generate(page))
    page.run()
    labelled(page.button_group, "Picture").set_value(1)
    page.run()
    labelled(page.slider, "How different").set_value(0.35)
    labelled(page.number_input, "How many").set_value(3)
    page.run()
    press(page, "Paint variations")
    more = session.the_worker().job(page.session_state["job_id"])
    assert more is not job
    request = more.request
    assert (request.seed, request.variation_strength, request.n_images) == (job.pictures[1].seed, 0.35, 3)
    over(more)
    assert len({picture.variation_seed for picture in more.pictures}) == 3


def test_more_like_a_picture_of_the_gallery(outputs):  # noqa: F811
    save(outputs, seed=42)
    page = open_page(GALLERY)
    open_card(page)
    press(page, "Paint variations")
    job = session.the_worker().job(page.session_state["job_id"])
    request = job.request
    assert (request.prompt, request.seed, request.steps, request.sampler) == ("a red house", 42, 12, "dpmpp_2m_karras")
    assert (request.variation_strength, request.n_images) == (0.2, 4)
    assert any("4 variations of seed 42" in each.value.replace("\\", "") for each in page.info)
    over(job)
    record = picture_files.read_parameters(job.pictures[0].path)
    assert record.seed == 42 and record.extra["Variation seed strength"] == "0.2"


def test_pictures_that_began_from_others_have_no_variations(outputs):  # noqa: F811
    save(outputs, strength=0.5)
    page = open_page(GALLERY)
    open_card(page)
    assert not [each for each in page.button if each.label == "Paint variations"]


# --- Two pictures


def test_differences_are_told_from_what_is_equal():
    one = Parameters("a house", "", 20, "Euler", None, 7.0, 1, 64, 64, extra={"Clip skip": "2"})
    two = Parameters("a house", "", 25, "Euler", "Karras", 7.0, 2, 64, 64)
    rows = differences.rows(one, two)
    differing = {row.name: (row.first, row.second) for row in rows if not row.equal}
    assert differing == {
        "Steps": ("20", "25"), "Seed": ("1", "2"), "Schedule": ("—", "Karras"), "Clip skip": ("2", "—"),
    }  # fmt: skip
    assert [row.name for row in rows if row.equal] == ["Prompt", "Sampler", "CFG", "Size"]


def choose(page, *seeds):
    for seed in seeds:
        labelled(page.checkbox, f"Seed {seed}").check()
        page.run()


def test_two_pictures_are_chosen_compared_and_swapped(outputs):  # noqa: F811
    save(outputs, seed=1)
    save(outputs, "a *blue* house", seed=2)
    save(outputs, seed=3)
    page = open_page(GALLERY)
    choose(page, 1)
    assert labelled(page.button, "Compare two").disabled
    choose(page, 2)
    press(page, "Compare two")
    assert page.image[0].proto.imgs[0].alt == "First picture: a red house"
    table = page.table[0].value
    rows = {row[0]: [cell.replace("\\", "") for cell in row[1:]] for row in table.values.tolist()}
    assert rows == {"Prompt": ["a red house", "a *blue* house"], "Seed": ["1", "2"]}
    assert any(each.label.startswith("Equal settings") for each in page.expander)
    press(page, "Swap the two")
    assert [cell.replace("\\", "") for cell in page.table[0].value.values.tolist()[1]] == ["Seed", "2", "1"]
    labelled(page.button_group, "How to compare").set_value("Over each other")
    page.run()
    assert not page.exception and not page.image
    press(page, "Open the first")
    assert len(page.image) == 1
    press(page, "Back to all pictures")
    press(page, "Back to all pictures")
    assert labelled(page.button, "Compare two")


# --- Samples


@pytest.mark.parametrize("path", [IMAGE_PAGE, INPAINT])
def test_samples_are_offered_until_there_is_a_picture(outputs, path):  # noqa: F811
    page = open_page(path)
    press(page, "A sailboat")
    picture = page.session_state["input_picture"]
    assert picture.size == (128, 128)
    assert not [each for each in page.button if each.label == "A sailboat"]
    labelled(page.text_area, "Prompt").set_value("a tent")
    if path == IMAGE_PAGE:
        over(job := generate(page))
        record = picture_files.read_parameters(job.pictures[0].path)
        assert record.extra["Input picture"] == "postcard-sailboat.png"


def test_samples_are_small_and_paint_the_same_every_time():
    files = [samples.file_of(sample, 256) for sample in samples.SAMPLES]
    assert sum(len(file.data) for file in files) < 60_000
    samples._painted.cache_clear()
    assert files[0].data == samples.file_of(samples.SAMPLES[0], 256).data
    assert samples.small(samples.SAMPLES[1]).size == (160, 160)
