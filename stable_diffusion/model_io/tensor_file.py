"""An open file of tensors: its header's entries, and tensors' bytes on demand.

Safetensors files, and what torch.save writes: a zip archive since torch 1.6, a sequence of pickles before. Tensors are
read by positioned reads rather than a memory map, in which a change by another program could crash this one.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import CheckpointNotFoundError, UnsupportedCheckpointError, WeightsError
from . import safe_pickle

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
# Numpy's type for each of safetensors' names; bfloat16 and the fp8 types, which numpy lacks, as raw bits.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "BOOL": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
FLOAT8 = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15)}  # bits of exponent and mantissa, the exponent's bias
ITEM_SIZES = {name: np.dtype(form).itemsize for name, form in DTYPES.items()}
STATE_DICTS = ("state_dict", "model")  # a pickle's keys below which tensors lie
LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # a pickle of torch's magic number
AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file. `strides` count numbers; None is contiguous."""

    key: str
    dtype: str  # as safetensors names it: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # of its first byte, from the file's beginning
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes from its first number to its last."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape) * ITEM_SIZES[self.dtype]
        last = sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * ITEM_SIZES[self.dtype]

    def rows(self, part: int, parts: int) -> StoredTensor:
        """One of several equal parts along the first axis."""
        count, rest = divmod(self.shape[0] if self.shape else 0, parts)
        if rest or not count:
            raise WeightsError(f"the tensor {self.key} of the shape {self.shape} should divide into {parts} parts.")
        stride = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        start = self.start + part * count * stride * ITEM_SIZES[self.dtype]
        return replace(self, shape=(count, *self.shape[1:]), start=start)


class HeaderText(Mapping[str, StoredTensor]):
    """The tensors of a safetensors header, parsed on demand: a listing needs a few keys of thousands."""

    def __init__(self, text: bytes, data_start: int):
        self._text = text
        self._data_start = data_start

    def __getitem__(self, key: str) -> StoredTensor:
        entry = self.value(key)
        if not isinstance(entry, dict):
            raise KeyError(key)
        return _stored(key, entry, self._data_start)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._parsed() if key != "__metadata__")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def has_prefix(self, prefix: str) -> bool:
        """True if any tensor's name starts with `prefix`."""
        return self._find(b'"' + prefix.encode()) >= 0

    @property
    def end(self) -> int:
        """Where the last tensor ends in the file."""
        ends = re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]', self._text)
        return self._data_start + max(map(int, ends), default=0)

    def ending_with(self, suffix: str) -> StoredTensor | None:
        """The first tensor whose name ends with `suffix`."""
        at = self._find(suffix.encode() + b'":')
        start = self._text.rfind(b'"', 0, at) + 1
        return self.get(self._text[start : at + len(suffix)].decode("utf-8", "replace")) if at >= 0 else None

    def value(self, key: str) -> Any:
        """The value of a key, or None."""
        name = json.dumps(key).encode() + b":"
        at = self._find(name)
        if at < 0:
            return None
        # No tensor's entry is longer; only metadata are.
        end = len(self._text) if key == "__metadata__" else at + len(name) + 1024
        return json.JSONDecoder().raw_decode(self._text[at + len(name) : end].decode("utf-8", "replace").lstrip())[0]

    def _find(self, text: bytes) -> int:
        """Where a text stands, but not within a string, where its first quote would be escaped."""
        at = self._text.find(text)
        while at > 0 and self._text[at - 1] == ord("\\"):
            at = self._text.find(text, at + 1)
        return at

    def _parsed(self) -> dict[str, Any]:
        header = json.loads(self._text)
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        return header


@functools.cache
def float8_values(dtype: str) -> np.ndarray:
    """The float32 value of each of the 256 codes of an 8-bit type, "F8_E4M3" (without infinities) or "F8_E5M2".

    Micikevicius et al. 2022, "FP8 formats for deep learning", table 1.
    """
    exponent_bits, mantissa_bits, bias = FLOAT8[dtype]
    codes = np.arange(256)
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = (codes & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    values = np.where(exponent > 0, np.ldexp(1 + mantissa, exponent - bias), np.ldexp(mantissa, 1 - bias))
    top = exponent == (1 << exponent_bits) - 1
    if dtype == "F8_E4M3":
        values[top & (codes & 7 == 7)] = np.nan
    else:
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    return np.where(codes < 128, values, -values).astype(np.float32)


def as_floats(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as `TensorFile.read` gives them, of a type that may be one that numpy lacks, as float32."""
    if dtype == "BF16":  # the upper half of a float32
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return float8_values(dtype)[numbers] if dtype in FLOAT8 else numbers.astype(np.float32)


class Scratch(threading.local):
    """Reusable buffers, per thread: allocating memory takes longer than filling it."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array for temporary use; the next call with the same name reuses its memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)
            self._buffers[name] = np.empty(size, np.uint8)
        return self._buffers[name][:size].view(dtype).reshape(shape)


@dataclass
class TensorFile:
    """An open file: use it in a `with` statement, or close it."""

    path: Path
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)  # a safetensors file's
    values: dict[str, Any] = field(default_factory=dict)  # a pickle's numbers and texts other than tensors
    form: str = "safetensors"  # or "pickle"

    def __post_init__(self) -> None:
        try:
            self._stream = io.FileIO(self.path, "r", opener=_open_without_waiting)
        except OSError as error:
            raise CheckpointNotFoundError(f"{self.path} cannot be opened: {error.strerror}.") from None
        self.scratch = Scratch()
        self._turn = threading.Lock()
        self._state = self._stat()
        self.size = self._state[0]

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its tensors can no longer be read."""
        self._stream.close()

    def bytes(self, start: int, size: int) -> bytes:
        """Some of the file's bytes. Raises `WeightsError` if it has fewer."""
        if start < 0 or size < 0 or start + size > self.size:
            raise WeightsError(f"{self.path} is cut short: it has {self.size} bytes, not {start + size}. {AGAIN}")
        buffer = bytearray(size)
        self._fill(memoryview(buffer), start)
        return bytes(buffer)

    def read(self, tensor: StoredTensor, buffer: np.ndarray | None = None) -> np.ndarray:
        """A tensor's numbers, in the file's type; bfloat16 as its bits in uint16. `buffer`: bytes to read into.

        Raises `WeightsError` if the file has changed since it was opened.
        """
        size = ITEM_SIZES[tensor.dtype]
        if buffer is None:
            buffer = np.empty(tensor.nbytes, np.uint8)
        if buffer.size:
            self._fill(buffer.data, tensor.start)
        numbers = buffer.view(DTYPES[tensor.dtype])
        if tensor.strides is None or not numbers.size:
            return numbers.reshape(tensor.shape)
        strides = tuple(stride * size for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)

    def check_unchanged(self) -> None:
        """Raise `WeightsError` if the file has been written to since it was opened."""
        if self._stat() != self._state:
            raise WeightsError(f"{self.path} has changed while it was being read. Try again when it is complete.")

    def _fill(self, buffer: memoryview, start: int) -> None:
        done = 0
        with self._turn:
            self._stream.seek(start)
            while done < len(buffer) and (count := self._stream.readinto(buffer[done:])):
                done += count
        self.check_unchanged()
        if done < len(buffer):
            raise WeightsError(f"{self.path} is cut short at {start + done} bytes. {AGAIN}")

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise UnsupportedCheckpointError(f"{self.path} is not a regular file.")
        return found.st_size, found.st_mtime_ns


def _open_without_waiting(path: str, flags: int) -> int:
    """Open without blocking on a pipe, which would wait for a writer; it is refused afterwards."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_tensors(path: Path, check: bool = True) -> TensorFile:
    """Open a file of tensors; its form is recognised by its first bytes, not its name.

    `check` verifies every tensor's entry against the file; without it (for a listing, which reads no tensor) only the
    header is parsed. Raises `CheckpointNotFoundError`, `UnsupportedCheckpointError` or `WeightsError`.
    """
    file = TensorFile(path)
    try:
        if file.size == 0:
            raise WeightsError(f"{path} is empty (0 bytes). {AGAIN}")
        start = file.bytes(0, min(file.size, 64))
        if start.startswith(b"PK"):
            _read_zip(file)
        elif start.startswith(LEGACY):
            _read_legacy(file)
        elif start[8:9] == b"{":
            _read_safetensors(file, check)
        else:
            raise _unknown(path, start)
    except BaseException:
        file.close()
        raise
    return file


def _unknown(path: Path, start: bytes) -> Exception:
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` for it.")
    if start.lstrip()[:1] == b"<":
        return WeightsError(f"{path} is a web page, not a checkpoint; download the file itself.")
    if path.suffix == ".safetensors":
        return WeightsError(f"{path} is not an intact safetensors file; it may be cut short. {AGAIN}")
    return UnsupportedCheckpointError(
        f"{path} is neither a safetensors file nor one of torch's (a zip archive, or a pickle with torch's mark), "
        f"or it is damaged. {AGAIN}"
    )


# Safetensors


def _read_safetensors(file: TensorFile, check: bool) -> None:
    (size,) = struct.unpack("<Q", file.bytes(0, 8))
    if size > min(MAX_HEADER, file.size - 8):
        raise WeightsError(
            f"{file.path} is not an intact safetensors file: its header claims {size} bytes, the file has {file.size}. "
            f"{AGAIN}"
        )
    text = HeaderText(file.bytes(8, size), 8 + size)
    try:
        metadata = text.value("__metadata__")
        texts = metadata.items() if isinstance(metadata, dict) else ()
        file.metadata = {key: value for key, value in texts if isinstance(value, str)}
        if text.end > file.size:
            raise ValueError(f"it is cut short: its tensors end at {text.end} bytes, the file at {file.size}")
        file.tensors = text if not check else _checked_tensors(file, text, 8 + size)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = error if type(error) is ValueError else "its header is damaged"
        raise WeightsError(f"{file.path} is not an intact safetensors file: {reason}. {AGAIN}") from None


def _stored(key: str, entry: Any, data_start: int) -> StoredTensor:
    return StoredTensor(key, entry["dtype"], tuple(entry["shape"]), data_start + entry["data_offsets"][0])


def _checked_tensors(file: TensorFile, text: HeaderText, data_start: int) -> dict[str, StoredTensor]:
    tensors = {}
    for key, entry in text._parsed().items():
        if key != "__metadata__":
            tensors[key] = _stored(key, entry, data_start)
            _check_claims(file, tensors[key], data_start + entry["data_offsets"][1])
    _check_order(file, tensors, data_start)
    return tensors


def _check_claims(file: TensorFile, tensor: StoredTensor, end: int) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"the tensor {tensor.key} is of the unknown type {tensor.dtype!r}")
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in (tensor.start, *tensor.shape)):
        raise ValueError(f"the tensor {tensor.key} has no shape or place that makes sense")
    if tensor.start + tensor.nbytes != end:
        raise ValueError(f"the tensor {tensor.key} of the shape {tensor.shape} does not fill its place")
    if end > file.size:
        raise ValueError(f"it is cut short: the tensor {tensor.key} ends at {end} bytes, the file at {file.size}")


def _check_order(file: TensorFile, tensors: Mapping[str, StoredTensor], start: int) -> None:
    """Tensors must follow one another without gaps or overlaps and fill the file, as the format demands."""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != start:
            raise ValueError(f"the tensor {tensor.key} does not follow on the one before it")
        start += tensor.nbytes
    if start != file.size:
        raise ValueError(f"its tensors end at {start} bytes, the file at {file.size}")


# What torch.save writes


def _read_zip(file: TensorFile) -> None:
    file.form = "pickle"
    try:
        reader = io.BufferedReader(file._stream)
        try:
            with zipfile.ZipFile(reader) as archive:
                entries = {info.filename: info for info in archive.infolist()}
        finally:
            reader.detach()  # which leaves the file open
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise WeightsError(
            f"{file.path} is not an intact zip archive ({error}); it may be cut short. {AGAIN}"
        ) from None
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsupportedCheckpointError(
            f"{file.path} is a zip archive with {len(pickles)} files named data.pkl, where torch writes one."
        )
    root = pickles[0].removesuffix("data.pkl")
    if root + "constants.pkl" in entries:
        raise UnsupportedCheckpointError(f"{file.path} is a TorchScript program, not a checkpoint.")
    order = entries.get(root + "byteorder")
    if order is not None and file.bytes(*_place(file, order, 16)) != b"little":
        raise UnsupportedCheckpointError(f"{file.path} was written by a big-endian machine, which is not supported.")
    content = safe_pickle.loads(
        file.bytes(*_place(file, entries[pickles[0]], safe_pickle.MAX_BYTES)), str(file.path)
    ).content
    places: dict[str, tuple[int, int]] = {}

    def place(storage: safe_pickle.Storage) -> tuple[int, int]:
        if storage.key not in places:
            name = f"{root}data/{storage.key}"
            if name not in entries:
                raise WeightsError(f"{file.path} lacks the data {name!r}. {AGAIN}")
            places[storage.key] = _place(file, entries[name], file.size)
        return places[storage.key]

    _collect(file, content, place)


def _place(file: TensorFile, entry: zipfile.ZipInfo, most: int) -> tuple[int, int]:
    """Start and size of an entry's bytes."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise UnsupportedCheckpointError(
            f"{file.path}: {entry.filename!r} is compressed or encrypted, which torch never writes. Ask for the file "
            f"in the safetensors form."
        )
    local = file.bytes(entry.header_offset, 30)
    if local[:4] != b"PK\x03\x04":
        raise WeightsError(f"{file.path} is damaged: {entry.filename!r} is not where its directory says. {AGAIN}")
    name, extra = struct.unpack("<HH", local[26:30])
    start = entry.header_offset + 30 + name + extra
    if entry.file_size > most or start + entry.file_size > file.size:
        raise WeightsError(f"{file.path}: {entry.filename!r} claims {entry.file_size} bytes, too many. {AGAIN}")
    return start, entry.file_size


def _read_legacy(file: TensorFile) -> None:
    """Five pickles (magic number, version, machine, content, the storages' keys), then the storages."""
    file.form = "pickle"
    label = str(file.path)
    data = file.bytes(0, min(file.size, safe_pickle.MAX_BYTES))
    at, found = 0, []
    for _ in range(5):
        found.append(safe_pickle.loads(data, label, at))
        at = found[-1].end
    version, machine, content, keys = (each.content for each in found[1:])
    if version != 1001 or type(machine) is not dict or machine.get("little_endian") is not True:
        raise UnsupportedCheckpointError(
            f"{label} has a version other than torch's 1001, or was written by a big-endian machine."
        )
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise WeightsError(f"{label}: its list of storages is damaged. {AGAIN}")
    sizes = found[3].storages
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.bytes(at, 8))
        size = count * sizes.get(key, 1)
        if count < 0 or at + 8 + size > file.size or key not in sizes:
            raise WeightsError(
                f"{label} is cut short or damaged at {at} bytes: {key!r} claims {count} numbers. {AGAIN}"
            )
        places[key] = at + 8, size
        at += 8 + size

    def place(storage: safe_pickle.Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise WeightsError(f"{label} lacks the data {storage.key!r}. {AGAIN}")
        start, size = places[storage.key]
        item = safe_pickle.ITEM_SIZES[storage.dtype]
        return start + storage.offset * item, size - storage.offset * item

    _collect(file, content, place)


def _collect(file: TensorFile, content: Any, place: Callable[[safe_pickle.Storage], tuple[int, int]]) -> None:
    """Set the file's tensors from its pickle's state dict, and the plain values next to them."""
    for _ in range(8):  # "state_dict" may lie in "state_dict"
        if type(content) is not dict:
            break
        inner = next((content[key] for key in STATE_DICTS if type(content.get(key)) is dict), None)
        if inner is None:
            break
        file.values |= _plain(content)
        content = inner
    if type(content) is not dict:
        raise UnsupportedCheckpointError(f"{file.path} holds no state dict, so it is not a checkpoint.")
    file.values |= _plain(content)
    tensors = {}
    for key, value in _tensors(content):
        start, size = place(value.storage)
        item = ITEM_SIZES[value.dtype]
        strides = None if _is_contiguous(value) else value.strides
        tensor = StoredTensor(key, value.dtype, value.shape, start + value.offset * item, strides)
        if value.offset * item + tensor.nbytes > size:
            raise WeightsError(f"{file.path}: the tensor {key} is larger than its data, {size} bytes. {AGAIN}")
        tensors[key] = tensor
    if not tensors:
        raise UnsupportedCheckpointError(f"{file.path} is a pickle that holds no tensors, so it is not a checkpoint.")
    file.tensors = tensors


def _plain(content: dict) -> dict[str, Any]:
    return {key: value for key, value in content.items() if type(key) is str and type(value) in (int, float, str)}


def _tensors(content: dict) -> Iterator[tuple[str, safe_pickle.PickledTensor]]:
    """The tensors of a dict, and of dicts and ParameterDicts in it, under names joined by dots."""
    for key, value in content.items():
        if type(value) is safe_pickle.Module and type(value.state) is dict:
            value = value.state.get("_parameters")
        if type(value) is safe_pickle.PickledTensor:
            yield str(key), value
        elif type(value) is dict:
            inner = {f"{key}.{name}": tensor for name, tensor in value.items()}
            yield from ((name, tensor) for name, tensor in inner.items() if type(tensor) is safe_pickle.PickledTensor)


def _is_contiguous(tensor: safe_pickle.PickledTensor) -> bool:
    expected = 1
    for side, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
