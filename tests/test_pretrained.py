"""from_pretrained and save_pretrained: folders and the hub, what is saved, and what is refused."""

import numpy as np
import pytest
import torch
from local_hub import COMMIT, LocalHub, run_with_hub
from small_cases import ball
from small_networks import RULE, save_student, small_student

from segment_anything import fingerprint, sam_model_registry3D, student_payload
from utils.errors import InputError
from utils.prediction.predictor import Predictor
from utils.prediction.pretrained import PretrainedPredictor
from utils.run.network import open_network, save_payload, trained_on

IMAGE = (60 + 90 * ball()).astype(np.uint8)
SETS = ["liver/CT_A", "liver/MR_B"]
LOAD = (
    "from utils.prediction.pretrained import PretrainedPredictor as P\n"
    "from segment_anything import fingerprint\n"
    "print(fingerprint(P.from_pretrained({}).network.model))"
)


def write_student(path):
    """Write a student's file that names its data sets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"crop_rule": RULE.to_dict(), "trained_on": SETS}
    save_payload(path, student_payload(small_student(), **facts))
    return path


def mask_of(predictor):
    predictor.set_image(IMAGE, spacing_xyz=(1, 1, 1))
    predictor.add_point((9, 12, 15))
    return predictor.logits(1).values


def test_a_folder_gives_the_predictor_of_its_file(tmp_path):
    path = write_student(tmp_path / "net/student.pth")
    loaded = PretrainedPredictor.from_pretrained(tmp_path / "net")
    assert loaded.trained_on == set(SETS)
    expected = mask_of(Predictor(*open_network(path)))
    assert expected.size > 0
    np.testing.assert_array_equal(mask_of(loaded), expected)


def test_what_is_saved_loads_again_with_all_that_the_file_said(tmp_path):
    write_student(tmp_path / "net/student.pth")
    loaded = PretrainedPredictor.from_pretrained(tmp_path / "net")
    saved = loaded.save_pretrained(tmp_path / "new/folder")
    model, rule = open_network(saved)
    assert saved == tmp_path / "new/folder/student.pth"
    assert fingerprint(model) == fingerprint(loaded.network.model)
    assert rule == RULE
    assert trained_on(saved) == set(SETS)


def test_reduced_precision_saves_the_weights_in_full(tmp_path):
    write_student(tmp_path / "net/student.pth")
    loaded = PretrainedPredictor.from_pretrained(tmp_path / "net", precision=torch.bfloat16)
    saved = loaded.save_pretrained(tmp_path / "new")
    assert fingerprint(open_network(saved)[0]) == fingerprint(small_student())


def test_settings_reach_the_predictor(tmp_path):
    write_student(tmp_path / "net/student.pth")
    with pytest.raises(InputError, match="precision"):
        PretrainedPredictor.from_pretrained(tmp_path / "net", precision="half")


def test_the_card_names_network_and_data_sets(tmp_path):
    write_student(tmp_path / "net/student.pth")
    PretrainedPredictor.from_pretrained(tmp_path / "net").save_pretrained(tmp_path / "new")
    card = (tmp_path / "new/README.md").read_text()
    assert card.startswith("---\nlibrary_name: fastsam3d\n")
    assert "a `tiny` network for crops of 32³ voxels" in card
    assert "liver/CT_A, liver/MR_B" in card


def test_files_of_the_folder_are_neither_replaced_nor_removed(tmp_path):
    predictor = PretrainedPredictor(small_student(), RULE)
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("mine")
    saved = predictor.save_pretrained(tmp_path)
    content = saved.read_bytes()
    with pytest.raises(InputError, match=r"student\.pth: is there already.*\n.*another folder"):
        PretrainedPredictor(small_student(seed=5), RULE).save_pretrained(tmp_path)
    assert saved.read_bytes() == content
    assert [(tmp_path / name).read_text() for name in ("README.md", "config.json")] == ["mine"] * 2


def test_a_predictor_of_no_file_saves_no_data_sets(tmp_path):
    saved = PretrainedPredictor(small_student(), RULE).save_pretrained(tmp_path)
    assert trained_on(saved) is None
    assert "training data: not recorded" in (tmp_path / "README.md").read_text()


def test_a_repository_of_the_hub_is_downloaded(tmp_path):
    student = save_student(tmp_path / "student.pth")
    with LocalHub({"owner/net/student.pth": student.read_bytes()}) as hub:
        done = run_with_hub(hub, tmp_path, "-c", LOAD.format("'owner/net', revision=None"))
        assert done.stdout.strip() == fingerprint(small_student()), done.stderr
        again = run_with_hub(hub, tmp_path, "-c", LOAD.format(f"'owner/net', revision='{COMMIT}'"))
        assert again.stdout == done.stdout, again.stderr
        assert len(hub.downloads) == 1


def test_released_weights_are_opened_by_their_networks_name(tmp_path):
    torch.manual_seed(3)
    model = sam_model_registry3D["tiny"]()
    path = tmp_path / "released.pth"
    torch.save({"model_state_dict": model.state_dict()}, path)
    call = "'owner/net', file='released.pth', network='tiny'"
    with LocalHub({"owner/net/released.pth": path.read_bytes()}) as hub:
        done = run_with_hub(hub, tmp_path, "-c", LOAD.format(call))
    assert done.stdout.strip() == fingerprint(model), done.stderr


def test_a_sha256_without_its_file_is_kept_and_refused(tmp_path):
    (tmp_path / "student.pth.sha256").write_text("of another file")
    with pytest.raises(InputError, match=r"student\.pth\.sha256: is there already"):
        PretrainedPredictor(small_student(), RULE).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["student.pth.sha256"]


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no net\.pth.*\n.*file="):
        PretrainedPredictor.from_pretrained(tmp_path, file="net.pth")


@pytest.mark.parametrize(
    "name", ["", "missing", "a/b/c", "a/b/c/../d", "owner/", "/nowhere/at/all/.."]
)
def test_a_name_of_neither_form_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"is no folder.*OWNER/REPO"):
        PretrainedPredictor.from_pretrained(name)
