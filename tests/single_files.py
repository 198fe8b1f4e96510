"""Tiny checkpoints in the original layout, made without torch: names and shapes, and what torch.save makes of them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from . import drawn

WIDTH, CHANNELS, WORDS = 8, 32, 49408


def tensors(family: str = "sd1", dtype: type = np.float16) -> dict[str, np.ndarray]:
    """The smallest checkpoint that has every kind of block: two levels of one layer each."""
    shapes: dict[str, tuple[int, ...]] = {}
    context = 2 * WIDTH if family == "sdxl" else WIDTH
    ids = {"sdxl": 6, "sdxl_refiner": 5}.get(family, 0)
    _unet(shapes, "model.diffusion_model.", context, family, ids)
    _vae(shapes, "first_stage_model.")
    if family == "sd2":
        _open_clip(shapes, "cond_stage_model.model.")
    elif family == "sdxl_refiner":
        _open_clip(shapes, "conditioner.embedders.0.model.")
        shapes["conditioner.embedders.0.model.text_projection"] = (WIDTH, 6)
    else:
        prefix = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
        _clip(shapes, f"{prefix}.transformer.text_model.")
    if family == "sdxl":
        _open_clip(shapes, "conditioner.embedders.1.model.")
        shapes["conditioner.embedders.1.model.text_projection"] = (WIDTH, 6)
    return {key: drawn.weight(key, shape).astype(dtype) for key, shape in shapes.items()}


def _pair(shapes: dict, name: str, outputs: int, *inputs: int) -> None:
    shapes[name + ".weight"] = (outputs, *inputs)
    shapes[name + ".bias"] = (outputs,)


def _unet(shapes: dict, p: str, context: int, family: str, ids: int) -> None:
    c, time = CHANNELS, 4 * CHANNELS

    def resnet(name: str, inputs: int) -> None:
        _pair(shapes, f"{p}{name}.in_layers.0", inputs)
        _pair(shapes, f"{p}{name}.in_layers.2", c, inputs, 3, 3)
        _pair(shapes, f"{p}{name}.emb_layers.1", c, time)
        _pair(shapes, f"{p}{name}.out_layers.0", c)
        _pair(shapes, f"{p}{name}.out_layers.3", c, c, 3, 3)
        if inputs != c:
            _pair(shapes, f"{p}{name}.skip_connection", c, inputs, 1, 1)

    def attention(name: str) -> None:
        block = f"{p}{name}.transformer_blocks.0"
        ones = (1, 1) if family == "sd1" else ()
        _pair(shapes, f"{p}{name}.norm", c)
        _pair(shapes, f"{p}{name}.proj_in", c, c, *ones)
        _pair(shapes, f"{p}{name}.proj_out", c, c, *ones)
        for i, inputs in ((1, c), (2, context)):
            shapes[f"{block}.attn{i}.to_q.weight"] = (c, c)
            shapes[f"{block}.attn{i}.to_k.weight"] = shapes[f"{block}.attn{i}.to_v.weight"] = (c, inputs)
            _pair(shapes, f"{block}.attn{i}.to_out.0", c, c)
        for i in (1, 2, 3):
            _pair(shapes, f"{block}.norm{i}", c)
        _pair(shapes, f"{block}.ff.net.0.proj", 8 * c, c)
        _pair(shapes, f"{block}.ff.net.2", c, 4 * c)

    _pair(shapes, f"{p}time_embed.0", time, c)
    _pair(shapes, f"{p}time_embed.2", time, time)
    if ids:
        _pair(shapes, f"{p}label_emb.0.0", time, ids * 4 + 6)
        _pair(shapes, f"{p}label_emb.0.2", time, time)
    _pair(shapes, f"{p}input_blocks.0.0", c, 4, 3, 3)
    resnet("input_blocks.1.0", c)
    attention("input_blocks.1.1")
    _pair(shapes, f"{p}input_blocks.2.0.op", c, c, 3, 3)
    resnet("input_blocks.3.0", c)
    resnet("middle_block.0", c)
    attention("middle_block.1")
    resnet("middle_block.2", c)
    for i in range(4):
        resnet(f"output_blocks.{i}.0", 2 * c)
    _pair(shapes, f"{p}output_blocks.1.1.conv", c, c, 3, 3)
    attention("output_blocks.2.1")
    attention("output_blocks.3.1")
    _pair(shapes, f"{p}out.0", c)
    _pair(shapes, f"{p}out.2", 4, c, 3, 3)


def _vae(shapes: dict, p: str) -> None:
    c = CHANNELS
    for side, way, ends in (("encoder", "down", (3, 8)), ("decoder", "up", (4, 3))):
        _pair(shapes, f"{p}{side}.conv_in", c, ends[0], 3, 3)
        blocks = [f"{way}.{level}.block.{i}" for level in (0, 1) for i in range(1 + (way == "up"))]
        for name in (*blocks, "mid.block_1", "mid.block_2"):
            for i in (1, 2):
                _pair(shapes, f"{p}{side}.{name}.norm{i}", c)
                _pair(shapes, f"{p}{side}.{name}.conv{i}", c, c, 3, 3)
        for name in ("q", "k", "v", "proj_out"):
            _pair(shapes, f"{p}{side}.mid.attn_1.{name}", c, c, 1, 1)
        _pair(shapes, f"{p}{side}.mid.attn_1.norm", c)
        _pair(shapes, f"{p}{side}.{way}.{int(way == 'up')}.{way}sample.conv", c, c, 3, 3)
        _pair(shapes, f"{p}{side}.norm_out", c)
        _pair(shapes, f"{p}{side}.conv_out", ends[1], c, 3, 3)
    _pair(shapes, f"{p}quant_conv", 8, 8, 1, 1)
    _pair(shapes, f"{p}post_quant_conv", 4, 4, 1, 1)


def _clip(shapes: dict, p: str) -> None:
    layer = f"{p}encoder.layers.0"
    shapes[f"{p}embeddings.token_embedding.weight"] = (WORDS, WIDTH)
    shapes[f"{p}embeddings.position_embedding.weight"] = (77, WIDTH)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        _pair(shapes, f"{layer}.self_attn.{name}", WIDTH, WIDTH)
    _pair(shapes, f"{layer}.mlp.fc1", 16, WIDTH)
    _pair(shapes, f"{layer}.mlp.fc2", WIDTH, 16)
    for name in (f"{layer}.layer_norm1", f"{layer}.layer_norm2", f"{p}final_layer_norm"):
        _pair(shapes, name, WIDTH)


def _open_clip(shapes: dict, p: str) -> None:
    layer = f"{p}transformer.resblocks.0"
    shapes[f"{p}token_embedding.weight"] = (WORDS, WIDTH)
    shapes[f"{p}positional_embedding"] = (77, WIDTH)
    shapes[f"{layer}.attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
    shapes[f"{layer}.attn.in_proj_bias"] = (3 * WIDTH,)
    _pair(shapes, f"{layer}.attn.out_proj", WIDTH, WIDTH)
    _pair(shapes, f"{layer}.mlp.c_fc", 16, WIDTH)
    _pair(shapes, f"{layer}.mlp.c_proj", WIDTH, 16)
    for name in (f"{layer}.ln_1", f"{layer}.ln_2", f"{p}ln_final"):
        _pair(shapes, name, WIDTH)


def header(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of float16 whose numbers are a hole in the file, for shapes of real sizes."""
    entries: dict[str, object] = {"__metadata__": metadata or {}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        entries[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    start = safetensors(entries)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + end)
    return path


# What torch.save writes, without torch


class _Named:
    """Pickles as a global of another module, which need not exist here."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class _Storage:
    def __init__(self, key: str, kind: str, count: int):
        self.key, self.kind, self.count = key, kind, count


class _Tensor:
    def __init__(self, key: str, array: np.ndarray):
        kinds = {"f2": "HalfStorage", "f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage"}
        self.storage = _Storage(key, kinds[array.dtype.str[1:]], array.size)
        self.shape = array.shape
        self.strides = tuple(stride // array.itemsize for stride in array.strides)


class Writer(pickle._Pickler):
    """A pickler (the one in Python, whose parts can be replaced) that writes tensors and globals as torch has them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, legacy: bool = False):
        super().__init__(file, 2)
        self.legacy = legacy

    def save_named(self, obj: _Named) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_tensor(self, obj: _Tensor) -> None:
        arguments = (obj.storage, 0, obj.shape, obj.strides, False, OrderedDict())
        self.save_reduce(_Named("torch._utils", "_rebuild_tensor_v2"), arguments)

    def save_storage(self, obj: _Storage) -> None:
        view = (None,) if self.legacy else ()
        self.save(("storage", _Named("torch", obj.kind), obj.key, "cpu", obj.count, *view))
        self.write(pickle.BINPERSID)

    def save_reduce(self, func, args, *rest, **options):  # type: ignore[override]
        if isinstance(func, _Named):
            self.save(func)
            self.save(args)
            self.write(pickle.REDUCE)
            return
        super().save_reduce(func, args, *rest, **options)

    dispatch[_Named] = save_named
    dispatch[_Tensor] = save_tensor
    dispatch[_Storage] = save_storage


def pickled(content: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    Writer(stream, legacy).dump(content)
    return stream.getvalue()


def calling(module: str, name: str, *arguments: object) -> bytes:
    """A pickle that would call a function."""
    stream = io.BytesIO()
    writer = Writer(stream)
    writer.write(pickle.PROTO + b"\x02")
    writer.save_reduce(_Named(module, name), arguments)
    writer.write(pickle.STOP)
    return stream.getvalue()


def named(module: str, name: str) -> _Named:
    return _Named(module, name)


def ckpt(
    arrays: dict[str, np.ndarray], beside: dict | None = None, root: str = "archive", key: str = "state_dict"
) -> bytes:
    """A .ckpt in the zip form."""
    content = {key: OrderedDict((name, _Tensor(str(i), a)) for i, (name, a) in enumerate(arrays.items()))}
    data = {f"data/{i}": array.tobytes() for i, array in enumerate(arrays.values())}
    entries = {"data.pkl": pickled(content | (beside or {})), "byteorder": b"little", **data, "version": b"3\n"}
    return zipped(entries, root)


def zipped(entries: dict[str, bytes], root: str = "archive", compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(f"{root}/{name}", data)
    return stream.getvalue()


def legacy(arrays: dict[str, np.ndarray], beside: dict | None = None, key: str = "state_dict") -> bytes:
    """A .ckpt as torch wrote it before 1.6."""
    content = {key: OrderedDict((name, _Tensor(str(i), a)) for i, (name, a) in enumerate(arrays.items()))}
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts: Iterable[bytes] = [
        pickled(0x1950A86A20F9469CFC6C),
        pickled(1001),
        pickled(machine),
        pickled(content | (beside or {}), legacy=True),
        pickled([str(i) for i in range(len(arrays))]),
        *(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values()),
    ]
    return b"".join(parts)


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file with a header of one's own, and a claim of one's own about its size."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """A file in the form that its name's ending says: .safetensors, .ckpt (zip) or .pt (before torch 1.6)."""
    from safetensors.numpy import save_file

    if path.suffix == ".safetensors":
        save_file(arrays, path, metadata)
    else:
        path.write_bytes(ckpt(arrays) if path.suffix == ".ckpt" else legacy(arrays))
    return path
