"""Gallery and Picture info without a browser: what a click does to files, and what reaches the form."""

import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

st = pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest  # noqa: E402

from stable_diffusion.record import picture_files  # noqa: E402
from stable_diffusion.record.parameters import Parameters  # noqa: E402
from stable_diffusion.service import gallery as gallery_module  # noqa: E402
from stable_diffusion.service import shared  # noqa: E402
from stable_diffusion.webui.components import browse, details, session  # noqa: E402
from tests.pretend import PretendEngine, over  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GALLERY, INFO = "stable_diffusion/webui/pages/gallery.py", "stable_diffusion/webui/pages/picture_info.py"
HOSTILE = "a *red* <b>house</b> :smile: $x$ ![x](http://evil.example/x.png)"


@pytest.fixture
def outputs(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLE_DIFFUSION_OUTPUTS", str(tmp_path / "outputs"))
    PretendEngine().install(monkeypatch)
    shared.close()
    st.cache_resource.clear()
    yield tmp_path / "outputs"
    shared.close()
    browse.the_gallery().close()
    st.cache_resource.clear()


def save(outputs, prompt="a red house", seed=1, **more):
    known = {"steps": 12, "sampler": "DPM++ 2M", "schedule": "Karras", "cfg": 6.5, "width": 64, "height": 72}
    picture = Image.new("RGB", (64, 72), "teal")
    return picture_files.save_new_picture(
        picture, outputs / "2026-03-01", Parameters(prompt, seed=seed, **known | more)
    )


def open_page(path, **query):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    page.run()
    page.switch_page(path)
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def labelled(elements, label):
    (found,) = [element for element in elements if element.label == label]
    return found


def press(page, label):
    labelled(page.button, label).click()
    page.run()
    assert not page.exception


def cards(page):
    return [button.label for button in page.button if (button.key or "").startswith("open-")]


def open_card(page, place=0):
    [button for button in page.button if (button.key or "").startswith("open-")][place].click()
    page.run()
    assert not page.exception


def choose(page, label):
    labelled(page.checkbox, label).check()
    page.run()


def form_of(page):
    keys = ("prompt", "negative", "sampler", "schedule", "steps", "cfg", "seed", "width", "height")
    return {key: page.session_state[key] for key in keys}


# --- Gallery


def test_an_empty_gallery_says_so(outputs):
    page = open_page(GALLERY)
    assert any("No pictures yet" in text.value for text in page.markdown)


def test_a_finished_picture_is_in_the_gallery_by_itself(outputs):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    labelled(page.text_area, "Prompt").set_value("a blue tent")
    press(page, "Generate")
    over(session.the_worker().job(page.session_state["job_id"]))
    page.switch_page(GALLERY).run()
    assert cards(page) == ["a blue tent"]


def test_search_model_and_favourites(outputs):
    save(outputs, "a red house", 1, model="postcards-tiny")
    save(outputs, "a blue tent", 2, model="dreamshaper-8")
    page = open_page(GALLERY)
    assert len(cards(page)) == 2
    labelled(page.text_input, "Search in prompts").set_value("tent")
    page.run()
    assert cards(page) == ["a blue tent"]
    labelled(page.selectbox, "Made with").set_value("postcards-tiny")
    page.run()
    assert cards(page) == []
    labelled(page.text_input, "Search in prompts").set_value("")
    page.run()
    assert cards(page) == ["a red house"]
    choose(page, "Seed 1")
    press(page, "Favourite")
    assert cards(page) == ["★ a red house"]
    page.session_state["gallery_show"] = browse.FAVOURITES
    labelled(page.selectbox, "Made with").set_value("")
    page.run()
    assert cards(page) == ["★ a red house"]


def test_prompts_are_never_read_as_markdown(outputs):
    save(
        outputs, HOSTILE, negative="<script>alert(1)</script>", extra={"**Key**": "[a](javascript:x)", "Model": HOSTILE}
    )
    page = open_page(GALLERY)
    assert cards(page) == [session.plain(details.one_line(HOSTILE, 52))]
    open_card(page)
    assert [code.value for code in page.code][:2] == [HOSTILE, "<script>alert(1)</script>"]
    (table,) = page.table
    shown = dict(zip(table.value["Setting"], table.value["Value"], strict=True))
    assert shown[session.plain("**Key**")] == session.plain("[a](javascript:x)")
    assert shown["Model"] == session.plain(HOSTILE)


def test_choosing_over_pages_deleting_and_undoing(outputs, monkeypatch):
    monkeypatch.setattr(gallery_module.Gallery.page, "__defaults__", (1, 2))
    paths = [save(outputs, seed=seed) for seed in range(1, 6)]
    page = open_page(GALLERY)
    press(page, "Choose all on this page")
    press(page, "Older")
    assert labelled(page.number_input, "Page of 3").value == 2
    choose(page, "Seed 3")
    press(page, "Move to trash")
    assert sorted(path.name for path in outputs.glob("2*/*.png")) == ["00001-1.png", "00002-2.png"]
    press(page, "Undo")
    assert all(path.exists() for path in paths)
    assert not any(box.value for box in page.checkbox), "nothing stays chosen"


def test_restore_and_empty_the_trash(outputs):
    save(outputs, seed=1), save(outputs, seed=2)
    page = open_page(GALLERY)
    press(page, "Choose all on this page")
    press(page, "Move to trash")
    page.session_state["gallery_show"] = browse.TRASH
    page.run()
    choose(page, "Seed 1")
    press(page, "Restore")
    assert [path.name for path in outputs.glob("2*/*.png")] == ["00001-1.png"]
    press(page, "Delete for good")
    assert not list(outputs.rglob(".trash/*/*.png"))
    assert [said.value for said in page.success] == [session.plain("1 picture deleted for good.")]


def test_one_picture_its_neighbours_and_its_favourite(outputs):
    for seed in (1, 2, 3):
        save(outputs, f"number {seed}", seed)
    page = open_page(GALLERY)
    order = cards(page)
    open_card(page, 1)
    press(page, "Older")
    assert page.code[0].value == order[2]
    assert labelled(page.button, "Older").disabled
    labelled(page.toggle, "Favourite").set_value(True)
    page.run()
    press(page, "Back to all pictures")
    assert cards(page) == [order[0], order[1], f"★ {order[2]}"]


def address_of(page):
    value = page.query_params[browse.OPENED]
    return value if isinstance(value, str) else value[-1]


def test_the_picture_that_is_open_is_in_the_address(outputs):
    save(outputs, "number 1", 1)
    save(outputs, "number 2", 2)
    page = open_page(GALLERY)
    assert browse.OPENED not in page.query_params
    newest, other = cards(page)
    open_card(page)
    address = address_of(page)
    again = open_page(GALLERY, picture=address)
    assert again.code[0].value == newest
    press(again, "Older")
    assert again.code[0].value == other and address_of(again) != address
    press(again, "Back to all pictures")
    assert browse.OPENED not in again.query_params and cards(again) == [newest, other]


@pytest.mark.parametrize("address", ["0" * 32, "../../../etc/passwd", "%", "a\0b", "<b>x</b>", "x" * 10_000])
def test_an_address_of_no_picture_leads_to_all_of_them(outputs, address):
    save(outputs)
    page = open_page(GALLERY, picture=address)
    assert len(cards(page)) == 1
    assert [said.value for said in page.info] == ["The picture of this address is no longer in the gallery."]


def test_reuse_all_settings(outputs):
    save(outputs, "a red house", 77, negative="rain")
    page = open_page(GALLERY)
    open_card(page)
    press(page, "Reuse all settings")
    assert labelled(page.text_area, "Prompt").value == "a red house"
    assert form_of(page) == {
        "prompt": "a red house", "negative": "rain", "sampler": "dpmpp_2m", "schedule": "karras", "steps": 12,
        "cfg": 6.5, "seed": "77", "width": 64, "height": 72,
    }  # fmt: skip


def test_reuse_brings_back_loras_clip_skip_and_variation_and_takes_them_away(outputs, tmp_path, monkeypatch):
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path))
    (tmp_path / "ink.safetensors").write_bytes(b"")
    said = {"LoRA": "ink:0.5, gone:1", "Clip skip": "2", "Variation seed": "7", "Variation seed strength": "0.25"}
    save(outputs, "without", 1)
    save(outputs, "with", 2, extra=said)
    for place, expected in ((0, ([("ink", 0.5)], 2, "7", 0.25)), (1, ([], 0, "-1", 0.0))):
        page = open_page(GALLERY)
        page.session_state["clip_skip"] = 5
        open_card(page, place)
        press(page, "Reuse all settings")
        keys = ("loras", "clip_skip", "variation_seed", "variation_strength")
        assert tuple(page.session_state[key] for key in keys) == expected
        notes = [session.plain("The LoRA 'gone' is not here, and was left out.")] if place == 0 else []
        assert [note.value for note in page.info] == notes


def test_reuse_takes_every_setting(outputs, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sharp.vae.pt").write_bytes(b"")
    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(tmp_path / "models"))
    said = {
        "Prompt language": "plain", "CFG Rescale": "0.7", "Prediction type": "v_prediction", "Bits": "4",
        "VAE": "sharp.vae.pt", "Clip skip": "2", "Zero terminal SNR": "False", "Variation seed": "5",
        "Variation seed strength": "0.25",
    }  # fmt: skip
    save(outputs, extra=said | {"Version": "x"})
    page = open_page(GALLERY)
    open_card(page)
    press(page, "Reuse all settings")
    assert not page.info, "everything is offered"
    state = page.session_state
    assert [state[key] for key in ("prompt_language", "guidance_rescale", "prediction_type", "bits", "vae")] == [
        "plain", 0.7, "v_prediction", 4, "sharp.vae.pt"
    ]  # fmt: skip
    assert [state[key] for key in ("clip_skip", "variation_seed", "variation_strength")] == [2, "5", 0.25]
    assert state["zero_terminal_snr"] is False


def test_reuse_finds_files_in_folders_and_with_commas_in_their_names(outputs, tmp_path, monkeypatch):
    """As `again` does: by hash, by the name alone, with a folder where two share it."""
    from stable_diffusion import catalogue

    from .test_catalogue import make_file

    monkeypatch.setenv("STABLE_DIFFUSION_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path / "loras"))
    photon = make_file(tmp_path / "models" / "realistic" / "photon_v1.safetensors")
    make_file(tmp_path / "models" / "other" / "photon_v1.safetensors", "sdxl")
    for name in ("a, deep: one", "people/face", "things/face"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(name.encode())
    said = {"LoRA": "a, deep: one:0.25, people/face:0.5, face:1", "Version": "x"}
    save(outputs, model="photon_v1", model_hash=catalogue.short_hash(photon), extra=said)
    save(outputs, seed=2, model="photon_v1", extra={"Version": "x"})
    page = open_page(GALLERY)
    open_card(page, 1)
    press(page, "Reuse all settings")
    assert page.session_state["model"] == "realistic/photon_v1.safetensors"
    assert page.session_state["loras"] == [("a, deep: one", 0.25), ("people/face", 0.5)]
    (note,) = page.info
    assert session.plain("'face' may be any of people/face, things/face") in note.value
    page = open_page(GALLERY)
    before = page.session_state["model"]
    open_card(page, 0)
    press(page, "Reuse all settings")
    assert page.session_state["model"] == before and session.plain("realistic/photon_v1") in page.info[0].value


def test_reuse_says_what_is_not_here_or_not_understood(outputs):
    save(outputs, extra={"VAE": "gone.safetensors", "Bits": "3", "Version": "x"})
    page = open_page(GALLERY)
    open_card(page)
    press(page, "Reuse all settings")
    (note,) = page.info
    assert note.value.split("  \n") == [
        session.plain("Bits '3' was not understood, and was left as it is."),
        session.plain("The VAE 'gone.safetensors' is not here. It was left out."),
    ]


def test_send_to_image_to_image(outputs):
    save(outputs)
    page = open_page(GALLERY)
    open_card(page)
    press(page, "Send to image to image")
    assert labelled(page.slider, "Denoising strength")
    assert page.session_state["input_picture"].size == (64, 72)


def test_the_picture_alone_is_sent_where_that_is_asked_for(outputs):
    save(outputs, "a red house", 77)
    page = open_page(GALLERY)
    before = form_of(page)
    open_card(page)
    labelled(page.toggle, "Send with its prompt and settings").set_value(False)
    page.run()
    press(page, "Send to image to image")
    assert page.session_state["input_picture"].size == (64, 72)
    assert form_of(page) == before
    page.switch_page(GALLERY).run()
    open_card(page)
    assert not labelled(page.toggle, "Send with its prompt and settings").value, "which stays as it was"


def test_after_a_picture_is_deleted_the_next_one_is_shown_and_undo_brings_it_back(outputs):
    for seed in (1, 2, 3):
        save(outputs, f"number {seed}", seed)
    page = open_page(GALLERY)
    _, middle, oldest = cards(page)
    open_card(page, 1)
    press(page, "Move to trash")
    assert page.code[0].value == oldest
    press(page, "Undo")
    assert page.code[0].value == middle
    press(page, "Older")
    press(page, "Move to trash")
    assert page.code[0].value == middle, "after the last one, the one before it"
    press(page, "Move to trash")
    press(page, "Move to trash")
    assert any("No pictures yet" in text.value for text in page.markdown)


def test_a_picture_deleted_under_the_page_is_said_in_words(outputs):
    path = save(outputs)
    page = open_page(GALLERY)
    open_card(page)
    path.unlink()
    press(page, "Send to image to image")
    assert any("no picture" in note.value for note in page.info)
    page.run()
    assert not page.exception
    assert any("No pictures yet" in text.value for text in page.markdown)


def test_a_disk_that_refuses_is_said_in_words(outputs, monkeypatch):
    path = save(outputs)
    page = open_page(GALLERY)
    choose(page, "Seed 1")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stable_diffusion.atomic.os.link", refuse)
    press(page, "Move to trash")
    assert [error.value for error in page.error] == [session.plain("The disk is full. Free some space and try again.")]
    assert path.exists()


# --- Picture info


def upload(page, content, name="in.png"):
    labelled(page.get("file_uploader"), "Picture to read").set_value((name, content, "image/png"))
    page.run()
    assert not page.exception


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_picture_info_reads_every_kind_and_sends_it_to_the_form(outputs, tmp_path, suffix):
    parameters = Parameters(
        "a\nb", "rain 😀", 12, "Euler a", None, 5.0, 2**32, 64, 72, model="postcards-tiny", strength=0.4
    )
    path = picture_files.save_picture(Image.new("RGB", (64, 72)), tmp_path / f"in{suffix}", parameters)
    page = open_page(INFO)
    upload(page, path.read_bytes())
    assert [code.value for code in page.code] == ["a\nb", "rain 😀", parameters.to_text()]
    press(page, "Reuse all settings")
    assert form_of(page)["seed"] == str(2**32)
    assert (form_of(page)["sampler"], page.session_state["strength"]) == ("euler_a", 0.4)
    assert not page.info


def test_picture_info_sends_the_picture_alone_where_it_says_nothing(outputs):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    page = open_page(INFO)
    upload(page, buffer.getvalue())
    assert labelled(page.button, "Reuse all settings").disabled
    press(page, "Send to image to image")
    assert page.session_state["input_picture"].size == (40, 30)


def test_picture_info_reads_other_programs(outputs):
    page = open_page(INFO)
    upload(page, (Path(__file__).with_name("pictures") / "comfy.webp").read_bytes())
    assert [code.value for code in page.code][:2] == ["a red mill by a lake", "fog"]
    assert "Made with ComfyUI" in [caption.value for caption in page.caption]
    press(page, "Reuse all settings")
    assert form_of(page)["seed"] == "4031" and form_of(page)["sampler"] == "dpmpp_2m"


def test_picture_info_says_what_is_not_understood(outputs, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text := '{"what": "is this", "prompt": ["a mill"]}')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    page = open_page(INFO)
    upload(page, (tmp_path / "a.png").read_bytes())
    assert "not understood" in page.info[0].value and [code.value for code in page.code] == [text]
    assert labelled(page.button, "Reuse all settings").disabled


def test_picture_info_shows_sixteen_bits_of_grey(outputs):
    buffer = io.BytesIO()
    Image.new("I;16", (40, 30), 40_000).save(buffer, "PNG")
    page = open_page(INFO)
    upload(page, buffer.getvalue())
    assert not page.exception and not page.error


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"GIF89a" + b"\0" * 20])
def test_picture_info_refuses_what_is_no_picture(outputs, content):
    page = open_page(INFO)
    upload(page, content)
    assert len(page.error) == 1


def test_hostile_parameters_only_show(outputs, tmp_path):
    settings = 'Steps: 1, Sampler: "\\ud800", Model: "/etc/passwd", Seed: 99999999999999999999, CFG scale: 1e300'
    text = f"{'x' * 30_000}\n{settings}, Size: 13x99999"
    path = picture_files.save_picture(Image.new("RGB", (8, 8)), tmp_path / "in.png", Parameters.from_text(text))
    page = open_page(INFO)
    before = form_of(page) | {"model": page.session_state["model"]}
    upload(page, path.read_bytes())
    press(page, "Reuse all settings")
    assert len(page.session_state["prompt"]) <= 20_000
    kept = {key: value for key, value in before.items() if key not in ("prompt", "steps", "model")}
    assert {key: page.session_state[key] for key in kept} == kept
    assert page.session_state["model"] == before["model"]
    for word in ("passwd", "sampler", "Seed", "CFG", "Width", "Height"):
        assert word in page.info[0].value, word


def test_facts_leave_out_what_is_not_known_and_keep_zeros():
    assert details.facts(Parameters(seed=0, cfg=0.0, steps=4)) == {"Steps": "4", "CFG": "0", "Seed": "0"}
