"""predict.py from files to files, with the small network: challenge cases and NIfTI images."""

import gc
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from header_kinds import write_kind
from preparation_helpers import ROOT, state_of
from small_cases import ball
from small_networks import RULE, save_student, save_teacher, small_student
from test_pipeline import Watched

import predict
from utils.cases.challenge import read_challenge_case
from utils.errors import InputError
from utils.files.nifti import read_nifti, write_nifti
from utils.prediction.predictor import Predictor
from utils.run.flags import PRECISIONS
from utils.volumes.geometry import affine_from_spacing

SHAPE = (20, 24, 28)
SPACING_XYZ = (1.2, 1.1, 1.0)
AFFINE = affine_from_spacing(np.array(SPACING_XYZ))
CENTRES = ((6, 7, 8), (13, 16, 20))
BOXES = [
    {
        "z_min": z - 4, "z_max": z + 4, "z_mid": z, "z_mid_y_min": y - 4, "z_mid_y_max": y + 4,
        "z_mid_x_min": x - 4, "z_mid_x_max": x + 4,
    }
    for z, y, x in CENTRES
]  # fmt: skip


@pytest.fixture(autouse=True)
def collected():
    """Undo the settings of the garbage collector that predict.py makes in this process."""
    yield
    gc.unfreeze()


@pytest.fixture
def student(tmp_path):
    return save_student(tmp_path / "student.pth")


def image(dtype=np.uint8):
    balls = sum(ball(SHAPE, centre, 4.5) for centre in CENTRES)
    noise = np.random.default_rng(0).integers(0, 30, SHAPE)
    return (60 + 90 * balls + noise).astype(dtype)


def as_objects(entries):
    array = np.empty(len(entries), object)
    array[:] = entries
    return array


def write_npz(folder, name="CT_A_1", **arrays):
    folder.mkdir(exist_ok=True)
    prompts = {key: as_objects(arrays.pop(key)) for key in ("boxes", "clicks") if key in arrays}
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **{"imgs": image(), "spacing": SPACING_XYZ} | prompts | arrays)
    return path


def write_scan(folder, name="scan.nii.gz", array=None, targets=None):
    path = folder / name
    write_nifti(path, image() if array is None else array, AFFINE)
    if targets is not None:
        content = {"coordinates": "zyx", "targets": targets}
        (folder / f"{name.split('.')[0]}.json").write_text(json.dumps(content))
    return path


def predicted(source, output, checkpoint, *flags):
    words = ["--input", source, "--output", output, "--checkpoint", checkpoint, "--device", "cpu"]
    return predict.run(predict.parse_args([str(word) for word in (*words, *flags)]))


def segs_of(path):
    with np.load(path, allow_pickle=False) as stored:
        assert stored.files == ["segs"]
        return stored["segs"]


def test_a_challenge_case_is_answered_under_its_name(tmp_path, student):
    write_npz(tmp_path / "inputs", boxes=BOXES)
    report = predicted(tmp_path / "inputs", tmp_path / "outputs", student)
    assert report.failures == []
    assert report.written == [tmp_path / "outputs" / "CT_A_1.npz"]
    segs = segs_of(report.written[0])
    assert (segs.dtype, segs.shape) == (np.uint8, SHAPE)
    assert set(np.unique(segs)) <= {0, 1, 2}


def test_the_answer_is_the_predictors_to_the_prompts_of_the_file(tmp_path, student):
    clicks = [{"fg": [CENTRES[0]], "bg": [[0, 0, 0]]}, {"fg": [CENTRES[1]], "bg": []}]
    path = write_npz(
        tmp_path / "inputs", boxes=BOXES, clicks=clicks, clicks_order=[["bg", "fg"], ["fg", None]]
    )
    (written,) = predicted(path, tmp_path / "outputs", student).written
    predictor = Predictor(small_student(), RULE)
    predictor.set_image(image(), spacing_xyz=SPACING_XYZ)
    for target, prompts in enumerate(read_challenge_case(path).prompts, 1):
        for prompt in prompts:
            predictor.add(prompt, target=target)
    expected = predictor.segmentation()
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(segs_of(written), expected)


@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 5), (1, 1, 1)])
def test_a_case_without_prompts_is_answered_with_zeros(tmp_path, student, shape):
    path = write_npz(tmp_path / "inputs", imgs=np.zeros(shape, np.uint8))
    (written,) = predicted(path, tmp_path / "outputs", student).written
    segs = segs_of(written)
    assert (segs.dtype, segs.shape) == (np.uint8, shape)
    assert not segs.any()


@pytest.mark.parametrize("shape", [(5, 5, 5), (1, 9, 3), SHAPE])
@pytest.mark.parametrize("value", [0, 7])
def test_empty_constant_and_tiny_images_are_answered(tmp_path, student, shape, value):
    clicks = [{"fg": [[0, 2, 2]], "bg": [[0, 0, 0]]}]
    path = write_npz(tmp_path / "inputs", imgs=np.full(shape, value, np.uint8), clicks=clicks)
    (written,) = predicted(path, tmp_path / "outputs", student).written
    assert segs_of(written).shape == shape
    assert segs_of(written)[0, 2, 2] == 1
    assert segs_of(written)[0, 0, 0] == 0


def test_only_as_many_classes_are_answered_as_the_dtype_has_numbers(tmp_path, student, caplog):
    places = [[k % 20, k % 24, k % 28] for k in range(257)]
    empty = [{"fg": [], "bg": []}] * 253
    clicks = [{"fg": [place], "bg": []} for place in places[253:]]
    path = write_npz(tmp_path / "inputs", clicks=[*empty, *clicks])
    (written,) = predicted(path, tmp_path / "outputs", student).written
    segs = segs_of(written)
    assert segs.dtype == np.uint8
    assert segs[tuple(places[254])] == 255
    assert not {1, 2} & set(np.unique(segs))  # 257 and 258 would be 1 and 2
    assert "has 257 classes" in caplog.text

    flags = ("--segs-dtype", "uint16")
    segs = segs_of(predicted(path, tmp_path / "outputs", student, *flags).written[0])
    assert segs.dtype == np.uint16
    assert segs[tuple(places[256])] == 257


def test_a_nifti_image_is_answered_on_its_own_grid(tmp_path, student):
    points = [{"at": CENTRES[1]}, {"at": [0, 0, 0], "positive": False}]
    targets = [{"id": 300, "points": points}, {"id": 2, "points": [{"at": CENTRES[0]}]}]
    path = write_scan(tmp_path / "scans", targets=targets)
    (written,) = predicted(path, tmp_path / "out", student).written
    answer = read_nifti(written)
    assert written == tmp_path / "out" / "scan.nii.gz"
    assert answer.array.dtype == np.uint16
    assert answer.array[CENTRES[1]] == 300
    assert answer.array[CENTRES[0]] == 2
    np.testing.assert_allclose(answer.affine, AFFINE, atol=1e-6)


def test_nifti_and_npz_give_the_same_answer_to_the_same_prompts(tmp_path, student):
    clicks = [{"fg": [CENTRES[0]], "bg": [[0, 0, 0]]}]
    case = write_npz(tmp_path / "inputs", clicks=clicks)
    segs = segs_of(predicted(case, tmp_path / "out", student).written[0])
    scan = write_scan(tmp_path / "scans")
    flags = ["--fg", ",".join(map(str, CENTRES[0])), "--bg", "0,0,0"]
    answer = read_nifti(predicted(scan, tmp_path / "out", student, *flags).written[0])
    assert segs.any()
    np.testing.assert_array_equal(answer.array, segs)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_answered(tmp_path, student, axis):
    place = CENTRES[0]
    array = image().take([place[axis]], axis)
    flat = ",".join(str(0 if n == axis else c) for n, c in enumerate(place))
    path = write_scan(tmp_path / "scans", array=array)
    (written,) = predicted(path, tmp_path / "out", student, "--fg", flat).written
    answer = read_nifti(written).array
    assert answer.shape == array.shape
    assert answer[tuple(map(int, flat.split(",")))] == 1


def test_trailing_axes_are_dropped_and_a_picture_is_named_as_one(tmp_path, student, caplog):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, array in (("five", image().T[..., None, None]), ("flat", image()[6].T)):
        nib.save(nib.Nifti1Image(array, AFFINE), scans / f"{name}.nii.gz")
    report = predicted(scans, tmp_path / "out", student, "--fg", "6,7,8")
    assert [path.name for path in report.written] == ["five.nii.gz"]
    assert nib.load(report.written[0]).shape == SHAPE[::-1]
    (failure,) = report.failures
    assert "flat.nii.gz" in failure
    assert "holds a 2-D picture" in failure


@pytest.mark.parametrize("coordinates", ["mm", "mm-lps"])
def test_a_click_in_mm_lands_where_the_user_s_viewer_showed_it(
    tmp_path, student, coordinates, caplog
):
    scan = tmp_path / "scans/scan.nii"
    write_kind(scan, "scanner and MNI", image(np.int16))
    z, y, x = CENTRES[1]
    if coordinates == "mm":
        place = (nib.load(scan).affine @ [x, y, z, 1])[:3]
    else:
        place = sitk.ReadImage(str(scan)).TransformIndexToPhysicalPoint((x, y, z))
    flags = ("--fg", ",".join(map(str, place)), "--coordinates", coordinates)
    (written,) = predicted(scan, tmp_path / "out", student, *flags).written
    by_voxel = predicted(scan, tmp_path / "voxel", student, "--fg", f"{z},{y},{x}").written[0]
    assert read_nifti(written).array[CENTRES[1]] == 1
    np.testing.assert_array_equal(read_nifti(written).array, read_nifti(by_voxel).array)
    assert "the forms of its header lie up to" in caplog.text


def test_hounsfield_units_are_windowed_unless_told_otherwise(tmp_path, student, caplog):
    caplog.set_level("INFO")
    array = (image(np.int16) - 100) * 8
    path = write_scan(tmp_path / "scans", array=array, targets=[{"id": 1, "points": []}])
    for flags, said in (
        ("--modality ct", "scan.nii.gz: window level 40, width 400"),
        ("--window -600 1500", "window level -600, width 1500"),
        ("--intensity as-is", "intensities kept"),
    ):
        predicted(path, tmp_path / "out", student, *flags.split())
        assert said in caplog.messages[-1]


def test_one_bad_case_is_named_and_the_others_are_answered(tmp_path, student, caplog):
    inputs = tmp_path / "inputs"
    write_npz(inputs, "CT_A_1", boxes=BOXES)
    write_npz(inputs, "CT_A_2", boxes=["a box"])
    write_npz(inputs, "CT_A_3", boxes=BOXES[:1])
    (inputs / "CT_A_4.npz").write_bytes(b"no archive")
    write_scan(inputs, "scan.nii.gz")
    write_scan(inputs, "other.nii", targets=[{"id": 1, "points": [{"at": [1, 1, 1]}]}])
    before = state_of(inputs)
    report = predicted(inputs, tmp_path / "out", student)
    names = [path.name for path in report.written]
    assert names == ["CT_A_1.npz", "CT_A_3.npz", "other.nii.gz"]
    assert len(report.failures) == 3
    for failure, name in zip(report.failures, ("CT_A_2", "CT_A_4", "scan"), strict=True):
        assert name in failure
        assert failure in caplog.text
    assert state_of(inputs) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_a_second_run_gives_the_same_bytes(tmp_path, student):
    path = write_scan(tmp_path / "scans", targets=[{"id": 1, "points": [{"at": CENTRES[0]}]}])
    (written,) = predicted(path, tmp_path / "out", student).written
    first = written.read_bytes()
    assert predicted(path, tmp_path / "out", student).written[0].read_bytes() == first


@pytest.mark.parametrize(
    ("source", "output", "flags", "said"),
    [
        ("nowhere", "out", (), "found no case"),
        ("empty", "out", (), "found no case"),
        ("inputs", "inputs", (), "lies with the inputs"),
        ("inputs", "inputs/out", (), "lies with the inputs"),
        ("inputs/CT_A_1.npz", "inputs", (), "lies with the inputs"),
        ("twins", "out", (), "its answer would be scan.nii.gz, and so would that of"),
        ("inputs", "inputs/CT_A_1.npz/out", (), "lies with the inputs"),
        ("inputs", "student.pth/out", (), "cannot be written"),
        ("inputs", "out", ("--device", "gpu"), "--device gpu"),
        ("inputs", "out", ("--network", "vit_b_ori"), "expected 'vit_b_ori'"),
        ("inputs", "out", ("--checkpoint", "nowhere.pth"), "no such file"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(
    tmp_path, student, monkeypatch, source, output, flags, said
):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "inputs")
    (tmp_path / "empty").mkdir()
    for name in ("scan.nii", "scan.nii.gz"):
        write_scan(tmp_path / "twins", name)
    with pytest.raises(InputError, match=said):
        predicted(source, output, student, *flags)
    assert not list(tmp_path.glob("out/*"))


def test_prompts_for_a_case_that_holds_its_own_are_refused(tmp_path, student):
    path = write_npz(tmp_path / "inputs", boxes=BOXES)
    (failure,) = predicted(path, tmp_path / "out", student, "--fg", "1,2,3").failures
    assert "found prompts on the command line" in failure


def test_a_bare_student_encoder_needs_its_teacher(tmp_path):
    path = write_npz(tmp_path / "inputs", boxes=BOXES)
    student = save_student(tmp_path / "student.pth")
    content = torch.load(student, weights_only=True)
    del content["decoder_state_dict"]
    torch.save(content, tmp_path / "bare.pth")
    with pytest.raises(InputError, match="decoder"):
        predicted(path, tmp_path / "out", tmp_path / "bare.pth")
    teacher = ("--teacher", save_teacher(tmp_path / "teacher.pth"))
    assert predicted(path, tmp_path / "out", tmp_path / "bare.pth", *teacher).written


def test_every_flag_is_read_by_something(tmp_path, student):
    words = ["--output", tmp_path / "out", "--checkpoint", student]
    unread = set(vars(predict.parse_args([*map(str, words), "--input", "i"])))
    for path in (write_npz(tmp_path / "inputs"), write_scan(tmp_path / "inputs")):
        flags = ["--fg", "1,2,3"] if path.name == "scan.nii.gz" else []
        args = Watched(predict.parse_args([*map(str, words), "--input", str(path), *flags]))
        assert predict.run(args).failures == []
        unread &= args.unread()
    assert unread == {"timing"}  # main's


def test_as_a_process_it_tells_times_and_names_what_failed(tmp_path, student):
    write_npz(tmp_path / "inputs", "CT_A_1", boxes=BOXES)
    write_npz(tmp_path / "inputs", "CT_A_2", boxes=[{}])
    flags = ("--input", "inputs", "--output", "out", "--checkpoint", student, "--timing")
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "CT_A_2.npz: the box of class 1 is {}" in done.stderr
    assert "Traceback" not in done.stderr
    for part in ("imports", "weights", "cases", "network", "writing", "together"):
        assert part in done.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "CT_A_1.npz").exists()


def test_help_loads_no_torch():
    code = "import sys, predict\ntry: predict.parse_args(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_precisions_are_those_of_the_other_scripts():
    for precision in PRECISIONS:
        words = ["--input", "i", "--output", "o", "--checkpoint", "c", "--precision", precision]
        assert predict.parse_args(words).precision == precision


def test_an_engine_that_cannot_run_is_refused_before_any_work(tmp_path, student):
    write_npz(tmp_path / "inputs", clicks=[{"fg": [[6, 7, 8]], "bg": []}])
    words = ["--input", tmp_path / "inputs", "--output", tmp_path / "out", "--device", "cpu"]
    words += ["--checkpoint", student, "--engine", "graph"]
    with pytest.raises(InputError, match=r"--engine graph: .*expected a CUDA device"):
        predict.run(predict.parse_args(list(map(str, words))))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "name no target"),
        ([{"id": 3}], "target 3 has no box and no click on it"),
        ([{"id": 3, "points": [{"at": [4, 5, 6], "positive": False}]}], "target 3 has no box"),
    ],
)
def test_prompts_that_give_an_empty_mask_are_warned_of(tmp_path, student, caplog, targets, said):
    write_scan(tmp_path / "in", targets=targets)
    report = predicted(tmp_path / "in", tmp_path / "out", student)
    assert len(report.written) == 1
    assert said in caplog.text


def test_prompts_with_a_click_are_not_warned_of(tmp_path, student, caplog):
    write_scan(tmp_path / "in", targets=[{"id": 3, "points": [{"at": [4, 5, 6]}]}])
    predicted(tmp_path / "in", tmp_path / "out", student)
    assert "is empty" not in caplog.text
