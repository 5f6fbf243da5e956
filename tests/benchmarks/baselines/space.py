"""SPACE and its random-anchor control as contenders, looked at in the middle of one training too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor, nn

from peft_space import Anchors, SpaceTrainingArguments, erase, testbed
from peft_space._peft import lora_layers
from peft_space.training import Gauge, Reading, read_dose, trainer
from peft_space.vlm import base_of

from .cases import Case

Weights = dict[str, tuple[Tensor, Tensor]]


def space(
    model: nn.Module,
    processor: Any,
    case: Case,
    *,
    learning_rate: float,
    doses: Sequence[float],
    max_steps: int,
    alter: Callable[[Anchors, int], Anchors] | None = None,
) -> Iterator[tuple[float, PeftModel, int]]:
    """Erases with each of `doses` as `dose_share`, which alone sets the steps: there is no margin.

    The learning rate stays the same after its warm-up, so one training to the largest dose goes through all that the
    smaller ones would give: the adapter is copied at every reading.

    Args:
        model: the base model; it is wrapped in place.
        alter: what is done to the anchors.

    Yields:
        The dose, the model, and the steps that it took. The model goes on changing.
    """
    copies: dict[int, Weights] = {}
    met: dict[float, list[int]] = {dose: [] for dose in doses}

    settings: dict[str, Any] = {"seed": case.seed, "learning_rate": learning_rate, "max_steps": max_steps}
    settings |= {"dose_margin": 0.0, "dose_name_margin": 0.0}
    asked = {dose: SpaceTrainingArguments(**settings, dose_share=dose) for dose in doses}
    args = asked[max(doses)]

    def read(read_model: nn.Module, read_processor: Any, gauges: Sequence[Gauge], *rest: Any) -> Reading:
        reading = read_dose(read_model, read_processor, gauges, *rest)
        copies[reading.step] = weights(model)
        for dose, steps in met.items():
            if all(gauge.met(level, asked[dose]) for level, gauge in zip(reading.levels, gauges, strict=True)):
                steps.append(reading.step)
        return reading

    anchors = alter(case.anchors, case.seed) if alter else case.anchors
    with patch.object(trainer, "read_dose", read):
        result = erase(
            model,
            processor,
            case.concept,
            case.anchors.public,
            retain=testbed.retain(),
            args=args,
            seed=case.seed,
            anchors=anchors,
            progress=None,
        )
    last, end = result.report["steps"], weights(result.model)
    for dose in sorted(doses):
        reached = [step for step in met[dose] if step - args.dose_every in met[dose]]
        took = min([*reached, last])
        put(result.model, copies[took] if took < last else end)
        yield dose, result.model, took


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
