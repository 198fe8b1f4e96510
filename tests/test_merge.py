"""Merging checkpoints: the formulas, what stays, and that the result loads."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stable_diffusion import StableDiffusion
from stable_diffusion.__main__ import main
from stable_diffusion.errors import InputError
from stable_diffusion.model_io.convert import convert
from stable_diffusion.model_io.merge import ADD_DIFFERENCE, WEIGHTED_SUM, merge

from . import single_files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three single files of one architecture."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    given = single_files.tensors("sd1")
    paths = []
    for name in "abc":
        paths.append(single_files.write(folder / f"{name}.safetensors", given))
        given = {
            key: (value * rng.uniform(0.9, 1.1, value.shape)).astype(value.dtype) if value.dtype.kind == "f" else value
            for key, value in given.items()
        }
    return paths


def tensors(path):
    return {key: value.astype(np.float32) for key, value in load_file(path).items()}


def test_a_weighted_sum_is_that_of_all_weights(files, tmp_path):
    made = merge(files[:2], tmp_path / "m.safetensors", 0.25)
    a, b, m = map(tensors, (*files[:2], made))
    assert m.keys() == a.keys()
    for key, value in m.items():
        np.testing.assert_allclose(value, 0.75 * a[key] + 0.25 * b[key], rtol=1e-3, atol=1e-6)


def test_a_difference_is_added_and_what_is_missing_stays(files, tmp_path):
    short = load_file(files[2])
    gone = next(key for key in short if key.endswith("conv_out.weight") or "out.2.weight" in key)
    del short[gone]
    save_file(short, tmp_path / "short.safetensors")
    sources = [*files[:2], tmp_path / "short.safetensors"]
    made = merge(sources, tmp_path / "m.safetensors", 1.0, ADD_DIFFERENCE)
    a, b, c, m = map(tensors, (*sources, made))
    for key, value in m.items():
        wanted = a[key] + (b[key] - c[key]) if key in c else a[key]
        np.testing.assert_allclose(value, wanted, rtol=2e-3, atol=1e-4)


def test_the_result_says_what_it_is_of_and_loads(files, tmp_path, capsys):
    output = tmp_path / "mixed.safetensors"
    assert main(["merge", str(files[0]), str(files[1]), "--multiplier", "0", "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with safe_open(output, "np") as opened:
        recipe, models = (json.loads(opened.metadata()[key]) for key in ("sd_merge_recipe", "sd_merge_models"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files[:2]]
    assert [recipe["primary_model_hash"], recipe["secondary_model_hash"]] == hashes == list(models)
    assert recipe["interp_method"] == "Weighted sum" and recipe["multiplier"] == 0
    one, other = (
        StableDiffusion(str(path)).generate("a red house", seed=1, num_steps=2)[0] for path in (files[0], output)
    )
    np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))


def test_a_folder_and_a_pickle_are_merged_as_well(files, tmp_path):
    folder = convert(files[0], tmp_path / "folder")
    pickled = single_files.write(tmp_path / "b.ckpt", load_file(files[1]))
    made = merge([folder, pickled], tmp_path / "m.safetensors", 1.0, float16=True)
    b, m = tensors(files[1]), tensors(made)
    key = "model.diffusion_model.out.2.weight"
    np.testing.assert_allclose(m[key], b[key], rtol=1e-3)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"folder", "b.ckpt", "m.safetensors"}, "nothing temporary is left"


def test_families_do_not_mix(files, tmp_path):
    other = single_files.write(tmp_path / "xl.safetensors", single_files.tensors("sdxl"))
    with pytest.raises(InputError, match=r"different families: .*sd1.*sdxl"):
        merge([files[0], other], tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (3, {}, "takes 2 checkpoints, not 3"),
        (2, {"mode": ADD_DIFFERENCE}, "takes 3 checkpoints, not 2"),
        (2, {"mode": "sum"}, "mode = 'sum'"),
        (2, {"multiplier": 3}, "multiplier = 3"),
        (2, {"output": "m.ckpt"}, "end the name in .safetensors"),
        (2, {"output": "none/m.safetensors"}, "there is no folder"),
    ],
)
def test_what_makes_no_sense_is_refused(files, tmp_path, count, options, said):
    options = {"output": "m.safetensors", "multiplier": 0.5, "mode": WEIGHTED_SUM} | options
    with pytest.raises(InputError, match=said):
        merge(files[:count], tmp_path / options.pop("output"), **options)


def test_nothing_is_overwritten_unless_asked_and_shapes_must_agree(files, tmp_path):
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        merge(files[:2], output)
    other = load_file(files[1])
    key = "model.diffusion_model.out.2.weight"
    other[key] = np.concatenate([other[key]] * 2)
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"out\.2\.weight has the shape"):
        merge([files[0], tmp_path / "other.safetensors"], output, force=True)
    assert output.read_bytes() == b"mine"
    assert merge(files[:2], output, force=True) == output and output.stat().st_size > 1000
