"""Questions whose answers are known: right before, right after."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch

from .examples import Example
from .metrics import bleu, chosen, rouge_l, says, says_nearly, truth_ratio
from .pair import Pair
from .report import Ledger
from .seen import Seen
from .target import unit_of

SIDES = {
    "target": "the concept",
    "retain_near": "near concepts",
    "retain_far": "far concepts",
    "retain": "other concepts",
    "general": "general knowledge",
}
"""Whom questions are about: the start of their figures' keys, and what a reader is told."""
_TASKS = {
    "name": "name",
    "attributes": "what can be seen",
    "facts": "facts",
    "choice": "multiple choice",
    "cloze": "words for gaps",
    "generation": "free answers",
}
Scores = tuple[list[float], list[float]]


class Named(NamedTuple):
    """An answer to what a concept is called.

    Attributes:
        concept: what is right.
        unit: the picture.
        base: whether the base was right, 1 or 0.
        erased: whether the erased model was.
    """

    concept: str
    unit: Hashable
    base: float
    erased: float


def measure_labelled(pair: Pair, ledger: Ledger, examples: Sequence[Example], side: str, seen: Seen) -> list[Named]:
    """Puts questions with known answers to both models.

    Figures, for each task, and with pictures and in text alone apart: the share of greedy answers that hold a right
    answer (also fuzzy), of choices that are right (also by likelihood), ROUGE-L and BLEU of free answers, the
    probability of the right answer, and the truth ratio where there are wrong answers to compare it with.

    Args:
        side: a key of `SIDES`.
        seen: tells what the erasure saw of the pictures.

    Returns:
        The answers about pictures that ask for a name.
    """
    named: list[Named] = []
    for task, told_as in _TASKS.items():
        for pictured in (True, False):
            some = [e for e in examples if e.task == task and (e.image is not None) is pictured]
            if not some:
                continue
            key = side if task == "name" and side != "target" else f"{side}_{task}"
            label = f"{SIDES[side]}: {told_as}" + ("" if pictured else ", in text alone")
            group = _Group(pair, ledger, some, key + ("" if pictured else "_text"), label, seen)
            if task == "choice":
                group.choices()
            elif task == "generation":
                group.texts()
            else:
                scores = group.answers()
                if task == "name" and pictured:
                    named = [
                        Named(e.concept or "", unit_of(e.prompt), *both)
                        for e, *both in zip(some, *scores, strict=True)
                    ]
            group.probability()
            group.truth(target=side == "target")
    return named


class _Group:
    """Examples of one task, and one figure after another about them."""

    def __init__(
        self, pair: Pair, ledger: Ledger, examples: Sequence[Example], key: str, label: str, seen: Seen
    ) -> None:
        self.pair, self.ledger, self.examples, self.key, self.label = pair, ledger, examples, key, label
        self.prompts = [example.prompt for example in examples]
        self.told = pair.answers(self.prompts)
        self.data = seen.mark([example.image for example in examples if example.image is not None])

    def answers(self) -> Scores:
        exact = self._judged(says)
        self._add("", "", exact)
        self._add("_fuzzy", ", fuzzy match", self._judged(says_nearly))
        return exact

    def choices(self) -> None:
        scores = (
            [float(chosen(e.options, text) == e.answer) for e, text in zip(self.examples, some, strict=True)]
            for some in self.told
        )
        self._add("", "", scores)
        most = max(len(e.options) for e in self.examples)
        # each prompt takes as many answers as the others: the last option again does not change which is best
        options = [(*e.options, *e.options[-1:] * (most - len(e.options))) for e in self.examples]
        by_likelihood = (
            [
                float(e.options[best] == e.answer)
                for e, best in zip(self.examples, levels.argmax(1).tolist(), strict=True)
            ]
            for levels in self.pair.likelihoods(self.prompts, options)
        )
        self._add("_likelihood", ", by likelihood", by_likelihood)

    def texts(self) -> None:
        for suffix, told_as, metric, package in (
            ("_rouge_l", "ROUGE-L", rouge_l, "rouge_score"),
            ("_bleu", "BLEU", bleu, "sacrebleu"),
        ):
            if find_spec(package) is None:
                self.ledger.unknown[self.key + suffix] = f"{told_as} needs `pip install 'peft-space[eval]'`"
                continue
            scores = (
                [max(metric(right, text) for right in e.right) for e, text in zip(self.examples, some, strict=True)]
                for some in self.told
            )
            self._add(suffix, f", {told_as}", scores, "ratio")

    def probability(self) -> None:
        """P(answer)^(1/tokens) of the likeliest right answer ("probability" of TOFU)."""
        most = max(len(e.right) for e in self.examples)
        rights = [[(e.right * most)[turn] for e in self.examples] for turn in range(most)]
        levels = [self.pair.likelihood(self.prompts, some) for some in rights]
        scores = (torch.stack(some).amax(0).exp().tolist() for some in zip(*levels, strict=True))
        self._add("_probability", ", probability of the answer, per token", scores, "probability")

    def truth(self, target: bool) -> None:
        """The truth ratio R as OpenUnlearning averages it: min(R, 1/R) for what is to go, else max(0, 1 - R)."""
        some = [e for e in self.examples if e.perturbed]
        if not some:
            return
        prompts = [e.prompt for e in some for _ in (None, *e.perturbed)]
        answers = [text for e in some for text in (e.paraphrase or e.answer, *e.perturbed)]
        scores = []
        for levels in self.pair.likelihood(prompts, answers):
            rest = iter(levels.tolist())
            ratios = [truth_ratio(next(rest), [next(rest) for _ in e.perturbed]) for e in some]
            scores.append([min(r, 1 / r) if target else max(0.0, 1 - r) for r in ratios])
        self._add("_truth_ratio", ", truth ratio", scores, "ratio", some)

    def _judged(self, judge: Callable[[Sequence[str], str], bool]) -> Scores:
        base, erased = (
            [float(judge(e.right, text)) for e, text in zip(self.examples, some, strict=True)] for some in self.told
        )
        return base, erased

    def _add(
        self,
        suffix: str,
        label: str,
        scores: Iterable[list[float]],
        unit: str = "share",
        examples: Sequence[Example] | None = None,
    ) -> None:
        base, erased = scores
        units = [unit_of(e.prompt) for e in examples or self.examples]
        self.ledger.add(self.key + suffix, self.label + label, base, erased, units, data=self.data, unit=unit)
