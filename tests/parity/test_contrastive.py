"""CLIP's contrastive loss against PyTorch: its value and gradients, and the text tower in transformers' own class."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stable_diffusion import ops  # noqa: E402
from stable_diffusion.backend import mx, nn  # noqa: E402
from stable_diffusion.config import CLIPTextConfig  # noqa: E402
from stable_diffusion.guides import contrastive  # noqa: E402
from stable_diffusion.guides.contrastive import CLIPModel, VisionConfig, contrastive_loss  # noqa: E402

from .. import drawn  # noqa: E402

pytestmark = pytest.mark.parity

TEXT = CLIPTextConfig(
    vocab_size=60, hidden_size=32, intermediate_size=64, projection_dim=24, num_hidden_layers=2, num_attention_heads=4,
    eos_token_id=59, architectures=("CLIPTextModelWithProjection",),
)  # fmt: skip


def in_torch(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Figure 3 of Radford et al. 2021, and transformers' modeling_clip.py."""
    images, texts = (each / each.norm(dim=1, keepdim=True) for each in (images, texts))
    logits = scale.exp() * images @ texts.T
    labels = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def test_the_loss_and_its_gradients():
    arrays = [drawn.normal("images", 12, 24), drawn.normal("texts", 12, 24), np.array(2.6592, np.float32)]
    tensors = [torch.from_numpy(each).requires_grad_() for each in arrays]
    expected = in_torch(*tensors)
    expected.backward()

    def ours(images: mx.array, texts: mx.array, scale: mx.array) -> mx.array:
        return contrastive_loss(contrastive.unit(images), contrastive.unit(texts), mx.exp(scale))

    with ops.use("learning"):
        loss, gradients = mx.value_and_grad(ours, argnums=(0, 1, 2))(*map(mx.array, arrays))
        mx.eval(loss, gradients)
    assert float(loss.item()) == pytest.approx(expected.item(), rel=1e-5)
    for found, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(np.array(found), tensor.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_the_text_tower_of_a_file_is_transformers(tmp_path):
    """The file's names and configuration, and the gradients of the loss through the tower."""
    mx.random.seed(2)
    model = CLIPModel(TEXT, VisionConfig(16, (8, 8)))
    contrastive.save(model, tmp_path)
    tensors = {k: v.astype(mx.float32) for k, v in mx.load(str(tmp_path / "model.safetensors")).items()}
    config = transformers.CLIPTextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, projection_dim=24, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=59, bos_token_id=58, pad_token_id=59, attn_implementation="eager",
    )  # fmt: skip
    reference = transformers.CLIPTextModelWithProjection(config)
    own = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items() if k.startswith("text_")}
    missing, unexpected = reference.load_state_dict(own, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    rng = np.random.default_rng(0)
    ids = np.full((4, 12), 59)
    for i, n in enumerate((4, 9, 11, 7)):
        ids[i, :n] = rng.integers(0, 58, n)
    images = drawn.normal("images", 4, 24)
    embedded = reference(torch.from_numpy(ids)).text_embeds
    expected = in_torch(torch.from_numpy(images), embedded, torch.tensor(2.0))
    expected.backward()
    (tmp_path / "tokenizer").symlink_to(contrastive.FOLDER.parent / "postcards-tiny" / "tokenizer")
    ours = contrastive.load(tmp_path).model
    with ops.use("learning"):

        def loss() -> mx.array:
            scale = mx.exp(mx.array(2.0))
            return contrastive_loss(contrastive.unit(mx.array(images)), ours.encode_texts(mx.array(ids)), scale)

        value, gradients = nn.value_and_grad(ours, loss)()
        mx.eval(value, gradients)
    assert float(value.item()) == pytest.approx(expected.item(), rel=1e-5)
    pairs = [
        (gradients["text_model"]["text_projection"]["weight"], reference.text_projection.weight.grad),
        (gradients["text_model"]["token_embedding"]["weight"], reference.get_input_embeddings().weight.grad),
    ]
    for found, tensor in pairs:
        scale = tensor.abs().max().item()
        np.testing.assert_allclose(np.array(found), tensor.numpy(), atol=1e-5 * max(scale, 1))
