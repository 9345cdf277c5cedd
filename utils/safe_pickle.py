"""Object arrays of a challenge file, decoded without running anything (no torch).

``boxes``, ``clicks`` and ``clicks_order`` are pickles. A pickle is a program that names functions
of any installed module and calls them, and ``np.load(..., allow_pickle=True)`` obeys. Here:

* `pickletools.genops` only splits the bytes into opcodes, and `_Reader` acts on the 37 of them
  that hold plain data in protocols 2 to 5. Names are looked up in a table of strings, never
  imported; what NumPy's own names stand for is done here. No function ever lies on the stack.
* Memory stays a small multiple of the pickle: the steps, the nesting and the room that arrays take
  are limited, so a short pickle that refers to one part over and over is refused.
* The result holds arrays (native byte order), dict with text keys, list, tuple, str, bytes, numbers
  and None. It nests at most `MAX_LEVELS` deep and never holds itself.

Whatever the bytes are, nothing but `InputError` comes out.
"""

import math
import pickletools
import re
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError

MAX_BYTES = 64 * 2**20
MAX_STEPS = 2**21  # opcodes; 5,000 targets with five clicks each take under a million
MAX_LEVELS = 32
FREE_ROOM = 2**16  # bytes; an array of shape (500, 0) counts as 500 elements

NDARRAY = "numpy ndarray"
CALLS = {  # "module name" in the pickle -> the method of `_Reader` that does its work
    "numpy dtype": "_dtype",
    "numpy.core.multiarray _reconstruct": "_reconstruct",
    "numpy._core.multiarray _reconstruct": "_reconstruct",
    "numpy.core.multiarray scalar": "_scalar",
    "numpy._core.multiarray scalar": "_scalar",
    "numpy.core.numeric _frombuffer": "_frombuffer",  # protocol 5
    "numpy._core.numeric _frombuffer": "_frombuffer",
    "_codecs encode": "_encode",  # protocol 2 holds bytes as text
    "__builtin__ bytes": "_empty_bytes",
}
DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|[SU][0-9]{1,8}|O8?")
LEAVES = (str, bytes, bool, int, float, np.generic, type(None))
MAX_DIMENSIONS = 64  # NumPy's own limit
MAX_CODE_POINT = 0x10FFFF


class UnsafePickleError(InputError):
    """A pickle asks for more than plain data: where it is trusted, it may run a program."""


def load_objects(data: bytes, where: str) -> object:
    """Return what ``data`` was pickled from, without running anything.

    Args:
        data: one pickle, as it follows the header of a ``.npy`` file of dtype object.
        where: the file and the array, like ``case.npz, 'boxes'``; begins each message.

    Raises:
        UnsafePickleError: the pickle asks for more than plain data.
        InputError: it is damaged, or too large on disk or in memory.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{where}: a pickle of {len(data)} bytes. Expected at most {MAX_BYTES}, some hundred "
            "for each target: write boxes and clicks only, or leave the array out."
        )
    try:
        return _Reader(len(data)).read(data)
    except _RefusedError as error:
        raise UnsafePickleError(
            f"{where}: the pickle {error}. Expected only NumPy arrays, dict, list, tuple, str, "
            "bytes, numbers and None: this file may run a program when other tools open it; "
            "do not open it with them, and download it again."
        ) from error
    except Exception as error:  # damage can fail anywhere, as MemoryError and RecursionError too
        raise InputError(
            f"{where}: the pickle cannot be read ({type(error).__name__}: {_printable(error)}). "
            "Expected a complete object array as NumPy saves it: copy or download it again."
        ) from error


def _printable(text: object) -> str:
    """Return text that a file chose as ASCII of bounded length."""
    return ascii(str(text)[:120])[1:-1]


def _require(condition: bool, damage: str) -> None:
    if not condition:
        raise ValueError(damage)


class _RefusedError(Exception):
    """The pickle asks for more than plain data; the text goes on after "the pickle"."""


@dataclass(slots=True, eq=False)
class _Name:
    """A function or class that the pickle mentions: nothing but its name."""

    name: str


@dataclass(slots=True, eq=False)
class _Dtype:
    code: str
    order: str = "="

    def build(self, state: tuple) -> None:
        _version, order, *fields, _itemsize, _alignment, _flags = state
        if any(field is not None for field in fields):
            raise _RefusedError("asks for a dtype with fields")
        _require(isinstance(order, str) and order in tuple("<>|="), "no such byte order")
        self.order = order

    def true(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass(slots=True, eq=False)
class _Array:
    """An array as described by the pickle: ``state`` is (shape, dtype, is_fortran, data)."""

    state: tuple | None = None

    def build(self, state: tuple) -> None:
        _version, *self.state = state


class _Reader:
    """Pickle's stack machine without its power to call; then true arrays from the inside out."""

    def __init__(self, size: int) -> None:
        self._room = FREE_ROOM + 8 * size  # a None is 1 byte of pickle and 8 of an array
        self._stack, self._marks, self._memo = [], [], []
        self._done, self._levels = {}, {}  # id of a part -> its true value, how deep it nests

    def read(self, data: bytes) -> object:
        for step, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
            _require(step < MAX_STEPS, f"more than {MAX_STEPS} steps")
            self._step(opcode.name, argument)
        return self._true(self._stack.pop(), MAX_LEVELS)

    def _step(self, opcode: str, argument: object) -> None:
        """Do what one opcode says; ``argument`` is what the pickle holds behind it, or None."""
        push = self._stack.append
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case (
                "NONE"
                | "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
                | "SHORT_BINUNICODE"
                | "BINUNICODE"
                | "BINUNICODE8"
                | "SHORT_BINBYTES"
                | "BINBYTES"
                | "BINBYTES8"
                | "BYTEARRAY8"
            ):
                push(argument)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(opcode[-1]))))
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "MEMOIZE" | "BINPUT" | "LONG_BINPUT":
                _require(argument in (None, len(self._memo)), "parts are not numbered in order")
                self._memo.append(self._stack[-1])
            case "MARK":
                self._marks.append(self._stack)
                self._stack = []
            case "TUPLE":
                items = self._pop_to_mark()
                self._stack.append(tuple(items))  # not `push`: the stack is another one now
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._pop_to_mark())
            case "GLOBAL":
                push(_named(argument))
            case "STACK_GLOBAL":
                module, name = self._pop(2)
                _require(isinstance(module, str) and isinstance(name, str), "a name is no text")
                push(_named(f"{module} {name}"))
            case "REDUCE":
                push(self._call(*self._pop(2)))
            case "BUILD":
                self._build(*self._pop(1))
            case _:
                raise _RefusedError(f"uses the opcode {opcode}")

    def _pop(self, count: int) -> list:
        _require(len(self._stack) >= count, "an operand is missing")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _extend(self, items: list) -> None:
        _require(type(self._stack[-1]) is list, "items are added to what is no list")
        self._stack[-1].extend(items)

    def _update(self, items: list) -> None:
        """Set dict entries. Only text is hashed: a tuple that holds itself twice takes forever."""
        keys, values = items[::2], items[1::2]
        _require(type(self._stack[-1]) is dict, "entries are added to what is no dict")
        _require(all(isinstance(key, str) for key in keys), "a key of a dict is no text")
        self._stack[-1].update(zip(keys, values, strict=True))

    def _build(self, state: object) -> None:
        if not isinstance(self._stack[-1], _Dtype | _Array):
            raise _RefusedError("sets the state of something else than an array")
        _require(type(state) is tuple, "a state is no tuple")
        self._stack[-1].build(state)

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Name) or function.name not in CALLS:
            raise _RefusedError("calls something else than a function of NumPy's file format")
        _require(type(arguments) is tuple, "arguments are no tuple")
        return getattr(self, CALLS[function.name])(*arguments)

    def _dtype(self, code: object, _align: object, _copy: object) -> _Dtype:
        _require(isinstance(code, str), "a dtype is no text")
        if not DTYPE_CODE.fullmatch(code):
            raise _RefusedError(f"asks for dtype {_printable(code)}")
        return _Dtype(code)

    def _reconstruct(self, kind: object, _shape: object, _code: object) -> _Array:
        if not isinstance(kind, _Name) or kind.name != NDARRAY:
            raise _RefusedError("rebuilds something else than numpy.ndarray")
        return _Array()

    def _frombuffer(self, data: object, dtype: object, shape: object, order: object) -> _Array:
        _require(isinstance(order, str) and order in ("C", "F"), "no such order of an array")
        return _Array((shape, dtype, order == "F", data))

    def _scalar(self, dtype: object, data: object) -> np.generic:
        array = self._array((), dtype, False, data)
        _require(array.dtype != object, "a scalar of dtype object")
        return array[()]

    def _encode(self, text: object, encoding: object) -> bytes:
        _require(isinstance(text, str) and encoding == "latin1", "bytes are not held as latin1")
        self._take(len(text))
        return text.encode("latin1")

    def _empty_bytes(self) -> bytes:
        return b""

    def _take(self, size: int) -> None:
        self._room -= size
        _require(self._room >= 0, "its arrays are larger than the pickle itself")

    def _true(self, part: object, room: int) -> object:
        """Return ``part`` with true arrays in it; it may nest at most ``room`` levels deep."""
        if isinstance(part, LEAVES):
            return part
        key = id(part)
        if key not in self._done and room > 0:
            children = _children(part)
            values = [self._true(child, room - 1) for child in children]
            self._levels[key] = 1 + max((self._levels.get(id(c), 0) for c in children), default=0)
            self._done[key] = self._assemble(part, values)
        levels = self._levels.get(key, math.inf)  # inf: in the making, so it holds itself
        _require(levels <= room, f"it nests more than {MAX_LEVELS} levels deep, or holds itself")
        return self._done[key]

    def _assemble(self, part: object, values: list) -> object:
        """Make the true value of a container from the true values of its children."""
        if isinstance(part, _Array):
            *layout, data = part.state
            return self._array(*layout, values if type(data) is list else data)
        return dict(zip(part, values, strict=True)) if type(part) is dict else type(part)(values)

    def _array(self, shape: object, dtype: object, is_fortran: object, data: object) -> np.ndarray:
        _require(type(shape) is tuple and len(shape) <= MAX_DIMENSIONS, "a shape is no tuple")
        _require(all(type(n) is int and n >= 0 for n in shape), "a shape holds no lengths")
        _require(isinstance(dtype, _Dtype), "an array has no dtype")
        size, true, order = math.prod(shape), dtype.true(), "F" if is_fortran else "C"
        self._take(math.prod(max(n, 1) for n in shape) * max(true.itemsize, 1))
        if true == object:
            _require(type(data) is list and len(data) == size, "shape and length disagree")
            return np.asarray(np.fromiter(data, object, size).reshape(shape), order=order)
        _require(isinstance(data, bytes | bytearray), "an array has no data")
        _require(len(data) == size * true.itemsize, "shape and length disagree")
        if true.kind == "U":
            code_points = np.frombuffer(data, f"{dtype.order}u4")
            _require(code_points.max(initial=0) <= MAX_CODE_POINT, "text holds no characters")
        array = np.ndarray(shape, true, data, order=order)
        return array.astype(true.newbyteorder("="), order="K")


def _named(name: str) -> _Name:
    if name not in CALLS and name != NDARRAY:
        raise _RefusedError(f"calls for {_printable(name).replace(' ', '.')}")
    return _Name(name)


def _children(part: object) -> list | tuple:
    match part:
        case list() | tuple():
            return part
        case dict():
            return list(part.values())
        case _Array(state=(_, _, _, list() as data)):
            return data
        case _Array(state=(_, _, _, bytes() | bytearray())):
            return ()
    raise _RefusedError(f"holds a {type(part).__name__.lstrip('_').lower()} as a value")
