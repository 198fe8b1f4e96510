"""The Inpaint page without a browser: masks as they arrive, and their way from the page to the engine and the file."""

# ruff: noqa: F811 (the fixtures of test_app)

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

st = pytest.importorskip("streamlit")

from stable_diffusion.errors import InputError, PictureError  # noqa: E402
from stable_diffusion.record import inputs, picture_files  # noqa: E402
from stable_diffusion.record.parameters import Parameters  # noqa: E402
from stable_diffusion.request import Request, read_record  # noqa: E402
from stable_diffusion.service import masks  # noqa: E402
from stable_diffusion.service.masks import Painting  # noqa: E402
from stable_diffusion.webui.components import session  # noqa: E402
from tests.pretend import over  # noqa: E402
from tests.test_app import button, engine, generate, job_of, labelled, open_page, page, png  # noqa: E402, F401

PAGE = "stable_diffusion/webui/pages/inpaint.py"
SIZE = (90, 60)


def dotted(size=SIZE, box=(10, 10, 40, 30)):
    """A mask, painted in `box`."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def noisy(size=SIZE):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))


def url(picture, kind="PNG", mime="image/png"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bomb(side):
    """A PNG of a few bytes that claims to be large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    content += struct.pack(">I", 10) + b"IDAT" + bytes(10)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


# --- What a browser sends


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_a_painted_mask_arrives_as_it_was_painted(mode):
    mask = masks.mask_from_url(url(dotted().convert(mode)), SIZE)
    assert (mask.mode, mask.size) == ("L", SIZE)
    assert mask.tobytes() == dotted().tobytes()


def test_a_mask_has_hard_edges():
    mask = masks.mask_from_url(url(Image.linear_gradient("L")), (256, 256))
    assert mask.tobytes() == bytes([0] * 128 * 256 + [255] * 128 * 256)


def test_a_mask_goes_to_the_browser_and_back():
    assert masks.mask_from_url(masks.url_of(dotted()), SIZE).tobytes() == dotted().tobytes()
    assert masks.url_of(None) == ""


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (None, "as a PNG"),
        (7, "as a PNG"),
        (["data:image/png;base64,"], "as a PNG"),
        ("http://evil.example/mask.png", "as a PNG"),
        (url(dotted(), "JPEG", "image/jpeg"), "as a PNG"),
        (url(dotted(), "JPEG"), "this is not one"),
        ("data:image/png;base64,", "this is not one"),
        ("data:image/png;base64,%%%", "damaged"),
        ("data:image/png;base64,é", "damaged"),
        (url(dotted())[:-40], "cannot be read|damaged"),
        (url(dotted((60, 90))), "60 × 90 pixels and its picture 90 × 60"),
        (bomb(12_000), "12000 × 12000 pixels"),
        (bomb(SIZE[0]), "90 × 90"),
        ("data:image/png;base64,iVBORw0KGgo=", "0 × 0"),
    ],
)
def test_what_is_no_mask_is_refused_in_words(sent, words):
    with pytest.raises(PictureError, match=words):
        masks.mask_from_url(sent, SIZE)


def test_an_endless_mask_is_refused_unread(monkeypatch):
    monkeypatch.setattr(masks, "MAX_URL", 50)
    with pytest.raises(PictureError, match="MB"):
        masks.mask_from_url(url(dotted()), SIZE)


def test_a_painting_hears_its_own_browser_alone():
    painting = Painting(noisy())
    painting.receive({"token": "another", "mask": url(dotted())})
    assert painting.mask is None and painting.turn == 0
    painting.receive({"token": painting.token, "mask": url(dotted())})
    assert painting.mask.tobytes() == dotted().tobytes()
    with pytest.raises(PictureError):
        painting.receive({"token": painting.token, "mask": "nonsense"})
    assert painting.mask.tobytes() == dotted().tobytes(), "what was there before stays"
    painting.receive({"token": painting.token, "mask": "", "turn": 3})
    assert painting.mask is None and painting.turn == 3
    for odd in (None, "x", [], {"token": painting.token + "x"}):
        painting.receive(odd)


FULL = Image.new("L", SIZE, 255)


@pytest.mark.parametrize(
    ("mask", "mode", "words"),
    [
        (None, False, "Paint over what should change."),
        (Image.new("L", SIZE), False, "Paint over what should change."),
        (None, True, "Paint over what should stay."),
        (Image.new("L", SIZE), True, "Paint over what should stay."),
        (FULL, True, "leave a part unpainted"),
    ],
)
def test_a_mask_that_changes_nothing_is_refused(mask, mode, words):
    with pytest.raises(InputError, match=words):
        masks.check(mask, mode)


def test_a_mask_that_changes_something_is_taken():
    assert masks.check(FULL, False) is FULL
    for mode in masks.MODES:
        assert masks.check(dotted(), mode).getbbox() == (10, 10, 40, 30)


def test_a_larger_canvas_is_painted_where_it_is_new_and_where_it_was():
    painting = Painting(noisy(), dotted())
    larger = masks.extended(painting, 8, 16, 0, 24)
    assert larger.picture.size == larger.mask.size == (114, 84)
    assert larger.token != painting.token
    inside = (8, 0, 98, 60)
    assert larger.picture.crop(inside).tobytes() == painting.picture.tobytes()
    assert larger.mask.crop(inside).tobytes() == dotted().tobytes()
    assert np.asarray(larger.mask)[60:].min() == 255 == np.asarray(larger.mask)[:, :8].min()
    assert painting.mask.tobytes() == dotted().tobytes()
    with pytest.raises(InputError):
        masks.extended(painting, 0, 0, 0, 0)


def test_what_is_too_large_to_paint_on_is_refused():
    with pytest.raises(PictureError, match="24 million"):
        masks.check_paintable((6000, 4001))
    with pytest.raises(PictureError, match="24 million"):
        masks.extended(Painting(Image.new("RGB", (5000, 4000))), 1024, 0, 0, 0)


def test_the_browser_gets_a_small_picture_whatever_is_uploaded():
    assert Image.open(io.BytesIO(masks.shown(Image.new("RGB", (4000, 3000))))).size == (1280, 960)
    assert Image.open(io.BytesIO(masks.shown(noisy()))).size == SIZE


# --- From a request to a file


def painted(request):
    job = session.the_worker().submit(request)
    over(job)
    assert job.error == "" and job.warning == ""
    return Image.open(job.pictures[0].path)


def request(**more):
    return Request("a", **{"width": 64, "height": 64, "steps": 2, "picture": noisy(), "mask": dotted()} | more)


@pytest.mark.parametrize("area", masks.AREAS)
def test_what_is_not_painted_stays_bit_for_bit(engine, area):
    result = painted(request(mask_blur=0, only_masked=area))
    before, after, mask = (np.asarray(picture) for picture in (noisy(), result, dotted()))
    assert (after[mask == 0] == before[mask == 0]).all()
    assert (after[mask == 255] == 255).all(), "the pretend model paints white"
    assert len(engine.models[-1].calls) == 1


def test_the_mask_reaches_the_engine_at_the_size_that_is_painted(engine):
    painted(request(masked_content="fill", strength=0.4))
    (_, said), *_ = engine.models[-1].calls
    assert said["input_image"].size == said["mask_image"].size == (64, 64)
    assert (said["masked_content"], said["denoising_strength"]) == ("fill", 0.4)
    assert 0 < np.mean(np.asarray(said["mask_image"]) > 0) < 0.5


def test_only_masked_paints_the_surroundings_alone(engine):
    painted(request())
    painted(request(only_masked=True, padding=0))
    shares = [np.mean(np.asarray(said["mask_image"]) > 0) for _, said in engine.models[-1].calls]
    assert shares[1] > 2 * shares[0]


def test_what_is_painted_may_stay_instead(engine):
    after = np.asarray(painted(request(invert=True, mask_blur=0)))
    mask = np.asarray(dotted())
    assert (after[mask == 255] == np.asarray(noisy())[mask == 255]).all()
    assert (after[mask == 0] == 255).all()


def test_every_picture_of_a_job_is_put_back(engine):
    job = session.the_worker().submit(request(n_images=2, seed=5))
    over(job)
    assert [picture.size for picture in job.pictures] == [SIZE, SIZE]


@pytest.mark.parametrize(
    ("used", "known"),
    [
        ({}, {"Mask blur": "4", "Masked content": "original", "Inpaint area": "Whole picture"}),
        (
            {
                "masked_content": "noise",
                "mask_blur": 0,
                "only_masked": True,
                "padding": 8,
                "invert": True,
            },
            {
                "Mask blur": "0",
                "Masked content": "latent noise",
                "Inpaint area": "Only masked",
                "Masked area padding": "8",
                "Mask mode": "Inpaint not masked",
            },
        ),
    ],
)
def test_a_file_says_how_its_mask_was_used_and_carries_it(engine, used, known):
    result = painted(request(**used))
    found = picture_files.read_parameters(result.filename)
    assert found.size == "64x64", "the size that was painted, not that of the result"
    assert known.items() <= found.extra.items()
    asked = request(**used)
    read, notes = read_record(found)
    names = ("masked_content", "mask_blur", "only_masked", "padding", "invert")
    assert {name: read[name] for name in names} == {name: getattr(asked, name) for name in names} and not notes
    opened = {}
    for key in (inputs.PICTURE, inputs.MASK):
        opened[key] = inputs.find(inputs.recorded(found.extra, key), result.filename).open()
    assert opened[inputs.PICTURE].tobytes() == noisy().tobytes()
    assert opened[inputs.MASK].convert("L").tobytes() == dotted().tobytes()


def test_an_uploaded_picture_is_carried_as_the_file_that_it_was(engine):
    buffer = io.BytesIO()
    noisy().save(buffer, "JPEG", quality=90)
    file = inputs.InputFile("holiday.jpg", buffer.getvalue())
    path = painted(request(picture=file.open(), picture_file=file)).filename
    found = picture_files.read_parameters(path)
    assert found.extra["Input picture"] == "holiday.jpg" and found.extra["Input sha256"] == file.sha256
    assert [data[:3] for data in inputs.carried(path)] == [file.data[:3], b"\x89PN"]
    assert inputs.find(inputs.recorded(found.extra, inputs.PICTURE), path).data == file.data


def test_another_file_format_carries_the_words_alone(engine):
    extra = picture_files.read_parameters(painted(request(file_format="webp")).filename).extra
    assert extra["Mask blur"] == "4" and not {"Mask", "Input picture"} & set(extra)


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({}, {}),
        ({"Clip skip": "2"}, {}),
        ({"Mask blur": "nonsense"}, {"mask_blur": 4}),
        ({"Mask blur": "nan", "Masked area padding": "-1"}, {"mask_blur": 4, "padding": 32}),
        ({"Inpaint area": "Only masked", "Masked content": "latent nothing"}, {"only_masked": True}),
        ({"Masked content": "fill", "Mask mode": "Inpaint masked"}, {"masked_content": "fill", "invert": False}),
    ],
)
def test_what_other_programs_say_of_a_mask_is_read(extra, found):
    read, notes = read_record(Parameters(extra=extra))
    assert found.items() <= read.items()
    assert ("mask_blur" in read) == bool(found)
    odd = [key for key, value in extra.items() if value in ("nonsense", "nan", "-1", "latent nothing")]
    assert len(notes) == len(odd) and all(any(note.startswith(key) for note in notes) for key in odd)


# --- The page


@pytest.fixture
def inpaint(page):
    """The page with a picture of SIZE, painted at 64 x 64."""
    page.switch_page(PAGE).run()
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", png(), "image/png"))
    labelled(page.number_input, "Width").set_value(64)
    labelled(page.number_input, "Height").set_value(64)
    labelled(page.text_area, "Prompt").set_value("a red balloon")
    page.run()
    assert not page.exception
    return page


def paint(page, mask):
    page.session_state["painting"] = Painting(page.session_state["input_picture"], mask)


def errors(page):
    return [error.value for error in page.error]


def test_it_needs_a_picture_and_then_a_mask(engine, page):
    page.switch_page(PAGE).run()
    button(page, "Generate").click().run()
    assert errors(page) == ["Choose an input picture first\\."]
    labelled(page.get("file_uploader"), "Input picture").set_value(("in.png", png(), "image/png")).run()
    button(page, "Generate").click().run()
    assert errors(page) == ["Paint over what should change\\."]
    assert engine.models == []


def test_what_the_form_says_reaches_the_engine(engine, inpaint):
    paint(inpaint, dotted())
    labelled(inpaint.get("button_group"), "Masked content").set_value("noise")
    labelled(inpaint.get("button_group"), "Inpaint area").set_value(True)
    inpaint.run()
    labelled(inpaint.slider, "Mask blur").set_value(0)
    labelled(inpaint.slider, "Padding").set_value(8)
    labelled(inpaint.slider, "Denoising strength").set_value(0.9)
    job = generate(inpaint)
    over(job)
    inpaint.run()
    asked = job.request
    assert (asked.masked_content, asked.only_masked, asked.mask_blur, asked.padding) == ("noise", True, 0, 8)
    assert job.pictures[0].size == SIZE
    assert engine.models[-1].calls[0][1]["denoising_strength"] == 0.9
    assert errors(inpaint) == []


def test_image_to_image_takes_no_notice_of_a_mask(engine, inpaint):
    paint(inpaint, dotted())
    inpaint.switch_page("stable_diffusion/webui/pages/image_to_image.py").run()
    job = generate(inpaint)
    over(job)
    assert job.request.mask is None and "mask_image" not in engine.models[-1].calls[0][1]


def test_the_mask_stays_over_pages_and_goes_with_its_picture(inpaint):
    paint(inpaint, dotted())
    inpaint.switch_page("stable_diffusion/webui/pages/gallery.py").run()
    inpaint.switch_page(PAGE).run()
    assert inpaint.session_state["painting"].mask is not None
    labelled(inpaint.get("file_uploader"), "Input picture").set_value(("b.png", png((30, 30)), "image/png")).run()
    assert inpaint.session_state["painting"].mask is None
    assert inpaint.session_state["painting"].picture.size == (30, 30)


def test_a_reload_finds_picture_mask_and_settings_again(engine, inpaint):
    paint(inpaint, dotted())
    labelled(inpaint.get("button_group"), "Mask mode").set_value(True).run()
    job = generate(inpaint)
    over(job)
    again = open_page(job=job.id)
    again.switch_page(PAGE).run()
    assert again.session_state["painting"].mask.tobytes() == dotted().tobytes()
    assert again.session_state["input_picture"].size == SIZE
    assert labelled(again.get("button_group"), "Mask mode").value is True


def test_a_result_is_sent_to_be_painted_on(engine, page):
    labelled(page.text_area, "Prompt").set_value("a")
    job = generate(page)
    over(job)
    page.run()
    button(page, "Send to inpaint").click().run()
    page.run()
    assert page.session_state["painting"].picture.size == (64, 64)
    labelled(page.get("button_group"), "Masked content")


def test_settings_of_a_mask_come_back_from_a_picture(engine, inpaint):
    paint(inpaint, dotted())
    labelled(inpaint.get("button_group"), "Masked content").set_value("fill").run()
    labelled(inpaint.slider, "Mask blur").set_value(9).run()
    job = generate(inpaint)
    over(job)
    other = open_page()
    other.switch_page("stable_diffusion/webui/pages/picture_info.py").run()
    file = (job.pictures[0].path.name, job.pictures[0].path.read_bytes(), "image/png")
    labelled(other.get("file_uploader"), "Picture to read").set_value(file).run()
    button(other, "Send to inpaint").click().run()
    assert labelled(other.get("button_group"), "Masked content").value == "fill"
    assert labelled(other.slider, "Mask blur").value == 9
    assert other.session_state["painting"].picture.size == SIZE


def test_the_canvas_can_be_extended(inpaint):
    paint(inpaint, dotted())
    labelled(inpaint.number_input, "Right").set_value(38)
    button(inpaint, "Extend").click().run()
    assert not inpaint.exception and errors(inpaint) == []
    assert inpaint.session_state["input_picture"].size == (128, 60)
    assert inpaint.session_state["painting"].mask.getbbox() == (10, 0, 128, 60)
    assert labelled(inpaint.number_input, "Right").value == 0
    button(inpaint, "Extend").click().run()
    assert "number of pixels to add" in errors(inpaint)[0]


def test_width_and_height_take_the_shape_of_the_picture(inpaint):
    button(inpaint, "Take the picture's shape").click().run()
    assert (labelled(inpaint.number_input, "Width").value, labelled(inpaint.number_input, "Height").value) == (160, 104)


def test_a_picture_too_large_to_paint_on_is_refused_in_words(inpaint):
    inpaint.session_state["input_picture"] = Image.new("RGB", (6000, 5000))
    inpaint.run()
    assert not inpaint.exception
    assert "24 million" in errors(inpaint)[0]
    button(inpaint, "Generate").click().run()
    assert "24 million" in errors(inpaint)[-1]


def test_the_page_keeps_the_names_that_people_hold_on_to(inpaint):
    for kind, labels in {
        "button_group": ["Masked content", "Inpaint area", "Mask mode"],
        "slider": ["Denoising strength", "Mask blur", "Padding"],
        "number_input": ["Left", "Right", "Top", "Bottom"],
    }.items():
        for label in labels:
            labelled(inpaint.get(kind), label)
