"""The page with a model or LoRA for few steps: it says what it recognised, sets it, and takes it back."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("streamlit")

from stable_diffusion.service import values

from .test_app import button, engine, labelled, open_page  # noqa: F401

TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture
def page(engine, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(tmp_path))
    for name in ("ink", "lcm_sd15_6steps"):
        save_file({TO_K: np.zeros((4, 768), np.float32)}, tmp_path / f"{name}.safetensors")
    return open_page()


def settings(page):
    state = page.session_state
    return state["steps"], state["cfg"], state["sampler"], state["schedule"]


def said(page):
    return [each.value.replace("\\", "") for each in page.caption if "Recognised" in each.value]


def choose(page, *names):
    labelled(page.multiselect, "LoRA").set_value(list(names)).run()
    assert not page.exception


USUAL = (20, 5.0, "euler", values.OWN)


def test_a_lora_sets_its_recipe_and_says_so(page):
    choose(page, "ink")
    assert settings(page) == USUAL and said(page) == []
    choose(page, "ink", "lcm_sd15_6steps")
    assert settings(page) == (6, 1.0, "lcm", values.OWN)
    assert said(page) == ["Recognised as SD 1.x LCM by its name: 6 steps, CFG 1, sampler lcm."]


def test_undo_and_use_these(page):
    labelled(page.selectbox, "Sampler").set_value("dpmpp_2m").run()
    labelled(page.selectbox, "Schedule").set_value("karras").run()
    before = settings(page)
    choose(page, "lcm_sd15_6steps")
    button(page, "Undo").click().run()
    assert settings(page) == before == (20, 5.0, "dpmpp_2m", "karras")
    assert said(page) == ["Recognised as SD 1.x LCM by its name, which is made for 6 steps, CFG 1, sampler lcm."]
    button(page, "Use these").click().run()
    assert settings(page) == (6, 1.0, "lcm", values.OWN)


def test_taking_the_lora_off_takes_its_settings_back(page):
    choose(page, "lcm_sd15_6steps")
    choose(page)
    assert settings(page) == USUAL and said(page) == []


def test_what_was_changed_since_stays(page):
    choose(page, "lcm_sd15_6steps")
    labelled(page.slider, "Steps").set_value(9).run()
    choose(page, "lcm_sd15_6steps", "ink")
    assert settings(page)[0] == 9, "another LoRA changes nothing"
    choose(page)
    assert settings(page) == (9, 1.0, "lcm", values.OWN)


def test_samplers_without_schedules_say_so(page):
    labelled(page.selectbox, "Sampler").set_value("tcd").run()
    assert labelled(page.selectbox, "Schedule").disabled
    labelled(page.selectbox, "Sampler").set_value("dpmpp_2m_sde").run()
    schedule = labelled(page.selectbox, "Schedule")
    assert not schedule.disabled and schedule.options[:2] == ["Model's own", "Automatic (Exponential)"]
