"""SAM-Med3D as others ship it (the medim package): it loads our files, and agrees with us."""

import fixed_weights
import medim
import pytest
import torch
from parity_helpers import DECODER_CASES, decode, encoded, golden, network, relative_error

from segment_anything import checkpoint_payload


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """MedIM's network, with its weights from a file that we wrote."""
    path = tmp_path_factory.mktemp("medim") / "ours.pth"
    torch.save(checkpoint_payload(network("teacher")), path)
    model = medim.create_model("SAM-Med3D", pretrained=False)
    weights = torch.load(path, weights_only=True)["model_state_dict"]
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def reference_embedding(reference):
    with torch.no_grad():
        return reference.image_encoder(fixed_weights.volume(0))


def test_image_embeddings_agree(reference_embedding):
    assert relative_error(encoded("teacher").image_embedding, reference_embedding) < 1e-5


@pytest.mark.parametrize("case", DECODER_CASES)
def test_masks_agree_on_one_embedding(reference, reference_embedding, case):
    logits, iou = decode(network("teacher"), reference_embedding, case)
    expected_logits, expected_iou = decode(reference, reference_embedding, case)
    assert relative_error(logits, expected_logits) < 1e-5
    assert relative_error(iou, expected_iou) < 1e-5


def test_golden_masks_come_from_this_reference(reference, reference_embedding):
    """So the two tests above also compare with the golden file."""
    logits, _ = decode(reference, reference_embedding, "mask")
    expected = golden()["teacher_mask_logits"]
    assert relative_error(logits[0, :, ::3, ::3, ::3], expected) < 1e-3
