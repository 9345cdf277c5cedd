"""Clicks honoured in logits: what is changed can be taken back, and is all that differs."""

import numpy as np
import pytest
from serving_helpers import CENTRES, SHAPE, small_predictor, voxels
from small_networks import RULE, small_student

from utils.prediction import logit_cache
from utils.prediction.honouring import honour_clicks
from utils.prediction.masks import LogitBox
from utils.prediction.predictor import Predictor
from utils.prediction.region import Region, ZoomRule
from utils.prediction.session import PredictorOptions, State
from utils.prompts.kinds import Click
from utils.serving import label_map
from utils.serving.label_map import LabelMap

VOXEL_MM = (1.2, 1.1, 1.0)
STILL = PredictorOptions(zoom=ZoomRule(passes=0), tile_above=0)
WHOLE = (slice(4, 16), slice(5, 20), slice(3, 25))


def some_logits(seed=0):
    values = np.random.default_rng(seed).normal(0, 3, [s.stop - s.start for s in WHOLE])
    return LogitBox(WHOLE, values.astype(np.float32))


def some_clicks(count, seed=1):
    rng = np.random.default_rng(seed)
    places = {tuple(rng.integers(0, SHAPE).tolist()) for _ in range(count)}
    return [Click(place, bool(rng.integers(2))) for place in sorted(places)]


def on_image(logits):
    whole = np.full(SHAPE, -20.0, np.float32)
    whole[logits.box] = logits.values
    return whole


@pytest.mark.parametrize("count", [0, 1, 5, 60])
def test_undone_logits_are_the_given_ones_bit_for_bit(count):
    logits = some_logits()
    given = logits.values.copy()
    honoured = honour_clicks(logits, some_clicks(count), [], VOXEL_MM, 2.0, SHAPE)
    assert all(
        (on_image(honoured.logits)[click.zyx] > 0) == click.is_foreground
        for click in some_clicks(count)
    )
    undone = honoured.undone()
    assert undone.box == WHOLE
    np.testing.assert_array_equal(undone.values, given)


@pytest.mark.parametrize("seed", range(6))
def test_logits_of_other_clicks_differ_in_the_spots_of_one_of_them_alone(seed):
    own, others = some_clicks(12, seed), [c for c in some_clicks(20, seed + 50) if c.is_foreground]
    few, many = (
        honour_clicks(some_logits(seed), own, others[:n], VOXEL_MM, 2.0, SHAPE) for n in (2, 6)
    )
    differs = on_image(few.logits) != on_image(many.logits)
    for spot in few.spots ^ many.spots:
        differs[spot.box] = False
    assert not differs.any()
    assert few.spots & many.spots  # not all of them are others


@pytest.mark.parametrize("room", [0, 20_000, 2**29])
def test_labels_are_right_whatever_logits_were_dropped(monkeypatch, room):
    monkeypatch.setattr(logit_cache, "LOGIT_BYTES", room)
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    shown, rng = LabelMap(SHAPE), np.random.default_rng(0)
    for step in range(25):
        target = int(rng.integers(1, 5))
        if step % 6 == 5 and predictor.targets:
            predictor.undo(target=predictor.targets[-1])
        else:
            near = rng.integers(-4, 5, 3) + CENTRES[target % 2]
            predictor.add_point(tuple(near.tolist()), bool(rng.integers(3)), target=target)
        shown.update(predictor.versions(), predictor.shared_logits)
        assert predictor.cache.nbytes <= room
        np.testing.assert_array_equal(shown.labels, predictor.segmentation())


def test_a_click_of_another_target_computes_no_logits_anew(monkeypatch):
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    shown, computed = LabelMap(SHAPE), []
    shown.update(predictor.versions(), predictor.shared_logits)
    logits = predictor.session.logits
    monkeypatch.setattr(predictor.session, "logits", lambda s: computed.append(s) or logits(s))
    inside = tuple(np.argwhere(shown.labels == 1)[40].tolist())
    predictor.add_point(inside, target=2)
    shown.update(predictor.versions(), predictor.shared_logits)
    assert len(computed) == 1  # of target 2
    assert shown.labels[inside] == 2
    np.testing.assert_array_equal(shown.labels, predictor.segmentation())


def test_logits_that_were_returned_never_change():
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    logits = predictor.logits(1)
    before = logits.values.copy()
    predictor.add_point(tuple((np.argwhere(before > 0)[40] + logits.start).tolist()), target=2)
    assert not np.array_equal(predictor.logits(1).values, before)
    np.testing.assert_array_equal(logits.values, before)


@pytest.fixture
def places(monkeypatch):
    """A predictor whose network is a function of the place: ``places(value)``."""

    def predictor_of(value, options=STILL):
        predictor = Predictor(small_student(), RULE, options=options)
        predictor.set_image(np.zeros((80, 80, 80), np.uint8), (1.0, 1.0, 1.0))

        def decode(requests):
            cells = predictor.session.cells
            return [on_cells(r.grid, cells, lambda at, r=r: value(at, r.grid)) for r in requests]

        monkeypatch.setattr(predictor.decoder, "decode", decode)
        return predictor

    return predictor_of


def on_cells(grid, cells, value):
    """The values at the middles of a cube's cells, (m, m, m) float32."""
    middles = (np.arange(cells) + 0.5) * grid.size / cells - 0.5
    mesh = np.stack(np.meshgrid(middles, middles, middles, indexing="ij"))
    return value(np.stack(grid.to_volume(mesh), -1)).astype(np.float32)


def ball_at(centre, radius):
    return lambda at, grid=None: radius - np.linalg.norm(at - np.array(centre), axis=-1)


def test_a_background_click_beyond_the_region_is_honoured(places):
    """It is not decoded, so the network's logits stay the same."""
    predictor = places(ball_at((40, 40, 40), 8), PredictorOptions(tile_above=0))
    predictor.add_point((40, 40, 40))
    predictor.segmentation()
    scene, region = predictor.session.scene, predictor._states[1][-1].region
    beyond = next(z for z in range(40, 80) if not scene.holds(region, (z, 40, 40)))
    predictor.add_point((beyond - 1, 40, 40))  # whose spot reaches beyond the region
    assert predictor.mask()[beyond, 40, 40]
    predictor.add_point((beyond, 40, 40), False)
    assert not predictor.mask()[beyond, 40, 40]


def test_a_click_on_an_own_click_of_another_target_changes_no_order():
    """Spots of both kinds overlap here, so that their order counts."""
    values = np.full([s.stop - s.start for s in WHOLE], -1.0, np.float32)
    values[..., 9:] = 1.0
    own = [Click((10, 12, 8), True), Click((10, 12, 16), False)]
    alone, beside = (
        honour_clicks(LogitBox(WHOLE, values.copy()), own, others, VOXEL_MM, 9.0, SHAPE)
        for others in ([], [Click(own[1].zyx, True)])
    )
    assert alone.spots == beside.spots
    np.testing.assert_array_equal(alone.logits.values, beside.logits.values)


@pytest.mark.parametrize("seed", range(20))
def test_the_component_around_a_click_is_kept_where_its_own_cell_is_outside(places, seed):
    """A voxel may be inside of the interpolated mask while the cell around it is not."""
    rng = np.random.default_rng(seed)
    centres = [(24, 40, 40), (56 + rng.uniform(-2, 2), 40 + rng.uniform(-2, 2), 40)]
    session = places(None).session
    region = Region((39.5, 39.5, 39.5), 2.0)
    grid = session.scene.grid(region)
    low_res = on_cells(
        grid, session.cells, lambda at: np.maximum(*(ball_at(c, 8.0)(at) for c in centres))
    )
    whole = LogitBox.from_low_res(grid, low_res)
    inside = np.argwhere(whole.values > 0) + whole.start
    cell_of = np.floor((grid.to_crop(inside.T) + np.float64(0.5)) * session.cells / grid.size)
    outside = low_res[tuple(cell_of.astype(int))] <= 0
    at = rng.choice(inside[outside & (inside[:, 0] > 42)])
    clicks = (Click((24, 40, 40), True), Click(tuple(at.tolist()), True))
    logits = session.logits(State(region, clicks, low_res))
    np.testing.assert_array_equal(logits.values > 0, whole.values > 0)


def test_an_error_while_clicks_are_honoured_leaves_no_stale_mask(monkeypatch, places):
    """The spot in the large target is wider than the small one that is clicked."""
    predictor = places(
        lambda at, grid: ball_at((40, 40, 40), 30 if grid.steps[0] ** 2 > 1 else 2.5)(at)
    )
    shown = LabelMap((80, 80, 80))
    predictor.add_box((0, 0, 0), (80, 80, 80), target=1)
    predictor.add_box((38, 38, 38), (43, 43, 43), target=2)
    shown.update(predictor.versions(), predictor.shared_logits)

    def fail(*given):
        raise MemoryError

    predictor.add_point((40, 40, 40), target=2)
    with monkeypatch.context() as once:
        once.setattr(logit_cache, "honour_clicks", fail)
        with pytest.raises(MemoryError):
            predictor.versions()
    shown.update(predictor.versions(), predictor.shared_logits)
    np.testing.assert_array_equal(shown.labels, predictor.segmentation())


def test_an_error_in_the_middle_of_a_label_map_changes_nothing_of_it(monkeypatch):
    monkeypatch.setattr(label_map, "COMPETING_VOXELS", 200)
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    shown = LabelMap(SHAPE)
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    shown.update(predictor.versions(), predictor.shared_logits)
    before = shown.labels.copy()
    predictor.add_point(CENTRES[0], False, target=1)
    calls = []

    def compete(*given):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return real(*given)

    real = label_map.compete
    with monkeypatch.context() as once:
        once.setattr(label_map, "compete", compete)
        with pytest.raises(MemoryError):
            shown.update(predictor.versions(), predictor.shared_logits)
    np.testing.assert_array_equal(shown.labels, before)
    change = shown.update(predictor.versions(), predictor.shared_logits)
    before[change.box] = change.labels
    np.testing.assert_array_equal(before, predictor.segmentation())
