"""The pickle inside a weights file, read without running any of it: plain values, and tensors over known storages.

A pickle is a program for a small stack machine, and its operations may call any function. This machine knows only the
operations that `torch.save` writes, and it never calls what the file names. A few names mean something (an OrderedDict,
a tensor); other names of torch and numpy become an `Opaque` that says what stood there, and all others are refused.

torch.load(weights_only=True) calls no foreign function either. But it believes the sizes in the file: a tensor may be
larger than its storage, a storage larger than its record, and a few bytes of nested tuples as dictionary keys take
longer than a lifetime to hash. Here, time and memory grow with the size of the file only. Read torch_file.py next.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

MOST_OPERATIONS = 4_000_000        # two seconds; a checkpoint of 2,000 tensors and 10,000 training cases has a million
MOST_TENSORS = 50_000
MOST_AXES = 16
DTYPES = {"torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
          "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
          "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32, "torch.ShortStorage": torch.int16,
          "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool}
HARMLESS = ("torch.", "numpy.", "collections.", "_codecs.encode", "argparse.Namespace", "builtins.set",
            "builtins.bytearray", "builtins.complex", "__builtin__.set", "__builtin__.bytearray",
            "__builtin__.complex")     # beginnings of names that may stand in a weights file; none of them is called


class UnpicklingError(ValueError):
    """What the file holds is not what torch.save writes, or takes too much. The text is a reason, without the path."""


@dataclass(frozen=True)
class Opaque:
    """A value that is neither plain nor a tensor of real numbers; only the name of its type is kept."""

    name: str


class Storage(NamedTuple):
    """The numbers of one or several tensors."""

    key: str
    dtype: torch.dtype
    buffer: bytearray              # it may be filled later: the tensors share its memory


# (key, numbers, bytes of a number) as the pickle claims them -> the buffer of the storage
OpenStorage = Callable[[str, int, int], bytearray]


class Machine:
    """Runs one pickle. `run` gives its value, and `at` is then the byte behind it."""

    def __init__(self, data: Any, open_storage: OpenStorage, most_tensor_bytes: int, at: int = 0) -> None:
        """data:              bytes or an mmap, in which the pickle begins at `at`
        open_storage:      gives the buffer of a storage, or refuses it
        most_tensor_bytes: that all tensors together may have, so that views of one storage do not multiply it
        """
        self.data, self.at, self.open_storage = data, at, open_storage
        self.left, self.tensors = most_tensor_bytes, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle describes. Raises UnpicklingError."""
        try:
            for _ in range(MOST_OPERATIONS):
                code = self.data[self.at]
                self.at += 1
                if code == STOP:
                    return self.stack.pop()
                OPERATIONS[code](self)
        except UnpicklingError:
            raise
        except KeyError:
            raise UnpicklingError("an operation that torch.save does not write") from None
        except (IndexError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError, struct.error):
            raise UnpicklingError("its pickle is damaged") from None
        raise UnpicklingError(f"its pickle takes more than {MOST_OPERATIONS:,} operations")

    def take(self, size: int) -> bytes:
        """The next bytes of the pickle."""
        start, self.at = self.at, self.at + size
        if not 0 <= size or self.at > len(self.data):
            raise UnpicklingError("its pickle is cut off")
        return self.data[start:self.at]

    def number(self, form: str) -> Any:
        """The next number; form: as in the module struct."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """The next line."""
        end = self.data.find(b"\n", self.at, self.at + 200)
        if end < 0:
            raise UnpicklingError("its pickle is damaged")
        text = self.take(end - self.at).decode("ascii")
        self.at += 1
        return text

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def memorise(self, index: int) -> None:
        """Remember the value on the stack under a number."""
        self.memo[index] = self.stack[-1]

    def above_mark(self) -> list[Any]:
        """The values above the last mark, which leave the stack."""
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise UnpicklingError("its pickle is damaged")
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def make_tuple(self, size: int) -> None:
        """Replace the last values by a tuple of them."""
        if size > len(self.stack):
            raise UnpicklingError("its pickle is damaged")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on the stack."""
        target = self.stack[-1]
        if not isinstance(target, (list, Opaque)):
            raise UnpicklingError("its pickle is damaged")
        if isinstance(target, list):
            target.extend(values)

    def update(self, values: list[Any]) -> None:
        """Put alternating keys and values into the dict on the stack."""
        target = self.stack[-1]
        if not isinstance(target, (dict, Opaque)) or len(values) % 2:
            raise UnpicklingError("its pickle is damaged")
        if isinstance(target, dict):
            _put(target, zip(values[::2], values[1::2]))

    def find_global(self) -> None:
        """A name: the type of a storage's numbers, or an Opaque, which `call` may know."""
        name = f"{self.line()}.{self.line()}"
        if not name.startswith(HARMLESS):
            raise UnpicklingError(f"it asks for {name[:60]}, which no weights file needs")
        self.push(DTYPES.get(name, Opaque(name)))

    def call(self) -> None:
        """Replace a name and its arguments by the value that they stand for."""
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, Opaque) or not isinstance(arguments, tuple):
            raise UnpicklingError("its pickle is damaged")
        if what.name == "collections.OrderedDict":
            self.push(_put(OrderedDict(), *arguments))
        elif what.name == "torch._utils._rebuild_parameter":
            self.push(arguments[0])
        elif what.name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            self.push(self.tensor(*arguments[:4]))
        else:
            self.push(what)

    def build(self) -> None:
        """Attributes of an object. Only the versions of modules, which a state dict carries, are kept."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, OrderedDict) and isinstance(state, dict):
            target.__dict__.update({k: v for k, v in state.items() if k == "_metadata"})
        elif not isinstance(target, Opaque):
            raise UnpicklingError("its pickle is damaged")

    def storage(self) -> None:
        """A reference to a storage, which stands outside the pickle."""
        reference = self.stack.pop()
        kind, key, numel = reference[1], reference[2], reference[4]
        if reference[0] != "storage" or type(key) is not str or type(numel) is not int or numel < 0:
            raise UnpicklingError("its pickle refers to something else than a storage")
        if not isinstance(kind, torch.dtype):
            self.push(kind)
        else:
            self.push(Storage(key, kind, self.open_storage(key, numel, kind.itemsize)))

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> torch.Tensor | Opaque:
        """The tensor of these strides over a storage. It must not be larger than the storage."""
        if isinstance(storage, Opaque):
            return Opaque(f"tensor of {storage.name.removeprefix('torch.')}")
        sizes = (offset, *shape, *strides)
        if any(type(n) is not int or n < 0 for n in sizes) or len(shape) != len(strides) or len(shape) > MOST_AXES:
            raise UnpicklingError(f"a tensor of the shape {str(shape)[:60]}")
        have, numel = len(storage.buffer) // storage.dtype.itemsize, math.prod(shape)
        end = offset + (1 + sum((n - 1) * step for n, step in zip(shape, strides)) if numel else 0)
        if end > have or numel > have:
            raise UnpicklingError(f"a tensor of {' x '.join(map(str, shape))} numbers in a storage of {have:,}")
        self.left -= numel * storage.dtype.itemsize
        self.tensors += 1
        if self.left < 0:
            raise UnpicklingError("its tensors together are larger than the file")
        if self.tensors > MOST_TENSORS:
            raise UnpicklingError(f"more than {MOST_TENSORS:,} tensors")
        if not numel:
            return torch.empty(shape, dtype=storage.dtype)
        return torch.frombuffer(storage.buffer, dtype=storage.dtype).as_strided(shape, strides, offset)


def _put(target: dict[Any, Any], pairs: Any = ()) -> dict[Any, Any]:
    """Put pairs into a dict. Other keys than text and small integers could take forever to hash or to compare."""
    for key, value in pairs:
        if type(key) not in (str, int, bool, type(None)) or type(key) is int and not -2**63 <= key < 2**63:
            raise UnpicklingError(f"a dictionary with a key of the type {type(key).__name__}")
        target[key] = value
    return target


STOP = ord(".")
OPERATIONS: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m.take(1),                                                        # PROTO
    ord("("): lambda m: m.marks.append(len(m.stack)),                                 # MARK
    ord("}"): lambda m: m.push({}), ord("]"): lambda m: m.push([]), ord(")"): lambda m: m.push(()),
    ord("N"): lambda m: m.push(None), 0x88: lambda m: m.push(True), 0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")), ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")), ord("G"): lambda m: m.push(m.number(">d")),
    0x8a: lambda m: m.push(_long(m.take(m.number("<B")))),                            # LONG1
    ord("X"): lambda m: m.push(m.take(m.number("<I")).decode("utf-8", "surrogatepass")),               # BINUNICODE
    ord("U"): lambda m: m.push(m.take(m.number("<B")).decode("ascii")),               # strings of Python 2
    ord("T"): lambda m: m.push(m.take(m.number("<I")).decode("ascii")),
    ord("q"): lambda m: m.memorise(m.number("<B")), ord("r"): lambda m: m.memorise(m.number("<I")),
    ord("h"): lambda m: m.push(m.memo[m.number("<B")]), ord("j"): lambda m: m.push(m.memo[m.number("<I")]),
    ord("t"): lambda m: m.push(tuple(m.above_mark())),
    0x85: lambda m: m.make_tuple(1), 0x86: lambda m: m.make_tuple(2), 0x87: lambda m: m.make_tuple(3),
    ord("a"): lambda m: m.extend([m.stack.pop()]), ord("e"): lambda m: m.extend(m.above_mark()),
    ord("s"): lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]), ord("u"): lambda m: m.update(m.above_mark()),
    ord("c"): Machine.find_global, ord("R"): Machine.call, 0x81: Machine.call, ord("b"): Machine.build,
    ord("Q"): Machine.storage,
}


def _long(data: bytes) -> int:
    """An integer. Longer ones than torch.save writes (its magic number has ten bytes) are refused."""
    if len(data) > 10:
        raise UnpicklingError("an integer of more than ten bytes")
    return int.from_bytes(data, "little", signed=True)
