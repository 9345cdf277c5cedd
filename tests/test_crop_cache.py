import json
import os
import shutil
import signal

import nibabel as nib
import numpy as np
import pytest
from small_cases import ball, write_prepared
from small_networks import RULE

from utils.cases.prepared import find_cases, read_case
from utils.errors import InputError
from utils.files.atomic import WriteError
from utils.files.nifti import read_nifti, write_nifti
from utils.run.executor import WorkerDiedError
from utils.training import crop_cache
from utils.training.augment import FILL, place
from utils.training.crop_cache import build_cache, read_index, read_target
from utils.volumes.crops import cut
from utils.volumes.geometry import CropRule, affine_from_spacing
from utils.volumes.labels import InstanceRule


def build(tmp_path, folder, **options):
    return build_cache([folder], tmp_path / "crops", workers=1, **options)


@pytest.fixture
def folder(tmp_path):
    return write_prepared(tmp_path / "tree", cases=1)


@pytest.mark.parametrize("rule", [RULE, CropRule(16, 0.7), CropRule(8, 3.0), CropRule(24, 9, True)])
@pytest.mark.parametrize("axes", ["LPS", "RAS", "SPL", "AIR"])
def test_crop_of_the_cache_is_the_crop_of_the_volume(tmp_path, folder, rule, axes):
    for part in ("imagesTr", "labelsTr"):
        path = folder / part / "CT_A_0.nii.gz"
        codes = nib.orientations.axcodes2ornt(axes)
        nib.save(nib.load(path).as_reoriented(codes), path)
    index = build(tmp_path, folder)
    case = find_cases([folder])[0]
    image, label = read_case(case)
    expected = cut(image.array, label.array > 0, image.affine, rule, case.is_ct)

    crop = read_target(index.folder, index.samples[0]).cut_centred(rule)

    np.testing.assert_allclose(crop.image, expected.image, atol=1e-4)
    np.testing.assert_array_equal(crop.label, expected.label)
    assert crop.coverage == pytest.approx(expected.coverage)


@pytest.mark.parametrize("change", ["shifted", "other voxel size"])
def test_a_target_that_moved_or_changed_its_size_is_another_one(tmp_path, folder, change):
    before = build(tmp_path, folder).samples[0]
    for part in ("imagesTr", "labelsTr"):
        path = folder / part / "CT_A_0.nii.gz"
        volume = read_nifti(path)
        array, affine = volume.array, volume.affine
        if change == "shifted" and part == "labelsTr":
            array = np.roll(array, 1, axis=0)
        if change == "other voxel size":
            affine = np.diag([2, 2, 2, 1]) @ affine
        write_nifti(path, array, affine)
    index = build(tmp_path, folder)

    assert index.samples[0]["mask"] != before["mask"]
    with pytest.raises(InputError, match=r"CT_A_0\.npz: found"):
        read_target(index.folder, before)


def test_a_dangling_link_is_reported(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=2)
    label = folder / "labelsTr" / "CT_A_0.nii.gz"
    label.unlink()
    label.symlink_to(tmp_path / "gone")
    index = build(tmp_path, folder)
    assert len(index.samples) == 1
    assert "CT_A_0.nii.gz: cannot be read" in index.failures[0]


def test_crop_of_a_hollow_target_holds_some_of_it(tmp_path, folder):
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    label = np.zeros((20, 24, 28), np.uint8)
    label[:2, :, :3], label[-2:, :, -4:] = 1, 1
    write_nifti(path, label, read_nifti(path).affine)
    rule = CropRule(8, 1.0)
    image, label = read_case(find_cases([folder])[0])
    expected = cut(image.array, label.array > 0, image.affine, rule, is_ct=True)

    index = build(tmp_path, folder)
    crop = read_target(index.folder, index.samples[0]).cut_centred(rule)

    assert crop.label.any()
    np.testing.assert_array_equal(crop.label, expected.label)


def test_hounsfield_units_are_clamped_as_in_the_volume(tmp_path, folder):
    path = folder / "imagesTr" / "CT_A_0.nii.gz"
    image = read_nifti(path)
    write_nifti(path, (image.array.astype(np.int16) - 100) * 20, image.affine)
    index = build(tmp_path, folder)
    image, label = read_case(find_cases([folder])[0])
    expected = cut(image.array, label.array > 0, image.affine, RULE, is_ct=True)

    crop = read_target(index.folder, index.samples[0]).cut_centred(RULE)

    assert index.samples[0]["hounsfield"]
    np.testing.assert_allclose(crop.image, expected.image, atol=1e-4)


def test_images_keep_their_type_and_are_shared_by_their_targets(tmp_path):
    liver = write_prepared(tmp_path / "tree", cases=2)
    shutil.copytree(liver, tmp_path / "tree/spleen/CT_A")  # copies, not links
    index = build_cache([liver, tmp_path / "tree/spleen/CT_A"], tmp_path / "crops", workers=1)

    assert len(index.samples) == 4
    images = list((tmp_path / "crops/images").iterdir())
    assert len(images) == 2
    assert {np.load(path).dtype for path in images} == {np.dtype(np.uint8)}


def test_only_what_has_changed_is_read_anew(tmp_path):
    folder = write_prepared(tmp_path / "tree")
    first = build(tmp_path, folder)
    files = {s["file"]: (tmp_path / "crops" / s["file"]).stat().st_mtime_ns for s in first.samples}
    changed = folder / "labelsTr" / "CT_A_1.nii.gz"
    write_nifti(changed, ball(radius=3).astype(np.uint8), read_nifti(changed).affine)

    again = build(tmp_path, folder)

    anew = [f for f in files if (tmp_path / "crops" / f).stat().st_mtime_ns != files[f]]
    assert anew == ["liver/CT_A/CT_A_1.npz"]
    assert [s["sample_id"] for s in again.samples] == [f"liver/CT_A/CT_A_{i}" for i in range(3)]
    identities = [[s["mask"] for s in index.samples] for index in (first, again)]
    assert [a == b for a, b in zip(*identities, strict=True)] == [True, False, True]


def test_file_that_was_changed_in_place_under_an_old_time_is_read_anew(tmp_path, folder):
    first = build(tmp_path, folder)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    before, times = path.read_bytes(), path.stat()
    changed = bytearray(before)
    changed[4:8] = b"\1\2\3\4"  # gzip's own time: the size stays
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    file = tmp_path / "crops/liver/CT_A/CT_A_0.npz"
    written = file.stat().st_mtime_ns

    again = build(tmp_path, folder)

    assert file.stat().st_mtime_ns != written
    assert again.samples == first.samples


def test_an_image_that_was_lost_is_cached_again(tmp_path, folder):
    index = build(tmp_path, folder)
    (tmp_path / "crops" / index.samples[0]["image"]).unlink()
    again = build(tmp_path, folder)
    assert read_target(again.folder, again.samples[0]).image.shape == (28, 24, 20)


def test_bad_cases_are_reported_and_the_others_cached(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=4)
    (folder / "imagesTr" / "CT_A_0.nii.gz").unlink()
    empty = folder / "labelsTr" / "CT_A_1.nii.gz"
    write_nifti(empty, np.zeros((20, 24, 28), np.uint8), read_nifti(empty).affine)
    moved = folder / "labelsTr" / "CT_A_2.nii.gz"
    write_nifti(moved, ball().astype(np.uint8), affine_from_spacing((3, 3, 3)))

    index = build(tmp_path, folder)

    assert [s["case"] for s in index.samples] == ["liver/CT_A/CT_A_3"]
    messages = dict(zip("012", index.failures, strict=True))
    assert "reallocate.py" in messages["0"]
    assert "empty" in messages["1"]
    assert "different grids" in messages["2"]


def test_each_large_instance_is_a_target_of_its_own(tmp_path, folder):
    label = np.zeros((20, 24, 28), np.uint16)
    label[2:5, 2:5, 2:5], label[8:16, 8:16, 8:16], label[17:19, 2:9, 2:9] = 300, 7, 41
    two, one = InstanceRule(most=2, min_voxels=1), InstanceRule(most=1, min_voxels=1)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, label, read_nifti(path).affine)

    index, again = (build(tmp_path, folder, instances=two) for _ in range(2))

    expected = ["liver/CT_A/CT_A_0#7", "liver/CT_A/CT_A_0#41"]
    assert [s["sample_id"] for s in index.samples] == expected
    assert again.samples == index.samples
    sizes = [read_target(index.folder, s).mask.sum() for s in index.samples]
    assert sizes == [8**3, 2 * 7 * 7]
    fewer = build(tmp_path, folder, instances=one)
    assert [s["sample_id"] for s in fewer.samples] == ["liver/CT_A/CT_A_0"]


@pytest.mark.parametrize("part", ["file", "image"])
def test_a_damaged_file_is_named(tmp_path, folder, part):
    index = build(tmp_path, folder)
    path = tmp_path / "crops" / index.samples[0][part]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"(?s){path.name}.*Delete the file"):
        read_target(index.folder, index.samples[0])


def test_a_target_that_another_run_has_cached_anew_is_refused(tmp_path, folder):
    index = build(tmp_path, folder)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, ball(radius=3).astype(np.uint8), read_nifti(path).affine)
    build(tmp_path, folder)
    with pytest.raises(InputError, match=r"(?s)CT_A_0\.npz: found.*rewritten"):
        read_target(index.folder, index.samples[0])


def test_folders_that_are_not_prepared_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"utils/data_paths\.py"):
        find_cases([])
    with pytest.raises(InputError, match="labelsTr"):
        find_cases([tmp_path])
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(InputError, match=r"categorize\.py"):
        find_cases([tmp_path])


def test_an_index_that_is_missing_or_of_another_version_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match=r"index\.json: not found"):
        read_index(tmp_path)
    built = build(tmp_path, folder)
    content = json.loads((built.folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(content))
    assert len(read_index(tmp_path).samples) == len(built.samples)
    (tmp_path / "index.json").write_text(json.dumps(content | {"layout": 0}))
    with pytest.raises(InputError, match=r"not a crop index of this version"):
        read_index(tmp_path)


def test_the_cache_needs_no_volumes_any_more(tmp_path, folder):
    index = build(tmp_path, folder)
    shutil.rmtree(tmp_path / "tree")
    moved = read_index((tmp_path / "crops").rename(tmp_path / "elsewhere"))
    assert moved.samples == index.samples
    assert read_target(moved.folder, moved.samples[0]).cut_centred(RULE).image.shape == (32,) * 3


def test_a_full_disk_stops_the_run(tmp_path, folder):
    (tmp_path / "crops").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="cannot be written"):
        build(tmp_path, folder)


def kill_own_process(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run_with_a_message(tmp_path, monkeypatch):
    folder = write_prepared(tmp_path / "tree")
    with monkeypatch.context() as patch:
        patch.setattr(crop_cache, "_cache_case", kill_own_process)
        with pytest.raises(WorkerDiedError, match=r"(?s)was killed.*--workers"):
            build_cache([folder], tmp_path / "crops", workers=2)
    index = build_cache([folder], tmp_path / "crops", workers=2)
    assert len(index.samples) == 3


def test_records_of_the_preparation_are_no_prepared_folders(tmp_path, folder):
    (tmp_path / "tree" / ".records" / "classify").mkdir(parents=True)
    assert find_cases((tmp_path / "tree").glob("*/*")) == find_cases([folder])


def test_one_case_in_two_trees_is_refused(tmp_path):
    trees = [write_prepared(tmp_path / name, cases=1) for name in ("a", "b")]
    with pytest.raises(InputError, match=r"liver/CT_A/CT_A_0 first"):
        find_cases(trees)


def test_a_label_with_fractions_is_refused(folder):
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    write_nifti(path, ball() * np.float32(0.5), read_nifti(path).affine)
    with pytest.raises(InputError, match="fractions"):
        read_case(find_cases([folder])[0])


ROW = {"shape": [90, 80, 70], "voxel_mm": [1.0, 1.5, 3.0], "start": [30, 40, 20],
       "stop": [40, 44, 24]}  # fmt: skip


def drawn(zoom_share, row=ROW, rule=RULE, count=300):
    return [place(row, rule, np.random.default_rng(n), zoom_share) for n in range(count)]


def test_zoomed_targets_fill_a_quarter_to_nine_tenths_of_the_crop():
    edges_mm = [abs(grid.steps[0]) * 1.0 * grid.size for grid in drawn(1.0)]
    fills = 12 / np.array(edges_mm)  # the longest side: 4 voxels of 3 mm

    assert FILL[0] <= fills.min() < 0.3
    assert 0.8 < fills.max() <= FILL[1] + 1e-9
    assert np.median(fills) == pytest.approx(np.sqrt(FILL[0] * FILL[1]), rel=0.1)


def test_zoom_leaves_a_share_at_the_rules_spacing_and_every_crop_isotropic():
    grids = drawn(0.5)
    steps_mm = np.array([np.abs(grid.steps) * ROW["voxel_mm"] for grid in grids])
    np.testing.assert_allclose(steps_mm, steps_mm[:, :1].repeat(3, axis=1))
    assert 0.4 < (steps_mm[:, 0] == RULE.spacing_mm).mean() < 0.6


def test_shifted_crops_hold_their_whole_target_and_differ():
    corners = [ROW["start"], [stop - 1 for stop in ROW["stop"]]]
    grids = drawn(0.5)
    for grid in grids:
        inside = np.array([grid.to_crop(corner) for corner in corners])
        assert inside.min() >= -0.5
        assert inside.max() <= grid.size - 0.5
    middles = np.array([grid.to_volume((15.5,) * 3) for grid in grids])
    assert (middles.std(axis=0) > [2, 1, 0.5]).all()


def test_crops_of_a_target_larger_than_they_are_look_at_all_of_it():
    row = ROW | {"start": [0, 0, 0], "stop": [90, 80, 70]}
    middles = np.array([g.to_volume((15.5,) * 3) for g in drawn(0.0, row)])
    assert (middles.max(axis=0) - middles.min(axis=0) > np.array([10, 8, 3])).all()


def test_half_of_the_crops_are_read_backwards_along_each_axis():
    backwards = np.array([np.array(grid.steps) < 0 for grid in drawn(0.5)])
    assert (np.abs(backwards.mean(axis=0) - 0.5) < 0.1).all()


def test_zoom_goes_no_finer_than_a_quarter_of_the_finest_voxel():
    row = ROW | {"stop": [31, 41, 21]}
    assert min(abs(grid.steps[0]) for grid in drawn(1.0, row, CropRule(128))) == 0.25
