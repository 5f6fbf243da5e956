"""The audit of an erasure on one page: every attack on base, erased model and oracle, and on other concepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from ..anchors import Anchors
from ..concepts import Concept
from ..console import shows_progress
from ..evaluation.examples import EvaluatedSet
from ..evaluation.target import DESCRIPTIONS, UNSEEN_QUESTIONS
from ..progress import Listener, Stages
from . import kinds, noise, relearning, removal
from .aims import find_aims
from .bench import Bench
from .report import KINDS, AuditReport
from .sides import Sides

ATTACKS: tuple[str, ...] = tuple(KINDS)
"""Every kind of attack."""


@shows_progress
def audit_erasure(
    model: nn.Module,
    processor: Any,
    concept: str | Concept,
    *,
    base: nn.Module | None = None,
    oracle: nn.Module | None = None,
    target_images: Any = None,
    labelled: EvaluatedSet | None = None,
    public_images: Any = None,
    anchors: Anchors | None = None,
    others: Sequence[str] = (),
    attacks: Literal["all"] | Sequence[str] = "all",
    paraphrases: Sequence[str] = (*UNSEEN_QUESTIONS, *DESCRIPTIONS),
    relearning_budget: relearning.Budget | None = None,
    noise_budget: noise.Budget | None = None,
    strengths: Sequence[float] = removal.STRENGTHS,
    n_images: int = 24,
    n_train: int = 10,
    n_bootstrap: int = 2000,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    seed: int = 0,
    progress: Listener | bool | None = True,
) -> AuditReport:
    """Attacks an erasure and says what stood.

    Every attack is aimed at base, erased model and, if there is one, the oracle, and each time at other concepts as
    well: "robust" is said only where that control still works, as a model that was broken tells nothing either. The
    models stay as they are: what trains or rounds weights does so on copies, one at a time.

    Without any picture of the concept, public images that the base calls by its name stand in. What each attack does
    and what it says stands in docs/auditing.md.

    Args:
        model: the erased model. Of a `PeftModel` the base is itself with all its adapters off.
        processor: the model's own.
        concept: the name, or the `Concept` that `erase` was given.
        base: the base of a model without adapters: of one that was merged, say.
        oracle: a model that was trained like the base and never saw the concept.
        target_images: pictures of the concept, as for `load_public_images`; by default those of `labelled`. Some are
            given to the attacker, the others are measured on.
        labelled: pictures of other concepts with their names; by default public images by the names that the base
            gives them.
        public_images: any pictures, as for `load_public_images`; by default those of `anchors`.
        anchors: of the erasure, so that it is known what it trained on.
        others: names of other concepts; those of `labelled` and of public images are known besides.
        attacks: "all", or some of `ATTACKS`.
        paraphrases: how the name is asked for in phrasings that the erasure did not use.
        relearning_budget: how much fine-tuning is tried.
        noise_budget: how much noise is tried.
        strengths: to which shares of its strength an adapter is turned down, 0 to less than 1.
        n_images: most pictures to measure on, of the concept and of others each.
        n_train: most pictures of the concept for the attacker; half of them at most.
        n_bootstrap: draws for each interval.
        max_new_tokens: of an answer.
        batch_size: images or prompts at a time.
        seed: of everything that is drawn.
        progress: as for `erase`.

    Raises:
        ValueError: an argument is out of range, or there is no base to compare with.
        TypeError: a model cannot be asked about images.
    """
    concept = Concept.of(concept)
    wanted = _wanted(attacks)
    for name, least, value in (("n_images", 1, n_images), ("n_train", 0, n_train), ("n_bootstrap", 100, n_bootstrap)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    if not all(0 <= strength < 1 for strength in strengths):
        raise ValueError(f"`strengths` must be from 0 to less than 1; got {list(strengths)}.")
    relearning_budget = relearning_budget or relearning.Budget()
    noise_budget = noise_budget or noise.Budget()
    sides = Sides(model, processor, base, oracle, batch_size=batch_size, max_new_tokens=max_new_tokens)
    stages = Stages(progress if callable(progress) else None)
    with stages.stage("images"):
        aims = find_aims(
            sides,
            concept,
            target_images=target_images,
            labelled=labelled,
            public_images=public_images,
            anchors=anchors,
            named=others,
            n_images=n_images,
            n_train=n_train,
            seed=seed,
        )
    bench = Bench(sides, aims, seed, n_bootstrap)
    with stages.stage("unattacked"):
        unattacked = bench.unattacked()
    runs: dict[str, Callable[[Bench], None]] = {
        "relearning": partial(kinds.run_relearning, budget=relearning_budget),
        "quantisation": kinds.run_quantisation,
        "wording": partial(kinds.run_wording, paraphrases=tuple(paraphrases)),
        "text": kinds.run_text,
        "pictures": kinds.run_pictures,
        "noise": partial(kinds.run_noise, budget=noise_budget),
        "probe": kinds.run_probe,
        "membership": kinds.run_membership,
        "removal": partial(kinds.run_removal, strengths=tuple(strengths)),
    }
    for kind in wanted:
        with stages.stage(kind):
            runs[kind](bench)
    settings = {
        "attacks": list(wanted),
        "target_images": len(aims.target),
        "target_images_for_attacker": len(aims.target_train),
        "other_images": len(aims.control),
        "other_images_for_attacker": len(aims.control_train),
        "other_names": len(aims.others),
        "data": aims.data,
        "n_bootstrap": n_bootstrap,
        "max_new_tokens": max_new_tokens,
        "relearning": dict(vars(relearning_budget)),
        "noise": dict(vars(noise_budget)),
        "strengths": list(strengths),
    }
    return AuditReport(
        concept.name,
        concept.aliases,
        seed,
        sides.names,
        aims.whose,
        aims.truth,
        unattacked,
        tuple(bench.outcomes),
        bench.unknown,
        settings,
        stages.seconds,
    )


def _wanted(attacks: Literal["all"] | Sequence[str]) -> tuple[str, ...]:
    """The kinds of attack to run, in the order of `ATTACKS`."""
    given = ATTACKS if attacks == "all" else (attacks,) if isinstance(attacks, str) else tuple(attacks)
    if not given or set(given) - set(ATTACKS):
        raise ValueError(f'`attacks` must be "all" or some of {", ".join(ATTACKS)}; got {attacks!r}.')
    return tuple(kind for kind in ATTACKS if kind in given)
