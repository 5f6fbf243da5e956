"""SPACE and its random-anchor control as contenders, looked at in the middle of one training too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_space import Anchors, SpaceTrainingArguments, erase, testbed
from peft_space._peft import lora_layers
from peft_space.vlm import base_of

from .cases import Case

Weights = dict[str, tuple[Tensor, Tensor]]


def space(
    model: nn.Module,
    processor: Any,
    case: Case,
    *,
    learning_rate: float,
    steps: Sequence[int],
    alter: Callable[[Anchors, int], Anchors] | None = None,
) -> Iterator[tuple[int, PeftModel, int]]:
    """Erases with at most each of `steps`; within them the dose sets itself.

    The learning rate stays the same after its warm-up, so one training to the last of `steps` goes through all that
    shorter ones would give: the adapter is copied there.

    Args:
        model: the base model; it is wrapped in place.
        alter: what is done to the anchors.

    Yields:
        The most steps, the model, and the steps that it took. The model goes on changing.
    """
    copies: dict[int, Weights] = {}

    def listen(stage: str, doing: str, done: int, total: int) -> None:
        if doing == "steps" and done in steps:
            copies[done] = weights(model)

    anchors = alter(case.anchors, case.seed) if alter else case.anchors
    result = erase(
        model,
        processor,
        case.concept,
        case.anchors.public,
        retain=testbed.retain(),
        args=SpaceTrainingArguments(seed=case.seed, learning_rate=learning_rate, max_steps=max(steps)),
        seed=case.seed,
        anchors=anchors,
        progress=listen,
    )
    took, last = result.report["steps"], weights(result.model)
    for most in sorted(steps):
        put(result.model, copies[most] if most < took else last)
        yield most, result.model, min(most, took)


def weights(model: nn.Module) -> Weights:
    """Copies of both factors of every LoRA layer; a projected one as its projection leaves it."""
    return {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in lora_layers(base_of(model))
    }


@torch.no_grad()
def put(model: nn.Module, copies: Mapping[str, tuple[Tensor, Tensor]], scale: float = 1.0) -> None:
    """Puts copied factors back into plain LoRA layers, the update that they make times `scale`."""
    for name, layer in lora_layers(base_of(model)):
        a, b = copies[name]
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(scale * b)
