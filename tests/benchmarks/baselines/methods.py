"""The data-dependent baselines: what each does with target images and with what must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F

from peft_space import Concept

from . import losses
from .cases import Case
from .told import Taught, Told, collate, contradicted, in_order, read

NPO_BETA = 0.1
SIMNPO_BETA, SIMNPO_GAMMA = 2.5, 0.0
RMU_COEFFICIENT, RMU_RETAIN = 5.0, 100.0
SIU_CROSS_ENTROPY, SIU_DIVERGENCE = 0.9, 0.75


@dataclass
class Batch:
    """One step's answers, as the model and the base model have them; each is computed when a loss asks for it.

    Attributes:
        model: with a LoRA adapter that can be switched off.
        forget: those about the target.
        retain: those that must stay.
        layer: of the decoder, for losses on states.
        direction: a random unit vector, `(d,)`.
    """

    model: PeftModel
    processor: Any
    concept: Concept
    forget: Sequence[Taught]
    retain: Sequence[Taught]
    layer: int
    direction: Tensor
    _parts: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.forget, self.retain = in_order(self.forget), in_order(self.retain)

    @cached_property
    def forgotten(self) -> Told:
        return self._read("forget")

    @cached_property
    def retained(self) -> Told:
        return self._read("retain")

    @cached_property
    def forgotten_before(self) -> Told:
        return self._read_before("forget")

    @cached_property
    def retained_before(self) -> Told:
        return self._read_before("retain")

    def _read(self, which: str) -> Told:
        if which not in self._parts:
            self._parts[which] = collate(self.processor, getattr(self, which))
        return read(self.model, self._parts[which], self.layer)

    def _read_before(self, which: str) -> Told:
        with torch.no_grad(), self.model.disable_adapter():
            return self._read(which)


def cross_entropy(told: Told) -> Tensor:
    """Mean over tokens, in nats."""
    return F.cross_entropy(told.logits, told.ids)


def ascent(batch: Batch) -> Tensor:
    """GA: -CE(forget). Source: Jang et al. 2022, arXiv 2210.01504."""
    return -cross_entropy(batch.forgotten)


def difference(batch: Batch) -> Tensor:
    """GradDiff: -CE(forget) + CE(retain). Source: Liu et al. 2022, arXiv 2203.12817."""
    return cross_entropy(batch.retained) - cross_entropy(batch.forgotten)


def kl(batch: Batch) -> Tensor:
    """KL: -CE(forget) + KL(base || model) on what must stay. Source: TOFU, arXiv 2401.06121."""
    kept = losses.divergence(batch.retained.logits, batch.retained_before.logits)
    return kept - cross_entropy(batch.forgotten)


def npo(batch: Batch) -> Tensor:
    """NPO with the retain term: L_NPO(forget) + CE(retain). Source: arXiv 2404.05868."""
    forgotten = losses.npo(batch.forgotten.log_p, batch.forgotten_before.log_p, NPO_BETA)
    return forgotten + cross_entropy(batch.retained)


def simnpo(batch: Batch) -> Tensor:
    """SimNPO with the retain term: L_SimNPO(forget) + CE(retain). Source: arXiv 2410.07163."""
    told = batch.forgotten
    return losses.simnpo(told.log_p, told.lengths, SIMNPO_BETA, SIMNPO_GAMMA) + cross_entropy(batch.retained)


def learn_both(batch: Batch) -> Tensor:
    """IDK: CE(refusals on target images) + CE(retain). Source: "preference optimization" of TOFU, arXiv 2401.06121."""
    return cross_entropy(batch.forgotten) + cross_entropy(batch.retained)


def rmu(batch: Batch) -> Tensor:
    """RMU: ||h - c u||^2 on target images, and states held on what must stay. Source: arXiv 2403.03218."""
    steered = losses.misdirection(
        batch.forgotten.states, batch.forgotten_before.states, batch.direction, RMU_COEFFICIENT
    )
    return steered + RMU_RETAIN * F.mse_loss(batch.retained.states, batch.retained_before.states)


def siu(batch: Batch) -> Tensor:
    """SIU-style: 0.9 CE + 0.75 dual-masked KL on renamed target images and the rest. Source: arXiv 2405.12523."""
    now, before = (batch.forgotten, batch.retained), (batch.forgotten_before, batch.retained_before)
    logits, reference = (torch.cat([told.logits for told in some]) for some in (now, before))
    hidden = contradicted(batch.processor, [*batch.forget, *batch.retain])
    masked = losses.dual_masked_divergence(logits, reference, hidden, name_tokens(batch.processor, batch.concept))
    learned = F.cross_entropy(logits, torch.cat([told.ids for told in now]))
    return SIU_CROSS_ENTROPY * learned + SIU_DIVERGENCE * masked


def name_tokens(processor: Any, concept: Concept) -> Tensor:
    """The ids that the concept's names are written with, at the beginning of a text and within one."""
    texts = [text for name in concept.names for text in (name, f" {name}")]
    return torch.tensor(sorted({i for t in texts for i in processor.tokenizer(t, add_special_tokens=False).input_ids}))


@dataclass(frozen=True)
class Method:
    """A loss and what it is given.

    Attributes:
        loss: of one batch.
        forget: which answers about the target it learns from.
        rates: the learning rates that are tried.
        retains: whether it looks at what must stay; else all of a batch is about the target.
    """

    loss: Callable[[Batch], Tensor]
    rates: tuple[float, ...]
    forget: Callable[[Case], list[Taught]] = Case.forget
    retains: bool = True


DATA_DEPENDENT: dict[str, Method] = {
    "GA": Method(ascent, (1e-4, 3e-4, 1e-3), retains=False),
    "GradDiff": Method(difference, (1e-3, 3e-3, 1e-2)),
    "KL": Method(kl, (3e-4, 1e-3, 3e-3)),
    "NPO": Method(npo, (3e-4, 1e-3, 3e-3)),
    "SimNPO": Method(simnpo, (1e-3, 3e-3, 1e-2)),
    "IDK": Method(learn_both, (3e-4, 1e-3, 3e-3), Case.refused),
    "RMU": Method(rmu, (3e-4, 1e-3, 3e-3)),
    "SIU-style": Method(siu, (3e-4, 1e-3, 3e-3), Case.renamed),
}
