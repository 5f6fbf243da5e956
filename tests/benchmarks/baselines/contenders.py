"""Everything that is compared: what it is given, which settings are tried, and how a setting becomes a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from peft_space.vlm import Prompt

from ..erasure_table import VARIANTS
from .cases import Case
from .methods import DATA_DEPENDENT, Method, cross_entropy
from .projector import last_of_projector, remove_text_direction
from .space import put, space, weights
from .told import Taught
from .training import train

Setting = dict[str, float]
Outcome = tuple[Setting, nn.Module, int]
"""A setting, the model that it gives, and the optimiser steps that were taken."""

STEPS = (10, 20, 40, 80)
"""The steps that are tried with methods that don't stop by themselves; the last are the most that anybody has."""
SPACE_RATES, SPACE_DOSES = (1e-3, 2e-3, 4e-3), (0.3, 0.4, 0.5, 0.6)
"""Around SPACE's defaults, 2e-3 and 0.4."""
NEGATION_RATES, NEGATION_STEPS = (5e-4, 2e-3), 30
NEGATION_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
REMOVED = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Contender:
    """A method with the settings that are tried for it.

    Attributes:
        models: what each of some settings gives, of the same learning rate where they have one.
        trials: as many as every other contender's, the mildest first.
        sees_target: whether it is given images of the target.
    """

    models: Callable[[Any, Any, Case, Sequence[Setting]], Iterator[Outcome]]
    trials: tuple[Setting, ...]
    sees_target: bool = False

    def groups(self) -> list[list[Setting]]:
        """The trials, those together that one training serves."""
        parts: dict[float | None, list[Setting]] = {}
        for setting in self.trials:
            parts.setdefault(setting.get("learning_rate"), []).append(setting)
        return list(parts.values())


def _trained(method: Method, model: Any, processor: Any, case: Case, settings: Sequence[Setting]) -> Iterator[Outcome]:
    by_steps = {int(setting["steps"]): setting for setting in settings}
    seen = train(
        model,
        processor,
        case.concept,
        method,
        method.forget(case),
        case.retain(),
        learning_rate=settings[0]["learning_rate"],
        steps=list(by_steps),
        seed=case.seed,
    )
    for steps, trained in seen:
        yield by_steps[steps], trained, steps


def _erased(alter: Any, model: Any, processor: Any, case: Case, settings: Sequence[Setting]) -> Iterator[Outcome]:
    by_dose = {setting["dose_share"]: setting for setting in settings}
    rate = settings[0]["learning_rate"]
    seen = space(model, processor, case, learning_rate=rate, doses=list(by_dose), max_steps=STEPS[-1], alter=alter)
    for dose, erased, took in seen:
        yield by_dose[dose], erased, took


def towards_name(case: Case) -> list[Taught]:
    """SPACE's anchors, each called by the target's name in every trained phrasing."""
    name = case.concept.name
    asked = [Prompt(question, image) for image in case.anchors.images for question in case.concept.questions]
    return [Taught(prompt, name, name) for prompt in asked]


def _negated(model: Any, processor: Any, case: Case, settings: Sequence[Setting]) -> Iterator[Outcome]:
    """Task-vector negation (Ilharco et al. 2022, arXiv 2212.04089) of what SPACE's anchors teach about the name."""
    method = Method(lambda batch: cross_entropy(batch.forgotten), (), retains=False)
    rate = settings[0]["learning_rate"]
    (seen,) = train(
        model,
        processor,
        case.concept,
        method,
        towards_name(case),
        (),
        learning_rate=rate,
        steps=[NEGATION_STEPS],
        seed=case.seed,
    )
    learned = weights(seen[1])
    for setting in settings:
        put(seen[1], learned, -setting["scale"])
        yield setting, seen[1], NEGATION_STEPS


def _removed(model: Any, processor: Any, case: Case, settings: Sequence[Setting]) -> Iterator[Outcome]:
    layer = last_of_projector(model)
    whole = {key: value.clone() for key, value in layer.state_dict().items()}
    for setting in settings:
        layer.load_state_dict(whole)
        remove_text_direction(model, processor, case.concept, setting["strength"])
        yield setting, model, 0


def _grid(**values: Sequence[float]) -> tuple[Setting, ...]:
    return tuple(dict(zip(values, some, strict=True)) for some in itertools.product(*values.values()))


def contenders() -> dict[str, Contender]:
    """SPACE first, then those that see target images, then the other source-free ones."""
    found = {"SPACE": Contender(partial(_erased, None), _grid(learning_rate=SPACE_RATES, dose_share=SPACE_DOSES))}
    for name, method in DATA_DEPENDENT.items():
        found[name] = Contender(partial(_trained, method), _grid(learning_rate=method.rates, steps=STEPS), True)
    alter = VARIANTS["random anchors"]["anchors"]
    return found | {
        "random anchors": Contender(partial(_erased, alter), _grid(learning_rate=SPACE_RATES, dose_share=SPACE_DOSES)),
        "projector removal": Contender(_removed, _grid(strength=REMOVED)),
        "negated task vector": Contender(_negated, _grid(learning_rate=NEGATION_RATES, scale=NEGATION_SCALES)),
    }
