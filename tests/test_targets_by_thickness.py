"""What validation leaves by thickness of the targets, and of the ceiling of the mask's grid."""

import numpy as np
import pytest
from score_helpers import row, target
from small_cases import write_prepared
from small_networks import RULE, save_student, small_sam
from test_clicks_protocol import CPU, Oracle
from validation_helpers import rows, run

import validation_student
from utils.cases.prepared import find_cases
from utils.files.nifti import read_nifti, write_nifti
from utils.validation.ceiling_tables import ceiling_columns, ceiling_section
from utils.validation.clicks import Evaluator
from utils.validation.scores import CaseScore
from utils.validation.tables import write_challenge_tables
from utils.validation.thickness_tables import thickness_rows, thickness_table
from utils.volumes.geometry import CropRule


@pytest.fixture
def folder(tmp_path):
    """A ball of 12 mm, and as another case a tube of 4 mm."""
    folder = write_prepared(tmp_path / "tree", cases=2)
    path = folder / "labelsTr" / "CT_A_1.nii.gz"
    y, x = np.ogrid[:24, :28]
    tube = np.broadcast_to((y - 12) ** 2 + (x - 14) ** 2 <= 2**2, (20, 24, 28))
    write_nifti(path, tube.astype(np.uint8), read_nifti(path).affine)
    return folder


def test_the_script_averages_thin_and_thick_targets_apart(folder, tmp_path):
    checkpoint = save_student(tmp_path / "student.pth")
    flags = ["--val-datas", folder, "--num-clicks", 3, "--pictures", 0, "--checkpoint", checkpoint]
    summary = run(validation_student, [*flags, "--out-dir", tmp_path / "out"])
    thin, thick = rows(tmp_path / "out/thickness.csv")
    assert (thin["thickness"], thick["thickness"]) == ("< 6 mm", "6 to 15 mm")
    cases = rows(tmp_path / "out/cases.csv")
    assert [float(case["thickness_mm"]) for case in cases] == pytest.approx([13, 5], abs=1)
    assert (thick["DSC_3"], thin["NSD_1"]) == (cases[0]["DSC_3"], cases[1]["NSD_1"])
    assert "| < 6 mm | 1 |" in str(summary)
    assert "&lt; 6 mm" in (tmp_path / "out/report.html").read_text()


def measured(*thicknesses: float | None) -> CaseScore:
    dsc = np.linspace(0.1, 0.9, len(thicknesses)).tolist()
    targets = [target(dsc=(0.0, 0.0, value)) for value in dsc]
    for each, thickness in zip(targets, thicknesses, strict=True):
        each["thickness_mm"] = thickness
    return CaseScore.from_dict(row("a", *targets))


def test_groups_are_thin_first_and_complete(tmp_path):
    score = measured(80.0, 2.0, 7.0, 3.0)
    found = thickness_rows([score])
    assert [each["thickness"] for each in found] == ["< 6 mm", "6 to 15 mm", "> 15 mm"]
    assert [each["targets"] for each in found] == [2, 1, 1]
    write_challenge_tables([score], tmp_path)
    groups = [each for each in rows(tmp_path / "groups.csv") if each["by"] == "thickness"]
    assert [each["targets"] for each in groups] == ["2", "1", "1"]


def test_scores_of_earlier_versions_have_no_thickness_and_no_table():
    assert thickness_rows([measured(None)]) == []
    assert thickness_table([measured(None)]) == ""
    assert [each["targets"] for each in thickness_rows([measured(None, 3.0)])] == [1]


def test_the_parts_of_a_score_are_the_grids_and_the_networks_loss(folder):
    oracle = Oracle(small_sam(), lambda image: image > image.median() + 0.5)
    rule = CropRule(size=32, spacing_mm=0.6)
    evaluator = Evaluator(oracle, rule, num_clicks=2, ceiling=True, **CPU)
    score = evaluator.run_case(find_cases([folder])[0]).score.targets[0]
    of = ceiling_columns([score])
    assert of["ceiling_DSC"] > score.dsc[-1] > 0.9  # it answers with each cell's occupancy
    lost = of["lost_by_grid_DSC"] + of["lost_by_network_DSC"]
    assert lost == pytest.approx(1 - score.dsc[-1])


def test_the_ceiling_knows_what_the_crop_cuts_off_and_what_the_grid_cannot_hold(folder):
    thick, thin = find_cases([folder])
    coarse = CropRule(size=32, spacing_mm=3.0)  # cells of 6 mm
    small = CropRule(size=32, spacing_mm=0.25)  # a cube of 8 mm about a ball of 12 mm
    ceilings = {}
    for name, case, rule in (
        ("whole", thick, RULE), ("cut", thick, small), ("thin", thin, coarse),
    ):  # fmt: skip
        evaluator = Evaluator(small_sam(), rule, num_clicks=1, ceiling=True, **CPU)
        ceilings[name] = evaluator.run_case(case).score.targets[0].ceiling
    assert ceilings["whole"].dsc > 0.97
    assert ceilings["whole"].nsd == pytest.approx(1, abs=0.01)
    assert ceilings["cut"].dsc < 0.85
    assert ceilings["thin"].cell_dsc == 0
    assert 0.4 < ceilings["thin"].dsc < 0.97


def test_the_table_has_all_targets_then_thickness_data_set_and_organ():
    content = measured(2.0, 80.0).to_dict()
    for each in content["targets"]:
        each["ceiling"] = [0.9, 1.0, 0.8, 0.9]
    section = ceiling_section([CaseScore.from_dict(content)])
    names = ["all", "thickness < 6 mm", "thickness > 15 mm", "CT_AMOS", "CT_AMOS, liver"]
    assert [each["targets of"] for each in section.rows] == names
    assert section.rows[0]["DSC reached"] == "0.500"
    assert section.rows[0]["DSC lost by grid"] == "0.100"
    assert section.rows[0]["DSC lost by network"] == "0.400"
    assert ceiling_section([measured(2.0)]) is None
