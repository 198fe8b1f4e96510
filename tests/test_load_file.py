"""Single files in the original layout: loaded in every form, told apart, and refused by name where they cannot be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from stable_diffusion import StableDiffusion, families
from stable_diffusion.__main__ import main
from stable_diffusion.backend import mx
from stable_diffusion.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    UnsupportedCheckpointError,
    WeightsError,
)
from stable_diffusion.model_io import tensor_file
from stable_diffusion.model_io.checkpoint import CheckpointWarning
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.describe import TELLING_BIAS, describe
from stable_diffusion.model_io.load_file import load_single_file
from stable_diffusion.model_io.locate import load, locate
from stable_diffusion.model_io.names import averaged_name

from . import single_files

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")
FORMS = (".safetensors", ".ckpt", ".pt")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def arrays() -> dict[str, dict[str, np.ndarray]]:
    return {family: single_files.tensors(family) for family in FAMILIES}


@pytest.fixture
def sd1(arrays) -> dict[str, np.ndarray]:
    return dict(arrays["sd1"])


def parameters(checkpoint) -> dict[str, np.ndarray]:
    modules = {"unet": checkpoint.unet, "vae": checkpoint.vae}
    modules |= {f"text_encoder_{i}": encoder for i, encoder in enumerate(checkpoint.text_encoders)}
    return {
        f"{part}.{key}": np.array(value) for part, m in modules.items() for key, value in tree_flatten(m.parameters())
    }


def loaded(path: Path, **options):
    return load_single_file(path, mx.float32, **options)


class TestLoading:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_tensor_is_used_as_it_stands(self, family, form, arrays, tmp_path):
        given = arrays[family]
        checkpoint = loaded(single_files.write(tmp_path / f"model{form}", given))
        ours = parameters(checkpoint)
        assert checkpoint.family == family
        assert sum(value.size for value in ours.values()) == sum(value.size for value in given.values())
        kernel = given[UNET + "input_blocks.0.0.weight"].astype(np.float32)
        assert np.array_equal(ours["unet.conv_in.weight"], kernel.transpose(0, 2, 3, 1))
        one = given[VAE + "decoder.mid.attn_1.q.weight"].astype(np.float32)
        assert np.array_equal(ours["vae.decoder.mid_block.attentions.0.attention.to_q.weight"], one[:, :, 0, 0])

    def test_openclip_is_taken_apart(self, arrays, tmp_path):
        given = arrays["sdxl"]
        ours = parameters(loaded(single_files.write(tmp_path / "model.safetensors", given)))
        prefix = "conditioner.embedders.1.model."
        fused = given[prefix + "transformer.resblocks.0.attn.in_proj_weight"].astype(np.float32)
        for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = ours[f"text_encoder_1.layers.0.self_attn.{name}.weight"]
            assert np.array_equal(part, np.split(fused, 3)[i])
        projection = given[prefix + "text_projection"].astype(np.float32)
        assert np.array_equal(ours["text_encoder_1.text_projection.weight"], projection.T)

    @pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
    @pytest.mark.parametrize("target", [mx.float32, mx.float16])
    def test_precisions(self, dtype, target, sd1, tmp_path):
        """Every type of the file gives the values that it holds, rounded to the type that is asked for."""
        path = tmp_path / "model.safetensors"
        if dtype == "BF16":
            kept = {key: np.asarray(value, np.float32).view(np.uint32) >> 16 for key, value in sd1.items()}
            mx.save_safetensors(
                str(path), {k: mx.array(v.astype(np.uint16)).view(mx.bfloat16) for k, v in kept.items()}
            )
            expected = {key: (value << 16).view(np.float32) for key, value in kept.items()}
        else:
            numpy_type = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
            expected = {key: value.astype(numpy_type) for key, value in sd1.items()}
            single_files.write(path, expected)
        unet = load_single_file(path, target).unet
        numbers = expected[UNET + "out.2.weight"].transpose(0, 2, 3, 1)
        assert unet.conv_out.weight.dtype == target
        assert np.array_equal(np.array(unet.conv_out.weight), numbers.astype(np.array(unet.conv_out.weight).dtype))

    def test_stray_keys_are_passed_over(self, sd1, tmp_path):
        one = np.ones(3, np.float32)
        stray = ["betas", "alphas_cumprod", "posterior_mean_coef2", "model_ema.decay", "first_stage_model.loss.logvar",
                 "model_ema.diffusion_modelout2bias", "cond_stage_model.logit_scale", "optimizer.state.0",
                 "cond_stage_model.text_projection", "embedding_manager.embedder.x",
                 TEXT + "embeddings.position_ids", "cond_stage_model.transformer.text_projection.weight"]  # fmt: skip
        before = parameters(loaded(single_files.write(tmp_path / "plain.safetensors", sd1)))
        after = parameters(loaded(single_files.write(tmp_path / "stray.safetensors", sd1 | dict.fromkeys(stray, one))))
        assert all(np.array_equal(before[key], after[key]) for key in before | after)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_averages_alone_are_the_u_net(self, family, form, arrays, tmp_path):
        given = arrays[family]
        averaged = {
            f"model_ema.{key.removeprefix('model.').replace('.', '')}" if key.startswith(UNET) else key: value
            for key, value in given.items()
        }
        assert len(averaged) == len(given) and not any(key.startswith(UNET) for key in averaged)
        stray = {"model_ema.decay": np.ones((), np.float32), "model_ema.num_updates": np.ones((), np.int64)}
        before = parameters(loaded(single_files.write(tmp_path / f"plain{form}", given)))
        path = single_files.write(tmp_path / f"averaged{form}", averaged | stray)
        after = parameters(loaded(path))
        assert describe(path).family == family
        assert all(np.array_equal(before[key], after[key]) for key in before | after)

    @pytest.mark.parametrize(
        "key",
        [
            "input_blocks.11.0.out_layers.3.weight", "output_blocks.10.1.transformer_blocks.10.attn2.to_out.0.bias",
            "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight", "input_blocks.3.0.op.bias",
            "output_blocks.2.1.conv.weight", "label_emb.0.2.bias", "time_embed.cond_proj.weight", "out.0.weight",
        ],
    )  # fmt: skip
    def test_names_of_averages(self, key):
        assert averaged_name("model_ema.diffusion_model" + key.replace(".", "")) == UNET + key

    @pytest.mark.parametrize(
        "key", ["model_ema.decay", "model_ema.diffusion_model", "model_ema.diffusion_modelx1weight"]
    )
    def test_names_of_no_averages(self, key):
        assert averaged_name(key) == key

    def test_old_names_of_the_text_encoder(self, sd1, tmp_path):
        """Some files have no "text_model." in them."""
        old = {key.replace(TEXT, TEXT.removesuffix("text_model.")): value for key, value in sd1.items()}
        ours = [parameters(loaded(single_files.write(tmp_path / f"{i}.ckpt", a))) for i, a in enumerate((sd1, old))]
        assert all(np.array_equal(ours[0][key], ours[1][key]) for key in ours[0])

    def test_the_24th_layer_of_sd2_is_left_out(self, arrays, tmp_path):
        layer = "cond_stage_model.model.transformer.resblocks."
        more = {
            key.replace(layer + "0", layer + str(i)): value
            for i in range(24)
            for key, value in arrays["sd2"].items()
            if key.startswith(layer)
        }
        checkpoint = loaded(single_files.write(tmp_path / "model.safetensors", arrays["sd2"] | more))
        assert len(checkpoint.text_encoders[0].layers) == 23

    def test_the_24th_layer_of_the_refiner_is_read(self, arrays, tmp_path):
        layer = "conditioner.embedders.0.model.transformer.resblocks."
        more = {
            key.replace(layer + "0", layer + str(i)): value
            for i in range(24)
            for key, value in arrays["sdxl_refiner"].items()
            if key.startswith(layer)
        }
        checkpoint = loaded(single_files.write(tmp_path / "model.safetensors", arrays["sdxl_refiner"] | more))
        assert len(checkpoint.text_encoders[0].layers) == 24

    @pytest.mark.parametrize(
        "family, pads", [("sd1", [49407]), ("sd2", [0]), ("sdxl", [49407, 0]), ("sdxl_refiner", [0])]
    )
    def test_tokenizers(self, family, pads, arrays, tmp_path):
        checkpoint = loaded(single_files.write(tmp_path / "model.safetensors", arrays[family]))
        assert [tokenizer.pad_id for tokenizer in checkpoint.tokenizers] == pads
        assert checkpoint.tokenizers[0].encode("a red house") == [320, 736, 1212]

    def test_the_public_face(self, sd1, tmp_path):
        path = single_files.write(tmp_path / "my-model.safetensors", sd1)
        sd = StableDiffusion(path, float16=False)
        assert (sd.name, sd.family) == ("my-model", "sd1")
        *_, last = sd.generate_latents("a house", num_steps=2, width=32, height=32, seed=1)
        assert np.isfinite(np.array(sd.decode(last.latents))).all()

    def test_an_inpainting_model_is_told_as_such(self, sd1, tmp_path):
        key = UNET + "input_blocks.0.0.weight"
        sd1[key] = np.concatenate([sd1[key], sd1[key], sd1[key][:, :1]], axis=1)
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        assert describe(path).kind == "Stable Diffusion 1.x, inpainting"
        assert loaded(path).unet.config.in_channels == 9

    def test_memory_is_hardly_more_than_the_models(self, tmp_path):
        """In a process of its own: 200 MB of U-Net, and at most 1.3 times that beside what the program itself takes."""
        given = single_files.tensors("sd1", np.float16)
        given[TEXT + "embeddings.token_embedding.weight"] = np.ones((49408, 8), np.float16)
        path = single_files.write(tmp_path / "model.ckpt", _wide(given))
        code = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from stable_diffusion.backend import mx\n"
            "from stable_diffusion.model_io.load_file import load_single_file\n"
            "unit = 1 if sys.platform == 'darwin' else 1024\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit\n"
            "mx.eval(mx.ones(1)); before = peak()\n"
            "checkpoint = load_single_file(Path(sys.argv[1]), mx.float16)\n"
            "print(peak() - before, mx.get_active_memory())"
        )
        run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        peak, model = map(int, run.stdout.split())
        assert model > 150e6
        assert peak < 1.3 * model


def _wide(arrays: dict[str, np.ndarray], factor: int = 16) -> dict[str, np.ndarray]:
    """The same checkpoint with a U-Net of `factor` times the channels."""
    narrow = {single_files.CHANNELS * i for i in (1, 2, 4, 8)}
    return {
        key: np.ones([side * factor if side in narrow else side for side in value.shape], value.dtype)
        if key.startswith(UNET)
        else value
        for key, value in arrays.items()
    }


class TestKinds:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_families(self, family, form, arrays, tmp_path):
        path = single_files.write(tmp_path / f"model{form}", arrays[family])
        found = describe(path)
        assert (found.family, found.precision, found.missing) == (family, "float16", ())
        assert found.size_bytes == path.stat().st_size
        assert found.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")

    @pytest.mark.parametrize("family", ["sd1", "sdxl"])
    def test_marks(self, family, arrays, tmp_path):
        mark = np.zeros(0, np.float32)
        path = single_files.write(tmp_path / "model.safetensors", arrays[family] | {"v_pred": mark, "ztsnr": mark})
        found = describe(path)
        assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
        scheduler = loaded(path).scheduler
        assert scheduler.prediction_type == "v_prediction"
        assert (scheduler.rescale_betas_zero_snr, scheduler.timestep_spacing) == (True, "trailing")

    @pytest.mark.parametrize("deviation, expected", [(0.05, "epsilon"), (0.15, "v_prediction")])
    def test_sd2_by_its_numbers(self, deviation, expected, arrays, tmp_path):
        """The bias by which ComfyUI tells them apart; the base model, of eps, was trained for 512 pixels."""
        bias = (deviation * np.random.default_rng(0).standard_normal(320)).astype(np.float16)
        path = single_files.write(tmp_path / "model.safetensors", arrays["sd2"] | {TELLING_BIAS: bias})
        assert describe(path).prediction_type == expected

    def test_sd2_base_by_its_step(self, arrays, tmp_path):
        (tmp_path / "model.ckpt").write_bytes(single_files.ckpt(arrays["sd2"], {"global_step": 875000}))
        checkpoint = loaded(tmp_path / "model.ckpt")
        assert checkpoint.scheduler.prediction_type == "epsilon"
        assert checkpoint.unet.config.sample_size == 64

    @pytest.mark.parametrize("value, expected", [("v", "v_prediction"), ("epsilon", "epsilon")])
    def test_metadata(self, value, expected, arrays, tmp_path):
        metadata = {"modelspec.prediction_type": value, "modelspec.resolution": "512x512"}
        path = single_files.write(tmp_path / "model.safetensors", arrays["sdxl"], metadata)
        assert describe(path).prediction_type == expected
        assert loaded(path).unet.config.sample_size == 64

    def test_the_yaml_beside_it(self, sd1, tmp_path):
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        (tmp_path / "model.yaml").write_text(
            "model:\n  params:\n    parameterization: v\n    linear_start: 0.001\n    scale_factor: 0.2\n"
            "    unet_config:\n      params: {num_heads: 4, num_head_channels: -1}\n"
        )
        checkpoint = loaded(path)
        assert describe(path).prediction_type == checkpoint.scheduler.prediction_type == "v_prediction"
        assert checkpoint.scheduler.beta_start == 0.001
        assert checkpoint.unet.config.heads == (4, 4)
        assert checkpoint.vae.config.scaling_factor == 0.2

    def test_the_yaml_of_sgm(self, arrays, tmp_path):
        path = single_files.write(tmp_path / "model.safetensors", arrays["sdxl"])
        (tmp_path / "model.yaml").write_text(
            "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n"
            "          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n"
        )
        assert describe(path).prediction_type == "v_prediction"

    @pytest.mark.parametrize(
        "text",
        ["", "model: 3", "model: [", "model:\n  params:\n    parameterization: w", "{", "- " * 5000, "\x00",
         "model:\n  params:\n    unet_config:\n      params: {num_heads: two}"],
    )  # fmt: skip
    def test_a_broken_yaml(self, text, sd1, tmp_path):
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        (tmp_path / "model.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"model\.yaml"):
            describe(path)

    def test_the_caller_knows_better(self, sd1, tmp_path):
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        sd = StableDiffusion(path, prediction_type="v_prediction")
        assert sd.scheduler_config.prediction_type == "v_prediction"
        with pytest.raises(InputError, match="'vpred'"):
            StableDiffusion(path, prediction_type="vpred")

    def test_the_command_line(self, sd1, tmp_path):
        """A file after --model, and another prediction type another picture."""
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        pictures = []
        for options in ([], ["--prediction-type", "epsilon"], ["--prediction-type", "v_prediction"]):
            output = tmp_path / "picture.png"
            command = ["txt2img", "a house", "--model", str(path), "--steps", "2", "--width", "32", "--height", "32"]
            assert main([*command, "--seed", "1", "--quiet", "--output", str(output), *options]) == 0
            with Image.open(output) as picture:
                pictures.append(np.array(picture))
        assert np.array_equal(pictures[0], pictures[1])
        assert not np.array_equal(pictures[0], pictures[2])

    def test_the_caller_knows_better_of_a_folder(self, checkpoint):
        assert load(checkpoint, mx.float32, prediction_type="sample").scheduler.prediction_type == "sample"

    @pytest.mark.parametrize(
        "keys, kind",
        [
            (["lora_unet_down_blocks_0.lora_up.weight", "lora_te_x.alpha"], "a LoRA"),
            (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA"),
            (["control_model.time_embed.0.weight"], "a ControlNet"),
            (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
            (["emb_params"], "a textual-inversion embedding"),
            (["clip_l", "clip_g"], "a textual-inversion embedding"),
            (["double_blocks.0.img_attn.norm.key_norm.scale"], "FLUX"),
            (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
            (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
            (["decoder.conv_in.weight", "encoder.conv_in.weight"], "a VAE alone"),
            (["first_stage_model.decoder.conv_in.weight"], "a VAE alone"),
            (["decoder.layers.1.weight"], "a tiny VAE"),
            (["down_blocks.0.resnets.0.conv1.weight"], "a U-Net alone"),
            (["text_model.embeddings.token_embedding.weight"], "a text encoder alone"),
            (["model_ema.diffusion_modelout2bias"], "averaged weights"),
            (["something.else"], "nothing that is known"),
        ],
    )
    def test_foreign_files_are_named(self, keys, kind, tmp_path):
        path = single_files.write(tmp_path / "model.safetensors", {key: np.zeros((2, 2), np.float32) for key in keys})
        assert describe(path).family == ""
        assert kind in describe(path).kind
        with pytest.raises(UnsupportedCheckpointError, match=kind):
            loaded(path)

    @pytest.mark.parametrize(
        "key, kind",
        [
            ("control_model.zero_convs.0.0.weight", "a ControlNet"),
            ("noise_augmentor.betas", "unCLIP"),
            ("depth_model.model.x", "depth-to-image"),
            ("low_scale_model.betas", "upscaler"),
            ("edm_mean", "Playground"),
            ("edm_vpred.sigma_max", "CosXL"),
            (UNET + "input_blocks.1.0.time_mixer.mix_factor", "Stable Video Diffusion"),
            ("scaled_fp8", "scaled fp8"),
        ],
    )
    def test_foreign_models_of_the_same_layout_are_named(self, key, kind, sd1, tmp_path):
        given = {name: value for name, value in sd1.items() if not name.startswith("cond_stage")}
        path = single_files.write(tmp_path / "model.safetensors", given | {key: np.zeros(2, np.float32)})
        assert kind in describe(path).kind
        with pytest.raises(UnsupportedCheckpointError, match=kind):
            loaded(path)

    @pytest.mark.parametrize("channels, kind", [(5, "depth-to-image"), (7, "upscaler"), (8, "InstructPix"), (3, "3")])
    def test_other_channels(self, channels, kind, sd1, tmp_path):
        sd1[UNET + "input_blocks.0.0.weight"] = np.zeros((32, channels, 3, 3), np.float16)
        with pytest.raises(UnsupportedCheckpointError, match=kind):
            loaded(single_files.write(tmp_path / "model.safetensors", sd1))

    def test_500_files_take_little_time(self, tmp_path):
        """By their headers alone, of as many keys as SDXL's; loads no MLX."""
        keys = [UNET + "input_blocks.0.0.weight", *(f"{UNET}input_blocks.4.1.block.{i}.weight" for i in range(2400))]
        keys += ["conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"]
        entries = {key: {"dtype": "F16", "shape": [1, 4, 1, 1], "data_offsets": [0, 8]} for key in keys}
        (tmp_path / "model.safetensors").write_bytes(single_files.safetensors(entries, bytes(8)))
        code = (
            "import sys, time\n"
            "from stable_diffusion.model_io.describe import describe\n"
            "began = time.process_time()\n"
            "kinds = {describe(sys.argv[1]).family for _ in range(500)}\n"
            "print(kinds, 'mlx.core' in sys.modules, time.process_time() - began)"
        )
        file = str(tmp_path / "model.safetensors")
        run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
        family, mlx, seconds = run.stdout.split()
        assert (family, mlx) == ("{'sdxl'}", "False")
        assert float(seconds) < 4  # a quarter of it on a machine that does nothing else


# A header of a real checkpoint's sizes: the U-Net's input, what attends to the text, and where sizes go in.
def header_of(width: int, channels: int = 4, label_emb: bool = False, **texts: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        UNET + "input_blocks.0.0.weight": (320, channels, 3, 3),
        UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, width),
        VAE + "decoder.conv_in.weight": (512, 4, 3, 3),
    }
    if label_emb:
        shapes[UNET + "label_emb.0.0.weight"] = (1280, 2816)
    return shapes | {TABLES[place]: (49408, width) for place, width in texts.items()}


TABLES = {
    "ldm_clip": TEXT + "embeddings.token_embedding.weight",
    "ldm_open": "cond_stage_model.model.token_embedding.weight",
    "sgm_clip": "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "sgm_open": "conditioner.embedders.0.model.token_embedding.weight",
    "sgm_open_2": "conditioner.embedders.1.model.token_embedding.weight",
    "sgm_clip_2": "conditioner.embedders.1.transformer.text_model.embeddings.token_embedding.weight",
}


class TestShapes:
    """The U-Net's shapes decide on the family, names only on the table by which they are read."""

    @pytest.mark.parametrize(
        "shapes, family, prediction",
        [
            (header_of(768, ldm_clip=768), "sd1", "epsilon"),
            (header_of(768, sgm_clip=768), "sd1", "epsilon"),
            (header_of(1024, ldm_open=1024), "sd2", "v_prediction"),
            (header_of(1024, sgm_open=1024), "sd2", "v_prediction"),
            (header_of(1024, ldm_clip=1024), "sd2", "v_prediction"),
            (header_of(1024, 9, ldm_open=1024), "sd2", "epsilon"),
            (header_of(2048, label_emb=True, sgm_clip=768, sgm_open_2=1280), "sdxl", "epsilon"),
            (header_of(2048, label_emb=True, sgm_clip=768, sgm_clip_2=1280), "sdxl", "epsilon"),
            (header_of(1280, label_emb=True, sgm_open=1280), "sdxl_refiner", "epsilon"),
        ],
    )
    def test_families(self, shapes, family, prediction, tmp_path):
        found = describe(single_files.header(tmp_path / "x.safetensors", shapes))
        assert (found.family, found.prediction_type, found.missing) == (family, prediction, ())

    @pytest.mark.parametrize(
        "shapes, kind",
        [
            (header_of(1280, sgm_open=1280), "width 1280 without label_emb"),
            (header_of(1024, label_emb=True, sgm_open=1024), "width 1024 with label_emb"),
            (header_of(2048, sgm_clip=768, sgm_open_2=1280), "width 2048 without label_emb"),
            (header_of(768, ldm_open=768), "Stable Diffusion 1.x with OpenCLIP's text encoder"),
            (header_of(1024, ldm_clip=768), r"Stable Diffusion 2.x with .* another family \(768 wide\)"),
            (header_of(2048, label_emb=True, sgm_clip=768, sgm_open_2=1024), "another family .768 and 1024 wide"),
            (header_of(1024, 5, ldm_open=1024), "depth-to-image"),
            (header_of(1024, 7, ldm_open=1024), "upscaler"),
        ],
    )
    def test_what_is_refused(self, shapes, kind, tmp_path):
        path = single_files.write(
            tmp_path / "x.safetensors", {key: np.zeros((1, *shape[1:]), np.float16) for key, shape in shapes.items()}
        )
        assert describe(path).family == "" and re.search(kind, describe(path).kind)
        with pytest.raises(UnsupportedCheckpointError, match=kind):
            loaded(path)

    @pytest.mark.parametrize("layout", ["ldm", "sgm", "transformers"])
    def test_every_layout_of_sd2_is_the_same_model(self, layout, arrays, tmp_path, monkeypatch):
        narrow = dataclasses.replace(
            families.SD2, text_encoders=(dataclasses.replace(families.SD2.text_encoders[0], width=single_files.WIDTH),)
        )
        monkeypatch.setitem(families.FAMILIES, "sd2", narrow)
        expected = parameters(loaded(single_files.write(tmp_path / "ldm.safetensors", arrays["sd2"])))
        checkpoint = loaded(single_files.write(tmp_path / "x.safetensors", laid_out(arrays["sd2"], layout)))
        ours = parameters(checkpoint)
        assert ours.keys() == expected.keys()
        assert all(np.array_equal(ours[key], expected[key]) for key in ours)
        assert (checkpoint.family, checkpoint.tokenizers[0].pad_id) == ("sd2", 0)
        assert checkpoint.text_encoders[0].config.hidden_act == "gelu"
        assert checkpoint.unet.config.upcast_attention and checkpoint.scheduler.prediction_type == "v_prediction"

    def test_an_inpainting_sd2_predicts_eps_whatever_its_numbers(self, arrays, tmp_path):
        key = UNET + "input_blocks.0.0.weight"
        given = dict(arrays["sd2"])
        given[key] = np.concatenate([given[key], given[key], given[key][:, :1]], axis=1)
        given[TELLING_BIAS] = (0.15 * np.random.default_rng(0).standard_normal(320)).astype(np.float16)
        found = describe(single_files.write(tmp_path / "x.safetensors", given))
        assert (found.family, found.prediction_type) == ("sd2", "epsilon")
        del given[TELLING_BIAS]
        assert loaded(single_files.write(tmp_path / "x.safetensors", given)).unet.config.sample_size == 64


def laid_out(arrays: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """SD 2.x as SGM has it, or with its text encoder under transformers' names."""
    start = "cond_stage_model.model."
    if layout == "ldm":
        return arrays
    if layout == "sgm":
        stray = {"conditioner.embedders.0.model.text_projection": np.zeros((8, 8), np.float16)}
        moved = {key.replace(start, "conditioner.embedders.0.model."): value for key, value in arrays.items()}
        return moved | stray
    others = {key: value for key, value in arrays.items() if not key.startswith(start)}
    words = [
        ("transformer.resblocks", "encoder.layers"), ("token_embedding", "embeddings.token_embedding"),
        ("positional_embedding", "embeddings.position_embedding.weight"), ("ln_final", "final_layer_norm"),
        ("attn.", "self_attn."), ("ln_", "layer_norm"), ("c_fc", "fc1"), ("c_proj", "fc2"),
    ]  # fmt: skip
    for key, value in arrays.items():
        if key.startswith(start):
            name = key.removeprefix(start)
            for theirs, new in words:
                name = name.replace(theirs, new)
            fused = "in_proj_" in name
            for each, part in zip("qkv" if fused else " ", np.split(value, 3) if fused else [value], strict=True):
                others[TEXT + name.replace("in_proj_", f"{each}_proj.")] = part
    last = TEXT + "encoder.layers.23.layer_norm1.bias"  # of a layer that SD 2.x does not use
    return others | {last: np.zeros(8, np.float16)}


class TestMarks:
    def test_tensors_win_over_metadata(self, sd1, tmp_path):
        sd1["v_pred"] = np.zeros(0, np.float32)
        path = single_files.write(tmp_path / "x.safetensors", sd1, {"modelspec.prediction_type": "epsilon"})
        with pytest.warns(CheckpointWarning, match="v_prediction by its mark.*--prediction-type epsilon"):
            assert loaded(path).scheduler.prediction_type == "v_prediction"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert loaded(path, prediction_type="epsilon").scheduler.prediction_type == "epsilon"

    def test_numbers_that_contradict_metadata(self, arrays, tmp_path):
        bias = (0.15 * np.random.default_rng(0).standard_normal(320)).astype(np.float16)
        given = arrays["sd2"] | {TELLING_BIAS: bias}
        path = single_files.write(tmp_path / "x.safetensors", given, {"modelspec.prediction_type": "epsilon"})
        found = describe(path)
        assert found.prediction_type == "epsilon" and "v_prediction by its weights" in found.doubts[0]

    @pytest.mark.parametrize("by", ["tensor", "metadata"])
    def test_zero_terminal_snr_without_v(self, by, sd1, tmp_path):
        given = sd1 | ({"ztsnr": np.zeros(0, np.float32)} if by == "tensor" else {})
        metadata = {"ss_zero_terminal_snr": "True"} if by == "metadata" else {"ss_zero_terminal_snr": "False"}
        path = single_files.write(tmp_path / "x.safetensors", given, metadata)
        with pytest.warns(CheckpointWarning, match="zero terminal SNR.*--prediction-type v_prediction"):
            assert loaded(path).scheduler.rescale_betas_zero_snr

    def test_marks_that_agree_are_no_doubt(self, sd1, tmp_path):
        sd1 |= {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
        path = single_files.write(tmp_path / "x.safetensors", sd1, {"modelspec.prediction_type": "v"})
        assert describe(path).doubts == ()


class TestFloat8:
    @pytest.mark.parametrize("dtype", tensor_file.FLOAT8)
    @pytest.mark.parametrize("target", [mx.float32, mx.float16])
    def test_every_code(self, dtype, target, sd1, tmp_path):
        codes = {key: np.arange(value.size, dtype=np.uint8).reshape(value.shape) for key, value in sd1.items()}
        path = tmp_path / "x.safetensors"
        float8_file(path, codes, dtype)
        assert describe(path).precision == "float8"
        ours = np.array(load_single_file(path, target).unet.conv_out.weight)
        expected = tensor_file.float8_values(dtype)[codes[UNET + "out.2.weight"]].transpose(0, 2, 3, 1)
        assert np.array_equal(ours, expected, equal_nan=True)

    def test_values(self):
        """A few by hand: 1, the least and the greatest number, and what is none."""
        e4m3, e5m2 = (tensor_file.float8_values(name) for name in ("F8_E4M3", "F8_E5M2"))
        assert [e4m3[code] for code in (0x00, 0x01, 0x38, 0x7E, 0xBC)] == [0, 2**-9, 1, 448, -1.5]
        assert [e5m2[code] for code in (0x00, 0x01, 0x3C, 0x7B, 0x7C, 0xFC)] == [0, 2**-16, 1, 57344, np.inf, -np.inf]
        assert np.isnan(e4m3[[0x7F, 0xFF]]).all() and np.isnan(e4m3).sum() == 2 and np.isnan(e5m2).sum() == 6

    @pytest.mark.parametrize("dtype", tensor_file.FLOAT8)
    def test_a_folder(self, dtype, checkpoint, tmp_path):
        file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
        from safetensors.numpy import load_file

        codes = {
            key: np.arange(value.size, dtype=np.uint8).reshape(value.shape) for key, value in load_file(file).items()
        }
        file.unlink()
        float8_file(file, codes, dtype)
        ours = np.array(load(checkpoint, mx.float32).vae.decoder.conv_out.weight)
        expected = tensor_file.float8_values(dtype)[codes["decoder.conv_out.weight"]].transpose(0, 2, 3, 1)
        assert np.array_equal(ours, expected, equal_nan=True)

    def test_it_is_converted_to_half_precision(self, sd1, tmp_path):
        float8_file(
            tmp_path / "x.safetensors", {k: np.full(v.shape, 0x38, np.uint8) for k, v in sd1.items()}, "F8_E4M3"
        )
        convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
        assert describe(tmp_path / "y.safetensors").precision == "float16"


def float8_file(path: Path, codes: dict[str, np.ndarray], dtype: str) -> None:
    entries, end = {}, 0
    for key, value in codes.items():
        start, end = end, end + value.size
        entries[key] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [start, end]}
    path.write_bytes(single_files.safetensors(entries, b"".join(value.tobytes() for value in codes.values())))


@pytest.mark.parametrize("write", [single_files.ckpt, single_files.legacy])
def test_a_state_dict_under_model(write, sd1, tmp_path, monkeypatch):
    """Some trainers write {"model": ...} in place of {"state_dict": ...}."""
    plain = parameters(loaded(single_files.write(tmp_path / "x.ckpt", sd1)))
    (tmp_path / "y.ckpt").write_bytes(write(sd1, key="model"))
    other = parameters(loaded(tmp_path / "y.ckpt"))
    assert all(np.array_equal(plain[key], other[key]) for key in plain | other)


class TestDamage:
    @pytest.mark.parametrize("form", FORMS)
    def test_cut_at_every_percent(self, form, sd1, tmp_path):
        whole = single_files.write(tmp_path / f"whole{form}", sd1).read_bytes()
        cut = tmp_path / f"cut{form}"
        for percent in range(100):
            cut.write_bytes(whole[: len(whole) * percent // 100])
            with pytest.raises(WeightsError if percent > 5 else CheckpointError, match="cut"):
                loaded(cut)

    @pytest.mark.parametrize(
        "header, size",
        [
            ({}, 1 << 40),
            ({}, (1 << 64) - 1),
            ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, None),
            ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, None),
            ({"a": {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 4]}}, None),
            ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, None),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, None),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, None),
            ({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, None),
            ({"a": {"dtype": "F32", "shape": "abcd", "data_offsets": [0, 4]}}, None),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, None),
            ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, None),
            ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0.0, 4.0]}}, None),
            ({"a": 3}, None),
            ({"a": {}}, None),
            ({"../../a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None),
            ({"/etc/passwd": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None),
            (
                {
                    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                    "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                },
                None,
            ),
            (b"[" * 100_000, None),
            (b'{"a": ' * 100_000, None),
            (b"{" + b"9" * 100_000, None),
            (b"{\xff\xfe}", None),
            (b"{}x", None),
        ],
        ids=repr,
    )
    def test_headers(self, header, size, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(single_files.safetensors(header, bytes(4), size))
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            loaded(tmp_path / "model.safetensors")
        with contextlib.suppress(CheckpointError):
            assert describe(tmp_path / "model.safetensors").family == ""

    @pytest.mark.parametrize("place", range(0, 100, 7))
    def test_a_header_with_a_changed_byte(self, place, sd1, tmp_path):
        """Anything but another exception: a checkpoint that is refused, or one in which a number has changed."""
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        data = bytearray(path.read_bytes())
        (size,) = struct.unpack("<Q", data[:8])
        data[8 + size * place // 100] ^= 0x11
        path.write_bytes(data)
        for function in (loaded, describe):
            with contextlib.suppress(CheckpointError):
                function(path)

    @pytest.mark.parametrize("content, message", [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git-lfs"),
        (b"\x80\x04N.", "neither"),
        (b"hello, world", "neither"),
    ])  # fmt: skip
    def test_no_checkpoints(self, content, message, tmp_path):
        (tmp_path / "model.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            loaded(tmp_path / "model.ckpt")

    def test_a_misnamed_file(self, sd1, tmp_path):
        """The form is told by the content."""
        whole = single_files.write(tmp_path / "model.safetensors", sd1)
        whole.rename(tmp_path / "model.ckpt")
        assert loaded(tmp_path / "model.ckpt").family == "sd1"

    @pytest.mark.parametrize("part, prefix", [("text_encoder", "cond_stage"), ("vae", VAE)])
    def test_an_absent_part(self, part, prefix, sd1, tmp_path):
        given = {key: value for key, value in sd1.items() if not key.startswith(prefix)}
        if part == "text_encoder":  # then the width tells the family
            given = {k: np.zeros((32, 768), np.float16) if ".attn2.to_k." in k else v for k, v in given.items()}
        path = single_files.write(tmp_path / "model.safetensors", given)
        assert describe(path).missing == (part,)
        with pytest.raises(WeightsError, match=f"without its {part}"):
            loaded(path)

    def test_an_absent_vae_is_supplied(self, sd1, tmp_path):
        """The picture is that of a file which holds the same VAE; without one the error names the option."""
        whole = single_files.write(tmp_path / "whole.safetensors", sd1)
        parts = [{k: v for k, v in sd1.items() if k.startswith(VAE) == is_vae} for is_vae in (False, True)]
        bare, vae = (single_files.write(tmp_path / f"{i}.safetensors", part) for i, part in enumerate(parts))
        with pytest.raises(WeightsError, match="--vae"):
            StableDiffusion(bare)
        sds = [StableDiffusion(whole, float16=False), StableDiffusion(bare, float16=False, vae=vae)]
        pictures = []
        for sd in sds:
            *_, last = sd.generate_latents("a house", num_steps=2, width=32, height=32, seed=1)
            pictures.append(np.array(mx.contiguous(sd.decode(last.latents))))
        assert np.array_equal(*pictures)

    def test_a_supplied_vae_comes_before_a_damaged_one(self, sd1, tmp_path):
        vae = single_files.write(tmp_path / "v.safetensors", {k: v for k, v in sd1.items() if k.startswith(VAE)})
        del sd1[VAE + "decoder.conv_out.bias"]
        path = single_files.write(tmp_path / "x.safetensors", sd1)
        with pytest.raises(WeightsError, match="missing"):
            StableDiffusion(path)
        assert StableDiffusion(path, vae=vae).family == "sd1"

    def test_a_folder_without_a_vae(self, checkpoint):
        vae = checkpoint.parent / "vae"
        (checkpoint / "vae").rename(vae)
        with pytest.raises(ConfigError, match=r"vae/config\.json"):
            StableDiffusion(checkpoint)
        assert StableDiffusion(checkpoint, vae=vae)._vae.config.latent_channels == 4

    @pytest.mark.parametrize(
        "key", [UNET + "middle_block.1.norm.bias", VAE + "quant_conv.bias", TEXT + "final_layer_norm.weight"]
    )
    def test_an_absent_tensor(self, key, sd1, tmp_path):
        del sd1[key]
        with pytest.raises(WeightsError, match="missing"):
            loaded(single_files.write(tmp_path / "model.safetensors", sd1))

    @pytest.mark.parametrize("key", ["surprise", UNET + "surprise.weight", VAE + "encoder.x.bias", TEXT + "x"])
    def test_a_tensor_too_many(self, key, sd1, tmp_path):
        sd1[key] = np.zeros(2, np.float16)
        with pytest.raises(WeightsError, match="not known"):
            loaded(single_files.write(tmp_path / "model.safetensors", sd1))

    @pytest.mark.parametrize("key", [UNET + "out.2.weight", VAE + "decoder.conv_in.bias", UNET + "time_embed.2.bias"])
    @pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4), (4, 32, 3)])
    def test_a_tensor_of_another_shape(self, key, shape, sd1, tmp_path):
        sd1[key] = np.zeros(shape, np.float16)
        with pytest.raises(CheckpointError, match=r"shape|should"):
            loaded(single_files.write(tmp_path / "model.safetensors", sd1))

    def test_swapped_families(self, arrays, tmp_path):
        """One family's U-Net with another's text encoder."""
        for one in FAMILIES:
            for other in FAMILIES:
                unet = {key: value for key, value in arrays[one].items() if key.startswith((UNET, VAE))}
                rest = {key: value for key, value in arrays[other].items() if not key.startswith((UNET, VAE))}
                if "sdxl" in (one, other) and one != other:
                    with pytest.raises(CheckpointError):
                        loaded(single_files.write(tmp_path / "model.safetensors", unet | rest))

    def test_another_vocabulary(self, sd1, tmp_path):
        key = TEXT + "embeddings.token_embedding.weight"
        sd1[key] = sd1[key][:1000]
        with pytest.raises(ConfigError, match="1000 tokens"):
            loaded(single_files.write(tmp_path / "model.safetensors", sd1))

    def test_values_that_are_none(self, sd1, tmp_path):
        sd1[UNET + "out.2.bias"] = np.full(4, np.nan, np.float16)
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        with pytest.raises(WeightsError, match="NaN"):
            loaded(path, check_values=True)


class TestPlaces:
    def test_a_file(self, tmp_path):
        (tmp_path / "my.model.ckpt").write_bytes(b"x")
        assert locate(tmp_path / "my.model.ckpt", False) == ("my.model", tmp_path / "my.model.ckpt")

    def test_an_absent_file(self, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match=r"no\.safetensors"):
            StableDiffusion(tmp_path / "no.safetensors")

    def test_a_loop_of_links(self, tmp_path):
        (tmp_path / "a.ckpt").symlink_to(tmp_path / "b.ckpt")
        (tmp_path / "b.ckpt").symlink_to(tmp_path / "a.ckpt")
        with pytest.raises(CheckpointNotFoundError):
            StableDiffusion(tmp_path / "a.ckpt")
        with pytest.raises(CheckpointNotFoundError):
            describe(tmp_path / "a.ckpt")

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "model.ckpt")
        with pytest.raises(UnsupportedCheckpointError, match="not a regular file"):
            StableDiffusion(tmp_path / "model.ckpt")

    def test_a_folder_is_no_file(self, tmp_path):
        (tmp_path / "model.ckpt").mkdir()
        with pytest.raises(CheckpointError):
            describe(tmp_path / "model.ckpt")
        with pytest.raises(CheckpointError):
            StableDiffusion(tmp_path / "model.ckpt")


class TestChanges:
    """A file that another program writes to while it is being read: an error, and neither garbage nor a crash."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("change", ["cut", "overwrite", "append"])
    def test_between_two_tensors(self, form, change, sd1, tmp_path, monkeypatch):
        path = single_files.write(tmp_path / f"model{form}", sd1)
        os.utime(path, (1e9, 1e9))
        read, count = tensor_file.TensorFile.read, []

        def meddled(self, *arguments):
            count.append(1)
            if len(count) == 40:
                with path.open("r+b") as file:
                    if change == "cut":
                        file.truncate(1000)
                    else:
                        file.seek(0, os.SEEK_END if change == "append" else os.SEEK_SET)
                        file.write(b"x" * 1000)
            return read(self, *arguments)

        monkeypatch.setattr(tensor_file.TensorFile, "read", meddled)
        with pytest.raises(WeightsError, match="has changed while it was being read"):
            loaded(path)

    def test_a_file_that_is_replaced_is_read_to_its_end(self, sd1, tmp_path, monkeypatch):
        """A rename puts another file in its place, and leaves the one that is open whole."""
        path = single_files.write(tmp_path / "model.safetensors", sd1)
        read = tensor_file.TensorFile.read

        def meddled(self, *arguments):
            with contextlib.suppress(FileNotFoundError):  # one of the reading threads is the first
                os.replace(tmp_path / "other", path)
            return read(self, *arguments)

        (tmp_path / "other").write_bytes(b"something else")
        monkeypatch.setattr(tensor_file.TensorFile, "read", meddled)
        assert loaded(path).family == "sd1"
        with pytest.raises(CheckpointError):
            loaded(path)

    def test_a_file_that_is_still_being_downloaded(self, sd1, tmp_path):
        whole = single_files.write(tmp_path / "whole.safetensors", sd1).read_bytes()
        path = tmp_path / "model.safetensors"
        path.write_bytes(whole[:100_000])
        stop = threading.Event()

        def grow():
            with path.open("ab") as file:
                for start in range(100_000, len(whole), 20_000):
                    if stop.is_set():
                        return
                    file.write(whole[start : start + 20_000])
                    file.flush()
                    time.sleep(0.001)

        writer = threading.Thread(target=grow)
        writer.start()
        try:
            for _ in range(5):
                with contextlib.suppress(CheckpointError):
                    loaded(path)
        finally:
            stop.set()
            writer.join()


def test_the_file_is_closed(sd1, tmp_path):
    """Also after an error: on some systems an open file cannot be removed."""
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    path = single_files.write(tmp_path / "model.safetensors", sd1)
    loaded(path)
    path.write_bytes(single_files.safetensors({"a": json.loads("3")}))
    with pytest.raises(CheckpointError):
        loaded(path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before
