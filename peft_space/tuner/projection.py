"""The projected factor: `A` is replaced by `A (I - U U^T)` wherever it is read.

An input in the span of `U` meets `A (I - U U^T) x = 0`: its output can't change, whatever `B` learns and whatever
optimiser moves `A`. The projection is a parametrization of `lora_A.weight`, so every reader (forward, merge, weighted
adapters, conversion, quantised layers) sees the projected factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.utils import parametrize

from peft_space._peft import SPACE, adapter_configs, lora_layers, merged_adapters
from peft_space.vlm import base_of

_TOLERANCE = 1e-4


class Subspace(Protocol):
    """What `attach_subspace` asks of a retained subspace."""

    def basis(self, module_name: str) -> Tensor:
        """Orthonormal basis `(in_features, k)`; the same tensor for modules that share their input."""
        ...


class RetainedBasis(nn.Module):
    """Holds `U`, `(in_features, k)` float32, once for all layers that read the same input.

    Its precision survives `model.half()`: rounded to 16 bits it would let 1e-3 of a retained input through. Where it
    `stays`, it does not go where the model goes.
    """

    U: Tensor

    def __init__(self, U: Tensor, device: torch.device | None = None, stays: bool = False) -> None:
        super().__init__()
        self.stays = stays
        self.register_buffer("U", U.detach().to(device=device, dtype=torch.float32, copy=True), persistent=False)

    def _apply(self, fn, recurse=True):
        if self.stays:
            return self
        moved = fn(self.U)
        self.U = moved if moved.dtype == torch.float32 else self.U.to(moved.device)
        return self


class NullSpaceProjection(nn.Module):
    """Parametrization `A -> A - (A U) U^T`, computed in float32 where `U` is."""

    def __init__(self, retained: RetainedBasis) -> None:
        super().__init__()
        self.retained = retained

    def forward(self, A: Tensor) -> Tensor:
        """Project `A` `(r, in_features)` off the retained subspace; same shape and dtype."""
        # Autocast would turn these products into 16-bit ones and the constraint into an approximation.
        device = self.retained.U.device
        with torch.autocast(device_type=device.type, enabled=False):
            U, full = self.retained.U.float(), A.float().to(device)
            return (full - (full @ U) @ U.T).to(A.device, A.dtype)


def projected_factors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Dotted path, inside `model`, and module of every `lora_A` that is projected at this moment."""
    for name, module in model.named_modules():
        if _projection(module) is not None:
            yield name, module


def project(factor: nn.Module, A: Tensor) -> Tensor:
    """Another value of `A`, as a projected factor would show it.

    Args:
        factor: one of `projected_factors`.
        A: `(r, in_features)`; a `DTensor`, as FSDP2 gives it, stays one.
    """
    projection = _projection(factor)
    if projection is None:
        return A
    if hasattr(A, "device_mesh"):
        with implicit_replication():
            return projection(A)
    return projection(A)


def attach_subspace(
    model: nn.Module, subspace: Subspace, adapter_name: str = "default", *, on_cpu: bool = False
) -> None:
    """Hold the retained subspace exactly: from here on, no training of the adapter can change retained outputs.

    Call it after `get_peft_model`; a factor that is already there is projected, and optimisers keep their parameters.

    Args:
        model: a `PeftModel`, or a transformers model that holds adapters.
        subspace: a basis for every module the adapter targets, by dotted path in the transformers model.
        adapter_name: which adapter to hold.
        on_cpu: keep the bases, and project, on the CPU: slower, and of the bases nothing is in the GPU's memory.

    Raises:
        ValueError: the adapter is missing, not a SPACE adapter, merged, already held, without weights, or on a layer
            that is not linear; or a basis is not orthonormal or not of the layer's width.
        KeyError: the subspace does not cover a targeted module.
    """
    base = base_of(model)
    _check_adapter(model, adapter_name)
    if has_subspace(model, adapter_name):
        raise ValueError(
            f"`adapter_name` must not be held by a subspace yet; got {adapter_name!r}. Do `bake` it first."
        )
    shared: dict[tuple[int, torch.device], RetainedBasis] = {}
    pairs = []
    # Everything is checked before the first layer is touched, so an error leaves the model as it was.
    for name, layer in lora_layers(base, adapter_name):
        if adapter_name not in layer.lora_A or not isinstance(layer.lora_A[adapter_name], nn.Linear):
            raise ValueError(
                f"`target_modules` must be linear layers; got {name!r}, {type(layer.get_base_layer()).__name__}."
            )
        factor = layer.lora_A[adapter_name]
        basis = subspace.basis(name)
        weight: Any = factor.weight
        if weight.is_meta:
            raise ValueError(
                f"`adapter_name` must name an adapter that has its weights; got {adapter_name!r}, which is on the "
                "meta device. Do create it without `low_cpu_mem_usage`, or load its weights first."
            )
        key = (id(basis), weight.device)
        if key not in shared:
            _check_basis(name, basis)
            shared[key] = RetainedBasis(basis, torch.device("cpu") if on_cpu else weight.device, on_cpu)
        if basis.shape[0] != factor.in_features:
            raise ValueError(
                f"`subspace.basis({name!r})` must have {factor.in_features} rows, the layer's width; "
                f"got {tuple(basis.shape)}. Do fit the subspace on this model."
            )
        pairs.append((factor, shared[key]))
    for factor, retained in pairs:
        parametrize.register_parametrization(factor, "weight", NullSpaceProjection(retained))


def has_subspace(model: nn.Module, adapter_name: str = "default") -> bool:
    """Whether the adapter is held by a subspace at this moment."""
    return any(True for _ in _held(model, adapter_name))


def bake(model: nn.Module, adapter_name: str = "default") -> None:
    """Fold the projection into `A` and take it off: the adapter is plain LoRA again, with the very same values.

    The adapter can be pickled after it; training it on is no longer held. Nothing happens where nothing is held.
    """
    for factor in list(_held(model, adapter_name)):
        # A deep copy shares the class of its original, and torch takes the projected `weight` off the class.
        factor.__class__ = type(type(factor).__name__, type(factor).__bases__, dict(vars(type(factor))))
        parametrize.remove_parametrizations(factor, "weight", leave_parametrized=True)


def _projection(module: nn.Module) -> NullSpaceProjection | None:
    if not parametrize.is_parametrized(module, "weight"):
        return None
    first = module.parametrizations["weight"][0]  # type: ignore[index]
    return first if isinstance(first, NullSpaceProjection) else None


def _held(model: nn.Module, adapter_name: str) -> Iterator[nn.Module]:
    for _, layer in lora_layers(base_of(model), adapter_name):
        if adapter_name in layer.lora_A and _projection(layer.lora_A[adapter_name]) is not None:
            yield layer.lora_A[adapter_name]


def _check_adapter(model: nn.Module, adapter_name: str) -> None:
    configs = adapter_configs(model)
    if adapter_name not in configs:
        raise ValueError(f"`adapter_name` must be one of {sorted(configs)}; got {adapter_name!r}.")
    if configs[adapter_name].peft_type != SPACE:
        raise ValueError(
            f"`adapter_name` must name a SPACE adapter; got {adapter_name!r}, which is "
            f"{configs[adapter_name].peft_type.value}. Do create it with `SpaceConfig`."
        )
    if adapter_name in merged_adapters(base_of(model)):
        raise ValueError(f"`adapter_name` must not be merged; got {adapter_name!r}. Do `unmerge_adapter` first.")


def _check_basis(name: str, basis: Tensor) -> None:
    if basis.ndim != 2:
        raise ValueError(f"`subspace.basis({name!r})` must be a matrix (in_features, k); got {tuple(basis.shape)}.")
    U = basis.detach().float()
    error = (U.T @ U - torch.eye(U.shape[1], device=U.device)).abs()
    if U.shape[1] and not error.max() < _TOLERANCE:
        raise ValueError(
            f"`subspace.basis({name!r})` must have orthonormal columns; got a deviation of {error.max():.2g}. "
            "Do orthonormalise it with `torch.linalg.qr`."
        )
