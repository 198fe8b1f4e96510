"""What follows from recognising a model or LoRA for few steps: in the catalogue, on the command line, page and HTTP."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from stable_diffusion import __main__ as program
from stable_diffusion import catalogue
from stable_diffusion.adapters import lora_recipe
from stable_diffusion.record import picture_files
from stable_diffusion.service.api import a1111_request, openai

from . import single_files

TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
SMALL = ["--width", "64", "--height", "64", "--seed", "1"]


@pytest.fixture(autouse=True)
def loras(tmp_path, monkeypatch):
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setenv("STABLE_DIFFUSION_LORAS", str(folder))
    monkeypatch.setattr(catalogue, "model_folders", lambda: [tmp_path / "models"])
    return folder


def lora(path, width=768, **metadata):
    path.parent.mkdir(exist_ok=True)
    save_file({TO_K: np.zeros((4, width), np.float32)}, path, metadata or None)
    return path


def told(defaults):
    return defaults.steps, defaults.cfg, defaults.sampler


def test_a_file_of_the_catalogue(tmp_path):
    path = single_files.write(tmp_path / "photonLCM_6steps.safetensors", single_files.tensors("sd1"))
    model = catalogue.from_file(path)
    assert told(model.defaults) == (6, 1.0, "lcm") and model.recipe.title == "SD 1.x LCM"
    assert told(model.ordinary) == (20, 7.5, "euler")
    plain = catalogue.from_file(path.rename(tmp_path / "photon.safetensors"))
    assert plain.recipe is None and told(plain.defaults) == told(plain.ordinary) == (20, 7.5, "euler")


def test_metadata_of_a_file(tmp_path):
    metadata = {"modelspec.title": "Photon LCM"}
    model = catalogue.from_file(single_files.write(tmp_path / "a.safetensors", single_files.tensors("sd1"), metadata))
    assert model.recipe.in_words == (
        "Recognised as SD 1.x LCM by its metadata (modelspec.title): 4 steps, CFG 1, sampler lcm."
    )


def test_folders_and_ids_of_the_hub(tmp_path):
    folder = tmp_path / "mine"
    (folder / "scheduler").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "TCDScheduler"}))
    assert told(catalogue.from_folder(folder).defaults) == (4, 1.0, "tcd")
    assert told(catalogue.of_hub("lykon/dreamshaper-xl-v2-turbo").defaults) == (4, 1.0, "euler_a_sgm_uniform")
    assert catalogue.of_hub("lcm-lovers/plain").recipe is None


def test_a_lora_by_its_file(loras):
    assert (
        lora_recipe.recipe_of(lora(loras / "lcm-lora-sdv1-5" / "pytorch_lora_weights.safetensors")).title
        == "SD 1.x LCM"
    )
    assert lora_recipe.recipe_of(lora(loras / "xl_lightning_4step.safetensors", 2048)).steps == 4
    assert lora_recipe.recipe_of(lora(loras / "xl_lightning_4step_b.safetensors", 768)) is None  # of another family
    assert lora_recipe.recipe_of(lora(loras / "porsche_turbo.safetensors", 2048)) is None
    (loras / "lcm_broken.safetensors").write_bytes(b"nonsense")
    assert lora_recipe.recipe_of(loras / "lcm_broken.safetensors") is lora_recipe.recipe_of(loras / "none") is None


def test_the_first_of_several_loras(loras):
    lora(loras / "ink.safetensors")
    lora(loras / "tcd_sd15.safetensors")
    lora(loras / "lcm_sd15.safetensors")
    first = lora_recipe.first_recipe
    assert first([("ink", 1.0)], "a house") is None
    assert first([("ink", 1.0), ("tcd_sd15", 1.0)], "a <lora:lcm_sd15:1>").sampler == "tcd"
    assert first([("tcd_sd15", 0.0)], "a <lora:lcm_sd15:1>").sampler == "lcm"
    assert first([], "<lora:lcm_sd15:0> <lora:gone:1> <lora:> <hypernet:x:1>") is None


class TestTheCommandLine:
    @pytest.fixture(autouse=True)
    def unlaid(self, monkeypatch):
        """The embedded model takes no such LoRA: only what is asked of it matters."""
        monkeypatch.setattr("stable_diffusion.StableDiffusion.set_loras", lambda *_: None, raising=False)

    def run(self, tmp_path, *options):
        out = tmp_path / "a.png"
        assert program.main(["txt2img", "a", *SMALL, *options, "--output", str(out)]) == 0
        made = picture_files.read_parameters(out)
        return made.steps, made.cfg, made.sampler

    def test_one_line_says_what_it_was_recognised_as(self, tmp_path, loras, capsys):
        lora(loras / "lcm_sd15.safetensors")
        assert self.run(tmp_path, "--lora", "lcm_sd15") == (4, 1.0, "LCM")
        said = [line for line in capsys.readouterr().err.splitlines() if "Recognised" in line]
        assert said == ["Recognised as SD 1.x LCM by its name: 4 steps, CFG 1, sampler lcm."]

    def test_what_the_user_gives_wins(self, tmp_path, loras, capsys):
        lora(loras / "lcm_sd15.safetensors")
        assert self.run(tmp_path, "--lora", "lcm_sd15", "--steps", "3", "--sampler", "Euler a") == (3, 1.0, "Euler a")
        assert "by its name: CFG 1." in capsys.readouterr().err
        given = ("--steps", "2", "--cfg", "2", "--sampler", "euler")
        assert self.run(tmp_path, "--lora", "lcm_sd15", *given) == (2, 2.0, "Euler")
        assert "Recognised" not in capsys.readouterr().err

    def test_quiet(self, tmp_path, loras, capsys):
        lora(loras / "lcm_sd15.safetensors")
        assert self.run(tmp_path, "--lora", "lcm_sd15", "--quiet") == (4, 1.0, "LCM")
        assert "Recognised" not in capsys.readouterr().err


def test_over_http(loras):
    lora(loras / "lcm_sd15.safetensors")
    prompt = "a house <lora:lcm_sd15:1>"
    request = a1111_request.read({"prompt": prompt}, False).request
    assert (request.steps, request.cfg, request.sampler) == (4, 1.0, "lcm")
    request = a1111_request.read({"prompt": prompt, "steps": 9, "sampler_name": "Euler a"}, False).request
    assert (request.steps, request.cfg, request.sampler) == (9, 1.0, "euler_a")
    request = a1111_request.read({"prompt": "a house"}, False).request
    assert (request.steps, request.cfg, request.sampler) == (20, 5.0, "euler")
    assert openai.first_recipe((), prompt).sampler == "lcm"
