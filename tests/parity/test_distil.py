"""A student's steps against diffusers' DDIM, with its U-Net and its embedding of the guidance weight."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from stable_diffusion.backend import mx
from stable_diffusion.config import UNetConfig
from stable_diffusion.diffusion.denoiser import Denoiser
from stable_diffusion.model_io import names
from stable_diffusion.model_io.load_folder import load_folder
from stable_diffusion.model_io.strict import load_weights
from stable_diffusion.sampler import sampler_by_name
from stable_diffusion.training.distil import Guided
from stable_diffusion.training.distil_run import student_of
from stable_diffusion.training.networks import SCHEDULER, write_index, write_part
from stable_diffusion.unet import UNet

from ..conftest import EMBEDDED
from ..networks import relative_error, to_numpy

pytestmark = pytest.mark.parity


def test_four_steps_are_diffusers(tmp_path):
    """The exported U-Net and scheduler, painted with by diffusers as an LCM pipeline embeds guidance: 1e-4."""
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
        LatentConsistencyModelPipeline as Pipeline,
    )

    student = student_of(load_folder(EMBEDDED, mx.float32).unet)
    rng = np.random.default_rng(0)
    weight = student.time_embedding.cond_proj.weight
    student.time_embedding.cond_proj.weight = mx.array(0.02 * rng.standard_normal(weight.shape, np.float32))
    write_part(tmp_path, "unet", student)
    write_index(tmp_path, dataclasses.replace(SCHEDULER, set_alpha_to_one=True), "DDIMScheduler", {"steps": 4})
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    x, text = (rng.standard_normal(shape, np.float32) for shape in ((1, 16, 16, 4), (1, 77, 128)))

    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").float()
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    guidance = Pipeline.get_guidance_scale_embedding(None, torch.tensor([5.0 - 1]), unet.config.time_cond_proj_dim)
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            v = unet(theirs, t, torch.from_numpy(text), timestep_cond=guidance).sample
            theirs = scheduler.step(v, t, theirs).prev_sample

    ours = UNet(UNetConfig.from_dict(json.loads((tmp_path / "unet" / "config.json").read_text())))
    load_weights(ours, [tmp_path / "unet" / "diffusion_pytorch_model.safetensors"], names.UNET, mx.float32)
    guided, sampler = Guided(ours), sampler_by_name("ddim")
    context = guided.context(mx.array(text), mx.array(text))
    denoiser = Denoiser(
        lambda x, t, step: guided(x, mx.array([t]), mx.array([5.0]), context), "v_prediction", embedded_guidance=True
    )
    plan = sampler.plan(dataclasses.replace(SCHEDULER, set_alpha_to_one=True), 4)
    *_, last = sampler.sample(denoiser, mx.array(x), plan, lambda: None)
    assert relative_error(to_numpy(last.x), theirs.permute(0, 2, 3, 1).numpy()) < 1e-4
