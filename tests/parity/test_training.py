"""Training against PyTorch: the same losses' gradients in the same networks, and the same steps of AdamW."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from mlx.utils import tree_flatten  # noqa: E402

from stable_diffusion import ops  # noqa: E402
from stable_diffusion.backend import mx, nn  # noqa: E402
from stable_diffusion.model_io import names  # noqa: E402
from stable_diffusion.model_io.name_table import Names  # noqa: E402
from stable_diffusion.training.optimisation import State  # noqa: E402
from stable_diffusion.training.recipe import Recipe  # noqa: E402

from .. import drawn, networks, shapes  # noqa: E402
from . import pipelines  # noqa: E402
from .test_networks import saved  # noqa: E402

pytestmark = pytest.mark.parity

GRADIENT = 2e-4  # of a tensor's largest value; Winograd's method gives 1e-5 of it at each layer


def to_torch(x: np.ndarray) -> torch.Tensor:
    """Pictures and latents channels first."""
    return pipelines.channels_first(x) if x.ndim == 4 else torch.from_numpy(x)


def compare(gradients: dict, reference: torch.nn.Module, table: Names) -> None:
    """Each parameter's gradient beside the reference's of the same name."""
    ours_by_name = dict(tree_flatten(gradients))
    seen = set()
    for key, parameter in reference.named_parameters():
        (place,) = table.read(key)
        expected = parameter.grad.numpy()
        found = np.array(ours_by_name[place.ours])
        if found.ndim == 4:
            found = found.transpose(0, 3, 1, 2)
        scale = np.abs(expected).max()
        # Keys' biases have no gradient, but for rounding: softmax takes no notice of what is added to all scores.
        tolerance = 1e-6 if place.ours.endswith(("to_k.bias", "k_proj.bias")) else GRADIENT * scale
        assert np.abs(found.reshape(expected.shape) - expected).max() <= tolerance, key
        seen.add(place.ours)
    assert seen == set(ours_by_name)


def test_the_unets_gradients(tmp_path):
    reference = pipelines.unet("sd1").train()
    inputs = shapes.unet_inputs("sd1", 16, 16)
    target = drawn.normal("target", *inputs["x"].shape)
    answer = reference(to_torch(inputs["x"]), to_torch(inputs["t"]), to_torch(inputs["text"])).sample
    expected = torch.square(answer - to_torch(target)).mean()
    expected.backward()
    with ops.use("learning"):
        model = networks.load_unet(*saved(reference, tmp_path))
        x, t, text, goal = (mx.array(each) for each in (inputs["x"], inputs["t"], inputs["text"], target))
        loss, gradients = nn.value_and_grad(
            model, lambda: mx.square(model(x, t, model.project_text(text)) - goal).mean()
        )()
        mx.eval(loss, gradients)
    assert float(loss.item()) == pytest.approx(expected.item(), rel=1e-5)
    compare(gradients, reference, names.UNET)


def test_the_autoencoders_gradients(tmp_path):
    """Squares and KL with the same noise."""
    reference = pipelines.vae("plain").train()
    picture, noise = drawn.normal("picture", 2, 32, 48, 3).clip(-1, 1), drawn.normal("noise", 2, 4, 6, 4)
    posterior = reference.encode(to_torch(picture)).latent_dist
    decoded = reference.decode(posterior.mean + posterior.std * to_torch(noise)).sample
    expected = torch.square(decoded - to_torch(picture)).mean() + 0.1 * posterior.kl().mean() / (4 * 6 * 4)
    expected.backward()
    with ops.use("learning"):
        model = networks.load_vae(*saved(reference, tmp_path))

        def loss_of() -> mx.array:
            mean, deviation = model.moments(mx.array(picture))
            decoded = model.decode(model._scale(mean + deviation * mx.array(noise)))
            variance = mx.square(deviation)
            kl = 0.5 * (mx.square(mean) + variance - 1 - mx.log(variance)).mean()
            return mx.square(decoded - mx.array(picture)).mean() + 0.1 * kl

        loss, gradients = nn.value_and_grad(model, loss_of)()
        mx.eval(loss, gradients)
    assert float(loss.item()) == pytest.approx(expected.item(), rel=1e-5)
    compare(gradients, reference, names.VAE)


def test_the_text_encoders_gradients(tmp_path):
    reference = pipelines.text_encoder(shapes.TEXT).train()
    ids, target = shapes.text_ids(), drawn.normal("target", 2, 77, shapes.TEXT["hidden_size"])
    expected = torch.square(reference(torch.from_numpy(ids)).last_hidden_state - torch.from_numpy(target)).mean()
    expected.backward()
    with ops.use("learning"):
        model = networks.load_text_encoder(*saved(reference, tmp_path))
        loss, gradients = nn.value_and_grad(
            model, lambda: mx.square(model(mx.array(ids)).last_hidden_state - mx.array(target)).mean()
        )()
        mx.eval(loss, gradients)
    assert float(loss.item()) == pytest.approx(expected.item(), rel=1e-5)
    compare(gradients, reference, names.TEXT_ENCODER)


def test_steps_of_adamw():
    """Ten steps of torch.optim.AdamW, with the decay on matrices alone and a gradient that is clipped now and then."""
    recipe = Recipe(beta_1=0.9, beta_2=0.99, weight_decay=0.1, clip=1.0)
    start = {"matrix": drawn.normal("matrix", 6, 5), "bias": drawn.normal("bias", 5)}
    weights = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    groups = [{"params": [weights["matrix"]], "weight_decay": 0.1}, {"params": [weights["bias"]], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-8)
    state = State.fresh({name: mx.array(value) for name, value in start.items()})
    for step in range(10):
        rate = 0.01 * (step + 1)
        gradients = {name: 0.2 * drawn.normal(f"{name} {step}", *value.shape) for name, value in start.items()}
        for name, parameter in weights.items():
            parameter.grad = torch.from_numpy(gradients[name].copy())
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        state.update({name: mx.array(g) for name, g in gradients.items()}, recipe, rate)
    ours = state.layout.named(state.parameters)
    for name, parameter in weights.items():
        np.testing.assert_allclose(np.array(ours[name]), parameter.detach().numpy(), rtol=2e-5, atol=2e-6)
