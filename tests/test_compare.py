"""Two finished validations are compared over the same targets, with a bootstrap over patients."""

import csv

import numpy as np
import pytest
from validation_helpers import rows

from utils.errors import InputError
from utils.validation import compare

CLICKS = 5


def write_run(folder, scores: dict[str, np.ndarray], dataset: str = "CT_A"):
    """Write cases.csv as validation does; ``scores``: sample id -> DSC after each click."""
    folder.mkdir()
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        steps = [f"{m}_{k}" for m in ("DSC", "NSD") for k in range(1, CLICKS + 1)]
        writer.writerow(["sample_id", "organ", "dataset", "DSC_AUC", "NSD_AUC", *steps])
        for name, dsc in scores.items():
            nsd = dsc / 2
            areas = [np.trapezoid(dsc), np.trapezoid(nsd)]
            writer.writerow([name, name.split("/")[0], dataset, *areas, *dsc, *nsd])
    return folder


def some_scores(patients: int = 30, organs: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"organ{organ}/CT_A/CT_A_{patient:03}": np.sort(rng.uniform(0.2, 0.8, CLICKS))
        for organ in range(organs)
        for patient in range(patients)
    }


def compared(folder, a, b, *flags):
    runs = [str(write_run(folder / name, scores)) for name, scores in (("a", a), ("b", b))]
    found = compare.run(compare.parse_args([*runs, *flags]))
    return {each.metric: each for each in found}


def test_a_known_difference_is_found_at_its_click_alone(tmp_path):
    before = some_scores()
    rng = np.random.default_rng(1)
    gain = np.array([0, 0, 0.05, 0, 0])
    after = {n: s + gain + rng.normal(0, 0.03, CLICKS) * (gain > 0) for n, s in before.items()}
    found = compared(tmp_path, before, after)
    assert found["DSC click 3"].difference == pytest.approx(0.05, abs=0.01)
    assert found["DSC click 3"].low > 0.03
    assert found["DSC click 3"].high < 0.07
    assert found["DSC click 3"].better > 0.9
    assert found["DSC_AUC"].low > 0
    assert (found["DSC click 1"].low, found["DSC click 1"].high) == (0, 0)
    assert found["DSC click 3"].mean_a == pytest.approx(np.mean([s[2] for s in before.values()]))
    assert found["NSD click 3"].difference == pytest.approx(found["DSC click 3"].difference / 2)


def test_noise_is_not_taken_for_progress(tmp_path):
    before = some_scores()
    rng = np.random.default_rng(2)
    after = {name: scores + rng.normal(0, 0.05, CLICKS) for name, scores in before.items()}
    found = compared(tmp_path, before, after)
    assert all(each.low < 0 < each.high for each in found.values())
    assert found["DSC click 1"].better == pytest.approx(0.5, abs=0.15)


def test_targets_of_a_patient_are_drawn_together(tmp_path):
    """What all targets of a patient share is one observation, so the interval is wider."""
    before = some_scores(patients=20, organs=8)
    shared = np.random.default_rng(3).normal(0, 0.05, 20)
    together = {n: s + shared[int(n[-3:])] for n, s in before.items()}
    order = np.random.default_rng(4).permutation(np.repeat(shared, 8))
    apart = {n: s + order[k] for k, (n, s) in enumerate(before.items())}
    widths = []
    for name, after in (("one", together), ("two", apart)):
        (tmp_path / name).mkdir()
        found = compared(tmp_path / name, before, after)["DSC click 1"]
        widths.append(found.high - found.low)
    wide, narrow = widths
    assert wide > 1.8 * narrow


def test_organs_modalities_and_instances_of_a_patient_are_one_patient():
    names = {
        "liver/CT_A/CT_A_007": "CT_A",
        "spleen/CT_A/CT_A_007#2": "CT_A",
        "spleen/MR_A/MR_A_007": "MR_A",
    }
    assert {compare.patient_of(n, {"dataset": d}) for n, d in names.items()} == {"_007"}
    assert compare.patient_of("liver/CT_A/CT_A_008", {"dataset": "CT_A"}) != "_007"
    assert compare.patient_of("liver/lungs/lungs", {"dataset": "lungs"}) == "lungs"


def test_the_seed_decides_the_interval_and_nothing_else_does(tmp_path):
    before, after = some_scores(seed=0), some_scores(seed=1)
    runs = [str(write_run(tmp_path / n, s)) for n, s in (("a", before), ("b", after))]
    first, again, other = (
        compare.run(compare.parse_args([*runs, "--seed", seed])) for seed in ("0", "0", "1")
    )
    assert first == again
    assert [e.difference for e in other] == [e.difference for e in first]
    assert [e.low for e in other] != [e.low for e in first]


def test_runs_over_other_targets_are_refused(tmp_path):
    before = some_scores(patients=3)
    after = dict(list(before.items())[:-1])
    with pytest.raises(InputError, match=r"1 targets in the first alone and 0 in the second.*002"):
        compared(tmp_path, before, after)


def test_runs_of_other_clicks_are_refused(tmp_path):
    before = some_scores(patients=2)
    a, b = (write_run(tmp_path / name, before) for name in "ab")
    text = (b / "cases.csv").read_text().replace("DSC_5", "other_5").replace("NSD_5", "more_5")
    (b / "cases.csv").write_text(text)
    with pytest.raises(InputError, match="same --num-clicks"):
        compare.run(compare.parse_args([str(a), str(b)]))


@pytest.mark.parametrize("change", [("0.", "x."), ("DSC_AUC", "area"), ("organ1", "organ0")])
def test_a_damaged_table_is_named(tmp_path, change):
    scores = some_scores(patients=1, organs=2)
    a, b = (write_run(tmp_path / name, scores) for name in "ab")
    (b / "cases.csv").write_text((b / "cases.csv").read_text().replace(*change))
    with pytest.raises(InputError, match=r"b/cases\.csv: found .*[Ee]xpected a row"):
        compare.run(compare.parse_args([str(a), str(b)]))


def test_folders_without_a_common_table_are_refused(tmp_path):
    write_run(tmp_path / "a", some_scores(patients=1))
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"Expected cases\.csv or challenge\.csv in both"):
        compare.run(compare.parse_args([str(tmp_path / "a"), str(tmp_path / "b")]))


def test_the_challenges_table_is_compared_and_the_box_counts_where_there_is_one(tmp_path):
    columns = "CaseName,RunningTime_1,DSC_AUC,NSD_AUC,DSC_1,DSC_2,NSD_1,NSD_2"
    runs = {
        "a": ["c_1,2.5,0,0,0.50,0.6,0.4,0.5", "c_2,0.0,0,0,0.00,0.7,0.0,0.6"],
        "b": ["c_1,2.5,0,0,0.75,0.5,0.4,0.5", "c_2,0.0,0,0,0.00,0.7,0.0,0.6"],
    }
    for name, lines in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "challenge.csv").write_text("\n".join([columns, *lines]))
    flags = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = {each.metric: each for each in compare.run(compare.parse_args(flags))}
    assert found["DSC box"].difference == 0.25  # of the one case with a box
    assert (found["DSC box"].low, found["DSC box"].high) == (0.25, 0.25)
    assert found["DSC click 1"].difference == pytest.approx(-0.05)
    assert (found["DSC click 1"].better, found["DSC click 1"].worse) == (0, 0.5)


def test_the_table_is_printed_and_written_where_asked(tmp_path, capsys, monkeypatch):
    a, b = (str(write_run(tmp_path / n, some_scores(seed=k))) for k, n in enumerate("ab"))
    monkeypatch.setattr("sys.argv", ["compare", a, b, "--out", str(tmp_path / "table.csv")])
    with pytest.raises(SystemExit) as end:
        compare.main()
    assert end.value.code == 0
    assert "| DSC click 5 |" in capsys.readouterr().out
    written = rows(tmp_path / "table.csv")
    assert [row["metric"] for row in written][-2:] == ["DSC_AUC", "NSD_AUC"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cases.csv"]
