"""Decode the object arrays of a challenge file without running anything.

``boxes``, ``clicks`` and ``clicks_order`` are pickles. A pickle is a program: it names functions of
any installed module and calls them, and ``np.load(..., allow_pickle=True)`` runs it. Here:

* `pickletools.genops` only splits the bytes into opcodes, and `_Reader` executes only the opcodes
  for plain data in protocols 2 to 5. Names stay text: no module that the file names is imported,
  and no function is ever on the stack. `_Reader._call` imitates the few functions that NumPy's own
  pickles call.
* The result is a tree of arrays (native byte order), dict with text keys, list, tuple, str, bytes,
  numbers and None, at most `MAX_LEVELS` deep. An object that the pickle refers to twice is copied.
* The number of opcodes and the memory of the result are limited, so that a short pickle cannot fill
  the memory.

For any bytes, `InputError` is the only exception raised.
"""

import math
import pickletools
import re
import sys
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from utils.errors import InputError

MAX_BYTES = 64 * 2**20
MAX_STEPS = 2**21  # opcodes; 5,000 targets with five clicks each take about a million
MAX_LEVELS = 32
MAX_DIMENSIONS = 64  # NumPy's own limit

# Memory budget of the result in bytes. Data that the pickle refers to once always fits; repeated
# references use up FREE_ROOM. A None is one opcode of one byte; in an object array it takes eight
# bytes as a value and eight as an element. Protocol 2 keeps an array's bytes as text, so they count
# twice.
ROOM_PER_OPCODE = 16
ROOM_PER_BYTE = 2
FREE_ROOM = 2**20

NAMES = {
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",  # protocol 5
    "_codecs.encode",  # protocol 2: bytes, kept as text
    "__builtin__.bytes",  # protocol 2: b""
}
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,8}|O8?")
LEAVES = (str, bytes, bool, int, float, np.generic, type(None))


class UnsafePickleError(InputError):
    """A pickle holds more than plain data: opening it with other tools may run a program."""


def load_objects(data: bytes, where: str) -> object:
    """Return the objects that ``data`` holds, without running anything.

    Args:
        data: one pickle, as it follows the header of a ``.npy`` file of dtype object.
        where: the file and the array, such as ``case.npz, 'boxes'``; begins each message.

    Raises:
        UnsafePickleError: the pickle holds more than plain data.
        InputError: it is damaged, or too large on disk or in memory.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{where}: a pickle of {len(data)} bytes. Expected at most {MAX_BYTES}, some hundred "
            "for each target: write boxes and clicks only, or leave the array out."
        )
    try:
        return _Reader(len(data), where).read(data)
    except InputError:
        raise
    except Exception as error:  # damage may raise anything, MemoryError and RecursionError too
        raise InputError(
            f"{where}: the pickle cannot be read ({type(error).__name__}: {_printable(error)}). "
            "Expected a complete object array as NumPy saves it: copy or download it again."
        ) from error


def _printable(text: object) -> str:
    """Return text from a file as ASCII of bounded length."""
    return ascii(str(text)[:120])[1:-1]


def _require(condition: bool, damage: str) -> None:
    if not condition:
        raise ValueError(damage)


@dataclass(slots=True, eq=False)
class _Name:
    """One of `NAMES` without its module: text, never a function."""

    name: str


@dataclass(slots=True, eq=False)
class _Dtype:
    code: str
    byte_order: str = "="


@dataclass(slots=True, eq=False)
class _Array:
    """An array as the pickle describes it; ``state`` is (shape, dtype, is_fortran, data)."""

    state: tuple | None = None


class _Reader:
    """Pickle's stack machine, which calls nothing."""

    def __init__(self, size: int, where: str) -> None:
        self._where = where
        self._room = FREE_ROOM + ROOM_PER_BYTE * size + ROOM_PER_OPCODE * min(size, MAX_STEPS)
        self._stack, self._marks, self._memo = [], [], []

    def read(self, data: bytes) -> object:
        for step, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
            _require(step < MAX_STEPS, f"more than {MAX_STEPS} steps")
            self._step(opcode.name, argument)
        return self._true(self._stack[-1], MAX_LEVELS)

    def _step(self, opcode: str, argument: object) -> None:
        """Execute one opcode; ``argument`` is its operand in the pickle, or None."""
        push = self._stack.append
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                push(argument)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(argument)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                _require(argument in (None, len(self._memo)), "parts are not numbered in order")
                self._memo.append(self._stack[-1])
            case "MARK":
                self._marks.append(self._stack)
                self._stack = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(opcode[-1]))))
            case "TUPLE":
                items = self._pop_to_mark()
                self._stack.append(tuple(items))  # not `push`, bound to the old stack
            case "APPEND" | "APPENDS":
                self._extend(self._pop(1) if opcode == "APPEND" else self._pop_to_mark())
            case "SETITEM" | "SETITEMS":
                self._update(self._pop(2) if opcode == "SETITEM" else self._pop_to_mark())
            case "GLOBAL":
                push(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(self._named(*self._pop(2)))
            case "REDUCE":
                push(self._call(*self._pop(2)))
            case "BUILD":
                self._build(*self._pop(1))
            case _:
                self._refuse(f"uses the opcode {opcode}")

    def _refuse(self, found: str) -> NoReturn:
        raise UnsafePickleError(
            f"{self._where}: the pickle {found}. Expected only NumPy arrays, dict, list, tuple, "
            "str, bytes, numbers and None: this file may run a program when other tools open it; "
            "do not open it with them, and download it again."
        )

    def _take(self, size: int) -> None:
        self._room -= size
        _require(self._room >= 0, "it grows far beyond its size in the file")

    def _pop(self, count: int) -> list:
        _require(len(self._stack) >= count, "an operand is missing")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _extend(self, items: list) -> None:
        _require(type(self._stack[-1]) is list, "items for something that is not a list")
        self._stack[-1].extend(items)

    def _update(self, items: list) -> None:
        """Set dict entries; keys must be text, as hashing nested tuples may take forever."""
        _require(type(self._stack[-1]) is dict, "entries for something that is not a dict")
        _require(all(isinstance(key, str) for key in items[::2]), "a key of a dict is not text")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _named(self, module: object, name: object) -> _Name:
        _require(isinstance(module, str) and isinstance(name, str), "a name is not text")
        full_name = f"{module}.{name}"
        if full_name.replace("numpy._core.", "numpy.core.") not in NAMES:
            self._refuse(f"calls for {_printable(full_name)}")
        return _Name(name)

    def _call(self, function: object, arguments: object) -> object:
        """Imitate NumPy's own functions, for the arguments that NumPy pickles give them."""
        match function, arguments:
            case _Name("dtype"), (str() as code, *_) if DTYPE_CODE.fullmatch(code):
                return _Dtype(code)
            case _Name("_reconstruct"), (_Name("ndarray"), *_):
                return _Array()
            case _Name("_frombuffer"), (data, dtype, shape, "C" | "F" as order):
                return _Array((shape, dtype, order == "F", data))
            case _Name("scalar"), (dtype, bytes() as data):
                return self._array((), dtype, False, data)[()]
            case _Name("encode"), (str() as text, "latin1"):
                self._take(len(text))
                return text.encode("latin1")
            case _Name("bytes"), ():
                return b""
            case _Name(name), _:
                self._refuse(f"calls {name} with arguments that plain data never has")
        self._refuse(f"calls a value of type {type(function).__name__}")

    def _build(self, state: object) -> None:
        match self._stack[-1], state:
            case _Dtype() as dtype, (_, "<" | ">" | "|" | "=" as order, None, None, None, _, _, _):
                dtype.byte_order = order
            case _Array() as array, (_, shape, dtype, is_fortran, data):
                array.state = (shape, dtype, is_fortran, data)
            case _:
                self._refuse("sets the state of something other than a plain array or dtype")

    def _true(self, part: object, levels: int) -> object:
        """Return ``part`` with arrays in place of `_Array`; at most ``levels`` of nesting."""
        self._take(8)
        if isinstance(part, LEAVES):
            return part
        _require(levels > 0, f"it nests more than {MAX_LEVELS} levels deep, or holds itself")
        match part:
            case list() | tuple():
                return type(part)([self._true(item, levels - 1) for item in part])
            case dict():
                return {key: self._true(item, levels - 1) for key, item in part.items()}
            case _Array((*layout, list() as data)):
                return self._array(*layout, [self._true(item, levels - 1) for item in data])
            case _Array((*layout, bytes() | bytearray() as data)):
                return self._array(*layout, data)
        self._refuse(f"holds a bare {type(part).__name__.strip('_').lower()}")

    def _array(self, shape: object, dtype: object, is_fortran: object, data: object) -> np.ndarray:
        """Make an array from ``data``, bytes or a list of objects; check all sizes first."""
        _require(isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS, "no such shape")
        _require(all(type(n) is int and n >= 0 for n in shape), "no such shape")
        _require(isinstance(dtype, _Dtype), "an array without a dtype")
        true = np.dtype(dtype.byte_order + dtype.code)
        # An empty array counts too: along its other axes it may be long enough to loop forever.
        self._take(math.prod(max(n, 1) for n in shape) * max(true.itemsize, 1))
        size, order = math.prod(shape), "F" if is_fortran else "C"
        _require(len(data) == size * (1 if true.kind == "O" else true.itemsize), "a wrong size")
        _require(isinstance(data, list) == (true.kind == "O"), "another dtype than its data")
        if true.kind == "O":
            return np.asarray(np.fromiter(data, object, size).reshape(shape), order=order)
        if true.kind == "U":
            code_points = np.frombuffer(data, f"{dtype.byte_order}u4")
            _require(code_points.max(initial=0) <= sys.maxunicode, "text of no characters")
        array = np.ndarray(shape, true, data, order=order)
        return array.astype(true.newbyteorder("="), order="K")
