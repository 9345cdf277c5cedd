import json
import shutil

import numpy as np
import pytest
from small import RULE, ball, write_prepared

from utils.atomic import WriteError
from utils.cases import find_cases, read_case
from utils.crops import build_crops, cut, normalise, read_crop, read_index
from utils.errors import InputError
from utils.geometry import CropRule, affine_from_spacing
from utils.labels import InstanceRule
from utils.nifti_io import read_nifti, write_nifti


def test_normalise_takes_mean_and_deviation_over_positive_voxels():
    image = np.array([[[0, 0, 2, 4, 6]]])
    deviation = np.std([2, 4, 6])
    np.testing.assert_allclose(normalise(image), (image - 4) / deviation, rtol=1e-6)


def test_ct_is_clamped_only_where_values_are_hounsfield():
    target = ball()
    affine = affine_from_spacing((1, 1, 1))
    image = np.where(target, 3000, 10)
    hounsfield = image.copy()
    hounsfield[0, 0, 0] = -1000

    windowed, clamped = (cut(v, target, affine, RULE, is_ct=True) for v in (image, hounsfield))

    np.testing.assert_array_equal(windowed.image, normalise(windowed.grid.crop(image)))
    np.testing.assert_array_equal(
        clamped.image, normalise(clamped.grid.crop(hounsfield).clip(-1000, 1000))
    )


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_normalises_to_zeros(value):
    assert not normalise(np.full((2, 2, 2), value)).any()
    padded = normalise(np.array([[[0, value, value]]]))
    assert np.isfinite(padded.astype(np.float16)).all()


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
    two, one = InstanceRule(most=2, min_voxels=1), InstanceRule(most=1, min_voxels=1)
    folder = write_prepared(tmp_path / "tree", cases=1)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, label, read_nifti(path).affine)
    index = build_crops([folder], tmp_path / "crops", RULE, instances=two, workers=1)
    again = build_crops([folder], tmp_path / "crops", RULE, instances=two, workers=1)
    expected = ["liver/CT_A/CT_A_0#7", "liver/CT_A/CT_A_0#41"]
    assert [s["sample_id"] for s in index.samples] == expected
    assert again.samples == index.samples
    fewer = build_crops([folder], tmp_path / "crops", RULE, instances=one, workers=1)
    assert [s["sample_id"] for s in fewer.samples] == ["liver/CT_A/CT_A_0"]


def test_a_damaged_crop_is_named(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    index = build_crops([folder], tmp_path / "crops", RULE, workers=1)
    path = tmp_path / "crops" / index.samples[0]["file"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"(?s)CT_A_0\.npz.*Delete the file"):
        read_crop(path)


def test_records_of_the_preparation_are_no_prepared_folders(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    (tmp_path / "tree" / ".records" / "classify").mkdir(parents=True)

    assert find_cases((tmp_path / "tree").glob("*/*")) == find_cases([folder])


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


def test_a_target_around_an_empty_middle_is_in_its_cube():
    target = np.zeros((60, 10, 10), bool)
    target[:4], target[-3:] = True, True
    crop = cut(target * 50, target, np.eye(4), CropRule(size=16, spacing_mm=1.0), is_ct=False)
    assert crop.label.any()
    assert 0 < crop.coverage < 1


@pytest.mark.parametrize("spacing_mm", [1.5, 4.0])
def test_a_target_of_one_voxel_keeps_a_voxel(spacing_mm):
    target = np.zeros((9, 9, 9), bool)
    target[2, 5, 7] = True
    crop = cut(target * 50, target, np.eye(4), CropRule(size=16, spacing_mm=spacing_mm), False)
    assert crop.label.sum() >= 1
    np.testing.assert_allclose(crop.grid.to_volume(np.argwhere(crop.label)[0]), (2, 5, 7), atol=2)


def test_a_run_that_was_stopped_mixes_no_rules(tmp_path):
    folder = write_prepared(tmp_path / "tree")
    build_crops([folder], tmp_path / "crops", RULE, workers=1)
    index = (tmp_path / "crops/index.json").read_text()
    build_crops([folder], tmp_path / "crops", CropRule(32, 0.5), workers=1)
    (tmp_path / "crops/index.json").write_text(index)  # as if stopped before its end

    again = build_crops([folder], tmp_path / "crops", RULE, workers=1)

    metas = [read_crop(tmp_path / "crops" / s["file"])[2] for s in again.samples]
    assert [meta["rule"] for meta in metas] == [RULE.to_dict()] * 3


def test_a_full_disk_stops_the_cutting(tmp_path):
    folder = write_prepared(tmp_path / "tree")
    (tmp_path / "crops").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="cannot be written"):
        build_crops([folder], tmp_path / "crops", RULE, workers=1)


def test_one_case_in_two_trees_is_refused(tmp_path):
    trees = [write_prepared(tmp_path / name, cases=1) for name in ("a", "b")]
    with pytest.raises(InputError, match=r"liver/CT_A/CT_A_0 first"):
        find_cases(trees)


def test_a_label_with_fractions_is_refused(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, ball() * np.float32(0.5), read_nifti(path).affine)
    with pytest.raises(InputError, match="fractions"):
        read_case(find_cases([folder])[0])
