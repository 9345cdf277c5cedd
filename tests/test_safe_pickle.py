"""Pickles of challenge files: what NumPy writes is read, everything else is refused unexecuted."""

import functools
import io
import os
import pickle
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.safe_pickle import MAX_BYTES, MAX_LEVELS, MAX_STEPS, UnsafePickleError, load_objects

WHERE = "case.npz, 'boxes'"
PROTOCOLS = (2, 3, 4, 5)
U64 = struct.Struct("<Q").pack


def objects(*items, shape=None, order="C"):
    """Return an object array of ``items`` whatever they are; NumPy would join equal lengths."""
    array = np.empty(len(items), object)
    for index, item in enumerate(items):
        array[index] = item
    return np.asarray(array.reshape(shape or array.shape), order=order)


SHARED = [[1, 2, 3]]
VALID = {
    "boxes": objects({"z_min": 3, "z_mid_x_max": 70_000}, {"z_min": np.int64(-4), "z_max": 2**40}),
    "clicks": objects({"fg": [[1, 2, 3]], "bg": []}, {"fg": [[np.int64(7)] * 3], "bg": [(1, 2)]}),
    "clicks of empty lists": np.array([[]] * 500, object),
    "clicks_order with None": np.array([["fg", None], ["bg", "fg"]], object),
    "clicks_order": np.array([["fg", "bg"]]),
    "one dict": np.array({"fg": [None, True, 2.5, -(2**200), "é\0\ud800", b"\xff", ""]}, object),
    "arrays in arrays": objects(objects(1, objects("a")), np.arange(3), np.array(5), [[]]),
    "arrays in dicts": objects({"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 3), "i2")}),
    "Fortran order": objects(*range(6), shape=(2, 3), order="F"),
    "Fortran order of numbers": np.arange(6, dtype=">i4").reshape(2, 3).T,
    "NumPy scalars": [
        np.bool_(True),
        np.float32(2.5),
        np.float16(1),
        np.str_("aé"),
        np.bytes_(b"b"),
    ],
    "empty texts": [np.str_(""), np.array(["", ""]), np.zeros(3, "U0"), "", b""],
    "texts and bytes": [np.array(["a", "\U0001f600é"]), np.array([b"a\0b", b"c"]), b"\0" * 300],
    "every dtype": [
        np.arange(3).astype(code) for code in "? b B h H i I l L e f d >i2 >f8".split()
    ],
    "parts mentioned twice": objects(SHARED, SHARED, {"a": SHARED}),
    "a long array": np.arange(5000, dtype=np.uint8),
}


def same(a, b):
    """Compare two trees by type and value; arrays by dtype, but for the byte order, and layout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        alike = a.shape == b.shape and a.flags.f_contiguous == b.flags.f_contiguous
        alike = alike and a.dtype.newbyteorder("=") == b.dtype and b.flags.writeable
        return alike and all(map(same, a.ravel().tolist(), b.ravel().tolist()))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@functools.cache
def watch():
    """Return the list in which Python notes from now on who imports, opens, runs or unpickles."""
    seen = []
    watched = ("import", "open", "exec", "compile", "pickle.", "os.", "subprocess.", "marshal.")
    sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(watched) else None)
    return seen


def load(data):
    """Call `load_objects`; fail if anything was imported, opened or run meanwhile."""
    seen = watch()
    seen.clear()
    try:
        return load_objects(data, WHERE)
    finally:
        assert not seen


def outcome(data):
    """Load what may be damaged: a value of admitted types, or an `InputError` that names it."""
    try:
        value = load(data)
    except InputError as error:
        assert str(error).startswith(WHERE)
        assert len(str(error)) < 600
        return error
    require_plain(value)
    return value


def require_plain(value):
    if isinstance(value, np.ndarray):
        assert type(value) is np.ndarray
        assert value.dtype.kind in "buifSUO"
        assert value.dtype.isnative
        value = value.ravel().tolist()
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            require_plain(item)
        return
    assert isinstance(value, str | bytes | bool | int | float | np.generic | None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VALID)
def test_what_numpy_pickles_is_read_as_numpy_reads_it(name, protocol):
    data = pickle.dumps(VALID[name], protocol)

    assert same(pickle.loads(data), load(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_older_numpy_with_its_other_module_names_is_read(protocol):
    data = pickle.dumps(VALID["clicks"], protocol)
    core, old_core = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert core in data
    if protocol >= 4:  # a frame and a text know their length
        core, old_core = b"\x16" + core, b"\x15" + old_core
        data = data.replace(data[2:11], b"\x95" + U64(len(data) - 12), 1)

    assert same(pickle.loads(data), load(data.replace(core, old_core)))


def test_pure_python_pickles_are_read():
    data = pickle._dumps(VALID["clicks"], 4)

    assert same(pickle.loads(data), load(data))


def test_arrays_of_a_challenge_file_are_read(make_case, tmp_path):
    path = make_case(tmp_path, "case", boxes=VALID["boxes"], clicks=VALID["clicks"])

    with np.load(path, allow_pickle=True) as archive:
        for key in ("boxes", "clicks"):
            member = archive.zip.open(f"{key}.npy")
            assert np.lib.format.read_magic(member) == (1, 0)
            np.lib.format.read_array_header_1_0(member)
            assert same(archive[key], load(member.read()))


def text(value):
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module, name):
    return text(module) + text(name) + b"\x93"


RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
SCALAR = named("numpy.core.multiarray", "scalar")
NDARRAY = named("numpy", "ndarray")
DTYPE = named("numpy", "dtype")
UNBUILT = RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R"


def dtype_of(code, fields=b"NNN", order="|"):
    """Return the opcodes of a dtype; ``fields`` are three that plain dtypes leave None."""
    made = DTYPE + text(code) + b"\x89\x88\x87R"
    return made + b"(K\x03" + text(order) + fields + b"K\x08K\x08K\x3ftb"


def array_of(shape, data, dtype=dtype_of("O8")):  # noqa: B008
    """Return the opcodes of an array, made of those of its parts."""
    return UNBUILT + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


class Calls:
    """Pickled, it asks whoever opens the pickle to call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


RUNNING = {  # each makes the folder MARKER, which the next test but one proves
    "REDUCE": lambda to: pickle.dumps(Calls(os.mkdir, to), 4),
    "REDUCE in an array": lambda to: pickle.dumps(objects({"a": [Calls(os.mkdir, to)]}), 4),
    "REDUCE of protocol 0": lambda to: pickle.dumps(Calls(os.mkdir, to), 0),
    "REDUCE of protocol 2": lambda to: pickle.dumps(Calls(os.mkdir, to), 2),
    "os.system": lambda to: pickle.dumps(Calls(os.system, f"mkdir '{to}'"), 4),
    "eval": lambda to: pickle.dumps(Calls(eval, f"__import__('os').mkdir({to!r})"), 4),
    "exec": lambda to: pickle.dumps(Calls(exec, f"import os; os.mkdir({to!r})"), 4),
    "GLOBAL": lambda to: b"\x80\x04cos\nmkdir\n" + text(to) + b"\x85R.",
    "STACK_GLOBAL": lambda to: b"\x80\x04" + named("os", "mkdir") + text(to) + b"\x85R.",
    "a chain of names": lambda to: b"\x80\x04" + named("shutil", "os.mkdir") + text(to) + b"\x85R.",
    "INST": lambda to: b"\x80\x04(" + text(to) + b"ios\nmkdir\n.",
    "OBJ": lambda to: b"\x80\x04(cos\nmkdir\n" + text(to) + b"o.",
    "after a value": lambda to: b"\x80\x04]cos\nmkdir\n" + text(to) + b"\x85R0.",
    "partial": lambda to: pickle.dumps(Calls(functools.partial(os.mkdir, to)), 4),
    "__setstate__ of an object": lambda to: (
        b"\x80\x04" + named("types", "SimpleNamespace") + b")R}" + text("__setstate__")
        + named("os", "mkdir") + b"sb" + text(to) + b"b."
    ),
}  # fmt: skip
NAMED = [
    ("posix", "system"), ("nt", "system"), ("builtins", "eval"), ("builtins", "getattr"),
    ("__builtin__", "eval"), ("numpy", "load"), ("numpy", "dtype.__class__"), ("numpy", ""),
    ("numpy", "ndarray.__new__"), ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ("numpy._core.multiarray", "fromfile"), ("numpy.f2py.diagnose", "run_command"),
    ("functools", "partial"), ("operator", "attrgetter"), ("copyreg", "_reconstructor"),
    ("_codecs", "decode"), ("numpy.dtypes", "StringDType"), ("", ""), ("a\n\x1b[31m", "b" * 999),
    ("utils.safe_pickle", "_Array"), ("builtins", "bytes"), ("numpy", "dtype "),
]  # fmt: skip
INJECTION = b"}" + text("__setstate__") + DTYPE + b"s"
ZERO_D = array_of(b")", b"]Na")
REFUSED = {  # opcodes between PROTO and STOP
    "persistent id": b"P1\n",
    "binary persistent id": b"K\x01Q",
    "extension code": b"\x82\x01",
    "long extension codes": b"\x83\x01\x00",
    "longer extension codes": b"\x84\x01\x00\x00\x00",
    "out-of-band buffer": b"\x97",
    "read-only buffer": b"C\x01a\x98",
    "NEWOBJ": named("numpy", "ndarray") + b")\x81",
    "NEWOBJ of a value": b"K\x01)\x81",
    "NEWOBJ_EX": named("numpy", "dtype") + b")}\x92",
    "OBJ of an admitted name": b"(" + named("numpy", "dtype") + text("O8") + b"o",
    "INST of an admitted name": b"(inumpy\ndtype\n",
    "a text that is called": text("os.system") + b")R",
    "an array that is called": array_of(b")DTYPE\x89]Na") + b")R",
    "ndarray that is called": named("numpy", "ndarray") + b")R",
    "dtype that is called without a code": named("numpy", "dtype") + b")R",
    "state of a name": named("numpy", "dtype") + INJECTION + b"b",
    "state of a name with slots": named("numpy", "dtype") + b"N" + INJECTION + b"\x86b",
    "state of a list": b"]" + INJECTION + b"b",
    "state of a scalar": SCALAR + named("numpy", "dtype") + text("i8") + b"\x89\x88\x87RC\x08"
    + b"\0" * 8 + b"\x86R" + INJECTION + b"b",
    "a dict as the state of an array": array_of(b")DTYPE\x89]Na") + INJECTION + b"b",
    "a dict as the state of a dtype": array_of(b")DTYPE\x89]Na").replace(b"(K\x03", INJECTION + b"b("),
    "a foreign class that is rebuilt": RECONSTRUCT + b"cbuiltins\nlist\nK\x00\x85C\x01b\x87R",
    "a dtype that is rebuilt": RECONSTRUCT + named("numpy", "dtype") + b"K\x00\x85C\x01b\x87R",
    "another text encoding": named("_codecs", "encode") + text("a") + text("zip") + b"\x86R",
    "dtype with fields": array_of(b")DTYPE\x89C\x04abcd", dtype=b"i4,i4"),
    "dtype void": array_of(b")DTYPE\x89C\x08abcdefgh", dtype=b"V8"),
    "dtype datetime": array_of(b")DTYPE\x89C\x08abcdefgh", dtype=b"M8[ns]"),
    "dtype state with fields": array_of(b")DTYPE\x89]Na", dtype_state=b"N(t}K\x01K\x01K\x00"),
    "a name as a value": b"]" + named("numpy", "ndarray") + b"a",
    "a dtype as a value": named("numpy", "dtype") + text("O8") + b"\x89\x88\x87R",
    "an array without content": RECONSTRUCT + named("numpy", "ndarray") + b")C\x01b\x87R",
    "a set": b"\x8f",
    "a bytearray": b"\x96" + U64(1) + b"a",
}  # fmt: skip


@pytest.mark.parametrize("name", RUNNING)
def test_pickle_that_runs_a_program_is_refused_and_runs_nothing(name, tmp_path):
    marker = tmp_path / "marker"

    with pytest.raises(UnsafePickleError, match=r"^case\.npz, 'boxes': the pickle .*do not open"):
        load(RUNNING[name](str(marker)))

    assert not marker.exists()


@pytest.mark.parametrize("name", RUNNING)
def test_these_pickles_do_run_where_they_are_trusted(name, tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(RUNNING[name](str(marker)))

    assert marker.exists()


@pytest.mark.parametrize(("module", "name"), NAMED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_name_of_anything_else_is_refused_and_shown(module, name, protocol):
    by_line = f"c{module}\n{name}\n".encode()
    data = named(module, name) if protocol == 4 or "\n" in module else by_line
    shown = ascii(f"{module}.{name}"[:100])[1:-1]

    with pytest.raises(UnsafePickleError) as caught:
        load(b"\x80" + bytes([protocol]) + data + b".")

    assert f"{WHERE}: the pickle calls for {shown}" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_data_is_refused(name):
    with pytest.raises(UnsafePickleError, match=r"^case\.npz, 'boxes': the pickle "):
        load(b"\x80\x04" + REFUSED[name] + b".")


PAIRS = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(30))
DAMAGED = {
    "nothing": b"",
    "no opcode": b"\xff.",
    "no value": b".",
    "an unknown mark": b"e.",
    "an operand above the mark": b"](K\x01\x86.",
    "a key that is a list": b"}]K\x01s.",
    "a key that is a number": b"}K\x01K\x01s.",
    "a key without a value": b"}(" + text("a") + b"u.",
    "a key whose hash takes forever": b"N\x94" + PAIRS + b"}h\x1eNs.",
    "items for a tuple": b")Na.",
    "entries for a list": b"]" + text("a") + b"Ns.",
    "arguments that are no tuple": named("numpy", "dtype") + b"NR.",
    "a name that is no text": b"K\x01K\x02\x93.",
    "an unknown part": b"h\x07.",
    "a distant part": b"j\xff\xff\xff\xff.",
    "a giant memo index": b"Nr\xff\xff\xff\xff.",
    "a giant frame": b"\x95" + U64(2**62),
    "a giant number": b"\x8b\xff\xff\xff\x7f\x01.",
    "giant bytes": b"\x8e" + U64(2**62) + b"a.",
    "giant bytes within reach": b"\x8e" + U64(2**40) + b"a.",
    "a giant bytearray": b"\x96" + U64(2**40) + b"a.",
    "a giant text": b"\x8d" + U64(2**63 - 1) + b"a.",
    "text that is no UTF-8": b"\x8c\x01\xff.",
    "a shape that is no tuple": array_of(b"]K\x01aDTYPE\x89]Na") + b".",
    "a negative shape": array_of(b"J\xff\xff\xff\xff\x85DTYPE\x89]Na") + b".",
    "negative shapes": array_of(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86DTYPE\x89]Na") + b".",
    "a shape of bools": array_of(b"\x88\x85DTYPE\x89]Na") + b".",
    "a giant shape": array_of(b"\x8a\xff" + b"\x7f" * 255 + b"\x85DTYPE\x89]Na") + b".",
    "an empty giant shape": array_of(b"K\x00J\xff\xff\xff\x7f\x86DTYPE\x89]") + b".",
    "an overflowing shape": array_of(b"J\0\0\0\x40J\0\0\0\x40\x86DTYPE\x89]") + b".",
    "too many dimensions": array_of(b"(" + b"K\x01" * 65 + b"tDTYPE\x89]Na") + b".",
    "a shape that the list does not fill": array_of(b"K\x02\x85DTYPE\x89]Na") + b".",
    "a shape that the bytes do not fill": array_of(b"K\x02\x85DTYPE\x89C\x03abc", dtype=b"i2") + b".",
    "a giant text dtype": array_of(b"K\x00\x85DTYPE\x89C\x00", dtype=b"U99999999") + b".",
    "many texts of no length": array_of(b"J\0\0\0\x7f\x85DTYPE\x89C\x00", dtype=b"U0") + b".",
    "characters beyond Unicode": array_of(b")DTYPE\x89C\x04\xff\xff\xff\x7f", dtype=b"U1") + b".",
    "objects in bytes": array_of(b")DTYPE\x89C\x08\x10\0\0\0\0\0\0\0") + b".",
    "numbers in a list": array_of(b"K\x01\x85DTYPE\x89]K\x01a", dtype=b"i4") + b".",
    "an array without a dtype": array_of(b")N\x89]Na") + b".",
    "a scalar of dtype object": SCALAR + array_of(b")DTYPE\x89]Na").split(b"C\x01b\x87R(K\x01)")[1]
    .split(b"\x89]Na")[0] + b"C\x08\x10\0\0\0\0\0\0\0\x86R.",
}  # fmt: skip
AROUND = {
    "a list of itself": b"]\x94h\0a.",
    "a dict of itself": b"}\x94" + text("a") + b"h\0s.",
    "a tuple of a list of it": b"]\x94h\0\x85a.",
    "an array of a list of itself": b"]\x94" + array_of(b"K\x01\x85DTYPE\x89h\0") + b"\x94a.",
    "an array of itself": b"]\x94" + array_of(b"K\x01\x85DTYPE\x89h\0") + b"\x94h\0h\x01a0.",
    "200,000 lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "200,000 tuples": b"N" + b"\x85" * 200_000 + b".",
    "5,000 arrays": RECONSTRUCT.join([b"]" + RECONSTRUCT + b"\x94"]) + b".",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_input_error(name):
    with pytest.raises(InputError, match=r"^case\.npz, 'boxes': the pickle .*Expected"):
        load(b"\x80\x04" + DAMAGED[name])
