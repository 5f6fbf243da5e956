"""Counts the bytes of every tensor that is alive, on real tensors or on ones without content (the meta device)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.utils.quantization_config import QuantizationMethod

ALLOCATION = 512
"""CUDA's allocator hands out multiples of so many bytes."""

_aten = torch.ops.aten
# what needs the values of an integer or boolean tensor beside a tensor without content
_BY_VALUE = {_aten.index.Tensor, _aten.embedding.default, _aten._index_put_impl_.default, _aten.index_put_.default}
_SOME = 1e-6


class Counter(TorchDispatchMode):
    """Follows the storages that are made while it is on; `peak` is the most that were alive at a time, in bytes.

    torch's own `MemTracker` counts alike, but refuses a model that runs more than once, as in every stage here.

    On the meta device the real code runs without memory. Integers and booleans stay real there, as masks and grids
    decide about shapes: a comparison of floats is true, an `argmax` is 0 and any single number is 1e-6. What the code
    brings to the CPU itself is host memory and not counted; integers and booleans always are.

    Args:
        device: "meta" or "cpu": floating tensors of which device are counted.
        allocation: sizes are rounded up to multiples of so many bytes.
    """

    def __init__(self, device: str, allocation: int = 1) -> None:
        super().__init__()
        self.device, self.allocation = device, allocation
        self.alive = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, *tensors: Tensor) -> None:
        """Counts storages that were made before."""
        for tensor in tensors:
            if tensor.device.type != self.device and tensor.is_floating_point():
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            size = -(-storage.nbytes() // self.allocation) * self.allocation
            self._known[key] = weakref.ref(storage, lambda gone, key=key, size=size: self._free(key, size))
            self.alive += size
        self.peak = max(self.peak, self.alive)

    def add_model(self, model: nn.Module) -> None:
        self.add(*model.parameters(), *model.buffers())
        for module in model.modules():
            if isinstance(module, Linear4bit):
                state = module.weight.quant_state
                self.add(state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)

    def reset(self) -> None:
        """From here on the peak is that of what follows."""
        self.peak = self.alive

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.device == "meta":
            if func is torch.ops.bitsandbytes.gemm_4bit.default:
                # as every device does it where there is no kernel for the shape: with the whole weight in 16 bits
                with self:
                    return _gemm_4bit_default_impl(*args, **kwargs)
            out = _without_content(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        self.add(*_tensors((out,)))
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _without_content(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [*_tensors(args), *_tensors(kwargs.values())]
    meta = any(tensor.is_meta for tensor in given)
    if func is _aten._local_scalar_dense.default and meta:
        return _SOME
    to = kwargs.get("device")
    if func is _aten._to_copy.default:
        if meta and to is not None and to.type == "cpu":
            return torch.full(args[0].shape, _SOME, dtype=kwargs.get("dtype") or args[0].dtype)
        if not meta and to is not None and to.type == "meta" and not args[0].is_floating_point():
            return func(*args, **kwargs | {"device": torch.device("cpu")})
    elif func in (_aten.copy_.default,) and meta and not args[0].is_meta:
        return args[0]
    if not meta:
        if to is not None and torch.device(to).type == "meta":
            out = func(*args, **kwargs)
            return out if out.is_floating_point() else func(*args, **kwargs | {"device": torch.device("cpu")})
        return func(*args, **kwargs)
    by_value = func in _BY_VALUE

    def moved(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta or (by_value and not tensor.is_floating_point()) else tensor.to("meta")

    if not all(tensor.is_meta for tensor in given):
        args, kwargs = tree_map_only(Tensor, moved, (args, kwargs))
    out = func(*args, **kwargs)
    return _real_where_integer(out) if isinstance(out, Tensor) else tree_map_only(Tensor, _real_where_integer, out)


def _real_where_integer(tensor: Tensor) -> Tensor:
    if not tensor.is_meta or tensor.is_floating_point() or tensor.dtype == torch.uint8:
        return tensor
    return torch.full(tensor.shape, tensor.dtype == torch.bool, dtype=tensor.dtype)


_attention, _real_autocast = F.scaled_dot_product_attention, torch.autocast


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Attention as CUDA's memory-efficient kernel; on the meta device torch would write out all weights."""
    if not query.is_meta:
        return _attention(query, key, value, attn_mask, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (key, value))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros(attn_mask.shape, dtype=query.dtype, device="meta")
        bias = bias.expand(*query.shape[:3], key.shape[2])
    return _aten._scaled_dot_product_efficient_attention(query, key, value, bias, torch.is_grad_enabled())[0]


def _autocast(device_type: str, **options: Any) -> Any:
    return nullcontext() if device_type == "meta" else _real_autocast(device_type, **options)


@contextmanager
def counting(model: nn.Module, device: str, allocation: int = 1) -> Iterator[Counter]:
    """Counts what is done inside, the model's weights included."""
    counter = Counter(device, allocation)
    counter.add_model(model)
    with (
        patch.object(F, "scaled_dot_product_attention", _fused_attention),
        patch.object(torch, "autocast", _autocast),
        counter,
    ):
        yield counter


def nf4(model: nn.Module, targets: Sequence[str], device: str) -> None:
    """Puts bitsandbytes' NF4 layers with double quantisation, on `device`, in the place of linear layers."""
    for name in targets:
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear)
        new = Linear4bit(
            old.in_features,
            old.out_features,
            old.bias is not None,
            compute_dtype=old.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        new.support_avx512bf16_for_cpu = False
        weight = Params4bit(old.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4")
        new.weight, new.bias = weight._quantize(device), old.bias
        new.quant_state = new.weight.quant_state
        model.set_submodule(name, new)
    model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
