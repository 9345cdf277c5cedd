"""A network made ready for inference: constants built, weights in their precision, shapes captured.

Numerically the same network; how close, engine by engine, is in docs/performance.md.

| engine   | what runs                            | what its first call costs               |
|----------|--------------------------------------|-----------------------------------------|
| eager    | PyTorch's kernels, one by one        | nothing                                 |
| compiled | kernels fused by `torch.compile`     | tens of seconds a shape, fewer if kept  |
| graph    | the same, captured as a CUDA graph   | the same and four runs; CUDA only       |

Shapes are fixed: the compiled engines start anew for each batch size and each number of clicks.
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

Engine = Literal["eager", "compiled", "graph"]
ENGINES: tuple[str, ...] = get_args(Engine)

#: Shapes that one function is compiled for: batch sizes times numbers of clicks.
MAX_SHAPES = 64

Tensors = Tensor | tuple[Tensor, ...]


class EngineError(RuntimeError):
    """An engine that this machine cannot run."""


class InferenceEngine:
    """The three steps of an interaction on batches: encode, decode, upsample. No gradients.

    The weights are those of the moment. After training the network on, or loading others into it,
    make a new engine: this one would mix old and new.

    Args:
        precision: of the arithmetic; images, clicks and masks are float32.
        engine: one of `ENGINES`.

    Raises:
        EngineError: the machine cannot run this engine.
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

        # Neither refers to the engine: what is dropped is freed at once.
        def encode(images: Tensor) -> Tensor:
            with autocast(device, precision, keep_casts=False):
                return model.image_encoder(images)

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
        # An encoder of an ONNX file has no blocks, and runs as it is.
        blocks = getattr(model.image_encoder, "blocks", ())
        for block in blocks:  # those alike share their kernels: built in a quarter of the time
            block.compile(dynamic=False)
        self._steps[1:] = [torch.compile(step, dynamic=False) for step in self._steps[1:]]
        if engine == "graph":
            first = 0 if blocks else 1
            capture = CudaCapture(device)
            self._steps[first:] = [Captured(step, capture) for step in self._steps[first:]]

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return image embeddings (B, C, g, g, g) of normalised crops (B, 1, S, S, S)."""
        with self._exactly():
            return self._steps[0](to_device(images, self.device))

    @torch.inference_mode()
    def decode(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        low_res_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return low-resolution logits (B, 1, 4g, 4g, 4g) and predicted IoU (B, 1), float32.

        Args:
            image_embeddings: (B, C, g, g, g), one for each sample.
            point_coords: (B, N, 3) crop voxels in the network's axis order.
            point_labels: (B, N) in {1, 0, -1}; -1 is no click.
            low_res_masks: (B, 1, 4g, 4g, 4g) logits; zeros where there are none yet.
        """
        inputs = (image_embeddings, point_coords, point_labels, low_res_masks)
        with self._exactly():
            return self._steps[1](*(to_device(tensor, self.device) for tensor in inputs))

    @torch.inference_mode()
    def upsample(self, low_res_masks: Tensor, size: int) -> Tensor:
        """Return logits (B, 1, size, size, size)."""
        return self._steps[2](to_device(low_res_masks, self.device), size)

    def _exactly(self) -> AbstractContextManager:
        """Keep cuDNN from its default, to round what float32 convolutions take to 10 bits."""
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

    A graph's launch costs the same for three hundred kernels as for one. Arguments that are no
    tensors are part of the shape. Threads take turns, on one CUDA stream.
    """

    def __init__(self, function: Callable[..., Tensors], capture: Callable) -> None:
        """Take a function; ``capture`` is a `CudaCapture`, or something like it."""
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
                return outputs.clone()  # the next replay writes over it
            return tuple(output.clone() for output in outputs)


class CudaCapture:
    """Captures functions without arguments, all in one pool of memory and on one stream.

    Sharing is safe where a graph's outputs are copied before another graph is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Return what replays the function, and where its outputs appear.

        The runs before pay for compilation, allocation and kernel choice, which must not happen
        while capturing.
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
    """Return the network with its constants built and its weights in ``precision``.

    It shares with ``model`` whatever is not changed. Norms, position tables and embeddings stay in
    float32; what is multiplied is cast once instead of in every call.
    """
    # Numbers are shared, tensors are not: a model that moves to another device takes its own along.
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    model = copy.deepcopy(model, memo=shared)
    for module in model.modules():
        if isinstance(module, Attention3D):
            module.freeze()
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and max(module.kernel_size) > min(module.stride):
            # What comes in has its channels last; else the weight is reordered in every call.
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
        keep_casts: use a weight's cast again within the context; not where calls are captured.
    """
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=keep_casts)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor; to a GPU from pinned memory, so that the processor need not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_compiled_kernels() -> None:
    """Keep what `torch.compile` builds in the user's cache folder, where reboots leave it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "fastsam3d" / "compiled"))


def require_engine(engine: str, device: torch.device) -> None:
    """Raise `EngineError` where this machine cannot run an engine."""
    if engine not in ENGINES:
        raise EngineError(f"engine '{engine}': expected one of {', '.join(ENGINES)}.")
    if engine == "graph" and device.type != "cuda":
        raise EngineError(
            f"engine 'graph': found the device {device}, expected a CUDA device, whose graphs it "
            "captures.\nUse eager or compiled."
        )
    if engine == "eager":
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise EngineError(
            f"engine '{engine}': found no triton package, with which torch.compile writes kernels "
            "for CUDA.\nInstall it, or use eager."
        )
    variable, usual = ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    compiler = os.environ.get(variable, usual)
    if shutil.which(compiler) is None:
        raise EngineError(
            f"engine '{engine}': found no compiler '{compiler}', with which torch.compile builds "
            f"kernels.\nInstall one ({usual}), name it in {variable}, or use eager."
        )
