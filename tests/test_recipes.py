"""Models made for few steps are recognised by names, metadata and configurations, and ordinary ones are not."""

from __future__ import annotations

import pytest

from stable_diffusion.recipes import of_checkpoint, of_index, of_lora
from stable_diffusion.sampler import key_of

# Names as on the hub and on Civitai: (name, family), then title, steps, CFG, sampler.
CHECKPOINTS = {
    ("sd_xl_turbo_1.0_fp16.safetensors", "sdxl"): ("SDXL Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("DreamShaperXL_Turbo_v2_1.safetensors", "sdxl"): ("SDXL Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("dreamshaperXL_v21TurboDPMSDE.safetensors", "sdxl"): ("SDXL Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("TurboVisionXL.safetensors", "sdxl"): ("SDXL Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("sd_turbo.safetensors", "sd2"): ("SD 2.x Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("sdxl_lightning_4step.safetensors", "sdxl"): ("SDXL Lightning", 4, 1.0, "euler_sgm_uniform"),
    ("sdxl_lightning_8step_unet.safetensors", "sdxl"): ("SDXL Lightning", 8, 1.0, "euler_sgm_uniform"),
    ("juggernautXL_v9Rdphoto2Lightning.safetensors", "sdxl"): ("SDXL Lightning", 6, 1.0, "euler_sgm_uniform"),
    ("realvisxlV50_v50LightningBakedvae.safetensors", "sdxl"): ("SDXL Lightning", 6, 1.0, "euler_sgm_uniform"),
    ("Lightning/juggernaut.safetensors", "sdxl"): ("SDXL Lightning", 6, 1.0, "euler_sgm_uniform"),
    ("Hyper-SDXL-1step-Unet.safetensors", "sdxl"): ("SDXL Hyper-SD", 1, 1.0, "tcd"),
    ("juggernautXL_v10_HyperSDXL.safetensors", "sdxl"): ("SDXL Hyper-SD", 8, 1.0, "ddim_sgm_uniform"),
    ("realisticVisionV60_hyper_5steps.safetensors", "sd1"): ("SD 1.x Hyper-SD", 5, 1.0, "ddim_sgm_uniform"),
    ("dreamshaper_8LCM.safetensors", "sd1"): ("SD 1.x LCM", 4, 1.0, "lcm"),
    ("photonLCM_v10.safetensors", "sd1"): ("SD 1.x LCM", 4, 1.0, "lcm"),
    ("dmd2_sdxl_4step_unet_fp16", "sdxl"): ("SDXL DMD2", 4, 1.0, "lcm"),
    ("bigLust_v16DMD2.safetensors", "sdxl"): ("SDXL DMD2", 4, 1.0, "lcm"),
    ("animagine_tcd_8steps.safetensors", "sdxl"): ("SDXL TCD", 8, 1.0, "tcd"),
}  # fmt: skip
LORAS = {
    ("lcm-lora-sdv1-5/pytorch_lora_weights", "sd1"): ("SD 1.x LCM", 4, 1.0, "lcm"),
    ("LCM_LoRA_SDXL.safetensors", "sdxl"): ("SDXL LCM", 4, 1.0, "lcm"),
    ("sdxl_lightning_2step_lora.safetensors", "sdxl"): ("SDXL Lightning", 2, 1.0, "euler_sgm_uniform"),
    ("SDXL-Lightning-LoRA.safetensors", "sdxl"): ("SDXL Lightning", 6, 1.0, "euler_sgm_uniform"),
    ("sd_xl_turbo_lora_v1.safetensors", "sdxl"): ("SDXL Turbo", 4, 1.0, "euler_a_sgm_uniform"),
    ("Hyper-SDXL-8steps-lora.safetensors", "sdxl"): ("SDXL Hyper-SD", 8, 1.0, "ddim_sgm_uniform"),
    ("Hyper-SDXL-12steps-CFG-lora.safetensors", "sdxl"): ("SDXL Hyper-SD", 12, 5.0, "ddim_sgm_uniform"),
    ("Hyper-SD15-1step-lora.safetensors", "sd1"): ("SD 1.x Hyper-SD", 1, 1.0, "tcd"),
    ("tcd-sdxl-lora", "sdxl"): ("SDXL TCD", 4, 1.0, "tcd"),
    ("dmd2_sdxl_4step_lora_fp16.safetensors", "sdxl"): ("SDXL DMD2", 4, 1.0, "lcm"),
}  # fmt: skip
ORDINARY = [
    ("sd_xl_base_1.0.safetensors", "sdxl"), ("v1-5-pruned-emaonly.safetensors", "sd1"),
    ("hyperrealistic_v3.safetensors", "sdxl"), ("HyperRealism_XL.safetensors", "sdxl"),
    ("Hyper Realism Mix.safetensors", "sd1"), ("turbocharged_v2.safetensors", "sdxl"),
    ("turboencabulator.safetensors", "sdxl"), ("lightningrod_xl.safetensors", "sdxl"),
    ("enlightningMix.safetensors", "sdxl"), ("calcmaster.safetensors", "sd1"), ("realcmyk_v1.safetensors", "sd1"),
    ("ponyDiffusionV6XL_nonTurbo.safetensors", "sdxl"), ("pony_no-lcm.safetensors", "sdxl"),
    ("epicrealism_not_lightning.safetensors", "sdxl"), ("porsche911Turbo.safetensors", "sd1"),
    ("noobaiXL_epsilon_step10000.safetensors", "sdxl"), ("model-4000steps.safetensors", "sd1"),
    ("tcdata_v1.safetensors", "sd1"), ("dmdx_v2.safetensors", "sdxl"), ("SDXL/base.safetensors", "sdxl"),
]  # fmt: skip
ORDINARY_LORAS = [
    ("porsche_911_turbo.safetensors", "sdxl"), ("turbo_granny_xl.safetensors", "sdxl"),
    ("lightning_strike_style_xl.safetensors", "sdxl"), ("Lightning McQueen.safetensors", "sd1"),
    ("lightning/bolt.safetensors", "sdxl"), ("hyper_detailer.safetensors", "sd1"), ("HyperAnime.safetensors", "sdxl"),
    ("raiden_shogun_lightning.safetensors", "sdxl"), ("detail_tweaker_xl.safetensors", "sdxl"),
    ("helcm_style.safetensors", "sd1"), ("street-lightning-sdxl.safetensors", "sdxl"),
    ("Gran Turbo racing car XL.safetensors", "sdxl"),
]  # fmt: skip


def told(recipe):
    return recipe and (recipe.title, recipe.steps, recipe.cfg, recipe.sampler)


@pytest.mark.parametrize(("name", "family"), CHECKPOINTS)
def test_checkpoints_for_few_steps(name, family):
    assert told(of_checkpoint(name, family)) == CHECKPOINTS[name, family]
    assert key_of(CHECKPOINTS[name, family][3]) == CHECKPOINTS[name, family][3]


@pytest.mark.parametrize(("name", "family"), LORAS)
def test_loras_for_few_steps(name, family):
    assert told(of_lora(name, family)) == LORAS[name, family]


@pytest.mark.parametrize(("name", "family"), ORDINARY)
def test_ordinary_checkpoints(name, family):
    assert of_checkpoint(name, family) is None


@pytest.mark.parametrize(("name", "family"), ORDINARY_LORAS)
def test_ordinary_loras(name, family):
    assert of_lora(name, family) is None


def test_metadata_tell_where_the_name_does_not():
    recipe = of_lora("x.safetensors", "sdxl", {"modelspec.title": "SDXL Lightning 4-step LoRA"})
    assert told(recipe) == ("SDXL Lightning", 4, 1.0, "euler_sgm_uniform")
    assert recipe.by == "its metadata (modelspec.title)"
    assert told(of_checkpoint("m.safetensors", "sd1", {"ss_output_name": "my_LCM_v1"})) == ("SD 1.x LCM", 4, 1.0, "lcm")
    assert of_checkpoint("m.safetensors", "sd1", {"modelspec.description": "an LCM"}) is None


def test_a_lora_that_was_trained_on_pictures_is_of_what_they_show():
    name = "xl_lightning_4steps"
    assert of_lora(name, "sdxl") is not None
    assert of_lora(name, "sdxl", {"ss_tag_frequency": "{}"}) is None
    assert of_lora("lcm_mine", "sdxl", {"ss_tag_frequency": "{}"}) is not None  # no everyday word


def test_a_kind_that_a_family_has_no_models_of():
    assert of_checkpoint("mix_lightning_4step", "sd1") is None
    assert of_checkpoint("mix_lightning_4step", "") is not None


@pytest.mark.parametrize(("scheduler", "title"), [
    ({"_class_name": "LCMScheduler"}, "SDXL LCM"),
    ({"_class_name": "TCDScheduler"}, "SDXL TCD"),
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "SDXL Turbo"),
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "leading"}, None),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, None),
    ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing",
      "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, None),
])  # fmt: skip
def test_a_folders_scheduler(scheduler, title):
    found = of_checkpoint("a", "sdxl", scheduler=scheduler)
    assert (found and found.title) == title


def test_guidance_as_an_input():
    recipe = of_checkpoint("LCM_Dreamshaper_v7_8steps", "sd1", embeds_guidance=True)
    assert told(recipe) == ("SD 1.x LCM", 8, 8.0, "lcm")
    assert recipe.in_words == "Recognised as SD 1.x LCM by its keys: 8 steps, CFG 8, sampler lcm."


def test_a_folder_states_its_own_recipe():
    found = of_index({"_recipe": {"steps": 4, "cfg": 5, "sampler": "ddim"}}, "sd1")
    assert (found.steps, found.cfg, found.sampler) == (4, 5.0, "ddim")
    assert found.what == "Recognised as SD 1.x distilled to 4 steps by its model_index.json"


@pytest.mark.parametrize("said", [
    None, [], {}, {"steps": 4, "cfg": 5}, {"steps": "4", "cfg": 5, "sampler": "ddim"},
    {"steps": 0, "cfg": 5, "sampler": "ddim"}, {"steps": True, "cfg": 5, "sampler": "ddim"},
    {"steps": 4, "cfg": -1, "sampler": "ddim"}, {"steps": 4, "cfg": 5, "sampler": 3},
    {"steps": 400, "cfg": 5, "sampler": "ddim"}, {"steps": 4, "cfg": 5, "sampler": "no such"},
])  # fmt: skip
def test_a_recipe_that_cannot_be_followed_is_none(said):
    assert of_index({"_recipe": said}, "sd1") is None
