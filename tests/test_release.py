"""A release file: the network in half precision, its SHA-256, and where it comes from."""

import hashlib
import json

import pytest
import torch
from small_cases import write_prepared
from small_networks import RULE, save_student, save_teacher, small_sam, small_student

import distillation
import preparelabel
from segment_anything import checkpoint_payload, fingerprint, read_checkpoint
from utils.errors import InputError
from utils.run.network import open_network, trained_on
from utils.training import release
from utils.training.crop_cache import build_cache
from utils.training.release import mask_agreement, told_flags


def released(checkpoint, out, *flags):
    words = ["--checkpoint", checkpoint, "--out", out, *flags]
    return release.run(release.parse_args([str(word) for word in words]))


def halved(model):
    """Return the state dict of a network with its matrices rounded to half precision."""
    weights = model.state_dict()
    return {key: t.half().float() if t.dim() > 1 else t for key, t in weights.items()}


@pytest.mark.parametrize(
    ("save", "model"), [(save_student, small_student()), (save_teacher, small_sam())]
)
def test_a_release_file_opens_as_the_same_network_with_rounded_weights(tmp_path, save, model):
    made = released(save(tmp_path / "trained.pth"), tmp_path / "weights" / "student.pth")
    opened, rule = open_network(made.path)
    assert rule == RULE
    assert opened.config == model.config
    expected = halved(model)
    assert opened.state_dict().keys() == expected.keys()
    for key, tensor in opened.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[key]), key


def test_matrices_take_half_the_bytes_and_biases_stay_float32(tmp_path):
    made = released(save_student(tmp_path / "trained.pth"), tmp_path / "student.pth")
    stored = read_checkpoint(made.path)["model_state_dict"]
    dtypes = {tensor.dim() > 1: set() for tensor in stored.values()}
    for tensor in stored.values():
        dtypes[tensor.dim() > 1].add(tensor.dtype)
    assert dtypes == {True: {torch.float16}, False: {torch.float32}}
    bias = stored["image_encoder.blocks.0.mlp.lin1.bias"]
    assert torch.equal(bias, small_student().image_encoder.blocks[0].mlp.lin1.bias)


def test_the_sha256_beside_it_is_that_of_the_file_as_sha256sum_writes_it(tmp_path):
    made = released(save_student(tmp_path / "s.pth"), tmp_path / "student.pth")
    digest = hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.sha256 == digest
    assert (tmp_path / "student.pth.sha256").read_text() == f"{digest}  student.pth\n"
    assert made.size == made.path.stat().st_size


def test_a_release_made_twice_has_the_same_bytes(tmp_path):
    trained = save_student(tmp_path / "s.pth")
    first, second = (released(trained, tmp_path / name / "a.pth") for name in ("one", "two"))
    assert first.sha256 == second.sha256


def test_a_release_file_says_where_it_comes_from(tmp_path):
    facts = {"crop_rule": RULE.to_dict(), "trained_on": ["liver/CT_A"], "step": 7, "plan": {}}
    torch.save(checkpoint_payload(small_sam(), **facts), tmp_path / "best.pt")
    (tmp_path / "args.json").write_text('{"script": "preparelabel.py", "seed": 3, "lr": 0.001}')
    made = released(tmp_path / "best.pt", tmp_path / "out" / "teacher.pth")
    content = read_checkpoint(made.path)
    assert trained_on(made.path) == {"liver/CT_A"}
    assert content["step"] == 7
    origin = content["release"]
    assert origin["recipes"] == [{"script": "preparelabel.py", "seed": 3, "lr": 0.001}]
    assert origin["fingerprint_float32"] == fingerprint(small_sam())
    assert origin["fingerprint"] == fingerprint(open_network(made.path)[0])
    assert origin["precision"] == "float16"
    assert origin["mask_agreement"] is None


def test_folders_of_the_machine_do_not_get_into_the_file(tmp_path):
    flags = {
        "script": "preparelabel.py",
        "img_datas": ["/home/nobody/secret/liver/CT_A"],
        "crops_dir": "/home/nobody/secret/crops",
        "checkpoint": "/home/nobody/secret/first.pt",
        "json": "/home/nobody/secret/classes.json",
        "from_hub": "hf://owner/net/first.pth@v1",
        "workers": 3,
        "lr_schedule": "cosine",
    }
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    trained = save_student(tmp_path / "s.pth")
    made = released(trained, tmp_path / "student.pth", "--recipe", tmp_path / "flags.json")
    assert read_checkpoint(made.path)["release"]["recipes"] == [told_flags(flags)]
    assert told_flags(flags) == {
        "script": "preparelabel.py",
        "checkpoint": "first.pt",
        "json": "classes.json",
        "from_hub": "hf://owner/net/first.pth@v1",
        "lr_schedule": "cosine",
    }
    assert b"secret" not in made.path.read_bytes()


def test_the_flags_in_a_checkpoint_count_where_no_file_holds_them(tmp_path):
    payload = checkpoint_payload(small_sam(), crop_rule=RULE.to_dict(), run={"--seed": 5})
    torch.save(payload, tmp_path / "last.pt")
    made = released(tmp_path / "last.pt", tmp_path / "teacher.pth")
    assert read_checkpoint(made.path)["release"]["recipes"] == [{"--seed": 5}]


def test_a_release_without_any_flags_is_warned_about(tmp_path, caplog):
    trained = save_student(tmp_path / "s.pth")
    made = released(trained, tmp_path / "student.pth")
    assert read_checkpoint(made.path)["release"]["recipes"] == []
    (line,) = caplog.messages
    assert line.startswith(f"{trained}: holds no flags of its training")
    assert "--recipe" in line


@pytest.mark.parametrize("name", ["student.pth", "student.pth.sha256"])
def test_a_file_that_is_there_is_replaced_only_with_overwrite(tmp_path, name):
    trained, out = save_student(tmp_path / "s.pth"), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: is there already.*\n.*--overwrite"):
        released(trained, out / "student.pth")
    assert (out / name).read_text() == "mine"
    assert len(list(out.iterdir())) == 1
    made = released(trained, out / "student.pth", "--overwrite")
    open_network(made.path)
    assert (out / "student.pth.sha256").read_text().startswith(made.sha256)


def test_a_release_never_replaces_the_network_it_is_made_from(tmp_path):
    trained = save_student(tmp_path / "s.pth")
    before = trained.read_bytes()
    with pytest.raises(InputError, match=r"s\.pth"):
        released(trained, trained, "--overwrite")
    assert trained.read_bytes() == before


def test_weights_without_a_configuration_are_not_released(tmp_path):
    torch.save({"model_state_dict": small_sam().state_dict()}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=r"foreign\.pth: holds no configuration"):
        released(tmp_path / "foreign.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_a_weight_beyond_half_precision_is_named(tmp_path):
    model = small_sam()
    with torch.no_grad():
        model.image_encoder.neck[0].weight[0] = 70000
    torch.save(checkpoint_payload(model, crop_rule=RULE.to_dict()), tmp_path / "large.pt")
    with pytest.raises(InputError, match=r"image_encoder\.neck\.0\.weight holds 7e\+04"):
        released(tmp_path / "large.pt", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Return a cache of the crops of three bright balls."""
    folder = tmp_path_factory.mktemp("crops")
    tree = write_prepared(folder / "tree")
    return build_cache([tree], folder / "crops")


def test_masks_of_half_precision_are_those_of_float32_on_phantoms(tmp_path, crops):
    trained = save_student(tmp_path / "s.pth")
    made = released(trained, tmp_path / "student.pth", "--compare", crops.folder, "--crops", 3)
    found = made.agreement
    assert found == read_checkpoint(made.path)["release"]["mask_agreement"]
    assert (found["crops"], found["clicks"]) == (3, 3)
    assert found["dsc_least"] > 0.98
    assert found["dsc_mean"] >= found["dsc_least"]
    difference = found["dsc_with_truth_float32"] - found["dsc_with_truth_float16"]
    assert abs(difference) < 0.005
    assert found["dsc_with_truth_float32"] > 0  # these masks are not empty


def test_the_agreement_of_other_weights_is_seen(crops):
    model, other = small_student(1), small_student(2)
    assert mask_agreement(model, model, crops, RULE, 2)["dsc_least"] == 1
    found = mask_agreement(model, other, crops, RULE, 2)
    assert found["dsc_mean"] < 0.9
    assert found["dsc_with_truth_float32"] != found["dsc_with_truth_float16"]


def test_a_release_file_is_the_start_of_a_fine_tuning(tmp_path):
    made = released(save_teacher(tmp_path / "t.pt"), tmp_path / "teacher.pth")
    flags = ["--checkpoint", str(made.path), "--loss-size", "32", "--img-datas", "nothing"]
    teacher, rule = preparelabel.build_teacher(preparelabel.parse_args(flags))
    assert rule == RULE
    assert fingerprint(teacher) == fingerprint(open_network(made.path)[0])
    assert all(p.dtype == torch.float32 and p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("save", [save_teacher, save_student])
def test_a_fine_tuned_release_file_is_a_network_of_both_trainings(tmp_path, save):
    content = torch.load(save(tmp_path / "first.pt")) | {"trained_on": ["spleen/CT_B"]}
    torch.save(content, tmp_path / "trained.pt")
    made = released(tmp_path / "trained.pt", tmp_path / "shipped.pth")
    before = made.path.read_bytes()
    folder = write_prepared(tmp_path / "tree")
    flags = ["--checkpoint", made.path, "--img-datas", folder, "--loss-size", "16", "--no-store"]
    flags += ["--steps", "2", "--batch-size", "2", "--workers", "0", "--num-clicks", "2"]
    flags += ["--lr", "1e-3", "--decoder-lr-scale", "1", "--warmup", "0", "--device", "cpu"]
    for name in ("crops", "out", "teacher"):
        flags += [f"--{name}-dir", tmp_path / name]
    preparelabel.run(preparelabel.parse_args([str(flag) for flag in flags]))
    tuned = tmp_path / "teacher" / "teacher.pt"
    assert trained_on(tuned) == {"spleen/CT_B", "liver/CT_A"}
    start, end = (open_network(path)[0].state_dict() for path in (made.path, tuned))
    moved = {key for key, tensor in end.items() if not torch.equal(tensor, start[key])}
    assert {key.split(".")[0] for key in moved} >= {"image_encoder", "mask_decoder"}
    assert made.path.read_bytes() == before


def test_a_release_file_is_the_start_of_a_distillation(tmp_path):
    made = released(save_student(tmp_path / "s.pth"), tmp_path / "student.pth")
    teacher = save_teacher(tmp_path / "teacher.pt")
    flags = ["--checkpoint", str(made.path), "--teacher-dir", str(tmp_path)]
    student = distillation.build_student(distillation.parse_args(flags), open_network(teacher)[0])
    expected = open_network(made.path)[0].image_encoder.state_dict()
    assert all(torch.equal(t, expected[k]) for k, t in student.image_encoder.state_dict().items())
