"""Numbers out of their range are refused by every script, with what was found and expected."""

import dataclasses

import pytest
import torch
from small_networks import RULE, save_student, small_sam

import demo
import distillation
import preparelabel
import validation
from segment_anything import checkpoint_payload, export
from utils.errors import InputError, require_number
from utils.run.network import open_network, trained_on
from utils.training import quantise_encoder
from utils.training.config import FitConfig
from utils.training.data_loader import CropDataset
from utils.training.distillation import DistillationPlan
from utils.training.store_writer import StoreConfig
from utils.training.tasks import InteractiveTask
from utils.volumes.geometry import CropRule
from utils.volumes.labels import InstanceRule

OF_TRAINING = {
    "lr": ["nan", "-1", "0", "inf"],
    "warmup": ["5", "nan", "-0.1"],
    "clip": ["0", "-1", "nan"],
    "weight-decay": ["nan", "-1"],
    "save-minutes": ["nan", "-1"],
    "zoom-share": ["9", "nan"],
    "region-share": ["1.1", "nan"],
    "region-share-end": ["-0.1"],
    "generated-share": ["2"],
    "generated-share-end": ["nan"],
    "val-share": ["1", "-0.5", "nan"],
    "seed": ["-1", "4294967296", "1e3"],
    "steps": ["-1", "2.5", "9" * 400],
    "minutes": ["0", "-1", "nan", "inf"],
    "batch-size": ["0"],
    "workers": ["-1"],
}
OF_TEACHER = OF_TRAINING | {
    "box-share": ["nan", "-1", "2"],
    "spacing-mm": ["0", "-1", "nan", "1e9"],
    "decoder-lr-scale": ["nan", "-1"],
    "loss-size": ["0"],
}
OF_STUDENT = OF_TRAINING | {
    "layer-share": ["nan", "2"],
    "embedding-share": ["-1"],
    "tune-decoder": ["nan"],
    "logit-weight": ["-1", "nan"],
    "truth-weight": ["inf"],
}
SCRIPTS = [
    (preparelabel, OF_TEACHER),
    (distillation, OF_STUDENT),
    (
        validation,
        {
            "seed": ["-1", "4294967296"],
            "num-clicks": ["0"],
            "pictures": ["-1"],
            "cases": ["0", "1.5"],
        },
    ),
    (demo, {"steps": ["0", "-3", "x"]}),
]
CASES = [
    (script, flag, value)
    for script, flags in SCRIPTS
    for flag, values in flags.items()
    for value in values
]


@pytest.mark.parametrize(("script", "flag", "value"), CASES)
def test_a_number_out_of_range_is_refused_at_once(script, flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        script.parse_args([f"--{flag}={value}"])

    assert ended.value.code == 2
    assert f"argument --{flag}: found {value}, expected" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_an_export_needs_a_tolerance_that_can_refuse(value, capsys):
    with pytest.raises(SystemExit):
        export.parse_args(["--checkpoint", "a", "--out", "b", f"--tolerance={value}"])

    assert f"--tolerance: found {value}, expected" in capsys.readouterr().err


FIT = FitConfig(steps=1, batch_size=1, lr=1.0)
PLAN = DistillationPlan(steps=4, layers=(1,))
STORE = StoreConfig(num_clicks=1, layers=(), precision="float16", seed=0)
NAN = float("nan")
FIELDS = [
    (FIT, {"lr": NAN}),
    (FIT, {"steps": None}),
    (FIT, {"minutes": 3}),
    (FIT, {"steps": None, "minutes": 0}),
    (FIT, {"lr": "1"}),
    (FIT, {"warmup": 1.5}),
    (FIT, {"clip": 0}),
    (FIT, {"weight_decay": -1}),
    (FIT, {"batch_size": 0}),
    (FIT, {"batch_size": 1.5}),
    (FIT, {"accumulation": True}),
    (FIT, {"seed": -1}),
    (FIT, {"seed": 2**32}),
    (FIT, {"lr_schedule": "none"}),
    (PLAN, {"layer_share": NAN}),
    (PLAN, {"logit_weight": -1}),
    (PLAN, {"truth_weight": NAN}),
    (STORE, {"num_clicks": 0}),
    (STORE, {"precision": "int8"}),
    (RULE, {"size": 0}),
    (RULE, {"size": 1.5}),
    (RULE, {"size": 10**9}),
    (RULE, {"spacing_mm": -1}),
    (RULE, {"spacing_mm": NAN}),
    (RULE, {"spacing_mm": None}),
    (RULE, {"fit": "no"}),
    (InstanceRule(), {"most": -1}),
    (InstanceRule(), {"min_voxels": NAN}),
]


@pytest.mark.parametrize(("config", "change"), FIELDS)
def test_a_configuration_refuses_values_out_of_range(config, change):
    with pytest.raises(InputError, match="found"):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize(
    "change",
    [{"box_share": NAN}, {"num_clicks": 0}, {"loss_size": 0}, {"decoder_lr_scale": -1}],
)
def test_a_task_refuses_values_out_of_range(change):
    fine = {"num_clicks": 1, "loss_size": 16, "seed": 0}

    with pytest.raises(InputError, match=f"--{next(iter(change)).replace('_', '-')}: found"):
        InteractiveTask(small_sam(), **fine | change)


@pytest.mark.parametrize("change", [{"augment": "all"}, {"zoom_share": 2}, {"seed": -1}])
def test_a_dataset_refuses_values_out_of_range(change):
    with pytest.raises(InputError, match="found"):
        CropDataset(None, RULE, **change)


RULES = {
    "a list": [1],
    "text": "abc",
    "size 0": {"size": 0},
    "another size": {"size": 64},
    "size as text": {"size": "x"},
    "spacing 0": {"spacing_mm": 0.0},
    "spacing NaN": {"spacing_mm": NAN},
    "spacing as text": {"spacing_mm": "x"},
    "spacing 1e-300": {"spacing_mm": 1e-300},
    "fit as text": {"fit": "no"},
    "unknown field": {"foo": 1},
    "number as field": {3: 1},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_crop_rule_of_a_checkpoint_is_refused_with_the_file(tmp_path, rule):
    path = tmp_path / "network.pth"
    torch.save(checkpoint_payload(small_sam(), crop_rule=RULES[rule]), path)

    with pytest.raises(InputError, match=r"network\.pth: its crop rule cannot be used"):
        open_network(path)


def test_a_checkpoint_without_a_crop_rule_gets_the_default(tmp_path):
    path = tmp_path / "network.pth"
    torch.save(checkpoint_payload(small_sam()), path)

    assert open_network(path)[1] == CropRule(size=32)


def test_a_crop_rule_of_a_checkpoint_is_read(tmp_path):
    assert open_network(save_student(tmp_path / "s.pth"))[1] == RULE


@pytest.mark.parametrize(("value", "fits"), [(0, False), (1e-9, True), (7, True), (7.1, False)])
def test_a_range_may_leave_its_lower_end_out(value, fits):
    if fits:
        require_number("x", value, 0, 7, above=True)
    else:
        with pytest.raises(InputError, match=f"x: found {value}, expected a number above 0 to 7"):
            require_number("x", value, 0, 7, above=True)


@pytest.mark.parametrize("names", [3, "liver/CT_A", [3], {"a": 1}])
def test_training_folders_of_another_type_are_refused_with_the_file(tmp_path, names):
    path = tmp_path / "network.pth"
    torch.save(checkpoint_payload(small_sam(), trained_on=names), path)

    with pytest.raises(InputError, match=r"network\.pth: its trained_on is"):
        trained_on(path)


EXPORTS = {
    "deep nesting": "[" * 100_000,
    "a list": "[1]",
    "no network": "{}",
    "a number as network": '{"config": 3}',
    "size 0": '{"config": {"encoder": {"img_size": 0}}}',
    "size as text": '{"config": {"encoder": {"img_size": "32"}}}',
    "a size twice": '{"config": {"encoder": {"img_size": 32, "img_size": 64}}}',
}


@pytest.mark.parametrize("content", EXPORTS)
def test_facts_of_an_export_that_cannot_be_right_are_refused(tmp_path, content):
    (tmp_path / "export.json").write_text(EXPORTS[content])

    with pytest.raises(InputError, match=r"export\.json"):
        quantise_encoder.read_facts(tmp_path)
