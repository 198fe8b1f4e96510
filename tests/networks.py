"""Runs this project's networks on the inputs of shapes.py: configuration and file in, numpy out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stable_diffusion.backend import mx
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, UNetConfig
from stable_diffusion.model_io import names
from stable_diffusion.model_io.strict import load_weights
from stable_diffusion.unet import UNet
from stable_diffusion.vae import Autoencoder

GUIDANCE = 8.5  # of networks that take it as an input


def load_unet(config: Mapping, file: Path, dtype: mx.Dtype = mx.float32) -> UNet:
    model = UNet(UNetConfig.from_dict(config))
    load_weights(model, [file], names.UNET, dtype)
    return model


def load_vae(config: Mapping, file: Path, dtype: mx.Dtype = mx.float32) -> Autoencoder:
    model = Autoencoder(AutoencoderConfig.from_dict(config))
    load_weights(model, [file], names.VAE, dtype)
    return model


def load_text_encoder(config: Mapping, file: Path, dtype: mx.Dtype = mx.float32) -> CLIPTextModel:
    model = CLIPTextModel(CLIPTextConfig.from_dict(config))
    load_weights(model, [file], names.TEXT_ENCODER, dtype)
    return model


def run_unet(model: UNet, inputs: Mapping[str, np.ndarray], dtype: mx.Dtype = mx.float32) -> np.ndarray:
    extras = {key: mx.array(inputs[key]) for key in ("pooled", "time_ids") if key in inputs}
    if model.config.time_cond_proj_dim:
        extras["guidance"] = model.guidance_embedding(GUIDANCE)
    context = model.project_text(mx.array(inputs["text"]).astype(dtype))
    return to_numpy(model(mx.array(inputs["x"]).astype(dtype), mx.array(inputs["t"]), context, **extras))


def run_vae(model: Autoencoder, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    mean, deviation = model.moments(mx.array(inputs["picture"]))
    # The reference leaves scaling to its pipelines, so undo ours.
    decoded = model.decode(model._scale(mx.array(inputs["z"])))
    return {"mean": to_numpy(mean), "deviation": to_numpy(deviation), "decoded": to_numpy(decoded)}


def run_text_encoder(model: CLIPTextModel, ids: np.ndarray) -> dict[str, np.ndarray]:
    output = model(mx.array(ids))
    results = {"last": output.last_hidden_state, "penultimate": output.hidden_states[-2], "pooled": output.pooled}
    return {key: to_numpy(value) for key, value in results.items()}


def to_numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
