"""LoRAs against diffusers and peft: the same pictures in every style of key; LyCORIS's forms against its own merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import mlx.core as mx  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from stable_diffusion import StableDiffusion  # noqa: E402

from .. import drawn  # noqa: E402
from ..networks import relative_error  # noqa: E402
from . import pipelines  # noqa: E402
from .test_pipeline import assert_same_pictures, reference, same_noise  # noqa: E402, F401

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("error::stable_diffusion.adapters.lora.AdapterWarning")]

PROMPT, NEGATIVE = "a red house on green hills at sunset, with clouds", "a blue tent"
SIZE = {"width": 64, "height": 64}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "conv_in", "time_emb_proj", "ff.net.0.proj"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: pipelines.save(tmp_path_factory.mktemp(name), name) for name in ("sd1", "sd2", "sdxl")}


def adapted(folder: Path, family: str, rank: int = 4, alpha: float = 3.0, **options):
    """The reference's pipeline with a random adapter of peft's in each network."""
    pipe = reference(folder)
    parts = {"unet": ATTENTION + CONVOLUTIONS, "text_encoder": TEXT}
    if family == "sdxl":
        parts["text_encoder_2"] = TEXT
    for name, targets in parts.items():
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options)
        getattr(pipe, name).add_adapter(config)
        with torch.no_grad():
            for key, parameter in getattr(pipe, name).named_parameters():
                if "lora_A" in key or "lora_B" in key:
                    parameter.copy_(torch.from_numpy(drawn.normal(name + key, *parameter.shape)) * 0.05)
                elif "lora_magnitude" in key:
                    parameter.mul_(torch.from_numpy(1 + 0.2 * drawn.normal(name + key, *parameter.shape)))
    return pipe


def layers_of(pipe, family: str) -> dict[str, dict[str, torch.Tensor]]:
    names = ["unet", "text_encoder"] + ["text_encoder_2"] * (family == "sdxl")
    return {name: peft.get_peft_model_state_dict(getattr(pipe, name), adapter_name="default") for name in names}


def write(folder: Path, pipe, family: str, style: str, alpha: float) -> Path:
    """The pipeline's adapters as a file, in one of the styles that people have."""
    file = folder / f"{style}.safetensors"
    parts = layers_of(pipe, family)
    if style == "diffusers":  # as save_lora_weights writes it today, with alpha in the metadata
        metadata = {
            f"{name}_lora_adapter_metadata": getattr(pipe, name).peft_config["default"].to_dict() for name in parts
        }
        layers = {f"{name}_lora_layers": values for name, values in parts.items()}
        type(pipe).save_lora_weights(folder, weight_name=file.name, **layers, **metadata)
        return file
    flat = {f"{name}.{key}": value for name, values in parts.items() for key, value in values.items()}
    if style == "peft":
        file = folder / "adapter" / "adapter_model.safetensors"
        file.parent.mkdir()
        (file.parent / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": 4, "lora_alpha": {alpha}}}')
        assert family == "sd1"
        names = {"unet": "base_model.model.", "text_encoder": "base_model.model.text_model."}
        tensors = {names[n] + key: value for n, values in parts.items() for key, value in values.items()}
    else:
        tensors = kohya(flat, family, alpha)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


def kohya(flat: dict[str, torch.Tensor], family: str, alpha: float) -> dict[str, torch.Tensor]:
    tensors = {}
    text = "lora_te1_text_model_" if family == "sdxl" else "lora_te_text_model_"
    for key, value in flat.items():
        component, _, rest = key.partition(".")
        start = {"unet": "lora_unet_", "text_encoder": text, "text_encoder_2": "lora_te2_text_model_"}[component]
        module, _, end = rest.partition(".lora_")
        new = start + module.removeprefix("text_model.").replace(".", "_")
        end = end.replace("A.", "down.").replace("B.", "up.")
        if end.startswith("magnitude"):
            shape = (-1, *(1 for _ in range(value.ndim - 1)))
            tensors[f"{new}.dora_scale"] = value.reshape(shape if value.ndim > 1 else (-1, 1))
        else:
            tensors[f"{new}.lora_{end}"] = value
            tensors[f"{new}.alpha"] = torch.tensor(float(alpha))
    return tensors


def theirs(pipe, steps: int = 5) -> np.ndarray:
    return pipe(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=steps, guidance_scale=7.5, output_type="np", **SIZE
    ).images


def ours(sd: StableDiffusion, prompt: str = PROMPT, steps: int = 5) -> np.ndarray:
    for step in sd.generate_latents(prompt, NEGATIVE, num_steps=steps, seed=5, **SIZE):
        mx.eval(step.latents)
    return np.array(sd.decode(step.latents))


@pytest.mark.parametrize(
    "family, style",
    [
        ("sd1", "diffusers"),
        ("sd1", "kohya"),
        ("sd1", "peft"),
        ("sd2", "kohya"),
        ("sdxl", "diffusers"),
        ("sdxl", "kohya"),
    ],
)
def test_what_peft_made(family, style, folders, tmp_path, same_noise):  # noqa: F811
    pipe = adapted(folders[family], family)
    file = write(tmp_path, pipe, family, style, 3.0)
    sd = StableDiffusion(folders[family], float16=False)
    plain = ours(sd)
    sd.set_loras([file])
    picture = ours(sd)
    same_noise(5, 1, **SIZE)
    assert_same_pictures(picture, theirs(pipe))
    assert np.abs(picture - plain).mean() > 0.02
    sd.set_loras([])
    assert np.array_equal(ours(sd), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"alpha_pattern": {"attn2.to_k": 9}},
        {
            "alpha_pattern": {r".*attn[12]\.to_(q|k)": 9, r"down_blocks\.0\..*to_v": 1, "layers.1.mlp.fc1": 8},
            "rank_pattern": {r"attn2\.to_.": 2, "^conv_in": 3},
        },
    ],
)
def test_pefts_options(options, folders, tmp_path, same_noise):  # noqa: F811
    pipe = adapted(folders["sd1"], "sd1", **options)
    file = write(tmp_path, pipe, "sd1", "diffusers", 3.0)
    sd = StableDiffusion(folders["sd1"], float16=False)
    sd.set_loras([file])
    picture = ours(sd)
    same_noise(5, 1, **SIZE)
    assert_same_pictures(picture, theirs(pipe))


@pytest.mark.parametrize("kind", ["LoKr", "LoKr of full matrices", "LoKr, both low", "LoHa"])
@pytest.mark.parametrize("header", ["adapter_config.json", "plain header"])
def test_pefts_other_forms(kind, header, folders, tmp_path):
    """The U-Net's merged weights, with peft's alpha over rank on the whole product, and patterns."""
    targets = ["to_k", "to_v", "conv1", "proj_in"]
    patterns = {"alpha_pattern": {r".*attn2\.to_v": 5.0}, "rank_pattern": {r"mid_block\..*conv1": 2}}
    options = {
        "LoKr": {},
        "LoKr of full matrices": {"r": 64},
        "LoKr, both low": {"r": 1, "decompose_both": True, "decompose_factor": 4},
        "LoHa": {},
    }[kind]
    build = peft.LoHaConfig if kind == "LoHa" else peft.LoKrConfig
    config = build(**{"r": 4, "alpha": 6, "target_modules": targets, **patterns, **options})
    unet = pipelines.unet("sd1")
    plain = {name: module.weight.detach().clone() for name, module in unet.named_modules() if hasattr(module, "weight")}
    model = peft.get_peft_model(unet, config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lokr_" in key or "hada_" in key:
                parameter.copy_(torch.from_numpy(drawn.normal(key, *parameter.shape)) * 0.3)
    folder = tmp_path / "x"
    model.save_pretrained(folder)
    if header == "plain header":
        from safetensors.torch import load_file

        file = folder / "adapter_model.safetensors"
        values = (folder / "adapter_config.json").read_text()
        (folder / "adapter_config.json").unlink()
        save_file(load_file(file), file, {"lora_adapter_metadata": values})
    merged = model.merge_and_unload()
    sd = StableDiffusion(folders["sd1"], float16=False)
    sd.set_loras([folder])
    ours = dict(sd._unet.named_modules())
    changed = 0
    for name, module in merged.named_modules():
        if name.rpartition(".")[2] in targets and name in ours:
            weight = np.array(ours[name].weight)
            weight = weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight
            expected = module.weight.detach().numpy()
            assert relative_error(weight.reshape(expected.shape), expected) < 1e-5, name
            changed += np.abs(expected - plain[name].numpy()).max() > 1e-3
    assert changed > 20


@pytest.mark.parametrize("family, style", [("sd1", "kohya"), ("sdxl", "ldm"), ("sd1", "old diffusers")])
def test_two_files_with_strengths(family, style, folders, tmp_path, same_noise):  # noqa: F811
    """What diffusers' load_lora_weights makes of the files, and set_adapters of the strengths."""
    tables = {"kohya": kohya_file, "ldm": ldm_file, "old diffusers": old_file}
    files = [tables[style](tmp_path / f"{i}.safetensors", family, i) for i in (1, 2)]
    pipe = reference(folders[family])
    for file in files:
        pipe.load_lora_weights(str(file), adapter_name=f"a{file.stem}")
    pipe.set_adapters(["a1", "a2"], [0.7, -0.4])
    sd = StableDiffusion(folders[family], float16=False)
    sd.set_loras({files[0]: 0.7, files[1]: -0.4})
    picture = ours(sd)
    same_noise(5, 1, **SIZE)
    assert_same_pictures(picture, theirs(pipe))


def test_a_file_of_torchs(folders, tmp_path):
    """Read without running what it holds, and to the same weights."""
    from safetensors.torch import load_file

    file = kohya_file(tmp_path / "1.safetensors", "sd1", 1)
    torch.save(load_file(file), tmp_path / "2.pt")
    torch.save({"state_dict": {k: v.half() for k, v in load_file(file).items()}}, tmp_path / "3.ckpt")
    sd = StableDiffusion(folders["sd1"], float16=False)
    weights = []
    for source in (file, tmp_path / "2.pt", tmp_path / "3.ckpt"):
        sd.set_loras([source])
        weights.append(np.array(sd._unet.mid_block.attentions[0].proj_in.weight))
    assert np.array_equal(weights[0], weights[1])
    assert 0 < np.abs(weights[0] - weights[2]).max() < 1e-3


def test_the_strength_of_unet_and_text_by_itself(folders, tmp_path, same_noise):  # noqa: F811
    file = kohya_file(tmp_path / "1.safetensors", "sd1", 1)
    pipe = reference(folders["sd1"])
    pipe.load_lora_weights(str(file), adapter_name="a")
    pipe.set_adapters(["a"], [{"unet": 0.3, "text_encoder": 0.9}])
    sd = StableDiffusion(folders["sd1"], float16=False)
    sd.lora_folders.append(tmp_path)
    tagged = ours(sd, f"{PROMPT}<lora:1:0.9:0.3>")
    sd.set_loras([("1", (0.3, 0.9))])
    picture = ours(sd)
    same_noise(5, 1, **SIZE)
    assert_same_pictures(picture, theirs(pipe))
    assert np.array_equal(picture, tagged)


def pair(key: str, inputs: int, outputs: int, rank: int = 3, kernel: int | None = None) -> list[torch.Tensor]:
    """Random down and up matrices of a layer, as torch has them."""
    shapes = (rank, inputs), (outputs, rank)
    if kernel:
        shapes = (rank, inputs, kernel, kernel), (outputs, rank, 1, 1)
    return [torch.from_numpy(drawn.normal(f"{key} {i}", *shape)) * 0.1 for i, shape in enumerate(shapes)]


def kohya_file(file: Path, family: str, seed: int) -> Path:
    """Linear layers and convolutions of a 1 and a 3 kernel, in both networks."""
    tensors = {}
    for module, sides, kernel in [
        ("unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (64, 32), None),
        ("unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0", (32, 32), None),
        ("unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_2", (192, 48), None),
        ("unet_mid_block_attentions_0_proj_in", (64, 64), 1),
        ("unet_up_blocks_1_attentions_0_proj_out", (48, 48), 1),
        ("te_text_model_encoder_layers_0_mlp_fc2", (160, 64), None),
        ("te_text_model_encoder_layers_1_mlp_fc1", (64, 160), None),
    ]:
        down, up = pair(f"{module}{seed}", *sides, kernel=kernel)
        tensors[f"lora_{module}.lora_down.weight"], tensors[f"lora_{module}.lora_up.weight"] = down, up
        tensors[f"lora_{module}.alpha"] = torch.tensor(1.5)
    save_file(tensors, file)
    return file


def ldm_file(file: Path, family: str, seed: int) -> Path:
    """kohya's names for SDXL's U-Net, which are the original repository's."""
    tensors = {}
    for module, sides, kernel in [
        ("unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v", (112, 48), None),
        ("unet_input_blocks_8_1_proj_in", (64, 64), None),
        ("unet_middle_block_1_transformer_blocks_2_ff_net_0_proj", (64, 512), None),
        ("unet_output_blocks_4_1_transformer_blocks_0_attn1_to_q", (48, 48), None),
        ("te1_text_model_encoder_layers_0_mlp_fc1", (64, 160), None),
        ("te2_text_model_encoder_layers_1_mlp_fc2", (160, 48), None),
    ]:
        down, up = pair(f"{module}{seed}", *sides, kernel=kernel)
        tensors[f"lora_{module}.lora_down.weight"], tensors[f"lora_{module}.lora_up.weight"] = down, up
        tensors[f"lora_{module}.alpha"] = torch.tensor(1.5)
    save_file(tensors, file)
    return file


def old_file(file: Path, family: str, seed: int) -> Path:
    """diffusers before peft: attention processors."""
    tensors = {}
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    for module, sides in [
        (f"{block}.attn2.processor.to_k_lora", (64, 32)),
        (f"{block}.attn1.processor.to_out_lora", (32, 32)),
    ]:
        down, up = pair(f"{module}{seed}", *sides)
        tensors[f"{module}.down.weight"], tensors[f"{module}.up.weight"] = down, up
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("algorithm", ["LoConModule", "LohaModule", "LokrModule"])
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("tucker", [False, True])
def test_lycoris(algorithm, decomposed, tucker, folders, tmp_path):
    """Layers as the library itself runs them: a linear one, and convolutions of a 1 and a 3 kernel.

    (Its merged weights differ from that where alpha is not the rank: they have alpha twice.)
    """
    lycoris = pytest.importorskip("lycoris")
    unet = pipelines.unet("sd1")
    attention = "mid_block.attentions.0"
    modules = {
        name: unet.get_submodule(name)
        for name in (
            f"{attention}.transformer_blocks.0.attn2.to_k",
            f"{attention}.proj_in",
            "mid_block.resnets.0.conv1",
        )
    }
    tensors, expected = {}, {}
    for name, module in modules.items():
        key = "lora_unet_" + name.replace(".", "_")
        options = {"use_tucker": tucker, "weight_decompose": decomposed}
        options |= {"factor": 4, "decompose_both": True} if algorithm == "LokrModule" else {}
        adapter = getattr(lycoris.modules, algorithm)(key, module, 1.0, 4, 2.0, **options).eval()
        with torch.no_grad():
            for part, parameter in adapter.named_parameters():
                if "dora" in part:
                    parameter.mul_(1 + 0.3 * torch.from_numpy(drawn.normal(key + part, *parameter.shape)))
                elif parameter.ndim > 1:
                    parameter.copy_(torch.from_numpy(drawn.normal(key + part, *parameter.shape)) * 0.3)
            adapter.apply_to()
            expected[name] = module(an_input(module)).numpy()
            adapter.restore()
        tensors |= {f"{key}.{part}": value.detach().clone() for part, value in adapter.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    sd = StableDiffusion(folders["sd1"], float16=False)
    sd.set_loras([tmp_path / "x.safetensors"])
    ours = dict(sd._unet.named_modules())
    for name, module in modules.items():
        x = an_input(module)
        plain = module(x).detach().numpy()
        weight = np.array(ours[name].weight)
        weight = weight.transpose(0, 3, 1, 2) if weight.ndim == 4 else weight
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight.reshape(module.weight.shape)))
            assert relative_error(module(x).numpy(), expected[name]) < 1e-5
        assert relative_error(plain, expected[name]) > 1e-2


def an_input(module: torch.nn.Module) -> torch.Tensor:
    shape = (5, module.in_channels, 6, 6) if isinstance(module, torch.nn.Conv2d) else (5, module.in_features)
    return torch.from_numpy(drawn.normal("x", *shape))
