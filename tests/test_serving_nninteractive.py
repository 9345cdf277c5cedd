"""nninteractive-client against the server: whole sessions, whose masks are those of `Predictor`."""

import json
import struct

import blosc2
import httpx
import numpy as np
import pytest
from nnInteractive.inference.remote.remote_session import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)
from nnInteractive.inference.remote.serialization import pack_array, unpack_array
from serving_helpers import (
    CENTRES,
    SHAPE,
    SPACING_ZYX,
    plain_masks,
    running,
    small_context,
    voxels,
)
from small_cases import ball

from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt
from utils.results.metrics import dsc
from utils.serving.drawings import deepest_of, middle_of
from utils.serving.nnia import pack, unpack
from utils.serving.refusals import Refusal

INSIDE, OUTSIDE = Click(CENTRES[0], True), Click((2, 2, 25), False)

#: A curve on one slice, (1, 3, 25), as napari sends it: a mask and its box.
CURVE_BOX = [[6, 7], [6, 9], [2, 27]]
CURVE_PLACE = tuple(slice(*side) for side in CURVE_BOX)
CURVE = np.ones([stop - start for start, stop in CURVE_BOX], np.uint8)
BEYOND = [[6, 7], [6, 9], [4, 29]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    context = small_context(tmp_path_factory.mktemp("server"), sessions=2)
    with running(context) as url:
        yield url, context


@pytest.fixture
def remote(server):
    with nnInteractiveRemoteInferenceSession(server[0]) as session:
        session.set_image(voxels()[None], {"spacing": list(SPACING_ZYX)})
        session.set_target_buffer(np.zeros(SHAPE, np.uint8))
        yield session


def check(remote, *prompts):
    """The client's mask is a fresh predictor's."""
    np.testing.assert_array_equal(remote.target_buffer, plain_masks({1: prompts}))


def test_what_slicer_sends_at_its_start_is_answered(remote):
    assert remote.supports_undo
    assert remote.supported_interactions == {
        "points": True, "bbox2d": True, "bbox3d": True, "scribble": True, "lasso": True
    }  # fmt: skip
    assert remote.original_image_shape == (1, *SHAPE)
    assert len(remote.preferred_scribble_thickness) == 3
    assert remote.ping()
    remote.set_do_autozoom(False)
    assert 0 < remote.heartbeat() <= 600
    assert remote.lease_status()["idle_timeout_seconds"] == 600


def test_points_and_boxes_give_the_predictors_mask_and_undo_goes_all_the_way_back(remote):
    remote.add_point_interaction(CENTRES[0], True)
    check(remote, INSIDE)
    remote.add_point_interaction([2.2, 1.9, 25.4], False)  # napari's are no whole numbers
    check(remote, INSIDE, OUTSIDE)
    remote.add_bbox_interaction([[9, 18], [12.0, 21.0], [16, 40]], True)
    check(remote, INSIDE, OUTSIDE, BoxPrompt((9.0, 12.0, 16.0), (18.0, 21.0, 28.0)))
    remote.add_bbox_interaction([[6, 7], [3, 12], [4, 13]], True)  # on one slice
    assert remote.undo()
    assert remote.undo()
    check(remote, INSIDE, OUTSIDE)
    assert remote.undo()
    assert remote.undo()
    assert not remote.target_buffer.any()
    assert not remote.undo()


def test_prompts_without_prediction_are_computed_later(remote):
    assert remote.add_point_interaction(CENTRES[0], True, run_prediction=False) is None
    assert not remote.target_buffer.any()
    remote.add_point_interaction(OUTSIDE.zyx, False, run_prediction=False)
    assert remote._predict() is not None
    check(remote, INSIDE, OUTSIDE)


def test_a_segmentation_to_start_from_is_kept_until_the_first_click(remote):
    remote.add_point_interaction(CENTRES[1], True)
    before = remote.target_buffer.copy()
    given = ball(SHAPE, CENTRES[0], 4)
    remote.add_initial_seg_interaction(given.astype(np.uint8))
    np.testing.assert_array_equal(remote.target_buffer, given)
    remote.add_point_interaction(CENTRES[0], True)
    check(remote, MaskPrompt(given), INSIDE)
    assert remote.undo()
    assert remote.undo()
    np.testing.assert_array_equal(remote.target_buffer, before)


def test_reset_keeps_the_image_and_what_was_encoded(server, remote):
    remote.add_point_interaction(CENTRES[0], True)
    context = server[1]
    session = context.registry.get(remote._lease_token, "nninteractive").session
    runs = session.predictor.decoder.encoder_runs
    remote.reset_interactions()
    assert not remote.undo()
    remote.add_point_interaction(CENTRES[0], True)
    check(remote, INSIDE)
    assert session.predictor.decoder.encoder_runs == runs


def test_a_refused_prompt_leaves_mask_and_session_as_they_were(remote):
    remote.add_point_interaction(CENTRES[0], True)
    for call in (
        lambda: remote.add_point_interaction([99, 0, 0], True),
        lambda: remote.add_bbox_interaction([[50, 60], [0, 5], [0, 5]], True),
        lambda: remote.add_lasso_interaction(CURVE, True, interaction_bbox=BEYOND),
        lambda: remote.add_scribble_interaction(np.zeros(SHAPE, np.uint8), True),
        lambda: remote.add_scribble_interaction(CURVE, True),  # not as large as the image
        lambda: remote.add_scribble_interaction(CURVE, True, interaction_bbox=BEYOND),
        lambda: remote.add_initial_seg_interaction(np.ones((2, 2, 2), np.uint8)),
        lambda: remote.set_target_buffer(np.zeros((1, 2, 3), np.uint8)),
    ):
        buffer, remote.target_buffer = remote.target_buffer, None
        with pytest.raises(httpx.HTTPStatusError) as caught:
            call()
        assert caught.value.response.status_code == 400
        assert caught.value.response.json()["detail"]
        remote.target_buffer = buffer
    remote.add_point_interaction(OUTSIDE.zyx, False)
    check(remote, INSIDE, OUTSIDE)


def test_a_box_beside_the_target_counts_as_a_click_in_its_middle(remote):
    remote.add_point_interaction(CENTRES[0], True)
    remote.add_bbox_interaction([[1, 4], [1, 4], [24, 27]], False)
    check(remote, INSIDE, OUTSIDE)


def with_curve(earlier, is_foreground, middle):
    """The earlier prompts, and the clicks that the curve stands for."""
    prompts = list(earlier)
    wrong = CURVE > 0
    while len(prompts) < len(earlier) + 3 and wrong.sum() > 0.05 * CURVE.sum():
        place = np.add(middle(wrong), [side[0] for side in CURVE_BOX]).tolist()
        prompts.append(Click(tuple(place), is_foreground))
        wrong = (plain_masks({1: prompts})[CURVE_PLACE] == 1) != is_foreground
    assert len(prompts) > len(earlier) + 1, "one click does it: the further ones are not tested"
    return prompts


def test_a_scribble_counts_as_clicks_in_one_step(remote):
    remote.add_scribble_interaction(CURVE, True, interaction_bbox=CURVE_BOX)
    check(remote, *with_curve([], True, middle_of))
    assert remote.undo()
    assert not remote.target_buffer.any()
    remote.add_point_interaction(CENTRES[1], True)
    whole = np.zeros(SHAPE, np.uint8)
    whole[CURVE_PLACE] = CURVE
    remote.add_scribble_interaction(whole, False)  # without a box: the whole image
    check(remote, *with_curve([Click(CENTRES[1], True)], False, middle_of))


def test_a_lasso_as_the_first_prompt_is_a_click_or_a_box_and_a_click(remote):
    z, y, x = CENTRES[0]
    disc = ball(SHAPE, CENTRES[0], 4)[z : z + 1]
    sides = [[z, z + 1], [0, SHAPE[1]], [0, SHAPE[2]]]
    remote.add_lasso_interaction(disc.astype(np.uint8), True, interaction_bbox=sides)
    box = BoxPrompt((z - 3, y - 4, x - 4), (z + 4, y + 5, x + 5), middle_slice=True)
    ways = [(INSIDE,), (box, INSIDE)]
    room = (slice(y - 8, y + 9), slice(x - 8, x + 9))
    seen = (slice(z, z + 1), *(slice(max(0, side.start), side.stop) for side in room))
    like = [dsc(disc[0][seen[1:]][None], plain_masks({1: way})[seen] == 1) for way in ways]
    assert like[0] < 0.6, "the click's mask is like the lasso: nothing is tested"
    check(remote, *ways[np.argmax(like)])
    assert remote.undo()
    assert not remote.target_buffer.any()


def test_a_later_lasso_counts_as_clicks_in_it(remote):
    remote.add_point_interaction(CENTRES[1], True)
    remote.add_lasso_interaction(CURVE, False, interaction_bbox=CURVE_BOX)
    check(remote, *with_curve([Click(CENTRES[1], True)], False, deepest_of))
    assert remote.undo()
    check(remote, Click(CENTRES[1], True))


def test_a_scribble_without_prediction_is_shown_later(remote):
    given = {"run_prediction": False, "interaction_bbox": CURVE_BOX}
    assert remote.add_scribble_interaction(CURVE, True, **given) is None
    assert not remote.target_buffer.any()
    assert remote._predict() is not None
    later = remote.target_buffer.copy()
    assert remote.undo()
    remote.add_scribble_interaction(CURVE, True, interaction_bbox=CURVE_BOX)
    np.testing.assert_array_equal(remote.target_buffer, later)


def test_two_sessions_do_not_see_each_other_and_a_third_is_refused(server, remote):
    with nnInteractiveRemoteInferenceSession(server[0]) as other:
        other.set_image(voxels()[None], {"spacing": list(SPACING_ZYX)})
        other.set_target_buffer(np.zeros(SHAPE, bool))
        other.add_point_interaction(CENTRES[1], True)
        remote.add_point_interaction(CENTRES[0], True)
        check(remote, INSIDE)
        check(other, Click(CENTRES[1], True))
        with pytest.raises(ServerAtCapacityError):
            nnInteractiveRemoteInferenceSession(server[0])
    nnInteractiveRemoteInferenceSession(server[0]).close()


def test_an_expired_session_is_told_so(server, remote):
    server[1].registry.close(remote._lease_token)
    with pytest.raises(SessionExpiredError):
        remote.add_point_interaction(CENTRES[0], True)


def test_a_2d_image_and_other_dtypes_are_taken(remote):
    remote.set_image(voxels()[:1][None].astype(np.float32), {})
    remote.set_target_buffer(np.zeros((1, *SHAPE[1:]), np.int16))
    remote.add_point_interaction([0, 7, 8], True)
    assert remote.target_buffer.dtype == np.int16
    assert remote.target_buffer[0, 7, 8] == 1


def test_the_token_is_the_clients_api_key(tmp_path):
    token = "correct-horse-battery"
    with running(small_context(tmp_path), token=token) as url:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            nnInteractiveRemoteInferenceSession(url, api_key="wrong-horse-battery")
        assert caught.value.response.status_code == 401
        for session in (
            nnInteractiveRemoteInferenceSession(url, api_key=token),
            nnInteractiveRemoteInferenceSession(f"{url}/t/{token}"),
        ):
            with session:
                assert session.heartbeat() > 0


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float32", "float64", "uint64"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1, 1), ()])
def test_envelopes_are_the_clients(dtype, shape):
    array = (np.random.default_rng(0).random(shape) * 9).astype(dtype)
    for packed, unpacked in (
        (pack(array), unpack_array),
        (pack_array(array), lambda b: unpack(b, 999)),
    ):
        found = unpacked(packed)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def frame_of(array):
    return bytes(blosc2.compress2(np.ascontiguousarray(array), typesize=1))


def head(shape=(2, 2, 2), dtype=b"uint8", magic=b"NNIA", version=1):
    front = struct.pack("<4sBBBB", magic, version, 1, len(shape), len(dtype)) + dtype
    return front + struct.pack(f"<{len(shape)}q", *shape)


CHUNK = frame_of(np.zeros(8, np.uint8))
LARGE = frame_of(np.zeros(9999, np.uint8))
GOOD = struct.pack("<QQ", 8, len(CHUNK)) + CHUNK
HOSTILE = {
    "empty": b"",
    "magic": head(magic=b"NPY\0") + struct.pack("<I", 1) + GOOD,
    "version": head(version=2) + struct.pack("<I", 1) + GOOD,
    "object": head(dtype=b"object") + struct.pack("<I", 1) + GOOD,
    "complex": head(dtype=b"complex64") + struct.pack("<I", 1) + GOOD,
    "code-for-a-dtype": head(dtype=b"(2,3)f4,(9999999,)f8") + struct.pack("<I", 1) + GOOD,
    "text": head(dtype=b"\xff\xfe") + struct.pack("<I", 1) + GOOD,
    "negative": head((-2, -2, 2)) + struct.pack("<I", 1) + GOOD,
    "huge": head((2**20, 2**20, 2**20)) + struct.pack("<I", 1) + GOOD,
    "many-axes": head((1,) * 40) + struct.pack("<I", 1) + GOOD,
    "many-chunks": head() + struct.pack("<I", 2**32 - 1) + GOOD,
    "too-few-chunks": head() + struct.pack("<I", 0) + GOOD,
    "cut-off": (head() + struct.pack("<I", 1) + GOOD)[:-3],
    "declares-less": head() + struct.pack("<I", 1) + struct.pack("<QQ", 4, len(CHUNK)) + CHUNK,
    "inflates-to-more": head() + struct.pack("<I", 1) + struct.pack("<QQ", 8, len(LARGE)) + LARGE,
    "no-frame": head() + struct.pack("<I", 1) + struct.pack("<QQ", 8, 40) + b"x" * 40,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_envelope_is_refused(name):
    with pytest.raises(Refusal) as caught:
        unpack(HOSTILE[name], 2**20)
    assert caught.value.status in (400, 413)


def test_hostile_requests_are_refused_and_the_session_goes_on(remote):
    client = remote._http
    for content in HOSTILE.values():
        for path in ("/set_image", "/add_initial_seg_interaction"):
            assert client.post(path, content=content).status_code in (400, 413)
    huge = '{"image_properties": {"spacing": [1, 1, ' + "9" * 4000 + "]}}"
    for meta in ("[]", "{", '{"image_properties": {"spacing": [0, 1, 1]}}', huge, "x" * 5000):
        image = pack_array(voxels()[None])
        assert client.post("/set_image", content=image, headers={"X-Meta": meta}).status_code == 400
    for body in ({}, {"coordinates": [1, 2]}, {"coordinates": [1e300, 0, 0]}, [1], "x"):
        answer = client.post("/add_point_interaction", content=json.dumps(body))
        assert answer.status_code == 400
    remote.add_point_interaction(CENTRES[0], True)
    check(remote, INSIDE)
