"""Attack by removal: an adapter that is turned down, or taken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peft import PeftModel

from .._peft import active_adapters, lora_layers
from ..vlm import base_of

STRENGTHS = (0.0, 0.25, 0.5, 0.75)


@contextmanager
def at_strength(model: PeftModel, strength: float, adapters: Sequence[str] | None = None) -> Iterator[PeftModel]:
    """The model with its active adapters at a share of the strength that they have now, which they have again after.

    Args:
        strength: 0 takes them off.
        adapters: which; by default all that are active.
    """
    base = base_of(model)
    held = [
        (layer, name, layer.scaling[name])
        for name in (adapters or active_adapters(base))
        for _, layer in lora_layers(base, name)
    ]
    try:
        for layer, name, scale in held:
            layer.scaling[name] = scale * strength
        yield model
    finally:
        for layer, name, scale in held:
            layer.scaling[name] = scale
