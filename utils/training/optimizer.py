"""AdamW or Muon with learning-rate schedule and loss scaler: one optimizer step, and its state.

Muon (torch.optim.Muon; Jordan et al., 2024) updates the matrices of a network's layers, and AdamW
all its other parameters. The size of Muon's updates is matched to AdamW's (arXiv:2502.16982), so
that both have the same learning rate and weight decay.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from segment_anything import autocast
from utils.errors import InputError
from utils.run.ranks import world_size
from utils.training.config import FitConfig, lr_factor
from utils.training.matrices import Flattened, layer_weights
from utils.training.tasks import Task

#: Entries of a parameter group that change during a run, or number its parameters.
VARYING = {"lr", "params"}
#: Names of the optimizers' states in a checkpoint; files without Muon hold the first alone.
ADAMW, MUON = "optimizer", "muon"
#: What each optimizer keeps for each parameter, of the parameter's shape.
MOMENTS = {ADAMW: ("exp_avg", "exp_avg_sq"), MUON: ("momentum_buffer",)}


class DivergedError(InputError):
    """The loss or the gradient is not a finite number."""


class Optimizer:
    """AdamW, or Muon and AdamW, with their learning-rate schedule and loss scaler."""

    def __init__(self, task: Task, config: FitConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        groups, decay = task.parameter_groups(config.lr), config.weight_decay
        flat = layer_weights(task) if config.optimizer == "muon" else set()
        matrices, others, self._flattened = [], [], []
        for group in groups:
            found = [Flattened(p) for p in group["params"] if p in flat]
            self._flattened += found
            matrices.append(group | {"params": [weight.matrix for weight in found]})
            others.append(group | {"params": [p for p in group["params"] if p not in flat]})
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            ADAMW: torch.optim.AdamW(others, weight_decay=decay, betas=(0.9, 0.95))
        }
        if config.optimizer == "muon":
            self._optimizers[MUON] = torch.optim.Muon(
                matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
        for group in self._groups:
            group["initial_lr"] = group["lr"]
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == torch.float16)

    @property
    def _groups(self) -> list[dict]:
        return [g for optimizer in self._optimizers.values() for g in optimizer.param_groups]

    def set_rate(self, done: float) -> float:
        """Set the learning rates of a step that begins where the share ``done`` is done.

        Returns:
            the rate of the first parameter group.
        """
        config = self._config
        factor = lr_factor(done, config.parts, config.warmup, config.lr_schedule)
        for group in self._groups:
            group["lr"] = group["initial_lr"] * factor
        return self._groups[0]["lr"]

    def state_dict(self) -> dict:
        """Return the state that `load_state_dict` needs, as checkpoints store it."""
        states = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {**states, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict, step: int) -> None:
        """Restore the state after ``step`` steps; `set_rate` sets the rates.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RuntimeError: it is no such state, or
                of other parameters; this optimizer must then not be used.
        """
        for name, optimizer in self._optimizers.items():
            expected = [dict(group) for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            _require_same_groups(optimizer.param_groups, expected)
            for parameter, moments in optimizer.state.items():
                _require_moments(parameter, {key: moments[key] for key in MOMENTS[name]})
                if name == ADAMW and not 0 < float(moments["step"]) <= step:
                    raise ValueError(
                        f"the optimizer has taken {float(moments['step'])} steps of {step}"
                    )
        if self._scaler.is_enabled():
            if not math.isfinite(state["scaler"]["scale"]):
                raise ValueError("the scale of the loss is not finite")
            self._scaler.load_state_dict(state["scaler"])

    def take_step(
        self, task: nn.Module, step: int, batches: list[dict]
    ) -> tuple[list[dict[str, float]], float]:
        """Add up the gradients of the micro-batches, then update the weights once.

        Returns:
            each micro-batch's scalars, and the norm of the gradient before it was clipped.

        Raises:
            DivergedError: loss or gradient is not finite; the message names step and samples.
            InputError: a sample could not be read.
        """
        scalars, sample_ids = [], []
        for part, batch in enumerate(batches):
            if "error" in batch:
                raise InputError(batch["error"])
            # Ranks add up their gradients once a step, in the last micro-batch.
            is_waiting = world_size() > 1 and part + 1 < len(batches)
            with task.no_sync() if is_waiting else nullcontext():
                scalars.append(self._backward(task, step, batch, len(batches)))
            sample_ids += batch["id"]
        return scalars, self._update(step, sample_ids)

    def _backward(self, task: nn.Module, step: int, batch: dict, passes: int) -> dict[str, float]:
        """Add the gradient of the loss of one of ``passes`` micro-batches; return its scalars."""
        with autocast(self._device, self._config.precision):
            report = task(_to_device(batch, self._device))
        _require_finite("loss", float(report["loss"].detach()), step, batch["id"])
        self._scaler.scale(report["loss"] / passes).backward()
        return {key: float(value.detach()) for key, value in report.items()}

    def _update(self, step: int, sample_ids: list[str]) -> float:
        """Clip the gradient and update the weights; return the gradient's norm."""
        for weight in self._flattened:
            weight.take_gradient()
        for optimizer in self._optimizers.values():
            self._scaler.unscale_(optimizer)
        parameters = [p for group in self._groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self._config.clip))
        if not self._scaler.is_enabled():  # an enabled scaler skips steps with such gradients
            _require_finite("gradient", norm, step, sample_ids)
        for optimizer in self._optimizers.values():
            self._scaler.step(optimizer)
        self._scaler.update()
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return norm


def _require_same_groups(found: list[dict], expected: list[dict]) -> None:
    for group, own in zip(found, expected, strict=True):
        for key in (group.keys() & own.keys()) - VARYING:
            if group[key] != own[key]:
                raise ValueError(f"{key} of the optimizer is {group[key]!r:.99}, not {own[key]}")


def _require_moments(parameter: Tensor, moments: dict[str, Tensor]) -> None:
    for name, moment in moments.items():
        if moment.shape != parameter.shape or not moment.isfinite().all():
            raise ValueError(f"{name} of the optimizer is of another shape, or not finite")


def _require_finite(what: str, value: float, step: int, sample_ids: list[str]) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"{what} is {value} at step {step}, samples {sample_ids}.\n"
            "Expected a finite number: inspect these crops, lower --lr, or use --precision "
            "float32. last.pt, if it exists, holds the finite weights of an earlier step."
        )


def _to_device(batch: dict, device: torch.device) -> dict:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
