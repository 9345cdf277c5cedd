"""The page's API: whole sessions over HTTP, whose masks are those of predict.py."""

import json
import time

import numpy as np
import pytest
from serving_helpers import (
    CENTRES,
    SHAPE,
    PageClient,
    client_of,
    plain_masks,
    small_context,
    small_predictor,
    small_scan,
    voxels,
)
from small_networks import save_student

import predict
from utils.files.nifti import read_nifti, write_nifti
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import BoxPrompt, Click
from utils.serving.refusals import Refusal
from utils.serving.scan import voxel_bytes
from utils.volumes.geometry import affine_from_spacing

AFFINE = affine_from_spacing(np.array([1.2, 1.1, 1.0]))


@pytest.fixture
def scan_file(tmp_path):
    path = tmp_path / "scans" / "scan.nii.gz"
    path.parent.mkdir()
    write_nifti(path, voxels(), AFFINE)
    return path


@pytest.fixture
def page(tmp_path):
    with client_of(small_context(tmp_path, small_scan())) as client:
        yield PageClient(client)


def upload(page, path, name="scan.nii.gz", **query):
    return page.send("POST", "image", params={"name": name} | query, content=path.read_bytes())


def test_a_session_from_upload_to_file_gives_the_file_of_predict(tmp_path, scan_file):
    predictor = small_predictor(PredictorOptions())
    with client_of(small_context(tmp_path, predictor=predictor)) as client:
        answer = client.post("/api/sessions", json={})
        assert answer.json()["image"] is None
        page = PageClient.__new__(PageClient)
        page.client, page.state, page.labels = client, answer.json(), np.zeros((1, 1, 1), np.uint8)
        state = upload(page, scan_file)
        assert state["image"]["shape_zyx"] == list(SHAPE)
        np.testing.assert_allclose(state["image"]["affine"], AFFINE, atol=1e-6)
        page.send("POST", "targets", {"name": "right ball", "color": "#00ff00"})
        page.click(CENTRES[0])
        page.box((9, 12, 16), (17, 20, 24), target=2)
        page.click((2, 2, 25), positive=False)
        page.click(CENTRES[1], target=2)
        page.send("POST", "undo", {})
        page.send("POST", "redo", {})
        prompts = client.get(f"{page.path}/prompts.json")
        saved = client.get(f"{page.path}/download", params={"kind": "labels"})
    assert prompts.headers["content-disposition"] == 'attachment; filename="scan.json"'
    (scan_file.parent / "scan.json").write_bytes(prompts.content)
    words = ["--input", scan_file, "--output", tmp_path / "out", "--device", "cpu"]
    words += ["--checkpoint", save_student(tmp_path / "student.pth")]
    (answer,) = predict.run(predict.parse_args(list(map(str, words)))).written
    assert {1, 2} <= set(np.unique(page.labels))
    np.testing.assert_array_equal(page.labels, read_nifti(answer).array)
    assert saved.content == answer.read_bytes()
    assert saved.headers["content-disposition"] == 'attachment; filename="scan_labels.nii.gz"'


def test_the_page_sees_each_change_and_the_numbers_of_the_whole(page):
    state = page.click(CENTRES[0])
    assert state["revision"] == 2
    assert (state["undo"], state["redo"]) == (1, 0)
    (target,) = state["targets"]
    assert target["voxels"] == np.count_nonzero(page.labels == 1) > 0
    assert target["ml"] == pytest.approx(target["voxels"] * 1.0 * 1.1 * 1.2 / 1000, abs=1e-3)
    assert target["prompts"] == [{"type": "point", "at": list(CENTRES[0]), "positive": True}]
    assert 0 < state["network_ms"] <= state["ms"]
    np.testing.assert_array_equal(page.labels, plain_masks({1: [Click(CENTRES[0], True)]}))


def test_a_new_tab_gets_the_whole_mask(page):
    page.click(CENTRES[0])
    again = PageClient(page.client, resume=page.state["session"])
    assert again.state["session"] == page.state["session"]
    again.send("GET", "mask")
    np.testing.assert_array_equal(again.labels, page.labels)


def test_a_box_around_an_outline_on_one_slice_is_made_deeper(page):
    state = page.box((6, 3, 4), (6, 11, 12))
    (box,) = state["targets"][0]["prompts"]
    assert box == {"type": "box", "from": [3, 3, 4], "to": [9, 11, 12], "middle_slice": True}
    expected = BoxPrompt((3.0, 3.0, 4.0), (10.0, 12.0, 13.0), True)
    np.testing.assert_array_equal(page.labels, plain_masks({1: [expected]}))


def test_a_session_is_taken_up_again_after_a_restart(tmp_path, page):
    page.send("POST", "targets", {"name": "second", "color": "#112233"})
    page.click(CENTRES[0])
    page.click(CENTRES[1], target=2)
    with client_of(small_context(tmp_path, small_scan())) as client:
        again = PageClient(client, resume=page.state["session"])
        assert again.state["session"] == page.state["session"]
        assert again.state["notes"] == ["Earlier work on this image was taken up again."]
        assert [target["name"] for target in again.state["targets"]] == ["target 1", "second"]
        again.send("GET", "mask")
        np.testing.assert_array_equal(again.labels, page.labels)


def test_prompts_from_before_a_restart_are_undone_the_last_one_first(tmp_path, page):
    page.send("POST", "targets", {"name": "second"})
    labels = []
    for at, target in ((CENTRES[0], 1), (CENTRES[1], 2), ((2, 2, 25), 1)):
        labels.append(page.labels.copy())
        page.click(at, positive=at in CENTRES, target=target)
    page.click((2, 2, 2), target=2)
    page.send("POST", "undo", {})
    with client_of(small_context(tmp_path, small_scan())) as client:
        again = PageClient(client, resume=page.state["session"])
        again.send("GET", "mask")
        assert again.state["undo"] == 3
        for expected in reversed(labels):
            again.send("POST", "undo", {})
            np.testing.assert_array_equal(again.labels, expected)
        assert (again.state["undo"], again.state["redo"]) == (0, 3)
        for _ in labels:
            again.send("POST", "redo", {})
        np.testing.assert_array_equal(again.labels, page.labels)


def test_earlier_work_on_the_same_image_is_offered_and_taken_up(tmp_path, page, scan_file):
    upload(page, scan_file)
    page.click(CENTRES[0])
    with client_of(small_context(tmp_path, small_scan(seed=5))) as client:
        other = PageClient(client)
        assert other.state["earlier"] == []  # that was another image
        state = upload(other, scan_file)
        (earlier,) = state["earlier"]
        assert (earlier["id"], earlier["targets"]) == (page.state["session"], 1)
        other.send("POST", "earlier", {"id": earlier["id"]})
        np.testing.assert_array_equal(other.labels, page.labels)
        assert other.state["undo"] == 1


def test_work_of_a_page_that_was_closed_is_offered_to_the_next(tmp_path):
    context, now = small_context(tmp_path, small_scan()), [0.0]
    context.registry._clock = lambda: now[0]
    with client_of(context) as client:
        closed = PageClient(client)
        closed.click(CENTRES[0])
        now[0] = 100.0
        beside = PageClient(client)
        assert beside.state["earlier"] == []  # the other page may be open still
        now[0] = 200.0
        after = PageClient(client)
        (earlier,) = after.state["earlier"]
        assert earlier["id"] == closed.state["session"]
        after.send("POST", "earlier", {"id": earlier["id"]})
        np.testing.assert_array_equal(after.labels, closed.labels)


def test_the_same_image_opened_again_offers_what_was_done_on_it(tmp_path, page, scan_file):
    upload(page, scan_file)
    page.click(CENTRES[0])
    before = page.labels.copy()
    other = tmp_path / "other.nii.gz"
    write_nifti(other, voxels(seed=9), AFFINE)
    upload(page, other)
    upload(page, scan_file)
    page.click(CENTRES[1])
    assert not np.array_equal(page.labels, before)
    (earlier,) = PageClient(page.client, resume=page.state["session"]).state["earlier"]
    page.send("POST", "earlier", {"id": earlier["id"]})
    np.testing.assert_array_equal(page.labels, before)


def test_a_damaged_autosave_is_no_obstacle(tmp_path, page):
    page.click(CENTRES[0])
    (saved,) = (tmp_path / "saved" / "autosave").glob("*.json")
    saved.write_text(saved.read_text().replace('"positive"', '"negative"'))
    with client_of(small_context(tmp_path, small_scan())) as client:
        again = PageClient(client, resume=page.state["session"])
        assert "could not be taken up" in again.state["notes"][0]
        assert again.state["targets"][0]["prompts"] == []


def test_an_autosave_that_cannot_be_taken_up_now_is_kept(tmp_path, page):
    page.click(CENTRES[0])
    (saved,) = (tmp_path / "saved" / "autosave").glob("*.json")
    content = saved.read_text().replace('"at"', '"where"')
    page.client.delete(page.path)
    saved.write_text(content)
    again = PageClient(page.client, resume=page.state["session"])
    assert "could not be taken up" in again.state["notes"][0]
    again.click(CENTRES[1])
    kept = [path.read_text() for path in (tmp_path / "saved" / "autosave").glob("*.json")]
    assert content in kept
    assert len(kept) == 2


def test_prompts_saved_by_the_page_are_loaded_by_it(page):
    page.send("POST", "targets", {"name": "second"})
    page.click(CENTRES[1], target=2)
    page.box((9, 12, 16), (17, 20, 24), target=2)
    page.click((0, 0, 0), positive=False, target=2)
    before = page.labels.copy()
    text = page.client.get(f"{page.path}/prompts.json").content
    assert list(json.loads(text)["targets"][0]) == ["id", "name", "prompts"]  # box after a click
    page.send("POST", "clear", {"target": None})
    assert not page.labels.any()
    page.send("POST", "prompts.json", content=text)
    np.testing.assert_array_equal(page.labels, before)
    page.send("POST", "undo", {})
    assert not page.labels.any()


def test_masks_are_saved_and_no_file_is_replaced(tmp_path, page):
    page.send("POST", "targets", {"name": "../left kidney"})
    page.click(CENTRES[0])
    page.click(CENTRES[1], target=2)
    folder = tmp_path / "saved"
    for names in (["scan_labels.nii.gz"], ["scan_labels_2.nii.gz"]):
        answer = page.client.post(f"{page.path}/save", json={"kind": "labels"})
        assert answer.json() == {"files": [str(folder / name) for name in names]}
        np.testing.assert_array_equal(read_nifti(folder / names[0]).array, page.labels)
    answer = page.client.post(f"{page.path}/save", json={"kind": "targets", "format": "nrrd"})
    names = ["scan_target_1.nrrd", "scan_left_kidney.nrrd"]
    assert answer.json() == {"files": [str(folder / name) for name in names]}
    one = page.client.get(f"{page.path}/download?kind=target&target=2")
    assert one.headers["content-disposition"] == 'attachment; filename="scan_left_kidney.nii.gz"'
    (tmp_path / "one.nii.gz").write_bytes(one.content)
    np.testing.assert_array_equal(read_nifti(tmp_path / "one.nii.gz").array, page.labels == 2)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", "int8"])
def test_the_voxels_to_show_are_those_of_the_file(tmp_path, page, dtype):
    path = tmp_path / "image.nii.gz"
    array = (voxels() - (100.0 if dtype != "uint8" else 0)).clip(-120, 120).astype(dtype)
    write_nifti(path, array, AFFINE)
    upload(page, path)
    answer = page.client.get(f"{page.path}/image.nii")
    (tmp_path / "view.nii").write_bytes(answer.content)
    view = read_nifti(tmp_path / "view.nii")
    assert view.array.dtype.name == page.state["image"]["dtype"]
    np.testing.assert_array_equal(view.array, array)
    np.testing.assert_allclose(view.affine, AFFINE, atol=1e-6)
    headers = {"If-None-Match": answer.headers["etag"]}
    assert page.client.get(f"{page.path}/image.nii", headers=headers).status_code == 304


def test_heartbeats_are_answered_while_the_network_runs(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context) as client:
        page = PageClient(client)
        stop = []

        def slow():
            while not stop:
                time.sleep(0.01)

        waits = client.portal.start_task_soon(context.registry.worker.run, slow)
        click = client.portal.start_task_soon(
            context.registry.run, context.registry.get(page.state["session"], "page"), len_of_undo
        )
        beat = client.get(f"{page.path}/heartbeat").json()
        assert beat["busy"]
        assert beat["waiting"] == 1
        assert client.get("/api/status").status_code == 200
        stop.append(True)
        waits.result(10)
        assert click.result(10) == 0
        assert not client.get(f"{page.path}/heartbeat").json()["busy"]


def len_of_undo(session):
    return session.history.undo_steps


def test_too_many_sessions_and_requests_are_refused_for_now(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context) as client:
        pages = [PageClient(client) for _ in range(3)]
        answer = client.post("/api/sessions", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
        assert answer.headers["retry-after"]
        assert client.delete(pages[0].path).status_code == 204
        PageClient(client)
        each = context.registry.get(pages[1].state["session"], "page")
        each.waiting = 8
        body = {"target": 1, "type": "point", "at": [1, 1, 1]}
        answer = client.post(f"{pages[1].path}/prompts", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
        pages[2].click(CENTRES[0])  # others go on


@pytest.mark.parametrize(
    "damage",
    [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x00" + bytes(6) + b"\xff" * 40, b"\x1f\x8b"],
    ids=["no-block", "wrong-block", "no-header"],
)
def test_a_damaged_gzip_file_is_the_clients_error(tmp_path, damage):
    with client_of(small_context(tmp_path, small_scan())) as client:
        page = PageClient(client)
        for content in (damage, damage + bytes(600)):
            answer = client.post(f"{page.path}/image?name=a.nii.gz", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_image")
            assert str(tmp_path) not in answer.text
        page.click(CENTRES[0])  # the image before is still there


def test_an_image_too_large_for_memory_is_refused(tmp_path, scan_file):
    context = small_context(tmp_path, small_scan())
    context.registry.memory_bytes = 2**16
    with client_of(context) as client:
        page = PageClient(client)
        page.click(CENTRES[0])
        content = scan_file.read_bytes()
        answer = client.post(f"{page.path}/image?name=a.nii.gz", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
        page.click(CENTRES[1])


def test_uploads_that_come_at_the_same_time_share_the_memory(tmp_path, scan_file):
    context = small_context(tmp_path)
    registry, content = context.registry, scan_file.read_bytes()
    needed = len(content) + np.prod(SHAPE) * voxel_bytes(4)
    registry.memory_bytes = needed
    with client_of(context) as client:
        page = client.post("/api/sessions", json={}).json()["session"]
        path = f"/api/sessions/{page}/image?name=a.nii.gz"
        with registry.intake() as other:
            other.receive(len(content))
            answer = client.post(path, content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
        registry.memory_bytes = len(content) - 1
        answer = client.post(path, content=content)
        assert "the upload needs" in answer.json()["error"]["message"]
        registry.memory_bytes = needed
        assert client.post(path, content=content).status_code == 200


def test_a_session_is_not_closed_while_its_image_comes(tmp_path):
    context = small_context(tmp_path)
    registry, now = context.registry, [0.0]
    registry._clock = lambda: now[0]
    each = registry.open("page")
    with registry.intake(each):
        now[0] = 5000.0
        registry.close_unused()
        assert registry.has(each.id)
    registry.close_unused()
    assert registry.has(each.id)
    now[0] = 6000.0
    registry.close_unused()
    assert not registry.has(each.id)


def test_a_client_that_leaves_sessions_behind_does_not_shut_others_out(tmp_path):
    context = small_context(tmp_path)
    registry, now = context.registry, [0.0]
    registry._clock = lambda: now[0]
    left = [registry.open("itksnap") for now[0] in (1.0, 0.0)]
    page = registry.open("page")
    now[0] = 100.0
    with pytest.raises(Refusal, match="3 sessions are open"):
        registry.open("page")
    now[0] = 400.0
    new = registry.open("page")
    assert [registry.has(each.id) for each in (*left, page, new)] == [True, False, True, True]


def test_a_session_that_is_closed_meanwhile_answers_so(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context) as client:
        page = PageClient(client)
        each = context.registry.get(page.state["session"], "page")
        context.registry.close(each.id)
        with pytest.raises(Refusal, match="there is no such session"):
            client.portal.call(context.registry.run, each, len_of_undo)


def test_a_session_that_cannot_be_set_up_keeps_no_place(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context) as client:
        context.registry.worker.waiting = 64
        assert client.post("/api/sessions", json={}).status_code == 429
        assert len(context.registry) == 0


def test_sessions_share_the_network_and_nothing_else(tmp_path):
    context = small_context(tmp_path, small_scan())
    with client_of(context) as client:
        one, other = PageClient(client), PageClient(client)
        one.click(CENTRES[0])
        other.click(CENTRES[1])
        np.testing.assert_array_equal(one.labels, plain_masks({1: [Click(CENTRES[0], True)]}))
        np.testing.assert_array_equal(other.labels, plain_masks({1: [Click(CENTRES[1], True)]}))
        sessions = [context.registry.get(p.state["session"], "page").session for p in (one, other)]
        assert sessions[0].predictor.network is sessions[1].predictor.network


def test_the_server_says_what_it_is(page):
    status = page.client.get("/api/status").json()
    assert status["name"] == "FastSAM3D"
    assert status["sessions"] == {"open": 1, "most": 3}
    assert status["max_voxels"] == 10**6
    answer = page.client.get("/v2/models/anything")
    assert answer.status_code == 404
    assert "It is FastSAM3D" in answer.json()["error"]["message"]


def test_an_unused_session_is_closed_and_a_used_one_is_not(tmp_path):
    context = small_context(tmp_path, small_scan())
    now = [0.0]
    context.registry._clock = lambda: now[0]
    with client_of(context) as client:
        page = PageClient(client)
        for now[0] in (800.0, 1600.0):
            assert client.get(f"{page.path}/heartbeat").status_code == 200
        now[0] = 2600.0
        answer = client.get(f"{page.path}/heartbeat")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_session")


def test_a_click_that_contradicts_the_box_says_so_once(page):
    middle, beside = (6, 7, 8), (6, 7, 11)
    assert page.box((2, 3, 4), (10, 11, 12))["notes"] == []
    assert page.click(beside, positive=False)["notes"] == []
    (note,) = page.click(middle, positive=False)["notes"]
    assert "contradicts the box" in note
    assert not (page.labels == 1).any()
    assert page.click((7, 8, 8))["notes"] == []
    assert page.labels[7, 8, 8] == 1
