import json
import shutil

import numpy as np
import pytest
from small import RULE, ball, write_prepared

from utils.cases import find_cases, instances_of
from utils.crops import build_crops, cut, normalise, read_crop, read_index
from utils.errors import InputError
from utils.geometry import CropRule, affine_from_spacing
from utils.nifti_io import read_nifti, write_nifti


def test_normalise_takes_mean_and_deviation_over_positive_voxels():
    image = np.array([[[0, 0, 2, 4, 6]]])
    deviation = np.std([2, 4, 6])
    np.testing.assert_allclose(normalise(image, is_ct=False), (image - 4) / deviation, rtol=1e-6)


def test_ct_is_clamped_only_where_values_are_hounsfield():
    hounsfield = np.array([[[-3000, -1000, 10, 20, 3000]]])
    clamped = np.array([[[-1000, -1000, 10, 20, 1000]]])
    np.testing.assert_array_equal(normalise(hounsfield, True), normalise(clamped, False))
    windowed = np.array([[[0, 1, 2000]]])
    np.testing.assert_array_equal(normalise(windowed, True), normalise(windowed, False))


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_normalises_to_zeros(value):
    assert not normalise(np.full((2, 2, 2), value), is_ct=False).any()


def test_the_cube_is_centred_on_the_target_and_knows_what_it_misses():
    target = ball(radius=4.0)
    affine = affine_from_spacing((1, 1, 1))
    whole = cut(target * 50, target, affine, RULE, is_ct=False)
    part = cut(target * 50, target, affine, CropRule(size=4, spacing_mm=1.0), is_ct=False)
    assert whole.coverage == 1.0
    assert whole.grid.to_crop((9, 12, 15)) == pytest.approx((15.5,) * 3)
    assert part.label.all()
    assert 4**3 <= part.coverage * target.sum() <= 5**3  # voxels on the faces belong to it


def test_the_label_of_a_crop_pasted_back_is_the_target():
    target = ball()
    affine = affine_from_spacing((1.0, 1.1, 1.2))
    crop = cut(target * 50, target, affine, CropRule(size=64, spacing_mm=0.5), is_ct=False)
    pasted = crop.grid.paste(crop.label - 0.5, outside=-1) > 0
    assert (pasted == target).mean() > 0.999


def test_crops_are_kept_until_their_source_changes(tmp_path):
    folder = write_prepared(tmp_path / "tree")
    first = build_crops([folder], tmp_path / "crops", RULE, workers=1)
    files = {s["file"]: (tmp_path / "crops" / s["file"]).stat().st_mtime_ns for s in first.samples}
    changed = folder / "labelsTr" / "CT_A_1.nii.gz"
    write_nifti(changed, ball(radius=3).astype(np.uint8), read_nifti(changed).affine)

    again = build_crops([folder], tmp_path / "crops", RULE, workers=1)

    recut = [f for f in files if (tmp_path / "crops" / f).stat().st_mtime_ns != files[f]]
    assert recut == ["liver/CT_A/CT_A_1.npz"]
    assert [s["sample_id"] for s in again.samples] == [f"liver/CT_A/CT_A_{i}" for i in range(3)]


def test_a_crop_says_where_it_comes_from(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    index = build_crops([folder], tmp_path / "crops", RULE, workers=1)
    _, label, meta = read_crop(tmp_path / "crops" / index.samples[0]["file"])
    affine = read_nifti(folder / "imagesTr" / "CT_A_0.nii.gz").affine
    assert meta["sample_id"] == "liver/CT_A/CT_A_0"
    np.testing.assert_allclose(meta["affine"], affine)
    assert meta["grid"]["size"] == label.shape[0] == 32
    assert read_index(tmp_path / "crops") == index


def test_bad_cases_are_reported_and_the_others_are_cut(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=4)
    (folder / "imagesTr" / "CT_A_0.nii.gz").unlink()
    empty = folder / "labelsTr" / "CT_A_1.nii.gz"
    write_nifti(empty, np.zeros((20, 24, 28), np.uint8), read_nifti(empty).affine)
    moved = folder / "labelsTr" / "CT_A_2.nii.gz"
    write_nifti(moved, ball().astype(np.uint8), affine_from_spacing((3, 3, 3)))

    index = build_crops([folder], tmp_path / "crops", RULE, workers=1)

    assert [s["case"] for s in index.samples] == ["liver/CT_A/CT_A_3"]
    messages = dict(zip("012", index.failures, strict=True))
    assert "reallocate.py" in messages["0"]
    assert "empty" in messages["1"]
    assert "different grids" in messages["2"]


def test_each_large_instance_is_a_target_of_its_own(tmp_path):
    label = np.zeros((20, 24, 28), np.uint16)
    label[2:5, 2:5, 2:5], label[8:16, 8:16, 8:16], label[17:19, 2:9, 2:9] = 300, 7, 41
    assert instances_of(label, most=2) == [7, 41]
    folder = write_prepared(tmp_path / "tree", cases=1)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, label, read_nifti(path).affine)
    index = build_crops([folder], tmp_path / "crops", RULE, max_instances=2, workers=1)
    assert [s["sample_id"] for s in index.samples] == [
        "liver/CT_A/CT_A_0#7",
        "liver/CT_A/CT_A_0#41",
    ]


def test_a_damaged_crop_is_named(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    index = build_crops([folder], tmp_path / "crops", RULE, workers=1)
    path = tmp_path / "crops" / index.samples[0]["file"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"(?s)CT_A_0\.npz.*Delete the file"):
        read_crop(path)


def test_folders_that_are_not_prepared_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"utils/data_paths\.py"):
        find_cases([])
    with pytest.raises(InputError, match="labelsTr"):
        find_cases([tmp_path])
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(InputError, match=r"categorize\.py"):
        find_cases([tmp_path])
    with pytest.raises(InputError, match=r"index\.json: not found"):
        read_index(tmp_path)


def test_the_cache_needs_no_volumes_any_more(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    build_crops([folder], tmp_path / "crops", RULE, workers=1)
    shutil.rmtree(tmp_path / "tree")
    moved = (tmp_path / "crops").rename(tmp_path / "elsewhere")
    index = read_index(moved)
    image, _, _ = read_crop(moved / index.samples[0]["file"])
    assert image.shape == (32, 32, 32)
    assert json.loads((moved / "index.json").read_text())["rule"]["size"] == 32
