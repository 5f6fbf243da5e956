"""The guard against relearning: every step is taken from where an attacker's step would have led."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..anchors.lesson import Lesson
from ..vlm import answer_log_probability, base_of, encode, to_device

_ROWS = 16
_RANK = 16
_PROBES = 64


class RelearningGuard:
    """Moves a model one step towards saying the name again, for as long as a training step takes.

    An adapter that is trained where it works already is undone by an attacker's first few steps. One that is trained
    where such a step has led has to work there too, so that the attacker has further to go. The step goes down the
    gradient of the name's cross-entropy on the anchors, in all layers that are adapted and in any direction, not only
    those that the retained subspace leaves. Of each layer's gradient so much is followed as can be seen in as few
    mixtures of its inputs as a LoRA has ranks; no weight is touched, and of a base in few bits nothing is unpacked.

    Source: sharpness-aware minimisation against relearning (Fan et al. 2025, arXiv 2502.05374) looks uphill in the
    loss of its own; here it is the attacker's, as in TAR (Tamirisa et al. 2024, arXiv 2408.00761), and one step of it.

    Args:
        model: a `PeftModel`; the layers with an adapter that is trained are moved.
        processor: the model's own.
        lessons: what an attacker would teach: pictures, with the name for an answer.
        radius: length of the step, as a share of the norm of all weights in these layers.
        at_a_time: most lessons at a time.
        seed: draws the lessons and the mixtures, for each step anew.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        lessons: Sequence[Lesson],
        radius: float,
        *,
        at_a_time: int = _ROWS,
        seed: int = 0,
    ) -> None:
        self.model, self.processor, self.lessons = model, processor, list(lessons)
        self.at_a_time, self.seed = at_a_time, seed
        adapted = [one for one in base_of(model).modules() if isinstance(one, LoraLayer)]
        trained = [one for one in adapted if any(parameter.requires_grad for parameter in one.parameters())]
        self._layers = [one.get_base_layer() for one in trained]
        self.length = radius * math.hypot(*(_norm(one, base_of(model).dtype) for one in trained))
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        self._draws: torch.Generator | None = None

    def aim(self, step: int) -> None:
        """Finds the attacker's step from where the model is now."""
        order = np.random.default_rng([self.seed, 13, step]).permutation(len(self.lessons))
        rows = [self.lessons[index] for index in order[:_ROWS]]
        self._inputs, self._outputs = {}, {}
        self._draws = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        slopes: list[Tensor] = []
        with self.ahead():
            for start in range(0, len(rows), self.at_a_time):
                some = rows[start : start + self.at_a_time]
                batch = encode(self.processor, [row.prompt for row in some], [row.answer for row in some])
                said = answer_log_probability(self.model, to_device(self.model, batch)).sum() / len(rows)
                # a second batch has to be looked at through the same mixtures
                self._draws = None
                more = torch.autograd.grad(said, list(self._outputs.values()))
                slopes = [a + b for a, b in zip(slopes, more, strict=True)] if slopes else list(more)
        slope = math.hypot(*(float(one.float().norm()) for one in slopes))
        # where the loss is lost there is nowhere to go
        there = 0 < slope < math.inf
        self._outputs = {
            layer: one * (self.length / slope) if there else torch.zeros_like(one)
            for layer, one in zip(self._outputs, slopes, strict=True)
        }

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Inside, the model is where the step leads."""
        hooks = [layer.register_forward_hook(self._moved) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _moved(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        if self._draws is not None and layer not in self._inputs:
            seen = x.detach().reshape(-1, x.shape[-1]).float()
            mixing = torch.randn(_RANK, len(seen), generator=self._draws).to(seen.device)
            self._inputs[layer] = torch.linalg.qr((mixing @ seen).T)[0].T.to(x.dtype)
            shape = (output.shape[-1], len(self._inputs[layer]))
            self._outputs[layer] = torch.zeros(shape, dtype=output.dtype, device=output.device, requires_grad=True)
        if layer not in self._inputs:
            return output
        return output + (x @ self._inputs[layer].T) @ self._outputs[layer].T


@torch.no_grad()
def _norm(adapted: LoraLayer, dtype: torch.dtype) -> float:
    """The Frobenius norm of a layer's weight, from what it makes of random inputs: it may be packed in few bits."""
    layer = adapted.get_base_layer()
    device = next(iter(adapted.lora_A.values())).weight.device
    draws = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, adapted.in_features, generator=draws).to(device, dtype)
    made = layer(probes).float() - layer(torch.zeros_like(probes[:1])).float()
    return float(made.norm()) / math.sqrt(_PROBES)
