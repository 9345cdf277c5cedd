"""What 3D Slicer's MONAI Label module sends beside points: images by name, and labels to keep."""

import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip(
    "starlette", reason="no package starlette: pip install -r requirements-serve.txt"
)

from serving_helpers import CENTRES, SHAPE, client_of, plain_masks, small_context, voxels

from utils.files.images import read_image
from utils.files.nifti import write_nifti
from utils.prompts.kinds import Click
from utils.serving.scan import scan_of_volume
from utils.volumes.geometry import affine_from_spacing

AFFINE = affine_from_spacing(np.array([1.2, 1.1, 1.0]))
LABELS = np.zeros(SHAPE, np.int16)
LABELS[4:9, 5:10, 6:11], LABELS[11:15, 14:18, 18:22] = 1, 300


@pytest.fixture
def context(tmp_path):
    return small_context(tmp_path)


@pytest.fixture
def client(context):
    with client_of(context) as client:
        yield client


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "tmpab12.nii.gz"
    write_nifti(path, voxels(), AFFINE)
    return path


def put_image(client, scan, image="CT chest"):
    """Send an image as the client's upload_image does: a file of a made-up name, and a form."""
    files = {"file": (scan.name, scan.read_bytes())}
    return client.put("/datastore/", params={"image": image}, files=files, data={"params": "{}"})


def put_label(client, array=LABELS, affine=AFFINE, image="CT chest", name="tmpcd34.nii.gz"):
    """Send a label as the client's save_label does."""
    content = nib.Nifti1Image(array.transpose(2, 1, 0), affine).to_bytes()
    files = {"label": (name.removesuffix(".gz"), content)}
    params = {"label_info": [{"name": "liver", "idx": 1}], "client_id": "user-xyz"}
    return client.put(
        "/datastore/label", params={"image": image, "tag": "final"},
        files=files, data={"params": json.dumps(params)},
    )  # fmt: skip


def infer(client, image="CT chest", **query):
    params = {"foreground": [list(CENTRES[0][::-1])], "background": []}
    return client.post(
        "/infer/fastsam3d", params={"image": image, "output": "image"} | query,
        files={"params": (None, json.dumps(params))},
    )  # fmt: skip


def test_an_image_that_a_client_names_is_segmented_without_a_session(client, scan, tmp_path):
    answer = put_image(client, scan)
    assert (answer.status_code, answer.json()) == (200, {"image": "CT chest"})
    (tmp_path / "mask.nrrd").write_bytes(infer(client).content)
    mask = read_image(tmp_path / "mask.nrrd")
    expected = plain_masks(
        {1: [Click(CENTRES[0], True)]}, scan_of_volume(read_image(scan), scan.name)
    )
    assert expected.any()
    np.testing.assert_array_equal(mask.array, expected)


def test_a_label_is_kept_on_the_images_grid_under_a_name_that_no_file_has(client, context, scan):
    put_image(client, scan)
    names = []
    for _ in range(2):
        answer = put_label(client)
        assert answer.status_code == 200, answer.text
        names.append(answer.json()["label"])
        saved = read_image(context.save_dir / names[-1])
        np.testing.assert_array_equal(saved.array, LABELS)
        np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-6)
    assert names == ["CT_chest_labels.nii.gz", "CT_chest_labels_2.nii.gz"]


def test_the_modules_way_from_session_to_submitted_label_needs_one_session(client, context, scan):
    session = client.put("/session/", files={"files": (scan.name, scan.read_bytes())}).json()
    assert infer(client, session_id=session["session_id"]).status_code == 200
    assert put_image(client, scan).status_code == 200
    assert len(context.registry) == 1
    assert put_label(client).json()["label"] == "CT_chest_labels.nii.gz"
    assert infer(client).status_code == 200


def test_another_image_of_a_name_takes_its_place(client, context, scan, tmp_path):
    put_image(client, scan)
    other = tmp_path / "other.nii.gz"
    write_nifti(other, voxels()[:10], AFFINE)
    put_image(client, other)
    assert len(context.registry) == 1
    assert put_label(client).status_code == 400  # of the first image's grid
    assert put_label(client, LABELS[:10]).status_code == 200


def test_an_image_of_two_names_stays_while_one_of_them_has_it(client, context, scan, tmp_path):
    for image in ("one", "two"):
        put_image(client, scan, image)
    assert len(context.registry) == 1
    other = tmp_path / "other.nii.gz"
    write_nifti(other, voxels()[:10], AFFINE)
    put_image(client, other, "two")
    assert infer(client, "one").status_code == infer(client, "two").status_code == 200


def test_an_image_of_another_client_is_not_found(context, scan):
    with client_of(context) as client:
        put_image(client, scan, "CT")
        client.base_url = "http://127.0.0.1:1527/t/ben/"
        answer = infer(client, "CT")
        assert answer.status_code == 404
        assert "upload the volume again" in answer.json()["detail"]
        assert put_label(client, image="CT").status_code == 404


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"array": LABELS[:10]}, "Expected the image's grid"),
        ({"affine": np.diag([1.0, 1, 1, 1])}, "Expected the image's grid"),
        ({"array": LABELS - 1}, "negative values"),
        ({"array": (LABELS + 0.5).astype(np.float32)}, "whole"),
        ({"array": (LABELS + np.nan).astype(np.float32)}, "NaN"),
        ({"name": "label.seg"}, "Expected one of .nii.gz"),
        ({"name": "label.nrrd"}, "header"),
        ({"image": ""}, "image=NAME"),
        ({"image": "x" * 300}, "image=NAME"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_and_nothing_is_written(
    client, context, scan, changes, said
):
    put_image(client, scan)
    answer = put_label(client, **changes)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert not list(context.save_dir.glob("*.nii.gz"))


@pytest.mark.parametrize("image", ["../../etc/x", "/etc/passwd", "a\0b", "..", "CON", "ä" * 100])
def test_no_name_of_an_image_becomes_a_path(client, context, scan, image):
    assert put_image(client, scan, image).status_code == 200
    answer = put_label(client, image=image)
    assert answer.status_code == 200, answer.text
    (saved,) = context.save_dir.glob("*_labels.nii.gz")
    assert saved.name == answer.json()["label"]
    assert not [path for path in context.save_dir.parent.iterdir() if "passwd" in path.name]


def test_an_image_that_cannot_be_used_opens_no_session(client, context, scan):
    scan.write_bytes(b"no image")
    assert put_image(client, scan).status_code == 400
    assert len(context.registry) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/datastore/?output=all"), ("GET", "/datastore/image?image=a"),
        ("DELETE", "/datastore/label"), ("POST", "/activelearning/random"),
        ("GET", "/train/?check_if_running=true"), ("POST", "/train/segmentation"),
        ("DELETE", "/train/"),
    ],
)  # fmt: skip
def test_what_the_server_is_not_is_said(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert "keeps no collection of images, chooses no samples and trains" in answer.json()["detail"]


def test_the_modules_buttons_for_samples_and_trainings_stay_grey(client):
    info = client.get("/info/").json()
    assert info["strategies"] == info["trainers"] == info["train_stats"] == info["datastore"] == {}
