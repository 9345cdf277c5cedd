"""A network prepared for inference: constants computed, weights cast, kernels compiled or captured.

The outputs equal the network's up to rounding; docs/performance.md has each engine's difference.

| engine   | runs                                 | extra time of the first call            |
|----------|--------------------------------------|-----------------------------------------|
| eager    | PyTorch's kernels, one by one        | none                                    |
| compiled | kernels fused by `torch.compile`     | tens of seconds a shape; less if cached |
| graph    | the same, captured as a CUDA graph   | the same and four runs; CUDA only       |

"compiled" and "graph" compile for each batch size and each number of clicks.
"""

import copy
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segment_anything.decoding import decode_points, upsample
from segment_anything.modeling import Sam3D
from segment_anything.modeling.attention3D import Attention3D
from segment_anything.refinement import encode_image

Engine = Literal["eager", "compiled", "graph"]
ENGINES: tuple[str, ...] = get_args(Engine)

#: At most this many shapes are compiled for one function: batch sizes times numbers of clicks.
MAX_SHAPES = 64

Tensors = Tensor | tuple[Tensor, ...]


class EngineError(RuntimeError):
    """An engine that does not exist or that this machine cannot run."""


class NotFiniteError(ArithmeticError):
    """The network computed NaN or infinity, which would count as background in a mask."""


class InferenceEngine:
    """The three steps of an interaction on batches: encode, decode, upsample. No gradients.

    Inputs may lie on any device; outputs lie on ``device``. Shapes: B samples, N clicks, S voxels
    along each axis of a crop, E channels of the image embedding, g tokens along each axis, and
    m cells of the low-resolution masks.

    If the weights of ``model`` change later, make a new engine: the old engine holds copies of some
    weights and would mix old and new ones.

    Args:
        model: The network, or `refined` of it. It is moved to ``device`` and set to eval mode; its
            weights are not changed.
        device: The device that the network runs on.
        precision: dtype of the arithmetic: float32, bfloat16 or float16. Images, clicks and masks
            are float32.
        engine: One of `ENGINES`.

    Raises:
        EngineError: there is no such engine, or the machine cannot run it.
    """

    def __init__(
        self,
        model: Sam3D,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        engine: Engine = "eager",
    ) -> None:
        require_engine(engine, device)
        self.device, self.precision, self.name = device, precision, engine
        self.model = model = prepared(model.to(device).eval(), precision)
        dense_pe = model.prompt_encoder.get_dense_pe()

        # The closures do not hold `self`, so that a dropped engine frees its memory at once.
        def encode(images: Tensor) -> Tensor:
            with autocast(device, precision, keep_casts=False):
                return encode_image(model, images)

        def decode(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            with autocast(device, precision, keep_casts=False):
                low_res, iou = decode_points(model, *inputs, dense_pe)
            return low_res.float(), iou.float()

        self._steps = [encode, decode, upsample]
        if engine == "eager":
            return
        keep_compiled_kernels()
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, MAX_SHAPES)
        # An encoder from an ONNX file has no blocks: ONNX Runtime runs it in every engine.
        blocks = getattr(model.image_encoder, "blocks", ())
        for block in blocks:  # equal blocks share kernels: a quarter of the compile time
            block.compile(dynamic=False)
        self._steps[1:] = [torch.compile(step, dynamic=False) for step in self._steps[1:]]
        if engine == "graph":
            first = 0 if blocks else 1
            capture = CudaCapture(device)
            self._steps[first:] = [Captured(step, capture) for step in self._steps[first:]]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return image embeddings (B, E, g, g, g) of normalised crops (B, 1, S, S, S) float32.

        Raises:
            ValueError: S is not the network's ``img_size``.
            NotFiniteError: an embedding holds NaN or infinity.
        """
        with self._without_tf32():
            embeddings = self._steps[0](to_device(images, self.device))
        self._require_finite("image embedding", embeddings)
        return embeddings

    @torch.inference_mode()
    def decode(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        low_res_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (B, 1, m, m, m) and predicted IoU (B, 1), float32.

        Args:
            image_embeddings: (B, E, g, g, g), one for each sample.
            point_coords: (B, N, 3) indices into the crops' arrays, in the order of their axes.
            point_labels: (B, N) in {1, 0, -1}; -1 is no click. 2 and 3 are the corners of a box,
                in networks that take boxes: see `box_points` of decoding.py.
            low_res_masks: (B, 1, m, m, m) logits; zeros before the first click.

        Raises:
            ValueError: the shapes do not fit each other.
            NotFiniteError: a logit is NaN or infinite.
        """
        inputs = (image_embeddings, point_coords, point_labels, low_res_masks)
        with self._without_tf32():
            low_res, iou = self._steps[1](*(to_device(tensor, self.device) for tensor in inputs))
        self._require_finite("logits", low_res)
        return low_res, iou

    @torch.inference_mode()
    def upsample(self, low_res_masks: Tensor, size: int) -> Tensor:
        """Return logits (B, 1, size, size, size) of (B, 1, m, m, m), trilinear."""
        return self._steps[2](to_device(low_res_masks, self.device), size)

    def _require_finite(self, what: str, tensor: Tensor) -> None:
        if is_finite(tensor):
            return
        count = int((~torch.isfinite(tensor)).sum())
        path = getattr(self.model.image_encoder, "path", None)  # of an encoder in an ONNX file
        if self.precision != torch.float32:
            name = str(self.precision).removeprefix("torch.")
            advice = f"They were computed in {name}: use --precision float32."
        else:
            advice = (
                "Check the image for extreme values, and the checkpoint"
                f"{'' if path is None else f' and {path}'} for damage: use another file."
            )
        raise NotFiniteError(
            f"network '{self.model.config.network}': {count:,} of {tensor.numel():,} values of the "
            f"{what} are NaN or infinite, expected finite numbers.\n{advice}"
        )

    def _without_tf32(self) -> AbstractContextManager:
        """Turn off TF32, cuDNN's default of a 10-bit mantissa for float32 convolutions."""
        if self.device.type != "cuda" or self.precision != torch.float32:
            return nullcontext()
        cudnn = torch.backends.cudnn
        return cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        )


class Captured:
    """A function on the GPU, captured as a CUDA graph for each set of shapes, then replayed.

    Launching a graph of three hundred kernels costs as much as launching one kernel. Arguments that
    are not tensors get one graph per value. Threads take turns, on one CUDA stream.

    Args:
        function: Takes tensors and numbers, returns a tensor or a tuple of tensors.
        capture: A `CudaCapture`, or a function with the same arguments and results.
    """

    def __init__(self, function: Callable[..., Tensors], capture: Callable) -> None:
        self._function, self._capture = function, capture
        self._graphs: dict[tuple, tuple[list[Tensor], Callable[[], None], Tensors]] = {}
        self._turn = threading.Lock()

    def __call__(self, *args: Tensor | int) -> Tensors:
        given = [arg for arg in args if isinstance(arg, Tensor)]
        key = tuple((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in args)
        with self._turn:
            if key not in self._graphs:
                fixed = [tensor.clone() for tensor in given]
                replaced = iter(fixed)
                inputs = [next(replaced) if isinstance(arg, Tensor) else arg for arg in args]
                captured = self._capture(lambda: self._function(*inputs))
                self._graphs[key] = (fixed, *captured)
            fixed, replay, outputs = self._graphs[key]
            for own, tensor in zip(fixed, given, strict=True):
                own.copy_(tensor)
            replay()
            if isinstance(outputs, Tensor):
                return outputs.clone()  # the next replay overwrites them
            return tuple(output.clone() for output in outputs)


class CudaCapture:
    """Captures functions without arguments, all in one memory pool and on one stream.

    Graphs can share the pool, since `Captured` copies a graph's outputs before the next replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Capture the function; return a call that replays it, and the outputs it writes to.

        Three runs come first, since compilation, allocation and the choice of kernels must not
        happen during the capture.
        """
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(3):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                outputs = function()
        return graph.replay, outputs


def prepared(model: Sam3D, precision: torch.dtype) -> Sam3D:
    """Return a copy of the network with its constants computed and its weights in ``precision``.

    Weights that need no change are shared with ``model``. Linear layers and convolutions are cast
    once instead of in every call; norms, position tables and embeddings stay in float32.
    """
    # Storage is shared, tensor objects are not, so moving the original does not move this one.
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    model = copy.deepcopy(model, memo=shared)
    for module in model.modules():
        if isinstance(module, Attention3D):
            module.freeze()
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and max(module.kernel_size) > min(module.stride):
            # The input has its channels last. A weight in another order is copied in every call.
            ordered = module.weight.detach().to(memory_format=torch.channels_last_3d)
            module.weight = nn.Parameter(ordered, requires_grad=False)
        if isinstance(module, (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)):
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dtype != precision:
                    cast = nn.Parameter(parameter.detach().to(precision), requires_grad=False)
                    setattr(module, name, cast)
    return model


def autocast(
    device: torch.device, dtype: torch.dtype, *, keep_casts: bool = True
) -> AbstractContextManager:
    """Return the mixed-precision context of ``dtype``; none for float32.

    Args:
        keep_casts: Cast each weight once within the context. Must be False where calls are
            compiled or captured.
    """
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=keep_casts)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; to a GPU from pinned memory, so that the CPU does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity.

    The sum is tested first: this is ten times as fast, and a finite sum has only finite terms.
    """
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def keep_compiled_kernels() -> None:
    """Let `torch.compile` cache its kernels in the user's cache folder, which survives reboots."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "fastsam3d" / "compiled"))


def require_engine(engine: str, device: torch.device) -> None:
    """Raise `EngineError` if there is no such engine, or if this machine cannot run it."""
    if engine not in ENGINES:
        raise EngineError(f"engine '{engine}': expected one of {', '.join(ENGINES)}.")
    if engine == "graph" and device.type != "cuda":
        raise EngineError(
            f"engine 'graph': found the device {device}, expected a CUDA device.\n"
            "Use eager or compiled."
        )
    if engine == "eager":
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise EngineError(
            f"engine '{engine}': found no triton package, which torch.compile needs for CUDA.\n"
            "Install it (pip install triton), or use eager."
        )
    variable, usual = ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    compiler = os.environ.get(variable, usual)
    if shutil.which(compiler) is None:
        raise EngineError(
            f"engine '{engine}': found no compiler '{compiler}', which torch.compile needs.\n"
            f"Install {usual}, set the environment variable {variable} to one, or use eager."
        )
