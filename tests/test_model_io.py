"""Loading: what is absent, damaged or foreign is refused with an error that names it; what is whole loads strictly."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from stable_diffusion.backend import mx
from stable_diffusion.catalogue import from_folder
from stable_diffusion.clip import CLIPTextModel
from stable_diffusion.config import CLIPTextConfig
from stable_diffusion.errors import (
    CheckpointNotFoundError,
    ConfigError,
    TokenizerError,
    UnsupportedCheckpointError,
    WeightsError,
)
from stable_diffusion.model_io import names
from stable_diffusion.model_io.hub import is_complete, missing_files
from stable_diffusion.model_io.load_folder import load_folder, read_index
from stable_diffusion.model_io.locate import embedded_models, locate
from stable_diffusion.model_io.strict import load_weights, read_header

from .conftest import EMBEDDED, replace

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
NORM = "text_model.final_layer_norm"
IDS = mx.array([[5, 3, 4, 7]])


def change_json(file: Path, **values) -> None:
    replace(file, json.dumps({**json.loads(file.read_text()), **values}))


def change_tensors(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


def test_the_embedded_model_loads():
    checkpoint = load_folder(EMBEDDED, mx.float32)
    assert checkpoint.family == "sd1"
    assert checkpoint.default_size == (128, 128)
    count = sum(value.size for _, value in tree_flatten(checkpoint.unet.parameters()))
    assert count == sum(int(np.prod(shape)) for shape, _ in read_header(EMBEDDED / UNET).values())


def test_weights_are_those_of_the_file():
    """Linear layers as they stand; kernels turned from (O, I, kH, kW) to (O, kH, kW, I), 1x1 kernels to (O, I)."""
    tensors = load_file(EMBEDDED / UNET)
    unet = load_folder(EMBEDDED, mx.float32).unet
    attention = "mid_block.attentions.0"
    block = unet.mid_block.attentions[0]
    pairs = [
        (unet.conv_in.weight, tensors["conv_in.weight"].transpose(0, 2, 3, 1)),
        (block.proj_in.weight, tensors[f"{attention}.proj_in.weight"][:, :, 0, 0]),
        (
            block.transformer_blocks[0].ff.proj_out.weight,
            tensors[f"{attention}.transformer_blocks.0.ff.net.2.weight"],
        ),
    ]
    for ours, expected in pairs:
        assert np.array_equal(np.array(ours), expected.astype(np.float32))


def test_float16_is_kept():
    checkpoint = load_folder(EMBEDDED, mx.float16)
    for module in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders):
        assert {value.dtype for _, value in tree_flatten(module.parameters())} == {mx.float16}


def test_progress_is_told():
    messages = []
    load_folder(EMBEDDED, mx.float32, lambda message, fraction: messages.append(message))
    assert messages == ["Loading unet", "Loading vae", "Loading text_encoder"]


class TestPlaces:
    def test_embedded(self):
        assert embedded_models() == ["postcards-4-step", "postcards-tiny"]
        assert locate("postcards-tiny", False) == ("postcards-tiny", EMBEDDED)

    def test_a_folder(self, checkpoint):
        assert locate(checkpoint, False) == ("checkpoint", checkpoint)
        assert locate(str(checkpoint), False) == ("checkpoint", checkpoint)

    @pytest.mark.parametrize("name", ["nonsense", "./no/folder", "~/no-such-folder", "a/b/c", "", "no/../../way"])
    def test_nothing_of_this_name(self, name):
        with pytest.raises(CheckpointNotFoundError, match=re.escape(repr(name))):
            locate(name, False)

    def test_an_absent_file(self):
        with pytest.raises(CheckpointNotFoundError, match=r"absent\.safetensors"):
            locate("absent.safetensors", False)

    def test_other_files(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(UnsupportedCheckpointError, match=r"notes\.txt"):
            locate(tmp_path / "notes.txt", False)


class TestFolders:
    def test_empty(self, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match="is empty"):
            load_folder(tmp_path, mx.float32)

    def test_without_an_index(self, checkpoint):
        (checkpoint / "model_index.json").unlink()
        with pytest.raises(CheckpointNotFoundError, match=r"no model_index\.json"):
            load_folder(checkpoint, mx.float32)

    @pytest.mark.parametrize(
        "pipeline, name",
        [
            ("FluxPipeline", "FLUX"),
            ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
            ("PixArtSigmaPipeline", "PixArt"),
            ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
            ("SomethingNewPipeline", "SomethingNewPipeline"),
            ("StableDiffusionUpscalePipeline", "upscaler"),
        ],
    )
    def test_other_architectures_are_named(self, checkpoint, pipeline, name):
        change_json(checkpoint / "model_index.json", _class_name=pipeline)
        with pytest.raises(UnsupportedCheckpointError, match=name):
            load_folder(checkpoint, mx.float32)

    @pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
    def test_edm_models_are_named(self, scheduler, checkpoint):
        file = checkpoint / "scheduler" / "scheduler_config.json"
        change_json(file, _class_name=scheduler, sigma_data=0.5)
        assert from_folder(checkpoint).problem.startswith(f"it is an EDM model ({scheduler})")
        with pytest.raises(UnsupportedCheckpointError, match=f"EDM model .{scheduler}"):
            load_folder(checkpoint, mx.float32)
        change_json(checkpoint / "model_index.json", scheduler=["diffusers", scheduler])
        with pytest.raises(UnsupportedCheckpointError, match="EDM"):
            read_index(checkpoint)  # before anything else is downloaded

    def test_a_second_stage_without_any_text_encoder(self, checkpoint):
        change_json(
            checkpoint / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", text_encoder=[None, None]
        )
        with pytest.raises(UnsupportedCheckpointError, match="second stages other than SDXL's refiner"):
            load_folder(checkpoint, mx.float32)

    @pytest.mark.parametrize("value", [None, 3, [], "CLIPTextModel", {}])
    def test_an_index_of_nonsense(self, checkpoint, value):
        change_json(checkpoint / "model_index.json", text_encoder_2=value)
        assert load_folder(checkpoint, mx.float32).family == "sd1"
        change_json(checkpoint / "model_index.json", text_encoder=value)
        with pytest.raises(UnsupportedCheckpointError, match="no text_encoder"):
            load_folder(checkpoint, mx.float32)
        replace(checkpoint / "model_index.json", json.dumps(value))
        assert not is_complete(checkpoint)

    @pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
    @pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\x00\x01", "nonsense"])
    def test_a_config_that_is_not_json(self, checkpoint, file, content):
        replace(checkpoint / file, content)
        with pytest.raises(ConfigError, match=f"{file} is not JSON"):
            load_folder(checkpoint, mx.float32)

    @pytest.mark.parametrize(
        "file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
    )
    def test_an_absent_config(self, checkpoint, file):
        (checkpoint / file).unlink()
        with pytest.raises(ConfigError, match=f"{file} is missing"):
            load_folder(checkpoint, mx.float32)

    def test_absent_weights(self, checkpoint):
        (checkpoint / UNET).rename(checkpoint / "unet" / "diffusion_pytorch_model.bin")
        with pytest.raises(WeightsError, match=r"no safetensors weights.*diffusion_pytorch_model\.bin"):
            load_folder(checkpoint, mx.float32)

    def test_an_absent_tokenizer(self, checkpoint):
        for file in (checkpoint / "tokenizer").iterdir():
            file.unlink()
        with pytest.raises(TokenizerError, match="tokenizer"):
            load_folder(checkpoint, mx.float32)

    def test_parts_of_different_families(self, checkpoint):
        """Each loads alone, but the U-Net reads texts of another width than the encoder writes."""
        change_json(checkpoint / "text_encoder" / "config.json", hidden_size=96, intermediate_size=512)

        def narrower(tensors):
            for key, value in tensors.items():
                cut = value[:96] if value.shape[0] == 128 else value
                tensors[key] = np.ascontiguousarray(cut[:, :96] if value.ndim == 2 and value.shape[1] == 128 else cut)

        change_tensors(checkpoint / TEXT, narrower)
        with pytest.raises(ConfigError, match=r"cross_attention_dim.*96"):
            load_folder(checkpoint, mx.float32)

    def test_completeness(self, checkpoint):
        assert is_complete(checkpoint)
        (checkpoint / UNET).unlink()
        assert not is_complete(checkpoint)
        assert missing_files(checkpoint / "nowhere") == ["model_index.json"]

    @pytest.mark.parametrize(
        "file, lacks",
        [
            ("unet/config.json", ["unet/config.json"]),
            ("vae/diffusion_pytorch_model.safetensors", ["vae's weights"]),
            ("text_encoder/model.safetensors", ["text_encoder's weights"]),
            ("tokenizer/merges.txt", ["tokenizer's files"]),
            ("scheduler/scheduler_config.json", ["scheduler/scheduler_config.json"]),
        ],
    )
    @pytest.mark.parametrize("form", ["absent", "a link to nothing"])
    def test_every_file_counts(self, file, lacks, form, checkpoint):
        (checkpoint / file).unlink()
        if form != "absent":
            (checkpoint / file).symlink_to(checkpoint / "blobs" / "gone")
        assert missing_files(checkpoint) == lacks

    def test_every_shard_counts(self, checkpoint):
        whole, stem = checkpoint / UNET, checkpoint / "unet" / "diffusion_pytorch_model"
        (checkpoint / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
        whole.rename(f"{stem}-00001-of-00002.safetensors")
        assert missing_files(checkpoint) == ["unet's weights"]
        with pytest.raises(WeightsError, match="with all shards"):
            load_folder(checkpoint, mx.float32)
        save_file({}, f"{stem}-00002-of-00002.safetensors")
        assert is_complete(checkpoint)
        assert load_folder(checkpoint, mx.float32).family == "sd1"

    def test_the_variant_that_suits_is_taken(self, checkpoint):
        """float16 prefers *.fp16.safetensors; float32 takes it only where nothing else is there."""
        twin = checkpoint / "text_encoder" / "model.fp16.safetensors"
        twin.write_bytes((checkpoint / TEXT).read_bytes())
        change_tensors(twin, lambda tensors: tensors.update({k: v * 0 for k, v in tensors.items()}))

        def total(dtype):
            parameters = tree_flatten(load_folder(checkpoint, dtype).text_encoders[0].parameters())
            return sum(mx.abs(value.astype(mx.float32)).sum().item() for _, value in parameters)

        assert total(mx.float16) == 0
        assert total(mx.float32) > 0
        (checkpoint / TEXT).unlink()
        assert total(mx.float32) == 0

    def test_sharded_weights(self, checkpoint):
        tensors = load_file(checkpoint / TEXT)
        keys = sorted(tensors)
        (checkpoint / TEXT).unlink()
        for i, part in enumerate((keys[::2], keys[1::2]), start=1):
            save_file({k: tensors[k] for k in part}, checkpoint / "text_encoder" / f"model-{i:05}-of-00002.safetensors")
        (checkpoint / "text_encoder" / "model.safetensors.index.json").write_text("{}")
        ours, whole = (load_folder(folder, mx.float32).text_encoders[0] for folder in (checkpoint, EMBEDDED))
        assert mx.array_equal(ours(IDS).pooled, whole(IDS).pooled)


class TestWeights:
    """The text encoder's file, damaged in every way."""

    @pytest.fixture
    def file(self, checkpoint) -> Path:
        return checkpoint / TEXT

    def load(self, file: Path, **options) -> CLIPTextModel:
        config = CLIPTextConfig.from_dict(json.loads((file.parent / "config.json").read_text()))
        model = CLIPTextModel(config)
        load_weights(model, [file], names.TEXT_ENCODER, mx.float32, **options)
        return model

    def test_whole(self, file):
        assert self.load(file, check_values=True).final_layer_norm.weight.shape == (128,)

    @pytest.mark.parametrize("share", [0.0, 1e-6, 0.001, 0.01, 0.5, 0.99999])
    def test_cut_short(self, file, share):
        data = file.read_bytes()
        replace(file, data[: int(len(data) * share)])
        with pytest.raises(WeightsError, match=r"model\.safetensors .*(empty|cut short)"):
            self.load(file)

    @pytest.mark.parametrize(
        "data",
        [
            b"not a safetensors file at all",
            struct.pack("<Q", 2**63) + b"{}",
            struct.pack("<Q", 8) + b'{"a": 1}',
            struct.pack("<Q", 2) + b"{}" + b"left over",
            struct.pack("<Q", 59) + b'{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,99999]}}',
        ],
    )
    def test_corrupt_headers(self, file, data):
        replace(file, data)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            self.load(file)

    def test_missing_tensors(self, file):
        change_tensors(file, lambda tensors: tensors.pop(f"{NORM}.weight"))
        with pytest.raises(WeightsError, match=r"missing final_layer_norm\.weight"):
            self.load(file)

    def test_many_missing_tensors_are_counted(self, file):
        replace(file, b"")
        file.unlink()
        save_file({f"{NORM}.weight": np.ones(128, np.float32)}, file)
        with pytest.raises(WeightsError, match="and 31 more"):
            self.load(file)

    def test_tensors_left_over(self, file):
        change_tensors(file, lambda tensors: tensors.update({"visual_projection.weight": np.ones(3, np.float32)}))
        with pytest.raises(WeightsError, match=r"not known visual_projection\.weight"):
            self.load(file)

    def test_misshapen_tensors(self, file):
        change_tensors(file, lambda tensors: tensors.update({f"{NORM}.bias": np.ones(127, np.float32)}))
        with pytest.raises(WeightsError, match=r"final_layer_norm\.bias has the shape \(127,\).*\(128,\)"):
            self.load(file)

    def test_whole_numbers_are_no_weights(self, file):
        change_tensors(file, lambda tensors: tensors.update({f"{NORM}.bias": np.ones(128, np.int32)}))
        with pytest.raises(WeightsError, match=r"final_layer_norm\.bias is of type I32"):
            self.load(file)

    def test_the_same_parameter_twice(self, file):
        change_tensors(file, lambda tensors: tensors.update({"final_layer_norm.bias": np.ones(128, np.float32)}))
        with pytest.raises(WeightsError, match=r"both .*final_layer_norm\.bias"):
            self.load(file)

    def test_names_since_transformers_5(self, file):
        expected = self.load(file)

        def newer(tensors):
            for key in list(tensors):
                tensors[key.removeprefix("text_model.")] = tensors.pop(key)
            tensors["embeddings.position_ids"] = np.arange(77)[None]

        change_tensors(file, newer)
        assert "final_layer_norm.weight" in load_file(file)
        assert mx.array_equal(self.load(file)(IDS).pooled, expected(IDS).pooled)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_no_numbers_are_found_when_asked(self, file, value):
        def spoil(tensors):
            tensors["text_model.encoder.layers.1.mlp.fc1.bias"][3] = value

        change_tensors(file, spoil)
        self.load(file)
        with pytest.raises(WeightsError, match=r"NaN or infinite values: layers\.1\.fc1\.bias"):
            self.load(file, check_values=True)
