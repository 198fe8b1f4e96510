"""Pickles parsed without executing them: the opcodes and names that torch.save writes -> plain data, tensors' places.

Nothing is imported or called: names in the pickle are looked up in the tables below, and any other name is refused.
Reference: CPython's pickletools.py (the opcodes), torch/_utils.py and torch/serialization.py (what their arguments
mean).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedCheckpointError, WeightsError

MAX_OPCODES = 2_000_000  # about twenty times those of a checkpoint with optimiser state
MAX_BYTES = 64 << 20  # of one pickle; a checkpoint's is below 1 MB, somewhat more with optimiser state
MAX_DIMENSIONS = 16

# A storage's class in torch -> the type of its numbers, as safetensors names it.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
}
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

# Names that training tools leave in real checkpoints and that no weight depends on; each becomes an empty `Inert`.
INERT = frozenset(
    """_codecs.encode numpy.dtype numpy.core.multiarray.scalar numpy._core.multiarray.scalar torch.Size torch.device
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
    lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint""".split()
)


class Inert:
    """Stands for an object that is not needed; keeps nothing of it."""


@dataclass(frozen=True, eq=False)
class Name:
    """A global of the pickle that one of the tables holds."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers that lie in the file under `key`, from the `offset`-th of them."""

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """A tensor as a view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Module:
    """A torch.nn ParameterDict, whose parameters lie in `state["_parameters"]`."""

    state: Any = None


class _Malformed(Exception):
    """Not what torch.save writes; the message says why."""


@dataclass(frozen=True)
class Loaded:
    """What a pickle holds: dicts, lists, tuples, sets, numbers, texts, bytes, `Module`s and `PickledTensor`s."""

    content: Any
    end: int  # the pickle's, in bytes
    storages: dict[str, int]  # key -> bytes of one number, also of those that no tensor refers to


def loads(data: bytes, label: str, start: int = 0) -> Loaded:
    """Read the pickle that begins at `start`; nothing is executed. `label` names the file in errors.

    Raises `UnsupportedCheckpointError` for a name that is in no table, and `WeightsError` for a pickle that is cut
    short, malformed, or larger than a checkpoint's.
    """
    machine = _Machine(data, start, label)
    try:
        return Loaded(machine.run(), machine.at, machine.storages)
    except (
        _Malformed, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error,
    ) as error:  # fmt: skip
        reason = error.args[0] if isinstance(error, _Malformed) else "it is cut short or damaged"
        raise WeightsError(
            f"{label}: its pickle cannot be read: {reason} (at byte {machine.at}). Download or copy the file again."
        ) from None


class _Machine:
    """Pickle's stack machine; each opcode is a method below, in the table `_OPCODES`."""

    def __init__(self, data: bytes, start: int, label: str):
        self.data = data
        self.at = start
        self.end = min(len(data), start + MAX_BYTES)
        self.label = label
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, int] = {}
        self.copied = 0  # items of arguments, which the memo lets a pickle copy again and again

    def run(self) -> Any:
        opcodes, data = _OPCODES, self.data
        for _ in range(MAX_OPCODES):
            if self.at >= self.end:
                break
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if self.marks:
                    raise _Malformed("it ends inside of a list")
                return self.stack.pop()
            operation = opcodes[code]
            if operation is None:
                raise _Malformed(f"it has the opcode {bytes([code])!r}, which torch.save does not write")
            operation(self)
        raise _Malformed("it is longer than a checkpoint's" if self.at < len(data) else "it is cut short")

    # Reading

    def take(self, size: int) -> bytes:
        start, end = self.at, self.at + size
        if size < 0 or end > self.end:
            raise _Malformed("it is cut short")
        self.at = end
        return self.data[start:end]

    def unpack(self, form: str, size: int) -> Any:
        return struct.unpack(form, self.take(size))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.end, self.at + 4096))
        if end < 0:
            raise _Malformed("it is cut short")
        text = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return text

    # The stack

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def group(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise _Malformed("it appends to something other than a list")

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise _Malformed("it adds to something other than a set")
        for item in items:
            target.add(_as_key(item))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            for i in range(0, len(items), 2):
                target[_as_key(items[i])] = items[i + 1]
        elif type(target) is not Inert:
            raise _Malformed("it sets items of something other than a dict")

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    # Names and objects

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full.startswith("torch.cuda.") and name in STORAGES:
            full = f"torch.{name}"
        if full in INERT or full in _BUILDERS or _dtype_of(full):
            self.push(Name(full))
            return
        raise UnsupportedCheckpointError(
            f"{self.label} is a pickle that names {full[:200]!r}. Only tensors and plain data are read from pickles, "
            f"because a pickle can run any program. Ask for the file in the safetensors form."
        )

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise _Malformed("it names something by no text")
        self.name(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple:
            raise _Malformed("it calls something without arguments")
        self.copied += len(arguments) + sum(len(a) for a in arguments[:1] if type(a) in (list, tuple, set, dict, str))
        if self.copied > MAX_OPCODES:
            raise _Malformed("it is longer than a checkpoint's")
        if type(function) is Name and function.name in _BUILDERS:
            self.stack[-1] = _BUILDERS[function.name](*arguments)
        elif type(function) is Inert or (type(function) is Name and function.name in INERT):
            self.stack[-1] = Inert()
        else:
            raise _Malformed("it calls something other than torch's functions")

    def build(self) -> None:
        """Objects that are kept have no state, but for a ParameterDict; an OrderedDict's metadata is of no use."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Module:
            target.state = state
        elif type(target) not in (Inert, dict):
            raise _Malformed("it gives a state to what has none")

    def persistent(self) -> None:
        """A storage: ("storage", class, key, device, count), and a view of another one in files before torch 1.6."""
        found = self.stack.pop()
        if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
            raise _Malformed("it refers to something other than a storage")
        kind, key, count = found[1], found[2], found[4]
        dtype = _dtype_of(kind.name) if type(kind) is Name else None
        if dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise _Malformed("a storage makes no sense")
        offset = 0
        if len(found) == 6 and found[5] is not None:
            _, offset, count = found[5]
            if type(offset) is not int or type(count) is not int or min(offset, count) < 0:
                raise _Malformed("a storage's view makes no sense")
        self.storages[key] = ITEM_SIZES[dtype]
        self.push(Storage(key, dtype, count, offset))


def _as_key(value: Any) -> Any:
    """A dict's key: of the types whose hash takes neither long nor deep recursion."""
    if type(value) not in (str, int, float, bool, bytes, type(None), Name, Inert):
        raise _Malformed("a dict has a key that is neither text nor number")
    return value


def _dtype_of(name: str) -> str | None:
    """The type of numbers that a storage's class or a torch.dtype stands for."""
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.storage") and last in STORAGES:
        return STORAGES[last]
    return DTYPES.get(last) if module == "torch" else None


# What may be called, each with a function of this file in its place.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> PickledTensor:
    if type(storage) is not Storage:
        raise _Malformed("a tensor has no storage")
    return _view(storage, storage.dtype, offset, shape, strides)


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> PickledTensor:
    """The storage is untyped: its count is in bytes."""
    found = _dtype_of(dtype.name) if type(dtype) is Name else None
    if type(storage) is not Storage or found is None:
        raise _Malformed("a tensor has no storage or no dtype")
    size = ITEM_SIZES[storage.dtype] * storage.count
    typed = Storage(storage.key, found, size // ITEM_SIZES[found], storage.offset)
    return _view(typed, found, offset, shape, strides)


def _view(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    """Check that the tensor lies within its storage."""
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise _Malformed("a tensor's shape makes no sense")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise _Malformed("a tensor's shape makes no sense")
    count = last = 1
    for side, stride in zip(shape, strides, strict=True):
        count *= side
        last += (side - 1) * stride
    if count and (offset + last > storage.count or count > storage.count):
        raise _Malformed("a tensor is larger than its storage")
    return PickledTensor(storage, dtype, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> PickledTensor:
    if type(data) is not PickledTensor:
        raise _Malformed("a parameter holds no tensor")
    return data


def _ordered_dict(*arguments: Any) -> dict:
    result: dict = {}
    for pair in arguments[0] if arguments else ():
        key, value = pair
        result[_as_key(key)] = value
    return result


def _set(*arguments: Any) -> set:
    return {_as_key(item) for item in (arguments[0] if arguments else ())}


def _module(*_: Any) -> Module:
    return Module()


_BUILDERS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.modules.container.ParameterDict": _module,
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
}


def _integer(text: str) -> int | bool:
    if text in ("00", "01"):
        return text == "01"
    if len(text) > 20:
        raise _Malformed("it has a number of too many digits")
    return int(text.rstrip("L"))


def _operations() -> list[Callable[[_Machine], Any] | None]:
    """By opcode. Those of texts in quotes, of extensions and of old-style instances are not among torch's."""
    table: dict[bytes, Callable[[_Machine], Any]] = {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME
        b"(": _Machine.mark,
        b"0": _Machine.pop,
        b"1": _Machine.pop_mark,
        b"2": lambda m: m.push(m.stack[-1]),  # DUP
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": lambda m: m.push(_integer(m.line())),
        b"L": lambda m: m.push(_integer(m.line())),
        b"J": lambda m: m.push(m.unpack("<i", 4)),
        b"K": lambda m: m.push(m.take(1)[0]),
        b"M": lambda m: m.push(m.unpack("<H", 2)),
        b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.take(1)[0]), "little", signed=True)),  # LONG1
        b"F": lambda m: m.push(float(m.line())),
        b"G": lambda m: m.push(m.unpack(">d", 8)),
        b"T": lambda m: m.push(m.take(m.unpack("<I", 4)).decode("utf-8", "replace")),  # BINSTRING
        b"U": lambda m: m.push(m.take(m.take(1)[0]).decode("utf-8", "replace")),
        b"X": lambda m: m.push(m.take(m.unpack("<I", 4)).decode("utf-8", "surrogatepass")),  # BINUNICODE
        b"\x8c": lambda m: m.push(m.take(m.take(1)[0]).decode("utf-8", "surrogatepass")),
        b"\x8d": lambda m: m.push(m.take(m.unpack("<Q", 8)).decode("utf-8", "surrogatepass")),
        b"B": lambda m: m.push(m.take(m.unpack("<I", 4))),  # BINBYTES
        b"C": lambda m: m.push(m.take(m.take(1)[0])),
        b"\x8e": lambda m: m.push(m.take(m.unpack("<Q", 8))),
        b"]": lambda m: m.push([]),
        b"a": lambda m: m.append([m.stack.pop()]),
        b"e": lambda m: m.append(m.pop_mark()),
        b"l": lambda m: m.push(m.pop_mark()),
        b")": lambda m: m.push(()),
        b"t": lambda m: m.push(tuple(m.pop_mark())),
        b"\x85": lambda m: m.group(1),
        b"\x86": lambda m: m.group(2),
        b"\x87": lambda m: m.group(3),
        b"}": lambda m: m.push({}),
        b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
        b"u": lambda m: m.set_items(m.pop_mark()),
        b"\x8f": lambda m: m.push(set()),
        b"\x90": lambda m: m.add(m.pop_mark()),
        b"g": lambda m: m.push(m.memo[_integer(m.line())]),
        b"h": lambda m: m.push(m.memo[m.take(1)[0]]),
        b"j": lambda m: m.push(m.memo[m.unpack("<I", 4)]),
        b"p": lambda m: m.remember(_integer(m.line())),
        b"q": lambda m: m.remember(m.take(1)[0]),
        b"r": lambda m: m.remember(m.unpack("<I", 4)),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"c": lambda m: m.name(m.line(), m.line()),
        b"\x93": _Machine.stack_name,
        b"R": _Machine.reduce,
        b"\x81": _Machine.reduce,  # NEWOBJ: a class in the function's place
        b"b": _Machine.build,
        b"Q": _Machine.persistent,
    }
    return [table.get(bytes([code])) for code in range(256)]


_OPCODES = _operations()
