"""Inference engines: every engine and precision gives the network's own numbers.

The golden arrays and the tolerance of float32 are those of test_golden.py; low precision has one
that fits its digits. The decoder is compared on random weights: with the golden ones its attention
is nearly a hard choice, which a rounding error may flip (see test_golden.py).
"""

import copy
import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import fixed_weights
import pytest
import torch
from parity_helpers import NETWORKS, encoded, golden, network, relative_error
from small_networks import small_config, small_sam

from segment_anything import (
    ENGINES,
    EngineError,
    InferenceEngine,
    build_sam3D,
    require_engine,
    upsample,
)
from segment_anything.decoding import decode_points
from segment_anything.engine import Captured, prepared
from utils.run import flags as run_flags

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def engines_of_this_machine() -> list[tuple]:
    """Return (device, engine, precision) for all that can run here."""
    found = [(CPU, "eager", precision) for precision in TOLERANCES]
    # Compiling float16, which a CPU computes in software, takes long and says little.
    found += [(CPU, "compiled", precision) for precision in (torch.float32, torch.bfloat16)]
    if torch.cuda.is_available():
        found += [(torch.device("cuda"), e, p) for e in ENGINES for p in TOLERANCES]
    return found


ALL_ENGINES = pytest.mark.parametrize(
    ("device", "engine", "precision"), engines_of_this_machine(), ids=str
)


@pytest.fixture(autouse=True)
def compiled_kernels_of_this_test(tmp_path, monkeypatch):
    """Keep compiled kernels out of the user's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch._dynamo.reset()


def prompts(batch: int = 2, clicks: int = 2, cells: int = 16, size: int = 32) -> tuple:
    """Return images, coordinates, labels and masks."""
    torch.manual_seed(3)
    return (
        torch.randn(batch, 1, size, size, size),
        size * torch.rand(batch, clicks, 3),
        torch.randint(0, 2, (batch, clicks)),
        3 * torch.randn(batch, 1, cells, cells, cells),
    )


def wide_small_sam(**encoder):
    """A small network whose relative position tables are not zero."""
    model = small_sam(**encoder).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def plainly(model, images, coords, labels, masks):
    """Return embedding, low-resolution logits and full ones, without an engine."""
    embedding = model.image_encoder(images)
    dense_pe = model.prompt_encoder.get_dense_pe()
    low_res, iou = decode_points(model, embedding, coords, labels, masks, dense_pe)
    return embedding, low_res, iou, upsample(low_res, 32)


def by_engine(engine, images, *points):
    embedding = engine.encode(images)
    low_res, iou = engine.decode(embedding, *points)
    return embedding, low_res, iou, engine.upsample(low_res, 32)


@pytest.mark.parametrize("name", NETWORKS)
@ALL_ENGINES
def test_golden_embeddings(name, device, engine, precision):
    engine = InferenceEngine(copy.deepcopy(network(name)), device, precision, engine)
    found = engine.encode(fixed_weights.volume(0)).float().cpu()[0, ::3, ::2, ::2, ::2]
    assert relative_error(found, golden()[f"{name}_embedding"]) < TOLERANCES[precision]


@ALL_ENGINES
def test_every_part_is_the_plain_networks(device, engine, precision):
    model, given = wide_small_sam(), prompts()
    outputs = plainly(model, *given)
    found = by_engine(InferenceEngine(model, device, precision, engine), *given)
    for part, expected in zip(found, outputs, strict=True):
        assert relative_error(part.float().cpu(), expected) < TOLERANCES[precision]


@pytest.mark.parametrize(
    "encoder",
    [
        {"window_size": 6, "neck_kernel": 3},
        {"attention_free_blocks": (0,), "mlp_residual": "normalised"},
        {"relative_terms": "textbook"},
        {"patch_size": 16, "stem": "conv", "detail_chans": 4},
    ],
    ids=str,
)
def test_networks_of_every_kind(encoder):
    size = 64 if "stem" in encoder else 32
    torch.manual_seed(0)
    model = build_sam3D(small_config(img_size=size, **encoder)).eval()
    given = prompts(cells=size // model.config.encoder.patch_size * 4, size=size)
    found = by_engine(InferenceEngine(model, CPU), *given)
    for part, expected in zip(found, plainly(model, *given), strict=True):
        assert relative_error(part, expected) < 1e-5


def test_a_sample_does_not_depend_on_its_batch():
    engine, given = InferenceEngine(wide_small_sam(), CPU), prompts(batch=3)
    together = by_engine(engine, *given)
    alone = by_engine(engine, *(tensor[1:2] for tensor in given))
    for whole, single in zip(together, alone, strict=True):
        assert relative_error(whole[1:2], single) < 1e-5


def test_low_precision_weights_are_cast_once_and_the_network_keeps_its_own():
    model = small_sam()
    inside = prepared(model, torch.bfloat16)
    linear, own = inside.image_encoder.blocks[0].mlp.lin1, model.image_encoder.blocks[0].mlp.lin1
    assert (linear.weight.dtype, own.weight.dtype) == (torch.bfloat16, torch.float32)
    norm, own_norm = (m.image_encoder.blocks[0].norm2 for m in (inside, model))
    assert norm.weight.data_ptr() == own_norm.weight.data_ptr()
    assert norm.weight.dtype == torch.float32


def test_float32_weights_are_shared_not_copied():
    model = small_sam()
    ours = {p.data_ptr() for p in prepared(model, torch.float32).parameters()}
    assert ours == {p.data_ptr() for p in model.parameters()}


def test_training_goes_on_after_an_engine_was_made():
    model, given = wide_small_sam(), prompts()
    before = by_engine(InferenceEngine(model, CPU), *given)[1]
    model.train()
    embedding = model.image_encoder(given[0])
    embedding.square().mean().backward()
    table = model.image_encoder.blocks[1].attn.rel_pos_d
    assert table.grad is not None
    with torch.no_grad():
        table.normal_()
    after = by_engine(InferenceEngine(model, CPU), *given)[1]
    assert relative_error(after, before) > 1e-4


def test_compiled_kernels_are_kept_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = InferenceEngine(small_sam(), CPU, engine="compiled")
    engine.upsample(torch.randn(1, 1, 16, 16, 16), 32)
    kept = list((tmp_path / "cache" / "fastsam3d" / "compiled").rglob("*"))
    assert any(path.is_file() for path in kept)


def test_eager_builds_nothing(tmp_path):
    by_engine(InferenceEngine(small_sam(), CPU), *prompts())
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """Stands in for a CUDA graph: replays by running again on the same tensors."""

    def __init__(self):
        self.captures, self.replays = 0, 0

    def __call__(self, function):
        self.captures += 1
        output = function()

        def replay():
            self.replays += 1
            output.copy_(function())

        return replay, output


def test_a_captured_function_is_captured_once_a_shape_and_replayed():
    recorder = Recorder()
    captured = Captured(lambda x, factor: factor * x, recorder)
    first = captured(torch.ones(2), 3)
    second = captured(torch.full((2,), 5.0), 3)
    assert first.tolist() == [3, 3], "an answer must outlive the next replay"
    assert second.tolist() == [15, 15]
    assert (recorder.captures, recorder.replays) == (1, 2)
    assert captured(torch.ones(4), 3).tolist() == [3] * 4
    assert captured(torch.ones(2), 7).tolist() == [7, 7]
    assert captured(torch.ones(2, dtype=torch.double), 3).dtype == torch.double
    assert recorder.captures == 4


def test_threads_take_turns_at_a_captured_function():
    """A slow replay leaves time for another thread to write over the fixed inputs."""

    class Slow(Recorder):
        def __call__(self, function):
            replay, output = super().__call__(function)

            def slowly():
                time.sleep(0.01)
                replay()

            return slowly, output

    captured = Captured(lambda x: 2 * x, Slow())
    captured(torch.zeros(1))
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(lambda n: captured(torch.tensor([float(n)])).item(), range(20))
    assert list(answers) == [2 * n for n in range(20)]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_an_engine_that_is_dropped_is_freed_at_once(precision):
    gc.collect()
    gc.disable()
    try:
        engine = InferenceEngine(small_sam(), CPU, precision)
        by_engine(engine, *prompts())
        inside = weakref.ref(engine.model)
        del engine
        assert inside() is None
    finally:
        gc.enable()


def test_an_engine_stays_where_it_is_when_its_network_moves():
    model, given = wide_small_sam(), prompts()
    engine = InferenceEngine(model, CPU)
    before = by_engine(engine, *given)
    model.to("meta")
    for part, expected in zip(by_engine(engine, *given), before, strict=True):
        assert torch.equal(part, expected)


def test_engines_that_cannot_run_say_what_is_missing(monkeypatch):
    with pytest.raises(EngineError, match="expected a CUDA device"):
        InferenceEngine(small_sam(), CPU, engine="graph")
    with pytest.raises(EngineError, match="expected one of eager, compiled, graph"):
        require_engine("fast", CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="found no compiler 'no-such-compiler'"):
        InferenceEngine(small_sam(), CPU, engine="compiled")


def test_flags_know_the_engines():
    assert run_flags.ENGINES == ENGINES


def test_the_engine_leaves_golden_networks_as_they_were():
    expected = encoded("student").image_embedding
    InferenceEngine(network("student"), CPU, torch.bfloat16)
    with torch.no_grad():
        found = network("student").image_encoder(fixed_weights.volume(0))
    assert relative_error(found, expected) < 1e-7
