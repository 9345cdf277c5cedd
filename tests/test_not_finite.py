"""NaN and infinity: refused where values enter, and an error where the network computes them."""

import numpy as np
import pytest
import torch
from small_networks import RULE, small_sam

from segment_anything import CropPredictor, InferenceEngine, Interaction, NotFiniteError
from segment_anything.export import write_encoder
from segment_anything.onnx_encoder import use_onnx_encoder
from utils.cases.prepared import find_cases, read_case
from utils.errors import InputError
from utils.files.nifti import read_nifti, write_nifti
from utils.files.npz import read_npz
from utils.prediction.predictor import Predictor
from utils.validation.clicks import Evaluator
from utils.volumes.crops import normalise
from utils.volumes.values import require_finite, require_network_input

SHAPE = (14, 30, 26)
CPU = torch.device("cpu")


def image(value=None, dtype=np.float64):
    voxels = np.random.default_rng(0).integers(60, 255, SHAPE).astype(dtype)
    if value is not None:
        voxels[3, 4, 5] = value
    return voxels


def broken_sam(part, value=float("nan")):
    """A network of which one weight is not finite."""
    model = small_sam()
    weights = {
        "encoder": model.image_encoder.pos_embed,
        "decoder": model.mask_decoder.mask_tokens.weight,
    }
    with torch.no_grad():
        weights[part].view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [1e39, -1e300, np.nan, -np.inf, np.longdouble("1e400")], ids=str)
def test_a_value_beyond_float32_is_named_with_its_place(value):
    array = image(value, np.longdouble if isinstance(value, np.longdouble) else np.float64)
    with pytest.raises(InputError, match=r"^a\.nii has 1 voxels .* at \(z, y, x\) = \(3, 4, 5\)"):
        require_finite(array, "a.nii")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_other_values_are_left_alone(dtype):
    most = 1 if dtype is bool else np.finfo(np.float32).max
    if np.dtype(dtype).kind in "iu":
        most = np.iinfo(dtype).max
    array = np.zeros(SHAPE, dtype)
    array[3, 4, 5] = min(most, np.finfo(dtype).max) if np.dtype(dtype).kind == "f" else most
    require_finite(array, "a.nii")


@pytest.mark.parametrize("value", [1.1e15, -1e18, 1e25, 3e38, np.nan])
def test_values_whose_squares_float32_cannot_add_are_refused_before_the_network(value):
    with pytest.raises(InputError, match=r"the image has 1 voxels .* at most 1e\+15"):
        require_network_input(image(value, np.float32), "the image")
    require_network_input(image(1e15, np.float32), "the image")


@pytest.mark.parametrize("value", [1e25, 3e38, 1e39, -1e39, np.nan])
def test_a_crop_that_cannot_be_normalised_is_an_error(value):
    with pytest.raises(InputError, match="cannot be normalised in float32"):
        normalise(image(value))


@pytest.mark.parametrize("value", [255, 1e4, 1e10, 1e15])
def test_large_values_are_normalised_as_ever(value):
    given = image(value).astype(np.float32)
    expected = (given - given.mean()) / given.std()
    np.testing.assert_allclose(normalise(given), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [1e39, 1e300, np.inf])
def test_a_file_with_such_a_value_is_refused_with_its_name(tmp_path, value):
    write_nifti(tmp_path / "a.nii.gz", image(value), np.eye(4))
    with pytest.raises(InputError, match=r"a\.nii\.gz: the volume has 1 voxels .*\(3, 4, 5\)"):
        read_nifti(tmp_path / "a.nii.gz")
    np.savez(tmp_path / "a.npz", imgs=image(value))
    with pytest.raises(InputError, match=r"a\.npz: 'imgs' has 1 voxels .*\(3, 4, 5\)"):
        read_npz(tmp_path / "a.npz", ["imgs"])


def test_an_image_of_a_prepared_tree_is_refused_before_training_or_validation(tmp_path):
    folder = tmp_path / "liver" / "CT_Ours"
    label = np.zeros(SHAPE, np.uint8)
    label[4:9, 5:20, 5:20] = 1
    write_nifti(folder / "labelsTr" / "a.nii.gz", label, np.eye(4))
    write_nifti(folder / "imagesTr" / "a.nii.gz", image(), np.eye(4))
    (case,) = find_cases([folder])
    read_case(case)
    write_nifti(folder / "imagesTr" / "a.nii.gz", image(1e25), np.eye(4))
    with pytest.raises(InputError, match=r"imagesTr/a\.nii\.gz: the image has 1 voxels"):
        read_case(case)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_computes_no_numbers_is_an_error_and_never_a_mask(part, value):
    predictor = Predictor(broken_sam(part, value), RULE)
    predictor.set_image(image(), (1.0, 1.0, 1.0))
    predictor.add_point((5, 6, 7))
    found = {"encoder": "image embedding", "decoder": "logits"}[part]
    for ask in (predictor.segmentation, predictor.mask, lambda: predictor.logits(1)):
        with pytest.raises(InputError, match=f"values of the {found} are NaN or infinite"):
            ask()
    assert predictor.targets == [1]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_validation_by_clicks_takes_it_as_an_error_too(tmp_path, part):
    folder = tmp_path / "liver" / "CT_Ours"
    label = np.zeros(SHAPE, np.uint8)
    label[4:9, 5:20, 5:20] = 1
    write_nifti(folder / "labelsTr" / "a.nii.gz", label, np.eye(4))
    write_nifti(folder / "imagesTr" / "a.nii.gz", image(), np.eye(4))
    how = {"num_clicks": 1, "device": CPU, "precision": torch.float32}
    with pytest.raises(InputError, match="are NaN or infinite"):
        Evaluator(broken_sam(part), RULE, **how).run_case(find_cases([folder])[0])


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_that_overflows_names_the_flag(precision):
    model = small_sam()
    with torch.no_grad():
        model.image_encoder.neck[0].weight *= 1e38
        model.image_encoder.patch_embed.proj.weight *= 1e38
    engine = InferenceEngine(model, CPU, precision)
    with pytest.raises(NotFiniteError, match=r"computed in b?float16: use --precision float32"):
        engine.encode(torch.randn(1, 1, 32, 32, 32))


def test_in_float32_the_message_names_image_and_checkpoint():
    with pytest.raises(NotFiniteError, match=r"Check the image .* and the checkpoint"):
        CropPredictor(broken_sam("encoder"), CPU).encode(torch.randn(32, 32, 32))


def test_every_way_to_decode_is_checked():
    network = CropPredictor(broken_sam("decoder"), CPU)
    embedding = network.encode(torch.randn(32, 32, 32))
    place, kind = torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([1])
    with pytest.raises(NotFiniteError, match="logits"):
        network.interaction(embedding).click(place, kind)
    logits, _ = Interaction(small_sam(), embedding).click(place, kind)
    assert torch.isfinite(logits).all()


def test_a_sum_that_overflows_is_no_error():
    engine = InferenceEngine(small_sam(), CPU)
    engine._steps[0] = lambda images: torch.full((1, 48, 4, 4, 4), 3e38)
    assert torch.isfinite(engine.encode(torch.randn(1, 1, 32, 32, 32))).all()


def test_an_onnx_encoder_that_computes_no_numbers_is_an_error_with_its_file(tmp_path):
    model, path = broken_sam("encoder"), tmp_path / "image_encoder.onnx"
    write_encoder(model, path)
    use_onnx_encoder(model, path)
    predictor = Predictor(model, RULE)
    predictor.set_image(image(), (1.0, 1.0, 1.0))
    predictor.add_point((5, 6, 7))
    with pytest.raises(InputError, match=r"image embedding are NaN .*\n.*image_encoder\.onnx"):
        predictor.mask()
