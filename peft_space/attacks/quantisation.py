"""Attack by quantisation: whether rounding the merged weights brings the concept back."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..loading import load_base
from ..tuner.targets import language_model_targets
from ..vlm import base_of

GROUP = 128
_MOST = 7


def stored_in_few_bits(model: nn.Module, processor: Any, **bits: bool) -> nn.Module:
    """The model after a save and a reload in 4 or 8 bits by bitsandbytes, as `load_base` does it.

    Args:
        bits: `load_in_4bit` (NF4) or `load_in_8bit`.
    """
    device = base_of(model).device
    with TemporaryDirectory(prefix="peft-space-") as folder:
        base_of(model).save_pretrained(folder)
        processor.save_pretrained(folder)
        dtype = base_of(model).dtype
        return load_base(Path(folder), dtype=dtype, device=device.type, verbose=False, **bits)[0]


def rounded(model: nn.Module, processor: Any) -> nn.Module:
    """The model with its language model's attention and MLP rounded to 16 levels, in place."""
    modules = dict(base_of(model).named_modules())
    with torch.no_grad():
        for name in language_model_targets(model):
            weight: Any = modules[name].weight
            weight.copy_(round_to_nearest(weight))
    return model


def round_to_nearest(weight: Tensor, group: int = GROUP) -> Tensor:
    """Symmetric 4-bit rounding to nearest, a scale for each `group` inputs of a row.

    Args:
        weight: `(out, in)`. Where `in` is no multiple of `group`, a row has one scale.

    Returns:
        The same shape and dtype; at most 15 different values in a group.
    """
    rows, width = weight.shape
    parts = weight.float().reshape(rows, -1, group if width % group == 0 else width)
    scale = parts.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _MOST
    return ((parts / scale).round().clamp(-_MOST, _MOST) * scale).reshape(weight.shape).to(weight.dtype)


def _nf4(model: nn.Module, processor: Any) -> nn.Module:
    return stored_in_few_bits(model, processor, load_in_4bit=True)


def _int8(model: nn.Module, processor: Any) -> nn.Module:
    return stored_in_few_bits(model, processor, load_in_8bit=True)


WAYS: dict[str, tuple[str, Callable[[nn.Module, Any], nn.Module]]] = {
    "nf4": ("merged, then NF4 (bitsandbytes)", _nf4),
    "int8": ("merged, then int8 (bitsandbytes)", _int8),
    "int4": ("merged, then int4, round to nearest", rounded),
}
"""By key: its name for a reader, and what is done."""


def missing(key: str) -> str | None:
    """Why a way can't be taken here; `None` where it can."""
    if key != "int4" and find_spec("bitsandbytes") is None:
        return "it needs bitsandbytes: `pip install 'peft-space[4bit]'`"
    return None
