"""Configuration files: what is honoured, what is passed over, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stable_diffusion.config import AutoencoderConfig, CLIPTextConfig, SchedulerConfig, UNetConfig
from stable_diffusion.errors import ConfigError, UnsupportedCheckpointError

EMBEDDED = Path(__file__).parents[1] / "stable_diffusion" / "checkpoints" / "postcards-tiny"


@pytest.mark.parametrize(
    "config_type, file",
    [
        (UNetConfig, "unet/config.json"),
        (AutoencoderConfig, "vae/config.json"),
        (CLIPTextConfig, "text_encoder/config.json"),
        (SchedulerConfig, "scheduler/scheduler_config.json"),
    ],
)
def test_the_embedded_files_are_read_whole(config_type, file):
    values = json.loads((EMBEDDED / file).read_text())
    config = config_type.from_dict(values)
    for key, value in values.items():
        if hasattr(config, key):
            assert getattr(config, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "config_type, key, value",
    [
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "encoder_hid_dim_type", "text_proj"),
        (UNetConfig, "dual_cross_attention", True),
        (UNetConfig, "resnet_time_scale_shift", "scale_shift"),
        (UNetConfig, "a_key_of_tomorrow", 3),
        (SchedulerConfig, "thresholding", True),
        (SchedulerConfig, "use_flow_sigmas", True),
        (SchedulerConfig, "use_lu_lambdas", True),
        (SchedulerConfig, "sigma_data", 0.5),
        (CLIPTextConfig, "model_type", "t5"),
    ],
)
def test_unsupported_keys_are_refused_by_name(config_type, key, value):
    with pytest.raises(UnsupportedCheckpointError, match=f"some/config.json.*{key}.*{value!r}"):
        config_type.from_dict({key: value}, "some/config.json")


@pytest.mark.parametrize("value", [None, False])
def test_an_unknown_key_that_is_off_is_passed_over(value):
    assert UNetConfig.from_dict({"a_key_of_tomorrow": value, "_class_name": "UNet2DConditionModel"}) == UNetConfig()


@pytest.mark.parametrize(
    "config_type, values, match",
    [
        (UNetConfig, {"block_out_channels": [30, 60, 120, 120]}, "block_out_channels.*norm_num_groups = 32"),
        (UNetConfig, {"down_block_types": ["DownBlock2D"]}, "up_block_types"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        (UNetConfig, {"in_channels": 0}, "in_channels = 0"),
        (UNetConfig, {"in_channels": "four"}, "in_channels = 'four'"),
        (UNetConfig, {"layers_per_block": True}, "layers_per_block = True"),
        (UNetConfig, {"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        (UNetConfig, {"act_fn": "tanh"}, "act_fn = 'tanh'"),
        (AutoencoderConfig, {"scaling_factor": 0}, "scaling_factor = 0"),
        (AutoencoderConfig, {"latents_mean": [1.0]}, "latents_mean"),
        (AutoencoderConfig, {"block_out_channels": [64, 64]}, "the same length"),
        (CLIPTextConfig, {"hidden_size": 100}, "hidden_size = 100"),
        (CLIPTextConfig, {"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
        (SchedulerConfig, {"prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction'"),
        (SchedulerConfig, {"timestep_spacing": "even"}, "timestep_spacing = 'even'"),
        (SchedulerConfig, {"trained_betas": [0.1, 0.2]}, "trained_betas has 2"),
        (SchedulerConfig, {"num_train_timesteps": -1}, "num_train_timesteps = -1"),
    ],
)
def test_values_that_make_no_sense(config_type, values, match):
    with pytest.raises(ConfigError, match=match):
        config_type.from_dict(values)


@pytest.mark.parametrize("values", [[], "text", 3, None])
def test_a_file_that_holds_no_object(values):
    with pytest.raises(ConfigError, match=r"unet/config\.json should hold a JSON object"):
        UNetConfig.from_dict(values, "unet/config.json")


def test_heads():
    """attention_head_dim is the number of heads, an old slip; num_attention_heads wins where it is given."""
    assert UNetConfig(attention_head_dim=8).heads == (8, 8, 8, 8)
    assert UNetConfig(attention_head_dim=(5, 10, 20, 20)).heads == (5, 10, 20, 20)
    assert UNetConfig(attention_head_dim=8, num_attention_heads=4).heads == (4, 4, 4, 4)


def test_a_checkpoint_with_a_typical_old_text_encoder_config():
    """transformers once wrote every generation setting into every file."""
    old = {"torchscript": False, "top_k": 50, "temperature": 1.0, "id2label": {"0": "LABEL_0"}, "hidden_size": 768}
    assert CLIPTextConfig.from_dict({**old, "num_attention_heads": 12}).hidden_size == 768


def test_a_unet_saved_by_an_average_of_weights():
    ema = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 37500, "power": 0.6667}
    assert UNetConfig.from_dict({**ema, "update_after_step": 0, "use_ema_warmup": False}) == UNetConfig()
