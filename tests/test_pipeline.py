"""The seven scripts chained on tiny volumes with the small network, and bad input to them."""

import argparse
import csv
import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from preparation_helpers import CLASSES, ROOT, categorize_all, classify_all, reallocate_all
from small_cases import ball, write_prepared
from small_networks import save_student, save_teacher, small_sam

import distillation
import preparelabel
import validation
import validation_student
from segment_anything import checkpoint_payload
from utils.errors import InputError
from utils.training.tensor_shards import open_shards
from utils.volumes.geometry import GeometryError

SPACING_XYZ = (1.2, 1.1, 1.0)
SMALL_LOSS = ["--loss-size", "16"]
PREPARED = ["--val-datas", "tree/liver/CT_A"]
TRAINING = ["--steps", "3", "--batch-size", "2", "--workers", "0"]


def write_npz(folder, names):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        label = np.zeros((20, 24, 28), np.uint8)
        label[ball(centre=(7 + number, 10, 12), radius=5)] = 1
        label[ball(centre=(14, 18, 22), radius=3)] = 2
        image = 60 + 60 * label + np.random.default_rng(number).integers(0, 20, label.shape)
        np.savez(
            folder / f"{name}.npz", imgs=image.astype(np.uint8), gts=label, spacing=SPACING_XYZ
        )


class Watched(argparse.Namespace):
    """Parsed flags that know which of them were read."""

    def __init__(self, args):
        super().__init__(**vars(args))
        object.__setattr__(self, "_read", set())

    def __getattribute__(self, name):
        read = object.__getattribute__(self, "__dict__").get("_read", set())
        read.add(name)
        return object.__getattribute__(self, name)

    def unread(self):
        own = {"_read", "__dict__"}
        return set(vars(self)) - object.__getattribute__(self, "_read") - own


def prepare_labels(*flags):
    return preparelabel.run(
        preparelabel.parse_args(["--num-clicks", "2", "--loss-size", "16", *TRAINING, *flags])
    )


def run_watched(script, *flags):
    """Run a script; return its report and the flags that nothing looked at."""
    args = Watched(script.parse_args([str(flag) for flag in flags]))
    return script.run(args), args.unread()


def folders(tree):
    return [str(path) for path in sorted(Path(tree).glob("*/*"))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Be in an empty folder: default output folders are relative to where a script is run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Run everything once, in a folder of its own, with each script's default paths."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("CVPR25.json").write_text(json.dumps(CLASSES))
        write_npz(folder / "data/npz", ["CT_A_1", "CT_A_2", "CT_A_3"])
        for step in (classify_all, categorize_all, reallocate_all):
            assert step().exit_code == 0
        tree = folders("data/medical_preprocessed")
        write_npz(folder / "val", ["CT_A_8", "CT_A_9"])
        classify_all("--labels", "val", "--out", "val_classified")
        categorize_all("--in", "val_classified", "--out", "val_tree")
        reallocate_all("--images", "val", "--tree", "val_tree")
        validate = ["--validate-every", "2", "--val-datas", *folders("val_tree")]
        teacher = ["--checkpoint", save_teacher(folder / "t.pt"), "--img-datas", *tree]
        small = ["--num-clicks", "2", "--loss-size", "16"]
        student = ["--checkpoint", save_student(folder / "s.pt")]
        online = ["--online", "--num-clicks", "1", "--out-dir", "online"]
        flags = ["--val-datas", *tree, "--num-clicks", "2", "--pictures", "1"]
        challenge = ["--protocol", "challenge", "--images", "val", "--labels", "val"]
        challenge += ["--num-clicks", "2", "--pictures", "1", "--out-dir", "challenge"]
        reports = {
            "teacher": run_watched(preparelabel, *teacher, *small, *validate, *TRAINING),
            "student": run_watched(distillation, *student, *validate, *TRAINING),
            "online": run_watched(distillation, *online, *student, *validate, *TRAINING),
            "validation": run_watched(validation, *flags),
            "validation_student": run_watched(validation_student, *flags),
            "challenge": run_watched(validation_student, *challenge),
        }
        unread = {name: flags for name, (_, flags) in reports.items()}
        reports = {name: report for name, (report, _) in reports.items()}
        reports["unread"] = unread
    return folder, reports


def test_every_organ_of_every_case_is_trained_stored_and_validated(pipeline):
    folder, reports = pipeline
    expected = [f"{o}/CT_A/CT_A_{i}" for o in ("left_lung", "liver") for i in (1, 2, 3)]
    assert [s["sample_id"] for s in reports["teacher"].store.samples] == expected
    for name in ("validation_teacher", "validation_student"):
        with open(folder / "work_dir" / name / "cases.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["sample_id"] for row in rows] == expected
        assert all(0 <= float(row["DSC_2"]) <= 1 for row in rows)


def test_training_is_validated_and_the_best_network_is_the_one_that_is_used(pipeline):
    folder, reports = pipeline
    for name, used in (
        ("teacher", "teacher_outputs/teacher.pt"),
        ("student", "student/student.pth"),
    ):
        rows = (folder / "work_dir" / name / "validation.jsonl").read_text().splitlines()
        assert len(rows) == reports[name].fit.steps // 2 + 1  # and the last
        assert {"step", "dsc_1", "dsc_3", "dsc_5", "score"} == json.loads(rows[0]).keys()
        best, used = (
            torch.load(folder / "work_dir" / path, weights_only=True)["model_state_dict"]
            for path in (f"{name}/best.pt", used)
        )
        assert all(torch.equal(best[key], used[key]) for key in best)


def test_every_flag_is_read_by_something(pipeline):
    _, reports = pipeline
    # Where a checkpoint is given, nothing is started from the teacher's blocks; stored outputs say
    # their clicks, and are of crops as they are; the teacher's validation crops are there.
    of_online = {"num_clicks", "augment", "zoom_share", "region_share", "region_share_end"}
    of_online |= {"flip_share", "generated_share", "generated_share_end"}
    expected = {"teacher": set(), "student": {"init_from_teacher", "val_datas"} | of_online}
    expected["online"] = {"init_from_teacher", "val_datas"}
    of_challenge = {"images", "labels", "json", "boxes"}
    expected |= {"validation": of_challenge, "validation_student": of_challenge}
    expected["challenge"] = {"val_datas", "max_instances", "predictions", "image_check", "ceiling"}
    assert reports["unread"] == expected


def test_a_finished_training_resumes_to_its_outputs(pipeline, tmp_path):
    folder, reports = pipeline
    work = folder / "work_dir"
    report = prepare_labels(
        "--checkpoint", str(folder / "t.pt"), "--resume", "--out-dir", str(work / "teacher"),
        "--from-crops", "--crops-dir", str(work / "crops"), "--teacher-dir", str(tmp_path),
        "--validate-every", "2", "--val-datas", *folders(folder / "val_tree"),
    )  # fmt: skip
    assert report.fit.steps == 3
    assert report.store.fingerprint == reports["teacher"].store.fingerprint
    assert len(open_shards(tmp_path).rows) == 6


def test_a_network_that_is_there_is_not_trained_over(pipeline):
    folder, _ = pipeline
    with pytest.raises(InputError, match=r"(?s)last\.pt: holds the network.*--resume"):
        prepare_labels(
            "--checkpoint", str(folder / "t.pt"), "--out-dir", str(folder / "work_dir/teacher"),
            "--from-crops", "--crops-dir", str(folder / "work_dir/crops"),
        )  # fmt: skip


def test_folders_beside_from_crops_are_refused_since_all_targets_would_be_taken(pipeline, tmp_path):
    folder, _ = pipeline
    with pytest.raises(InputError, match=r"--img-datas: found 1 folders beside --from-crops"):
        prepare_labels(
            "--checkpoint", str(folder / "t.pt"), "--from-crops", "--img-datas", "liver/CT_A",
            "--crops-dir", str(folder / "work_dir/crops"), "--out-dir", str(tmp_path / "out"),
            "--teacher-dir", str(tmp_path / "outputs"),
        )  # fmt: skip


def test_a_student_is_not_resumed_under_another_teacher(pipeline, tmp_path):
    folder, _ = pipeline
    work = folder / "work_dir"
    crops = ["--crops-dir", str(work / "crops")]
    other = ["--checkpoint", str(save_teacher(tmp_path / "t.pt", seed=5)), "--steps", "0"]
    prepare_labels(*other, "--from-crops", *crops, "--teacher-dir", str(tmp_path / "outputs"))
    flags = ["--checkpoint", str(folder / "s.pt"), "--resume", "--out-dir", str(work / "student")]
    with pytest.raises(InputError, match=r"last\.pt: its teacher is \w+, expected \w+"):
        distillation.run(
            distillation.parse_args(
                [*flags, *crops, "--teacher-dir", str(tmp_path / "outputs"), *TRAINING]
            )
        )


def test_crops_of_a_stopped_run_are_those_of_the_resumed_one(pipeline, tmp_path):
    folder, _ = pipeline
    shape = ["--spacing-mm", "0.5", "--crops-dir", str(tmp_path / "crops")]
    tree = folders(folder / "data/medical_preprocessed")
    with pytest.raises(InputError, match=r"last\.pt: its crop_rule is .*1\.0.*expected .*0\.5"):
        prepare_labels(
            "--checkpoint", str(folder / "t.pt"), "--resume", *shape, "--img-datas", *tree,
            "--out-dir", str(folder / "work_dir/teacher"),
        )  # fmt: skip


def test_the_summary_is_the_mean_of_the_cases(pipeline):
    folder, reports = pipeline
    out_dir = folder / "work_dir/validation_teacher"
    with open(out_dir / "cases.csv") as file:
        scores = [float(row["DSC_1"]) for row in csv.DictReader(file)]
    assert reports["validation"].dsc[0] == pytest.approx(np.mean(scores), abs=1e-4)
    assert json.loads((out_dir / "summary.json").read_text())["dsc"] == reports["validation"].dsc


def test_predictions_lie_on_the_grid_of_the_input(pipeline):
    folder, _ = pipeline
    for name in ("validation_teacher", "validation_student"):
        written = sorted((folder / "work_dir" / name / "predictions").rglob("*.nii.gz"))
        assert len(written) == 6
        for path in written:
            organ, dataset = path.parts[-3:-1]
            source = folder / "data/medical_preprocessed" / organ / dataset / "imagesTr" / path.name
            prediction, image = nib.load(path), nib.load(source)
            assert prediction.shape == image.shape == (28, 24, 20)
            np.testing.assert_allclose(prediction.affine, image.affine)
            np.testing.assert_allclose(prediction.header.get_zooms(), SPACING_XYZ, rtol=1e-6)


def test_pictures_and_curves_are_drawn(pipeline):
    folder, _ = pipeline
    for name in ("validation_teacher", "validation_student"):
        pictures = list((folder / "work_dir" / name).rglob("*.png"))
        assert {p.name for p in pictures} >= {"dsc.png", "nsd.png"}
        assert len(pictures) == 3


def test_the_student_is_told_which_teacher_it_has(pipeline):
    _, reports = pipeline
    teacher = reports["teacher"].store.fingerprint
    assert reports["validation"].fingerprint == teacher
    assert reports["validation_student"].fingerprint != teacher


def test_steps_zero_stores_the_outputs_of_a_checkpoint_as_it_is(pipeline):
    folder, _ = pipeline
    report = prepare_labels(
        "--checkpoint", str(folder / "t.pt"), "--steps", "0",
        "--from-crops", "--crops-dir", str(folder / "work_dir/crops"),
    )  # fmt: skip
    assert report.fit is None
    assert len(report.store.samples) == 6


def test_online_distillation_needs_no_store(pipeline, tmp_path):
    folder, _ = pipeline
    crops = ["--crops-dir", str(folder / "work_dir/crops"), "--teacher-dir", str(tmp_path / "t")]
    prepare_labels(
        "--checkpoint", str(folder / "t.pt"), "--from-crops", "--no-store", *crops,
        "--out-dir", str(tmp_path / "teacher"),
    )  # fmt: skip
    flags = [*crops, "--online", "--num-clicks", "1", "--checkpoint", str(folder / "s.pt")]
    report = distillation.run(
        distillation.parse_args([*flags, "--out-dir", str(tmp_path / "student"), *TRAINING])
    )
    assert report.path.exists()
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["teacher.pt"]


def test_held_out_patients_are_stored_but_not_trained_on(pipeline, tmp_path):
    folder, _ = pipeline
    crops = ["--crops-dir", str(folder / "work_dir/crops"), "--teacher-dir", str(tmp_path / "t")]
    split = ["--validate-every", "2", "--val-share", "0.5"]
    report = prepare_labels(
        "--checkpoint", str(folder / "t.pt"), "--from-crops", *crops, *split,
        "--out-dir", str(tmp_path / "teacher"),
    )  # fmt: skip
    assert len(report.store.samples) == 6
    assert (tmp_path / "teacher/validation.png").exists()
    student = [*crops, "--checkpoint", str(folder / "s.pt"), "--out-dir", str(tmp_path / "student")]
    distillation.run(distillation.parse_args([*student, *TRAINING]))


def test_a_student_that_cannot_follow_its_teacher_is_refused(pipeline, tmp_path):
    folder, _ = pipeline
    flags = ["--crops-dir", str(folder / "work_dir/crops"), "--out-dir", str(tmp_path / "out")]
    flags += ["--teacher-dir", str(folder / "work_dir/teacher_outputs"), *TRAINING]
    with pytest.raises(InputError, match=r"(?s)tiny_fastsam3d cannot have .*'img_size': 32"):
        distillation.run(distillation.parse_args([*flags, "--network", "tiny_fastsam3d"]))


def test_one_cache_of_volumes_serves_crops_of_every_spacing(pipeline):
    folder, _ = pipeline
    report = prepare_labels(
        "--checkpoint", str(folder / "t.pt"), "--from-crops", "--spacing-mm", "0.5", "--no-store",
        "--crops-dir", str(folder / "work_dir/crops"), "--out-dir", str(folder / "finer"),
    )  # fmt: skip
    assert report.fit.steps == 3
    assert report.store is None
    rule = torch.load(folder / "finer/last.pt", weights_only=True)["crop_rule"]
    assert rule["spacing_mm"] == 0.5


def test_layer_by_layer_needs_layers_and_says_so(pipeline, tmp_path):
    folder, _ = pipeline
    crops = ["--crops-dir", str(folder / "work_dir/crops")]
    teacher = ["--checkpoint", str(folder / "t.pt"), "--steps", "0", "--from-crops", *crops]
    store = ["--teacher-dir", str(tmp_path / "outputs")]
    flags = ["--checkpoint", str(folder / "s.pt"), *crops, *store, *TRAINING]
    flags += ["--layer-share", "0.7", "--out-dir"]
    prepare_labels(*teacher, *store)
    with pytest.raises(InputError, match=r"(?s)blocks \[\], expected \[1, 2\].*--store-layers 1 2"):
        distillation.run(distillation.parse_args([*flags, str(tmp_path / "no")]))
    prepare_labels(*teacher, *store, "--store-layers", "1", "2")
    distillation.run(distillation.parse_args([*flags, str(tmp_path / "student")]))
    lines = (tmp_path / "student/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert ["loss_newest_layer" in row for row in rows] == [True, True, False]


def test_an_unreadable_case_is_listed_and_the_others_are_scored(tmp_path, run_script):
    folder = write_prepared(tmp_path / "tree")
    broken = folder / "imagesTr" / "CT_A_1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    done = run_script(
        "validation.py", "--checkpoint", save_teacher(tmp_path / "t.pt"), "--val-datas", folder,
        "--num-clicks", "1", "--out-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1
    assert "CT_A_1.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 targets" in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("validation.py", ["--checkpoint", "none.pt"], "none.pt"),
        ("validation.py", ["--checkpoint", "readme.pt"], "readme.pt"),
        ("validation_student.py", ["--checkpoint", "t.pt", "--network", "fastsam3d"], "fastsam3d"),
        ("validation.py", ["--checkpoint", "t.pt", "--val-datas", "nowhere"], "nowhere"),
        ("validation.py", ["--checkpoint", "t.pt", *PREPARED, "--out-dir", "t.pt/x"], "t.pt/x"),
        ("preparelabel.py", ["--img-datas", "nowhere", "--network", "tiny"], "nowhere"),
        ("preparelabel.py", ["--network", "tiny", "--loss-size", "33"], "33"),
        ("preparelabel.py", ["--network", "tiny", "--store-layers", "2", "7"], "blocks 1 to 6"),
        (
            "preparelabel.py",
            ["--checkpoint", "t.pt", "--val-share", "0.1", *SMALL_LOSS],
            "--validate-every",
        ),
        (
            "preparelabel.py",
            ["--checkpoint", "t.pt", "--patience", "3", *SMALL_LOSS],
            "--validate-every",
        ),
        ("preparelabel.py", ["--network", "tiny", "--steps", "0", "--resume"], "--resume: nothing"),
        ("distillation.py", ["--crops-dir", "nowhere"], "preparelabel.py"),
        ("validation.py", ["--checkpoint", "encoder.pt", "--network", "tiny"], "decoder"),
        ("validation.py", ["--checkpoint", "nan.pt"], "not finite"),
        ("validation.py", ["--checkpoint", "t.pt", "--device", "gpu"], "--device gpu"),
    ],
)
def test_bad_input_gets_one_message_and_an_exit_code(tmp_path, run_script, script, flags, said):
    save_teacher(tmp_path / "t.pt")
    write_prepared(tmp_path / "tree")
    (tmp_path / "readme.pt").write_text("not a checkpoint")
    torch.save(small_sam().image_encoder.state_dict(), tmp_path / "encoder.pt")
    broken = small_sam()
    broken.image_encoder.pos_embed.data[:] = float("nan")
    torch.save(checkpoint_payload(broken), tmp_path / "nan.pt")
    done = run_script(script, *flags)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_every_script_explains_itself(script, run_script):
    done = run_script(script.name, "--help")
    assert done.returncode == 0
    assert script.name in done.stdout


def test_geometry_errors_are_input_errors():
    assert issubclass(GeometryError, InputError)


class Done(NamedTuple):
    """How a script ended, as the shell would see it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_script(monkeypatch, capfd):
    """Return a caller of a script's ``main`` with a command line, in this process."""

    def call(name: str, *flags: object) -> Done:
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        module = importlib.import_module(name.removesuffix(".py"))
        with pytest.raises(SystemExit) as ended:
            module.main()
        return Done(int(ended.value.code or 0), *capfd.readouterr())

    return call
