"""Packages that look for one another by themselves, without a word in their metadata that an installer would see.

A release of one may refuse the other's newest (transformers 5.24 asked for a peft that was not published yet). Then the
bound in requirements-parity.txt is wrong, and this says so before any comparison does.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity


def test_transformers_takes_this_peft():
    import peft
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.CLIPTextModel(config)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_diffusers_takes_this_peft():
    import diffusers
    import peft

    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_diffusers_takes_this_transformers():
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    for pipeline in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        assert pipeline.__module__.startswith("diffusers.pipelines.")  # and not a stand-in that only raises


def test_lycoris_takes_this_torch():
    from lycoris import create_lycoris

    network = create_lycoris(torch.nn.Sequential(torch.nn.Linear(4, 4)), 1.0, linear_dim=2, algo="loha")
    assert network is not None


def test_torchsde_takes_this_scipy():
    import torchsde

    tree = torchsde.BrownianTree(t0=0.0, w0=torch.zeros(2), t1=1.0)
    assert torch.isfinite(tree(0.0, 0.5)).all()
