"""The released networks stay as they are: keys, shapes, and what they compute.

tests/data/released_networks.json was written before the project's own networks got a form of their
own. The weights are drawn from a fixed stream.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything import Interaction, build_sam3D, fingerprint, network_configs

KEPT = json.loads((Path(__file__).parent / "data" / "released_networks.json").read_text())
CLICKS = (((40.0, 64.0, 70.0), 1), ((20.0, 50.0, 99.0), 0))


@pytest.mark.parametrize("name", sorted(KEPT))
def test_keys_shapes_and_outputs_are_unchanged(name):
    model = build_sam3D(network_configs[name]).eval()
    state = model.state_dict()
    text = "\n".join(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
    assert len(state) == KEPT[name]["count"]
    assert hashlib.sha256(text.encode()).hexdigest() == KEPT[name]["keys"]

    rng = np.random.default_rng(0)
    for key in sorted(state):
        drawn = rng.standard_normal(tuple(state[key].shape), dtype=np.float32) * 0.02
        state[key].copy_(torch.from_numpy(drawn))
    assert fingerprint(model) == KEPT[name]["fingerprint"]
    volume = torch.from_numpy(rng.standard_normal((1, 1, 128, 128, 128), dtype=np.float32))
    with torch.no_grad():
        outputs = [model.image_encoder(volume)]
        interaction = Interaction(model, outputs[0])
        for place, label in CLICKS:
            outputs += interaction.click(torch.tensor([place]), torch.tensor([label]))
    for found, kept in zip(outputs, KEPT[name]["outputs"], strict=True):
        assert list(found.shape) == kept["shape"]
        # Machines round differently; on one machine the outputs are equal bit for bit.
        assert float(found.double().norm()) == pytest.approx(kept["norm"], rel=1e-5)
        few = found.flatten()[:: max(1, found.numel() // 8)][:8].tolist()
        scale = kept["norm"] / found.numel() ** 0.5
        assert few == pytest.approx(kept["values"], rel=1e-4, abs=1e-4 * scale)
