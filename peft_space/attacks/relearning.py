"""Attack by relearning: a few pictures of the concept, or none, and a few steps of ordinary fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from peft import get_peft_model
from torch import nn

from ..progress import advance, quietly
from ..tuner import SpaceConfig
from ..vlm import Prompt, answer_log_probability, encode, to_device
from .aims import Aims, Shown
from .outcome import CONTROL_SHARE
from .scores import Means, Scores

Method = Literal["lora", "full"]
METHODS: dict[Method, str] = {"lora": "LoRA", "full": "full fine-tuning"}


@dataclass(frozen=True)
class Budget:
    """What an attacker who fine-tunes may spend.

    Attributes:
        n_images: pictures of the concept; 0 is out of domain, other concepts only.
        steps: optimiser steps after which the model is asked, in rising order; before the first step it is asked too.
        learning_rates: of AdamW, by method. Each is tried, and the strongest that leaves the control alive counts.
        batch_size: pictures a step; half of them are of the concept.
        rank: of the LoRA.
        methods: which to try.
    """

    n_images: tuple[int, ...] = (1, 5, 10, 0)
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 40)
    learning_rates: tuple[tuple[Method, tuple[float, ...]], ...] = (
        ("lora", (2e-4, 2e-3)),
        ("full", (2e-5, 2e-4)),
    )
    batch_size: int = 16
    rank: int = 16

    def __post_init__(self) -> None:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise ValueError(f"`steps` must be rising numbers of steps from 1; got {self.steps}.")
        if not self.learning_rates or any(m not in METHODS or not rates for m, rates in self.learning_rates):
            raise ValueError(
                f"`learning_rates` must give some rates for {' or '.join(METHODS)}; got {self.learning_rates}."
            )
        if any(n < 0 for n in self.n_images) or self.batch_size < 2 or self.rank < 1:
            raise ValueError(
                "`n_images` must be 0 or more, `batch_size` 2 or more and `rank` 1 or more; got "
                f"{self.n_images}, {self.batch_size} and {self.rank}."
            )


@dataclass(frozen=True)
class Curve:
    """What came back, step by step.

    Attributes:
        learning_rate: that it was trained with.
        steps: when the model was asked; the first is 0.
        scores: what it answered then.
    """

    learning_rate: float
    steps: tuple[int, ...]
    scores: tuple[Scores, ...]

    def area(self) -> Scores:
        """The mean over steps, by the trapezoidal rule: the area under the curve over the last step."""
        ends = np.array(self.steps, dtype=float)
        gaps = np.diff(ends) / ends[-1]
        weights = (np.r_[gaps, 0] + np.r_[0, gaps]) / 2
        return Scores.averaged(self.scores, weights.tolist())


def relearn(
    copied: nn.Module,
    processor: Any,
    aims: Aims,
    ask: Callable[[nn.Module], Scores],
    *,
    method: Method,
    n_images: int,
    learning_rate: float,
    budget: Budget,
    seed: int,
    run: tuple[int, int] = (0, 1),
) -> Curve:
    """Fine-tunes a copy on the attacker's pictures and asks it on the way.

    Pictures of other concepts are mixed in, half of each batch: on the concept's alone every sibling turns into it,
    and the name is said of everything.

    Args:
        copied: a model without adapters; it is changed.
        ask: measures the model on pictures that are in no training.
        n_images: the attacker's pictures of the concept; 0 for none.
        run: which of how many this one is, for the progress display.
    """
    torch.manual_seed(seed)
    model = copied.requires_grad_(method == "full")
    if method == "lora":
        model = get_peft_model(model, SpaceConfig(r=budget.rank, lora_alpha=budget.rank))
    lessons = _Lessons(aims, n_images, budget.batch_size, seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    last, (number, n_runs) = budget.steps[-1], run
    with quietly():
        scores, step = [ask(model.eval())], 0
    for checkpoint in budget.steps:
        model.train()
        while step < checkpoint:
            pictures = lessons.batch()
            batch = encode(processor, [lesson for lesson, _ in pictures], [answer for _, answer in pictures])
            loss = -answer_log_probability(model, to_device(model, batch)).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            advance("steps", number * last + step, n_runs * last)
        with quietly():
            scores.append(ask(model.eval()))
    return Curve(learning_rate, (0, *budget.steps), tuple(scores))


class _Lessons:
    """The attacker's pictures with their names, drawn in turns."""

    def __init__(self, aims: Aims, n_images: int, batch_size: int, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 16])
        self._questions = aims.concept.questions
        own = list(aims.target_train[:n_images])
        n_own = batch_size // 2 if own else 0
        self._parts = [(own, n_own), (list(aims.control_train), batch_size - n_own)]
        self._left: list[list[Shown]] = [[], []]

    def batch(self) -> list[tuple[Prompt, str]]:
        rows = []
        for place, (pictures, count) in enumerate(self._parts):
            for _ in range(count):
                if not self._left[place]:
                    self._left[place] = [pictures[i] for i in self._rng.permutation(len(pictures))]
                shown = self._left[place].pop()
                question = self._questions[self._rng.integers(len(self._questions))]
                rows.append((Prompt(question, shown.image), shown.name))
        return rows


def strongest(curves: Sequence[Curve]) -> Curve:
    """The curve that brings back most among those whose control lives, else the one with the best control.

    A verdict can turn with the attacker's learning rate alone, so several are tried; the choice makes the figure of
    each model slightly higher than a single rate's would be.
    """
    areas = [(curve, curve.area()) for curve in curves]
    living = [
        (curve, area) for curve, area in areas if _mean(area.control) >= CONTROL_SHARE * _mean(curve.scores[0].control)
    ]
    if living:
        return max(living, key=lambda pair: _mean(pair[1].hits) - _mean(pair[1].foils))[0]
    return max(areas, key=lambda pair: _mean(pair[1].control))[0]


def _mean(means: Means) -> float:
    return sum(means.values()) / len(means) if means else 0.0


def with_enough(budget: Budget, aims: Aims) -> tuple[Budget, dict[int, str]]:
    """The budget with the numbers of pictures that there are, and why the others are not tried."""
    held = len(aims.target_train)
    short = {
        n: f"it needs {n} pictures of the concept beside those that are measured on; the attacker has {held}"
        for n in budget.n_images
        if n > held
    }
    return replace(budget, n_images=tuple(n for n in budget.n_images if n <= held)), short
