"""The page's modules that need no browser, in Node; and that its files fit together."""

import json
import re
import shutil
import subprocess
from itertools import permutations, product

import numpy as np
import pytest

from utils.serving.fetch_page import VENDOR

PAGE = VENDOR.parent
MODULES = sorted(PAGE.glob("*.js"))
HTML = (PAGE / "index.html").read_text()
TEXTS = {path.name: path.read_text() for path in MODULES}


def in_node(code: str, **values: object) -> object:
    """Return what a module of the page exports or computes; ``code`` sets ``result``."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    lines = [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
    lines += ["let result;", code, "console.log(JSON.stringify(result));"]
    done = subprocess.run(
        [node, "--input-type=module", "-"],
        input="\n".join(lines).replace("./", f"{PAGE.as_uri()}/"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# A file axis (1, 2 or 3) for each RAS axis, negative if it runs the other way, as NiiVue has it.
ORDERS = [
    [sign * axis for sign, axis in zip(signs, axes, strict=True)]
    for axes in permutations((1, 2, 3))
    for signs in product((1, -1), repeat=3)
]


def ras_of(array, order):
    """The array in RAS order: axes [x, y, z] of it, from [z, y, x] of the file."""
    xyz = array.transpose(2, 1, 0).transpose([abs(axis) - 1 for axis in order])
    return xyz[tuple(slice(None, None, 1 if axis > 0 else -1) for axis in order)]


def test_labels_are_pasted_where_the_files_voxels_lie_in_all_48_orders():
    shape, box = (4, 5, 6), [[1, 3], [0, 4], [2, 5]]
    rng = np.random.default_rng(0)
    before = rng.integers(0, 9, shape)
    labels = rng.integers(0, 9, [stop - start for start, stop in box])
    after = before.copy()
    after[tuple(slice(*edge) for edge in box)] = labels
    pasted = in_node(
        """
        import { VoxelOrder, pasteBox } from "./voxels.js";
        result = orders.map((order, k) => {
            const target = Uint8Array.from(before[k]);
            pasteBox(target, new VoxelOrder(order, dims[k]), box, labels);
            return [...target];
        });
        """,
        orders=ORDERS,
        dims=[ras_of(before, order).shape for order in ORDERS],
        before=[ras_of(before, order).ravel(order="F").tolist() for order in ORDERS],
        box=box,
        labels=labels.ravel().tolist(),
    )
    for order, found in zip(ORDERS, pasted, strict=True):
        assert found == ras_of(after, order).ravel(order="F").tolist(), order


def test_a_voxel_keeps_its_place_from_file_to_ras_and_back():
    places = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    zyx = [3, 1, 4]
    found = in_node(
        """
        import { VoxelOrder } from "./voxels.js";
        result = orders.map((order, k) => {
            const voxels = new VoxelOrder(order, dims[k]);
            const ras = voxels.toRas(zyx);
            return [ras, voxels.toFile(ras), voxels.boxToRas(zyx.map((i) => [i, i + 1]))];
        });
        """,
        orders=ORDERS,
        dims=[ras_of(places, order).shape for order in ORDERS],
        zyx=zyx,
    )
    for order, (ras, back, box) in zip(ORDERS, found, strict=True):
        assert ras_of(places, order)[tuple(ras)] == places[tuple(zyx)]
        assert back == zyx
        assert box == [[index, index + 1] for index in ras]


def test_a_frame_is_a_state_and_the_labels_of_its_box():
    state = {"revision": 3, "box": [[0, 1], [2, 4], [5, 8]]}
    text = json.dumps(state).encode()
    runs = np.array([2, 3, 1], "<u4").tobytes() + bytes([7, 0, 9])
    frame = len(text).to_bytes(4, "little") + text + runs
    code = """
        import { decodeFrame } from "./frame.js";
        const read = (bytes) => {
            try {
                const { state, labels } = decodeFrame(Uint8Array.from(bytes).buffer);
                return [state, [...labels]];
            } catch (error) {
                return error.message;
            }
        };
        result = frames.map(read);
    """
    none = json.dumps(state | {"box": None}).encode()
    frames = [
        frame, len(none).to_bytes(4, "little") + none, frame[:-1],
        frame.replace(runs, runs[:4] + runs[-3:-2]), frame[:3],
        (10**6).to_bytes(4, "little") + text,
    ]  # fmt: skip
    good, empty, cut_off, short, tiny, cut = in_node(code, frames=[list(each) for each in frames])
    assert good == [state, [7, 7, 0, 0, 0, 9]]
    assert empty == [state | {"box": None}, []]
    assert cut_off == short == "the mask does not fill its box"
    assert tiny == cut == "the server's answer is cut off"


KEYS = [
    ({"key": "z", "ctrlKey": True}, "undo"),
    ({"key": "Z", "ctrlKey": True, "shiftKey": True}, "redo"),
    ({"key": "z", "metaKey": True}, "undo"),
    ({"key": "z"}, None),
    ({"key": "Enter"}, "inside"),
    ({"key": "Enter", "shiftKey": True}, "outside"),
    ({"key": "3"}, "pick"),
    ({"key": "3", "ctrlKey": True}, None),
    ({"key": "?", "shiftKey": True}, "help"),
    ({"key": "+", "shiftKey": True}, "zoomIn"),
    ({"key": "C", "shiftKey": True}, "clearAll"),
    ({"key": "PageUp", "shiftKey": True}, "sliceUp"),
    ({"key": "h", "altKey": True}, None),
]


def test_a_key_does_what_the_help_says():
    events = [event for event, _ in KEYS]
    code = 'import { actionOf } from "./keys.js"; result = events.map((e) => actionOf(e) ?? null);'
    assert in_node(code, events=events) == [action for _, action in KEYS]


def test_every_key_has_its_action():
    code = 'import { KEYS } from "./keys.js"; result = KEYS;'
    keys = in_node(code)
    assert len({key["keys"] for key in keys}) == len(keys) > 30
    methods = set(re.findall(r"^  (?:async )?(\w+)\(.*\) \{$", TEXTS["actions.js"], flags=re.M))
    assert {key["on"] for key in keys} <= methods


def test_ct_in_hounsfield_units_gets_the_usual_windows_and_other_images_their_own():
    code = """
        import { windowsOf, rangeOf } from "./windows.js";
        const shown = { low: 10, high: 90 };
        const ct = windowsOf({ is_ct: true, low: -1024, high: 3071 }, shown);
        const challenge = windowsOf({ is_ct: true, low: 0, high: 255 }, shown);
        const mr = windowsOf({ is_ct: false, low: -500, high: 900 }, shown);
        result = [ct, challenge, mr].map((windows) => [windows.length, rangeOf(windows[0])]);
    """
    ct, challenge, mr = in_node(code)
    assert ct == [7, {"low": -160, "high": 240}]
    assert challenge == mr == [2, {"low": 10, "high": 90}]


def test_targets_without_a_colour_get_twelve_different_ones():
    code = """
        import { colorOf } from "./colors.js";
        result = Array.from({ length: 255 }, (_, k) => colorOf(k + 1));
    """
    colours = in_node(code)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    assert len(set(colours)) == len(set(colours[:12])) == 12


def test_the_elements_that_the_modules_name_are_in_the_page():
    all_ids = re.findall(r'\bid="([\w-]+)"', HTML)
    ids = set(all_ids)
    assert len(ids) == len(all_ids)
    named = {name for text in TEXTS.values() for name in re.findall(r'element\("([\w-]+)"', text)}
    assert len(named) > 20
    assert named - ids == set()
    references = re.findall(r'(?:for|href|aria-labelledby|aria-describedby)="#?([\w-]+)"', HTML)
    assert set(references) - ids == set()


def test_the_page_needs_no_inline_code_and_no_other_server():
    for name in ("index.html", "login.html"):
        text = (PAGE / name).read_text()
        assert not re.search(r"<style|\bstyle=|\son\w+=|javascript:", text)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
        assert not re.search(r'(?:src|href)="(?!static/|#)', text)
    for name, text in TEXTS.items():
        assert not re.search(r"https?://(?!www\.w3\.org/)|\beval\(|innerHTML|new Function", text), (
            name
        )


def test_every_file_that_the_page_names_is_there():
    for name in re.findall(r'(?:src|href)="static/([^"]+)"', HTML):
        assert (PAGE / name).is_file(), name
    for text in TEXTS.values():
        for name in re.findall(r'(?:from|import\() ?"\./([^"]+)"', text):
            assert (PAGE / name).is_file() or name.startswith("vendor/"), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_says_in_its_first_line_what_it_is_and_stays_short(path):
    lines = TEXTS[path.name].splitlines()
    assert lines[0].startswith("/**")
    assert len(lines) <= 400
    assert max(map(len, lines)) <= 100


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2.2 for two colours "#rrggbb", 1 to 21."""

    def luminance(colour):
        parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_frames_stand_out_from_their_ground(theme):
    pairs = re.findall(
        r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (PAGE / "theme.css").read_text()
    )
    colours = {name: values[theme == "dark"] for name, *values in pairs}
    for text, grounds in {
        "text": ("ground", "panel", "raised", "hover", "accent-ground"),
        "faint": ("ground", "panel", "hover", "accent-ground"),
        "on-accent": ("accent",),
        "error": ("error-ground",),
    }.items():
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in ("field-line", "accent"):
        assert contrast(colours[line], colours["panel"]) >= 3, line
