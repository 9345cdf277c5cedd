"""Both validation scripts with --protocol clicks: resuming, workers, report and pictures."""

import json
from pathlib import Path

import pytest
import torch
from small_cases import write_prepared
from small_networks import RULE, save_student, save_teacher, small_student
from validation_helpers import rows, run

import validation
import validation_student
from segment_anything import student_payload
from utils.errors import InputError
from utils.files.nifti import read_nifti
from utils.validation import run as validation_run
from utils.validation.arguments import show


@pytest.fixture
def flags(tmp_path) -> list:
    tree = tmp_path / "tree"
    folders = [write_prepared(tree), write_prepared(tree, cases=1, organ="spleen", dataset="MR_B")]
    return [
        *("--val-datas", *folders, "--num-clicks", 2, "--pictures", 0),
        *("--checkpoint", save_student(tmp_path / "student.pth"), "--out-dir", tmp_path / "out"),
    ]


def without_times(table: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in table]


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_leaves_scores_tables_predictions_pictures_and_a_report(flags, tmp_path, capsys):
    summary = run(validation_student, [*flags, "--pictures", 2])
    out = tmp_path / "out"
    assert show(summary) == 0
    assert [row["sample_id"] for row in rows(out / "cases.csv")] == [
        *(f"liver/CT_A/CT_A_{number}" for number in range(3)),
        "spleen/MR_B/MR_B_0",
    ]
    assert [row["organ"] for row in rows(out / "organs.csv")] == ["liver", "spleen"]
    assert len(list((out / "predictions").rglob("*.nii.gz"))) == 4
    assert len(list((out / "pictures").rglob("*.png"))) == 2
    assert "| tiny | 2 points | 32³ |" in capsys.readouterr().out
    report = (out / "report.html").read_text()
    assert "4 targets: 2 clicks on each target" in report
    assert "ball of the best radius" in report
    assert "official" not in report
    assert report.count("<img") == 2 + 2  # curves, and the worst two cases


def test_a_second_run_scores_nothing_again_and_says_the_same(flags, tmp_path):
    first = run(validation_student, [*flags, "--pictures", 2])
    out = tmp_path / "out"
    scored = files(out / "cases") | files(out / "predictions") | files(out / "pictures")
    report = (out / "report.html").read_bytes()
    second = run(validation_student, [*flags, "--pictures", 2])
    assert files(out / "cases") | files(out / "predictions") | files(out / "pictures") == scored
    assert (out / "report.html").read_bytes() == report
    assert second == first


def test_a_stopped_run_resumes_with_what_is_missing(flags, tmp_path):
    run(validation_student, flags)
    out = tmp_path / "out"
    table = rows(out / "cases.csv")
    prediction = out / "predictions/liver/CT_A/CT_A_1.nii.gz"
    expected = read_nifti(prediction).array
    prediction.unlink()
    (out / "cases/liver/CT_A/CT_A_2.json").write_text('{"half a fi')
    kept = files(out / "cases")[str(out / "cases/liver/CT_A/CT_A_0.json")]
    run(validation_student, flags)
    assert without_times(rows(out / "cases.csv")) == without_times(table)
    assert (read_nifti(prediction).array == expected).all()
    assert files(out / "cases")[str(out / "cases/liver/CT_A/CT_A_0.json")] == kept


@pytest.mark.parametrize(
    "changed", [["--num-clicks", 3], ["--max-instances", 1], ["--precision", "bfloat16"]]
)
def test_other_settings_are_scored_anew(flags, tmp_path, changed):
    run(validation_student, flags)
    before = files(tmp_path / "out/cases")
    run(validation_student, [*flags, *changed])
    after = files(tmp_path / "out/cases")
    assert all(after[path] != before[path] for path in before)


def test_another_network_or_case_is_scored_anew(flags, tmp_path):
    run(validation_student, flags)
    before = rows(tmp_path / "out/cases.csv")
    payload = student_payload(small_student(7), crop_rule=RULE.to_dict())
    torch.save(payload, tmp_path / "student.pth")
    run(validation_student, flags)
    after = rows(tmp_path / "out/cases.csv")
    assert [row["DSC_1"] for row in after] != [row["DSC_1"] for row in before]
    write_prepared(tmp_path / "tree", cases=1)
    kept = files(tmp_path / "out/cases")
    run(validation_student, flags)
    touched = [path for path, time in files(tmp_path / "out/cases").items() if time != kept[path]]
    assert [Path(path).stem for path in touched] == ["CT_A_0"]


def test_scores_do_not_depend_on_the_number_of_workers(flags, tmp_path):
    run(validation_student, flags)
    run(validation_student, [*flags, "--workers", 2, "--out-dir", tmp_path / "two"])
    alone, together = (rows(tmp_path / name / "cases.csv") for name in ("out", "two"))
    assert without_times(alone) == without_times(together)


def test_a_damaged_case_is_named_and_the_rest_goes_on(flags, tmp_path, capsys):
    (tmp_path / "tree/liver/CT_A/imagesTr/CT_A_1.nii.gz").write_bytes(b"no gzip")
    summary = run(validation_student, flags)
    assert len(rows(tmp_path / "out/cases.csv")) == 3
    assert show(summary) == 1
    assert "liver/CT_A/CT_A_1: " in capsys.readouterr().err
    failures = json.loads((tmp_path / "out/summary.json").read_text())["failures"]
    assert len(failures) == 1
    assert "CT_A_1" in (tmp_path / "out/report.html").read_text().split("<h2>Failures</h2>")[1]


def test_without_predictions_the_report_draws_no_case(flags, tmp_path):
    run(validation_student, [*flags, "--no-predictions", "--pictures", 2])
    out = tmp_path / "out"
    assert not (out / "predictions").exists()
    assert len(list((out / "pictures").rglob("*.png"))) == 2
    assert (out / "report.html").read_text().count("<img") == 2


def test_the_teacher_is_validated_the_same_way(flags, tmp_path):
    checkpoint = save_teacher(tmp_path / "teacher.pt")
    assert run(validation, [*flags, "--checkpoint", checkpoint]).targets == 4


def test_scores_of_another_runs_predictions_are_not_kept(flags, tmp_path):
    run(validation_student, [*flags, "--pictures", 2])
    other = save_student(tmp_path / "other.pth", seed=7)
    bare = [*flags, "--checkpoint", other, "--no-predictions"]
    run(validation_student, bare)
    run(validation_student, [*flags, "--pictures", 2, "--checkpoint", other])
    fresh = [*flags, "--pictures", 2, "--checkpoint", other, "--out-dir", tmp_path / "fresh"]
    run(validation_student, fresh)
    for name in ("predictions", "pictures"):
        found, expected = (
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
            for folder in (tmp_path / "out" / name, tmp_path / "fresh" / name)
        )
        assert found == expected


def test_a_network_that_is_replaced_during_the_run_ends_it(flags, tmp_path, monkeypatch):
    def score_all(jobs, workers):
        save_student(tmp_path / "student.pth", seed=7)
        return original(jobs, workers)

    original = validation_run.score_all
    monkeypatch.setattr(validation_run, "score_all", score_all)
    with pytest.raises(InputError, match=r"student\.pth: holds network .* expected"):
        run(validation_student, flags)
    assert not list((tmp_path / "out").rglob("*.json"))[1:]  # args.json alone


def test_protocols_have_a_folder_each_by_default():
    parsed = [
        validation.parse_args([]).out_dir,
        validation.parse_args(["--protocol", "challenge"]).out_dir,
        validation.parse_args(["--protocol", "challenge", "--out-dir", "x"]).out_dir,
    ]
    folders = "work_dir/validation_teacher", "work_dir/validation_teacher_challenge", "x"
    assert parsed == list(map(Path, folders))
