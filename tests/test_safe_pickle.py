"""Pickles of challenge files: what NumPy writes is read, everything else is refused unexecuted."""

import codecs
import contextlib
import functools
import gc
import os
import pickle
import struct
import sys
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.files import safe_pickle
from utils.files.safe_pickle import MAX_BYTES, MAX_LEVELS, UnsafePickleError, load_objects

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
    "NumPy scalars": [np.bool_(True), np.float32(2.5), np.float16(1), np.str_("é"), np.bytes_(9)],
    "empty texts": [np.str_(""), np.array(["", ""]), np.zeros(3, "U0"), "", b""],
    "texts and bytes": [np.array(["a", "\U0001f600é"]), np.array([b"a\0b", b"c"]), b"\0" * 300],
    "every dtype": [np.arange(3).astype(code) for code in [*"?bBhHiIlLefd", ">i2", ">f8"]],
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
    """Return a note of the thread to watch and of what it imports, opens, runs or unpickles."""
    codecs.lookup("raw-unicode-escape")  # Python loads it when it first meets the opcode UNICODE
    watched = ("import", "open", "exec", "compile", "pickle.", "os.", "subprocess.", "marshal.")
    note = SimpleNamespace(thread=None, seen=[])

    def hook(event, _arguments):
        if note.thread == threading.get_ident() and event.startswith(watched):
            note.seen.append(event)

    sys.addaudithook(hook)
    return note


def load(data):
    """Call `load_objects`; fail if anything was imported, opened or run meanwhile."""
    note = watch()
    gc.disable()  # it would run what other tests left to be cleaned up
    note.thread = threading.get_ident()
    try:
        return load_objects(data, WHERE)
    finally:
        note.thread = None
        gc.enable()
        assert not note.seen


def outcome(data):
    """Load what may be damaged: a value of admitted types, or an `InputError` that says where."""
    try:
        value = load(data)
    except InputError as error:
        require_message(str(error))
        return error
    require_plain(value)
    return value


def require_message(message):
    assert message.startswith(WHERE)
    assert message.isascii()
    assert len(message) < 500


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
    """Its pickle calls a function when opened."""

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
    ("_codecs", "decode"), ("numpy.dtypes", "StringDType"), ("", ""), ("a", "b" * 999),
    ("utils.files.safe_pickle", "_Array"), ("builtins", "bytes"), ("numpy", "dtype "),
]  # fmt: skip
INJECTION = b"}" + text("__setstate__") + DTYPE + b"s"
ARRAY = array_of(b")", b"]Na")
REFUSED = {  # all after PROTO 4
    "persistent id": b"P1\n.",
    "binary persistent id": b"K\x01Q.",
    "extension code": b"\x82\x01.",
    "long extension code": b"\x83\x01\x00.",
    "longer extension code": b"\x84\x01\x00\x00\x00.",
    "out-of-band buffer": b"\x97.",
    "read-only buffer": b"C\x01a\x98.",
    "NEWOBJ": NDARRAY + b")\x81.",
    "NEWOBJ of a value": b"K\x01)\x81.",
    "NEWOBJ_EX": DTYPE + b")}\x92.",
    "OBJ of an admitted name": b"(" + DTYPE + text("O8") + b"o.",
    "INST of an admitted name": b"(inumpy\ndtype\n.",
    "call of a text": text("os.system") + b")R.",
    "call of an array": ARRAY + b")R.",
    "call of ndarray": NDARRAY + b")R.",
    "call of dtype without a code": DTYPE + b")R.",
    "call with arguments that are no tuple": DTYPE + b"NR.",
    "another text encoding": named("_codecs", "encode") + text("a") + text("zip") + b"\x86R.",
    "state of a name": DTYPE + INJECTION + b"b.",
    "slots of a name": DTYPE + b"N" + INJECTION + b"\x86b.",
    "state of a list": b"]" + INJECTION + b"b.",
    "state of a scalar": SCALAR + dtype_of("i1") + b"C\x01a\x86R" + INJECTION + b"b.",
    "a dict as the state of an array": ARRAY + INJECTION + b"b.",
    "a dict as the state of a dtype": dtype_of("O8") + INJECTION + b"b.",
    "a dtype state with fields": array_of(b")", b"]Na", dtype_of("O8", fields=b"N(t}")) + b".",
    "a byte order that is code": array_of(b")", b"]Na", dtype_of("O8", order="O,")) + b".",
    "dtype of fields": array_of(b")", b"C\x08abcdefgh", dtype_of("i4,i4")) + b".",
    "dtype void": array_of(b")", b"C\x08abcdefgh", dtype_of("V8")) + b".",
    "dtype datetime": array_of(b")", b"C\x08abcdefgh", dtype_of("M8[ns]")) + b".",
    "a foreign class that is rebuilt": RECONSTRUCT + b"cbuiltins\nlist\nK\x00\x85C\x01b\x87R.",
    "a dtype that is rebuilt": ARRAY.replace(NDARRAY, DTYPE) + b".",
    "a name as a value": b"]" + NDARRAY + b"a.",
    "a dtype as a value": dtype_of("O8") + b".",
    "an array without content": UNBUILT + b".",
    "a set": b"\x8f.",
    "a bytearray": b"\x96" + U64(1) + b"a.",
}


@pytest.mark.parametrize("name", RUNNING)
def test_pickle_that_runs_a_program_is_refused_and_runs_nothing(name, tmp_path):
    marker = tmp_path / "marker"

    with pytest.raises(UnsafePickleError, match=r"^case\.npz, 'boxes': the pickle .*do not open"):
        load(RUNNING[name](str(marker)))

    assert not marker.exists()


@pytest.mark.parametrize("name", RUNNING)
def test_that_pickle_does_run_where_it_is_trusted(name, tmp_path):
    marker = tmp_path / "marker"
    with contextlib.suppress(TypeError):  # once the folder is made, some fail
        pickle.loads(RUNNING[name](str(marker)))

    assert marker.exists()


@pytest.mark.parametrize(("module", "name"), NAMED)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL"])
def test_any_other_name_is_refused_and_shown(module, name, opcode):
    data = f"c{module}\n{name}\n".encode() if opcode == "GLOBAL" else named(module, name)

    with pytest.raises(UnsafePickleError) as caught:
        load(b"\x80\x04" + data + b".")

    assert f"{WHERE}: the pickle calls for {module}.{name[:90]}" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_name_in_a_message_is_printable():
    with pytest.raises(UnsafePickleError, match=r"calls for \\x1b\[31m\\u20ac\.\\n\. Expected"):
        load(named("\x1b[31m€", "\n") + b".")


def found_in(name):
    """Return what the message says of a pickle of `REFUSED`."""
    opcodes = {
        "persistent id": "PERSID", "binary persistent id": "BINPERSID", "extension code": "EXT1",
        "long extension code": "EXT2", "longer extension code": "EXT4",
        "out-of-band buffer": "NEXT_BUFFER", "read-only buffer": "READONLY_BUFFER",
        "NEWOBJ": "NEWOBJ", "NEWOBJ of a value": "NEWOBJ", "NEWOBJ_EX": "NEWOBJ_EX",
        "OBJ of an admitted name": "OBJ", "INST of an admitted name": "INST", "a set": "EMPTY_SET",
    }  # fmt: skip
    if name in opcodes:
        return f"uses the opcode {opcodes[name]}"
    if name.startswith(("state", "slots", "a dict as", "a dtype state", "a byte order")):
        return "sets the state of something other than a plain array or dtype"
    if name in ("call of a text", "call of an array"):
        return "calls a value of type"
    if name.startswith(("call", "dtype", "another text", "a dtype that")):
        return r"calls \w+ with arguments that plain data never has"
    return "calls for builtins" if "foreign" in name else "holds a bare"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_data_is_refused(name):
    found = found_in(name)
    with pytest.raises(UnsafePickleError, match=rf"^case\.npz, 'boxes': the pickle {found}"):
        load(b"\x80\x04" + REFUSED[name])


TEXTS = array_of(b"J\0\0\0\x7f\x85", b"C\0", dtype_of("U0"))
PAIRS = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(60))
LONG = b"\x8a\xff" + b"\x7f" * 255
NESTED = UNBUILT + b"(K\x01K\x01\x85" + dtype_of("O8") + b"\x89]"
DAMAGED = {  # all after PROTO 4; what is wrong -> opcodes, what the message says
    "nothing": (b"", "exhausted before seeing STOP"),
    "no opcode": (b"\xff.", "unknown"),
    "no value": (b".", "IndexError"),
    "no mark": (b"e.", "IndexError"),
    "an operand below the mark": (b"K\x01(K\x01\x86.", "an operand is missing"),
    "a key that is a list": (b"}]K\x01s.", "not text"),
    "a key that is a number": (b"}K\x01K\x01s.", "not text"),
    "a key without a value": (b"}(" + text("a") + b"u.", "zip"),
    "a key whose hash takes forever": (b"N\x94" + PAIRS + b"}h\x3cNs.", "not text"),
    "items for a tuple": (b")Na.", "not a list"),
    "items for a bytearray": (b"\x96" + U64(1) + b"aK\x01a.", "not a list"),
    "entries for a list": (b"]" + text("a") + b"Ns.", "not a dict"),
    "a name that is not text": (b"K\x01K\x02\x93.", "not text"),
    "an unknown part": (b"j\xff\xff\xff\x7f.", "IndexError"),
    "a giant memo index": (b"Nr\xff\xff\xff\xff.", "not numbered in order"),
    "a memo index that is set twice": (b"Nq\0q\0.", "not numbered in order"),
    "text that is no UTF-8": (b"\x8c\x01\xff.", "UnicodeDecodeError"),
    "giant bytes": (b"\x8e" + U64(2**62) + b"a.", "expected 4611686018427387904 bytes"),
    "bytes beyond the file": (b"B\xff\xff\xff\x7fa.", "expected 2147483647 bytes"),
    "a giant bytearray": (b"\x96" + U64(2**40) + b"a.", "expected 1099511627776 bytes"),
    "a giant text": (b"\x8d" + U64(2**63 - 1) + b"a.", "expected 9223372036854775807 bytes"),
    "a giant number": (b"\x8b\xff\xff\xff\x7f\x01.", "not enough data"),
    "a shape that is no tuple": (array_of(b"]K\x01a", b"]Na") + b".", "no such shape"),
    "a negative length": (array_of(b"J\xff\xff\xff\xff\x85", b"]Na") + b".", "no such shape"),
    "negative lengths": (array_of(b"J\xff\xff\xff\xff\x94h\0\x86", b"]Na") + b".", "no such shape"),
    "a length that is a bool": (array_of(b"\x88\x85", b"]Na") + b".", "no such shape"),
    "too many dimensions": (array_of(b"(" + b"K\x01" * 65 + b"t", b"]Na") + b".", "no such shape"),
    "a giant length": (array_of(LONG + b"\x85", b"]Na") + b".", "grows far beyond"),
    "a giant empty array": (array_of(b"K\0J\0\0\0\x7f\x86", b"]") + b".", "grows far beyond"),
    "lengths that overflow": (array_of(b"J\0\0\0\x40\x94h\0\x86", b"]") + b".", "grows far beyond"),
    "an empty array of giant texts": (
        array_of(b"K\0\x85", b"C\0", dtype_of("U99999999")) + b".", "grows far beyond"),
    "many texts of no length": (TEXTS + b".", "grows far beyond"),
    "too few objects": (array_of(b"K\x02\x85", b"]Na") + b".", "a wrong size"),
    "too few bytes": (array_of(b"K\x02\x85", b"C\x03abc", dtype_of("i2")) + b".", "a wrong size"),
    "too many bytes": (array_of(b")", b"C\x03abc", dtype_of("i2")) + b".", "a wrong size"),
    "characters beyond Unicode": (
        array_of(b")", b"C\x04\xff\xff\xff\x7f", dtype_of("U1")) + b".", "no characters"),
    "objects in bytes": (array_of(b"K\x08\x85", b"C\x08\x10" + b"\0" * 7) + b".", "another dtype"),
    "numbers in a list": (array_of(b"K\x01\x85", b"]Na", dtype_of("i1")) + b".", "another dtype"),
    "an array without a dtype": (array_of(b")", b"]Na", b"N") + b".", "without a dtype"),
    "a scalar of objects": (SCALAR + dtype_of("O8") + b"C\x01a\x86R.", "another dtype"),
    "a list of itself": (b"]\x94h\0a.", "holds itself"),
    "a dict of itself": (b"}\x94" + text("a") + b"h\0s.", "holds itself"),
    "a tuple of a list of it": (b"]\x94h\0\x85a.", "holds itself"),
    "an array of a list of it": (b"]\x94" + array_of(b"K\x01\x85", b"h\0") + b"a.", "holds itself"),
    "100,000 lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "32 levels"),
    "100,000 tuples": (b"N" + b"\x85" * 100_000 + b".", "32 levels"),
    "5,000 arrays": (NESTED * 5_000 + b"N" + b"atb" * 5_000 + b".", "32 levels"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_input_error(name):
    data, found = DAMAGED[name]

    with pytest.raises(InputError, match=rf"^case\.npz, 'boxes': the pickle .*{found}.*Expected"):
        load(b"\x80\x04" + data)


def test_depth_up_to_the_limit_is_read():
    deepest = functools.reduce(lambda inner, _: [inner], range(MAX_LEVELS), 1)

    assert load(pickle.dumps(deepest)) == deepest
    with pytest.raises(InputError, match="32 levels"):
        load(pickle.dumps([deepest]))


def test_little_room_for_recursion_is_an_input_error():
    def descend():
        try:
            descend()
        except RecursionError:
            return
        ends.append(outcome(pickle.dumps([[[[[[[[1]]]]]]]])))

    ends = []
    descend()


# Short pickles that mention part 0, 20,000 bytes or values, 1,000 times.
LENGTH = struct.pack("<I", 20_000)
TEXT = b"X" + LENGTH + b"a" * 20_000 + b"\x94"
BYTES = b"B" + LENGTH + b"a" * 20_000 + b"\x94"
LIST = b"](" + b"N" * 20_000 + b"e\x94"
BOMBS = {
    "texts": TEXT
    + (named("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R") * 1_000 + b".",
    "scalars": BYTES + (SCALAR + dtype_of("S20000") + b"h\0\x86R") * 1_000 + b".",
    "numbers": BYTES
    + (b"(" + array_of(b"J" + LENGTH + b"\x85", b"h\0", dtype_of("u1")) * 1_000 + b"t."),
    "objects": LIST + b"(" + array_of(b"J" + LENGTH + b"\x85", b"h\0") * 1_000 + b"t.",
    "lists": LIST + b"(" + b"h\0" * 1_000 + b"t.",
    "lists of lists of lists": b"]\x94"
    + b"".join(b"](" + bytes([104, n]) * 100 + b"e\x94" for n in range(20)) + b".",
    "marks": b"(" * 10_000 + b".",
    "dicts": b"(" + b"}" * 10_000 + b"t.",
    **{name: data for name, (data, _) in DAMAGED.items() if "giant" in name},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_a_small_multiple_of_the_pickle(name, monkeypatch):
    monkeypatch.setattr(safe_pickle, "FREE_ROOM", 2**18)
    tracemalloc.start()
    outcome(b"\x80\x04" + BOMBS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 * 2**18 + 200 * len(BOMBS[name])


def test_number_of_opcodes_is_limited(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_STEPS", 1000)

    assert load(b"N" * 999 + b".") is None
    with pytest.raises(InputError, match="more than 1000 steps"):
        load(b"N" * 1000 + b".")


def test_size_of_the_pickle_is_limited():
    with pytest.raises(InputError, match=r"^case\.npz, 'boxes': a pickle of 67108865 bytes\."):
        load(bytes(MAX_BYTES + 1))


def test_large_case_is_within_all_limits():
    boxes = [dict.fromkeys("abcdefg", np.int64(n)) for n in range(500)]
    clicks = [{"fg": [[n, n + 1, n + 2] for n in range(5)], "bg": []} for _ in range(500)]

    assert load(pickle.dumps(objects(*boxes, *clicks), 4)).shape == (1000,)


def test_any_one_byte_may_be_damaged():
    data = pickle.dumps(objects({"fg": [np.int16(7), None]}, np.arange(2.0)), 4)
    for at in range(len(data)):
        for byte in {*b"\0\x01\xff.(]NRb\x93", data[at] ^ 1, (data[at] + 1) % 256}:
            outcome(data[:at] + bytes([byte]) + data[at + 1 :])


def test_any_end_may_be_missing():
    for protocol in PROTOCOLS:
        data = pickle.dumps(VALID["arrays in arrays"], protocol)
        for length in range(len(data)):
            assert isinstance(outcome(data[:length]), InputError)


SEEDS = [
    pickle.dumps(VALID[name], protocol)
    for name in ("boxes", "clicks", "arrays in arrays", "Fortran order", "NumPy scalars")
    for protocol in PROTOCOLS
]
PIECES = [
    *(bytes([code]) for code in b"NK\x88\x89](})tseuab\x85\x86\x87R\x94.QP0\x81\x92\x93\x8f\x96o"),
    *(b"K\x01", b"J\xff\xff\xff\xff", b"C\x02ab", b"\x8a\x01\x05", b"h\0", b"h\x01", b"q\0", LONG),
    *(text("a"), text("O8"), text("latin1"), INJECTION, NDARRAY, DTYPE, SCALAR, RECONSTRUCT),
    *(dtype_of("O8"), dtype_of("i1"), dtype_of("U1", order="<"), ARRAY, named("os", "system")),
    *(UNBUILT, UNBUILT + b"(K\x01", named("_codecs", "encode")),
    *(named("numpy.core.numeric", "_frombuffer"), dtype_of("i2") + b"K\x01\x85" + text("C") + b"t"),
]  # fmt: skip
EDIT = st.tuples(st.integers(0, 2**16), st.integers(0, 8), st.binary(max_size=8))


@settings(derandomize=True, deadline=None, max_examples=1500, database=None)
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(st.sampled_from(SEEDS), st.lists(EDIT, min_size=1, max_size=6))
def test_nothing_but_input_errors_comes_of_damaged_pickles(data, edits):
    for at, length, new in edits:
        start = at % (len(data) + 1)
        data = data[:start] + new + data[start + length :]
    outcome(data)


@settings(derandomize=True, deadline=None, max_examples=500, database=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=3), max_size=40))
def test_nothing_but_input_errors_comes_of_random_opcodes(pieces):
    outcome(b"\x80\x04" + b"".join(pieces) + b".")
