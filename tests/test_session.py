"""The session: prompts to states and back to the image, with the network elsewhere."""

import subprocess
import sys

import numpy as np
from preparation_helpers import ROOT

from utils.prediction.lockstep import in_lockstep
from utils.prediction.region import Scene
from utils.prediction.session import ImageSession, PredictorOptions
from utils.prompts.kinds import Click
from utils.volumes.geometry import CropRule, affine_from_spacing

SHAPE = (20, 24, 28)


def session():
    options = PredictorOptions()
    scene = Scene(SHAPE, affine_from_spacing(np.ones(3)), CropRule(32, 1.0), options.zoom)
    return ImageSession(scene, 16, options)


def test_prompts_become_states_without_torch():
    code = "import sys, utils.prediction.session; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "False\n"


def test_a_computation_asks_for_logits_and_ends_with_a_state():
    asked, logits = [], np.full((16, 16, 16), 3.0, np.float32)

    def network(requests):
        asked.extend(requests)
        return [logits] * len(requests)

    image = session()
    (state,) = in_lockstep([image.advance(None, [Click((10, 12, 14), True)], 1)], network)
    (request,) = asked
    assert request.low_res is None
    assert request.clicks == [(request.grid.to_crop((10, 12, 14)), True)]
    assert (image.logits(state).values > 0).all()
    assert image.logits(state).values.shape == SHAPE
