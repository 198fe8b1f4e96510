"""Pickles: what torch.save writes is read, anything else refused by name; nothing runs, hangs or fills memory."""

from __future__ import annotations

import ast
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stable_diffusion.errors import CheckpointError, UnsupportedCheckpointError, WeightsError
from stable_diffusion.model_io import safe_pickle, tensor_file

from . import single_files

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(3, dtype=np.float16),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "ids": np.arange(5)[None],
    "empty": np.zeros((0, 3), np.float32),
    "number": np.array(2.5, np.float64),
}
BESIDE = {"global_step": 7, "epoch": 1.5, "name": "x", "lists": [1, [2, (3, None, True)]], "n": {-5, 70000, 2**40}}
# `tobytes` writes rows first: the turned one is stored as its transpose, and its strides say so.
FILES = {
    "zip": single_files.ckpt({**ARRAYS, "turned": ARRAYS["turned"]}, BESIDE),
    "legacy": single_files.legacy(ARRAYS, BESIDE),
}


def read_all(path: Path) -> dict[str, np.ndarray]:
    with tensor_file.open_tensors(path) as file:
        return {key: file.read(tensor) for key, tensor in file.tensors.items()}


def read_bytes(data: bytes, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "file.ckpt"
    path.write_bytes(data)
    return read_all(path)


@pytest.mark.parametrize("form", FILES)
def test_tensors(form, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(FILES[form])
    with tensor_file.open_tensors(path) as file:
        assert file.form == "pickle"
        assert file.values == {"global_step": 7, "epoch": 1.5, "name": "x"}
        for key, array in ARRAYS.items():
            read = file.read(file.tensors[key])
            assert read.dtype == array.dtype and read.shape == array.shape
            if key != "turned":
                assert np.array_equal(read, array)


def test_strides_are_followed(tmp_path):
    """As torch saves the transpose of a matrix: the storage in its own order, the view beside it."""
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"t": single_files._Tensor("0", base.T)}
    data = single_files.zipped({"data.pkl": single_files.pickled(content), "data/0": base.tobytes()})
    assert np.array_equal(read_bytes(data, tmp_path)["t"], base.T)


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"),
        ("runpy", "_run_code"),
        ("collections", "OrderedDict.fromkeys"),
        ("a" * 5000, "b"),
    ],
)
def test_any_other_name_is_refused(module, name, tmp_path):
    marker = tmp_path / "pwned"
    content = single_files.calling(module, name, f"touch {marker}")
    with pytest.raises(CheckpointError) as caught:
        safe_pickle.loads(content, "file.ckpt")
    if len(module) < 100:
        assert isinstance(caught.value, UnsupportedCheckpointError) and f"{module}.{name}" in str(caught.value)
    with pytest.raises(CheckpointError):
        read_bytes(single_files.zipped({"data.pkl": content}), tmp_path)
    assert not marker.exists()


def test_names_by_the_stack_are_refused_too():
    content = pickle.PROTO + b"\x04" + b"\x8c\x02os\x8c\x06system\x93" + b"\x8c\x02id\x85R."
    with pytest.raises(UnsupportedCheckpointError, match=r"os\.system"):
        safe_pickle.loads(content, "file.ckpt")


def test_the_reader_can_run_nothing():
    """It imports no pickle and no import machinery, and calls nothing that executes text."""
    for module in (safe_pickle, tensor_file):
        tree = ast.parse(Path(module.__file__).read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not imported & {"pickle", "importlib", "runpy", "subprocess", "torch", "marshal", "shelve"}
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {function.id for function in calls if isinstance(function, ast.Name)}
        assert not called & {"eval", "exec", "compile", "__import__", "setattr"}


def test_training_tools_leave_harmless_names(tmp_path):
    """The callbacks of pytorch_lightning stand as keys in SD 1.x's own files, and numpy's numbers beside them."""
    named = single_files.named
    callback = named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    data = single_files.ckpt(ARRAYS, {"callbacks": {callback: {"best": None}}, "dtype": named("numpy", "dtype")})
    assert np.array_equal(read_bytes(data, tmp_path)["b"], ARRAYS["b"])


class TestClaims:
    @pytest.mark.parametrize(
        "shape, strides, offset",
        [
            ((1 << 40,), (1,), 0),
            ((1 << 40,), (0,), 0),
            ((4,), (1,), 9),
            ((4,), (1 << 30,), 0),
            ((-1,), (1,), 0),
            ((2, 2), (1,), 0),
            ((2,) * 40, (1,) * 40, 0),
            (("x",), (1,), 0),
            ((True,), (1,), 0),
        ],
    )
    def test_a_tensor_is_no_larger_than_its_storage(self, shape, strides, offset):
        storage = single_files._Storage("0", "FloatStorage", 12)
        content = single_files.calling("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, {})
        with pytest.raises(WeightsError):
            safe_pickle.loads(content, "file.ckpt")

    def test_a_storage_is_no_larger_than_its_entry(self, tmp_path):
        content = {"t": single_files._Tensor("0", np.zeros(1000, np.float32))}
        data = single_files.zipped({"data.pkl": single_files.pickled(content), "data/0": bytes(100)})
        with pytest.raises(WeightsError, match="larger than its data"):
            read_bytes(data, tmp_path)

    def test_an_absent_entry(self, tmp_path):
        content = {"t": single_files._Tensor("../../etc/passwd", np.zeros(1, np.float32))}
        with pytest.raises(WeightsError, match="lacks the data"):
            read_bytes(single_files.zipped({"data.pkl": single_files.pickled(content)}), tmp_path)

    def test_compressed_entries(self, tmp_path):
        bomb = single_files.zipped({"data.pkl": bytes(10_000_000)}, compression=zipfile.ZIP_DEFLATED)
        with pytest.raises(UnsupportedCheckpointError, match="compressed"):
            read_bytes(bomb, tmp_path)

    @pytest.mark.parametrize("form", [{"x": b""}, {"data.pkl": b"", "b/data.pkl": b""}])
    def test_other_archives(self, form, tmp_path):
        with pytest.raises(UnsupportedCheckpointError, match=r"data\.pkl"):
            read_bytes(single_files.zipped(form), tmp_path)

    def test_a_script(self, tmp_path):
        with pytest.raises(UnsupportedCheckpointError, match="TorchScript"):
            read_bytes(single_files.zipped({"data.pkl": b"", "constants.pkl": b""}), tmp_path)

    def test_big_endian(self, tmp_path):
        with pytest.raises(UnsupportedCheckpointError, match="big-endian"):
            read_bytes(single_files.zipped({"data.pkl": b"", "byteorder": b"big"}), tmp_path)


MANY = 200_000
BOMBS = {
    "memo index": b"\x80\x02Nr\xff\xff\xff\xff0" * 1000 + b"N.",
    "text of an exabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "long number": b"I" + b"9" * 4000 + b"\n.",
    "nested tuples": b"\x80\x02)" + b"\x85" * MANY + b".",
    "nested lists": b"\x80\x02" + b"]" * MANY + b"a" * (MANY - 1) + b".",
    "nested tuple as a key": b"\x80\x02})" + b"\x85" * MANY + b"Ns.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a state dict in itself": b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.",
    "marks": b"\x80\x02" + b"(" * MANY + b".",
    "copies of dicts": b"\x80\x02ccollections\nOrderedDict\nq\x00K\x00K\x00\x86q\x02(" + b"h\x02" * MANY + b"lq\x01"
    + b"0h\x00h\x01\x85R" * 1000 + b".",
    "copies of sets": b"\x80\x02cbuiltins\nset\nq\x00]q\x01(" + b"K\x01" * MANY + b"e"
    + b"0h\x00h\x01\x85R" * 1000 + b".",
    "doubling": b"\x80\x02]" + b"q\x000(h\x00h\x00l" * 1000 + b".",
    "opcodes": b"\x80\x02" + b"N0" * 2_000_000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb, tmp_path):
    """Seconds and megabytes, whatever a pickle asks for; an error, or an object that is small."""
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(CheckpointError):
            read_bytes(single_files.zipped({"data.pkl": BOMBS[bomb]}), tmp_path)
        assert time.process_time() - began < 30
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


OPCODES = [bytes([code]) for code in range(256)]
PIECES = [
    *OPCODES,
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"X\x07\x00\x00\x00storage",
    b"X\x01\x00\x00\x000",
    b"X\x0a\x00\x00\x00state_dict",
    b"K\x05",
    b"q\x01",
    b"h\x01",
    b"\x86R",
    b")R",
]
RELAXED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class TestFuzz:
    """Whatever the bytes are, what comes is tensors or a CheckpointError."""

    @RELAXED
    @given(st.binary(max_size=400))
    def test_random_bytes(self, tmp_path, data):
        self.try_reading(data, tmp_path)
        self.try_reading(single_files.zipped({"data.pkl": data}), tmp_path)
        self.try_reading(tensor_file.LEGACY + data, tmp_path)

    @RELAXED
    @given(st.lists(st.sampled_from(PIECES), max_size=60))
    def test_random_programs(self, tmp_path, pieces):
        self.try_reading(single_files.zipped({"data.pkl": b"\x80\x02" + b"".join(pieces) + b"."}), tmp_path)

    @RELAXED
    @given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=6))
    def test_mutated_files(self, tmp_path, form, changes):
        data = bytearray(FILES[form])
        for place, new in changes:
            at = int(place * len(data))
            data[at : at + max(len(new), 1)] = new
        self.try_reading(bytes(data), tmp_path)

    @RELAXED
    @given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), min_size=1, max_size=4))
    def test_mutated_pickles(self, tmp_path, changes):
        """In an archive that is whole, so that every change reaches the pickle's reader."""
        data = bytearray(single_files.pickled({"state_dict": {"a": single_files._Tensor("0", ARRAYS["a.weight"])}}))
        for place, new in changes:
            at = int(place * len(data))
            data[at : at + max(len(new), 1)] = new
        entries = {"data.pkl": bytes(data), "data/0": ARRAYS["a.weight"].tobytes()}
        self.try_reading(single_files.zipped(entries), tmp_path)

    @staticmethod
    def try_reading(data: bytes, folder: Path) -> None:
        try:
            for array in read_bytes(data, folder).values():
                assert array.nbytes <= len(data)
        except CheckpointError:
            pass


@pytest.mark.parametrize("form", FILES)
def test_cut_files(form, tmp_path):
    """At every 1 % of its length."""
    data = FILES[form]
    for percent in range(100):
        with pytest.raises(CheckpointError):
            read_bytes(data[: len(data) * percent // 100], tmp_path)
