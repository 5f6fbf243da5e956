"""Projector text-direction removal: the concept's text direction is taken out of what the projector writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peft_space import Concept
from peft_space.anchors import concept_embedding
from peft_space.tuner.targets import projector_targets
from peft_space.vlm import base_of


def last_of_projector(model: nn.Module) -> nn.Linear:
    """The linear layer that the projector ends in.

    Raises:
        TypeError: it ends in something else.
    """
    name = projector_targets(model)[-1]
    layer = base_of(model).get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the projector must end in a linear layer; got {type(layer).__name__} at {name}.")
    return layer


def without_direction(weight: Tensor, direction: Tensor, strength: float) -> Tensor:
    """(I - strength d d^T) W: at 1 the output has nothing along `direction`, at 2 it is mirrored.

    Args:
        weight: `(out, in)`, or a bias `(out,)`.
        direction: unit norm, `(out,)`.
    """
    return weight - strength * direction.view(-1, *[1] * (weight.ndim - 1)) * (direction @ weight)


@torch.no_grad()
def remove_text_direction(model: nn.Module, processor: Any, concept: Concept, strength: float) -> None:
    """Removes the direction of the concept's name among the input embeddings from the projector's output, in place.

    Closed form, after the projections of CLIP's joint space in "Erasing CLIP Memories", arXiv 2512.14137: it needs
    the name and nothing else.
    """
    layer = last_of_projector(model)
    direction = concept_embedding(model, processor, concept).to(layer.weight)
    layer.weight.copy_(without_direction(layer.weight, direction, strength))
    if layer.bias is not None:
        layer.bias.copy_(without_direction(layer.bias, direction, strength))
