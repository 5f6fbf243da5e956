"""How much of what a layer says about retained inputs an adapter changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peft_space.processes import gathered
from peft_space.subspace.inputs import TokenRows, linear_layers, watch


@dataclass(frozen=True)
class LeakReport:
    """`||dW x|| / ||W x||` over real inputs `x`, in Frobenius norm over all tokens of a kind.

    Attributes:
        mean: mean over layers.
        max: the worst layer.
        per_module: by layer (dotted path), the mean over the kinds of token present.
        per_kind: by kind of token, the mean over layers.
    """

    mean: float
    max: float
    per_module: Mapping[str, float]
    per_kind: Mapping[str, float]


def leak(
    peft_model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    adapter_name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> LeakReport:
    """Measures what LoRA adapters change in each layer's output on the inputs of the *base* model.

    These are the inputs that a null space speaks of: an adapter that leaves them alone in every layer leaves the whole
    pass alone. `dW x` is computed in float32 from the low-rank factors as they are now, projected or baked.

    Args:
        peft_model: a model with unmerged LoRA layers.
        batches: model inputs that were not used to fit the subspace.
        adapter_name: the adapter to measure; `None` for the sum of those active.
        progress: called after each batch with the number done.

    Raises:
        ValueError: no layer has the adapter, it is merged, its change is not `B A` (DoRA), or there is no batch.
    """
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in linear_layers(peft_model).items()
        if isinstance(layer, LoraLayer) and _names_in(layer, adapter_name)
    }
    if not layers:
        raise ValueError(
            f"`adapter_name` must be a LoRA adapter of `peft_model`; got {adapter_name!r}, which no layer has. "
            "Do pass one of `peft_model.peft_config`, or compare merged weights with `leak_between`."
        )

    def change(name: str, module: nn.Module, x: Tensor) -> Tensor:
        layer = cast(LoraLayer, module)
        return torch.stack([_low_rank_change(layer, adapter, x) for adapter in _names_in(layer, adapter_name)]).sum(0)

    return _measure(peft_model, layers, batches, change, progress)


def leak_between(
    base_model: nn.Module,
    merged_model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    progress: Callable[[int], None] | None = None,
) -> LeakReport:
    """Measures `||(W' - W) x|| / ||W x||` for the linear layers whose weights differ between two models.

    Args:
        base_model: the model before, with the weights `W`; its inputs `x` are used.
        merged_model: the same architecture with the weights `W'`, not quantised.
        batches: model inputs that were not used to fit the subspace.
        progress: called after each batch with the number done.

    Returns:
        The report; layers with equal weights are not in it, and without any other all its figures are 0.

    Raises:
        ValueError: the linear layers of the two have different names or shapes, or are quantised.
    """
    before, after = linear_layers(base_model), linear_layers(merged_model)
    if set(before) != set(after):
        raise ValueError(
            f"`merged_model` must have the linear layers of `base_model`; got {sorted(set(before) ^ set(after))[:3]} "
            "in one only. Do call `merge_and_unload()` before comparing."
        )
    changed = {}
    for name, layer in before.items():
        old, new = _matrix(name, layer), _matrix(name, after[name])
        if old.shape != new.shape:
            raise ValueError(
                f"`merged_model` must have the shapes of `base_model`; got {tuple(new.shape)} against "
                f"{tuple(old.shape)} for {name!r}. Do compare models of one architecture."
            )
        if not torch.equal(old, new.to(old)):
            changed[name] = layer
    if not changed:
        return LeakReport(mean=0.0, max=0.0, per_module={}, per_kind={})

    def change(name: str, module: nn.Module, x: Tensor) -> Tensor:
        # Differencing the weights first keeps the rounding of two large outputs out of a small figure.
        old = _matrix(name, module).float()
        return F.linear(x.float(), _matrix(name, after[name]).to(old) - old)

    return _measure(base_model, changed, batches, change, progress)


def _measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    change: Callable[[str, nn.Module, Tensor], Tensor],
    progress: Callable[[int], None] | None,
) -> LeakReport:
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in layers}

    def see(name: str, module: nn.Module, x: Tensor, output: Tensor | None, rows: TokenRows) -> None:
        y = cast(Tensor, output).float()
        bias = getattr(module.get_base_layer() if isinstance(module, LoraLayer) else module, "bias", None)
        kept = y if bias is None else y - bias.float()
        pairs = zip(rows.split(name, change(name, module, x)), rows.split(name, kept), strict=True)
        for (kind, changed_rows), (_, kept_rows) in pairs:
            energies = torch.stack([_energy(changed_rows), _energy(kept_rows)])
            sums[name][kind] = sums[name].get(kind, 0) + energies

    watch(model, layers, batches, see, outputs=True, progress=progress)
    sums = _of_all(sums)
    ratios = {
        name: {kind: float((energies[0] / energies[1].clamp(min=1e-30)).sqrt()) for kind, energies in by_kind.items()}
        for name, by_kind in sums.items()
        if by_kind
    }
    if not ratios:
        raise ValueError("`batches` must reach the adapted layers; got none that do. Do add batches with images.")
    per_module = {name: fmean(by_kind.values()) for name, by_kind in ratios.items()}
    kinds = sorted({kind for by_kind in ratios.values() for kind in by_kind})
    return LeakReport(
        mean=fmean(per_module.values()),
        max=max(per_module.values()),
        per_module=per_module,
        per_kind={kind: fmean(r[kind] for r in ratios.values() if kind in r) for kind in kinds},
    )


def _of_all(sums: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The sums, by layer and kind of token, over all processes that work together."""
    total: dict[str, dict[str, Tensor]] = {name: {} for name in sums}
    for part in gathered({name: {kind: one.cpu() for kind, one in kinds.items()} for name, kinds in sums.items()}):
        for name, by_kind in part.items():
            for kind, energies in by_kind.items():
                total[name][kind] = total[name].get(kind, 0) + energies
    return total


def _low_rank_change(layer: LoraLayer, adapter_name: str, x: Tensor) -> Tensor:
    if getattr(layer, "use_dora", {}).get(adapter_name):
        raise ValueError(
            f"`adapter_name` must be an adapter that adds `B A` to the weights; got {adapter_name!r} with DoRA. "
            "Do merge it and use `leak_between`."
        )
    a, b = cast(nn.Linear, layer.lora_A[adapter_name]), cast(nn.Linear, layer.lora_B[adapter_name])
    bias = None if b.bias is None else b.bias.float()
    low = F.linear(x.float(), a.weight.float())
    return F.linear(low, b.weight.float(), bias) * layer.scaling[adapter_name]


def _names_in(layer: LoraLayer, adapter_name: str | None) -> Sequence[str]:
    wanted = layer.active_adapters if adapter_name is None else [adapter_name]
    return [name for name in wanted if name in layer.lora_A]


def _matrix(name: str, layer: nn.Module) -> Tensor:
    """The weight `(d_out, d_in)` of a plain linear layer."""
    weight = layer.weight
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ValueError(
            f"`base_model` and `merged_model` must hold floating-point weights; got {type(layer).__name__} for "
            f"{name!r}. Do load both in 16 or 32 bits."
        )
    return weight.T if isinstance(layer, Conv1D) else weight


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(dtype=torch.float32 if x.device.type == "mps" else torch.float64)
