"""A crop cache that is damaged or from elsewhere: one message, and nothing is trained on it."""

import json

import numpy as np
import pytest
from small_cases import write_prepared

from utils.errors import InputError
from utils.training.crop_cache import build_cache, read_index, read_target

OUTSIDE = "../../outside"


@pytest.fixture
def cache(tmp_path):
    build_cache([write_prepared(tmp_path / "tree", cases=2)], tmp_path / "crops", workers=1)
    return tmp_path / "crops"


def read_all(cache):
    index = read_index(cache)
    return [read_target(cache, row) for row in index.samples]


def image_of(cache):
    return cache / read_index(cache).samples[0]["image"]


def target_of(cache):
    return cache / read_index(cache).samples[0]["file"]


def change_image(cache, change):
    path = image_of(cache)
    np.save(path, change(np.load(path)))


def change_bits(cache, change):
    path = target_of(cache)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"bits": change(arrays["bits"])})


def change_rows(cache, **changes):
    path = cache / "index.json"
    content = json.loads(path.read_text())
    content["samples"][0].update(changes)
    path.write_text(json.dumps(content))


IMAGES = {
    "zeros": lambda image: image * 0,
    "one voxel": lambda image: np.where(np.arange(image.size).reshape(image.shape), image, 7),
    "NaN": lambda image: np.full(image.shape, np.nan, np.float32),
    "another type of the same values": lambda image: image.astype(np.int16),
    "complex numbers": lambda image: image.astype(complex),
    "text": lambda image: image.astype(str),
    "fewer slices": lambda image: image[:3],
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("change", IMAGES)
def test_changed_image_is_refused(cache, change):
    name = image_of(cache).name
    change_image(cache, IMAGES[change])

    with pytest.raises(InputError, match=rf"(?s){name}: not readable.*Delete the file"):
        read_all(cache)


def test_image_that_changes_after_it_was_read_is_refused(cache):
    read_all(cache)
    change_image(cache, lambda image: image * 0)

    with pytest.raises(InputError, match="differ from the digest"):
        read_all(cache)


@pytest.mark.parametrize("change", [np.invert, lambda b: b[:-1], lambda b: b.astype(np.int16)])
def test_changed_mask_is_refused(cache, change):
    change_bits(cache, change)

    with pytest.raises(InputError, match=r"(?s)CT_A_0\.npz: not readable.*Delete the file"):
        read_all(cache)


def test_message_says_what_mends_the_cache(cache, tmp_path):
    before = image_of(cache).read_bytes(), target_of(cache).read_bytes()
    image, target = image_of(cache), target_of(cache)
    change_image(cache, lambda voxels: voxels * 0)
    change_bits(cache, np.invert)

    image.unlink()
    build_cache([tmp_path / "tree/liver/CT_A"], cache, workers=1)

    assert (image.read_bytes(), target.read_bytes()) == before
    assert len(read_all(cache)) == 2


FILES = {
    "deep nesting": "[" * 100_000,
    "deep samples": '{"layout": 3, "samples": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "binary": b"\xff\xfe\x00",
    "a list": "[1]",
    "another layout": '{"layout": 2, "samples": []}',
    "no samples": '{"layout": 3}',
    "samples as a table": '{"layout": 3, "samples": {}}',
    "empty samples": '{"layout": 3, "samples": []}',
    "numbers as samples": '{"layout": 3, "samples": [1]}',
}


@pytest.mark.parametrize("content", FILES)
def test_damaged_index_is_refused(cache, content):
    found = FILES[content]
    (cache / "index.json").write_bytes(found if isinstance(found, bytes) else found.encode())

    with pytest.raises(InputError, match=r"index\.json"):
        read_index(cache)


ROWS = {
    "traversal": {"file": f"{OUTSIDE}.npz"},
    "absolute file": {"file": "/etc/passwd"},
    "traversing id": {"sample_id": f"{OUTSIDE}/x", "case": f"{OUTSIDE}/x"},
    "image elsewhere": {"image": f"{OUTSIDE}.npy"},
    "image as a number": {"image": 3},
    "voxel size 0": {"voxel_mm": [0, 0, 0]},
    "voxel size NaN": {"voxel_mm": [float("nan")] * 3},
    "voxel size missing": {"voxel_mm": [1.0]},
    "reversed box": {"start": [9, 9, 9], "stop": [1, 1, 1]},
    "box beyond the image": {"stop": [999, 9, 9]},
    "negative start": {"start": [-1, 0, 0]},
    "shape as text": {"shape": "abc"},
    "hounsfield as text": {"hounsfield": "yes"},
    "control character": {"organ": "li\nver"},
    "a sample twice": {
        key: value.replace("CT_A_0", "CT_A_1")
        for key, value in {
            "sample_id": "liver/CT_A/CT_A_0",
            "case": "liver/CT_A/CT_A_0",
            "file": "liver/CT_A/CT_A_0.npz",
        }.items()
    },
}


@pytest.mark.parametrize("change", ROWS)
def test_index_with_a_row_that_cannot_be_right_is_refused(cache, change):
    change_rows(cache, **ROWS[change])

    with pytest.raises(InputError, match=r"index\.json: cannot be used"):
        read_index(cache)


def test_row_that_differs_from_its_target_is_refused(cache):
    change_rows(cache, voxel_mm=[2.0, 2.0, 2.0])

    with pytest.raises(InputError, match=r"CT_A_0\.npz: found target"):
        read_all(cache)


def test_link_out_of_the_cache_is_refused(cache, tmp_path):
    (cache / "liver").rename(tmp_path / "elsewhere")
    (cache / "liver").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InputError, match="outside of the cache"):
        read_all(cache)


@pytest.mark.parametrize("facts", [b"[" * 100_000, b"\xff", b"[1]", b'{"mask": 3}'])
def test_target_whose_facts_are_damaged_is_refused(cache, facts):
    path = target_of(cache)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"row": np.frombuffer(facts, np.uint8)})

    with pytest.raises(InputError, match=r"CT_A_0\.npz: "):
        read_all(cache)
