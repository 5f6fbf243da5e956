"""Each kind of attack, run on every model and judged."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import nn

from ..evaluation.intervals import Estimate
from ..evaluation.report import TRAINED_ON
from . import membership, noise, pictures, probing, quantisation, relearning, removal
from .bench import Bench
from .outcome import Reading
from .sides import BASE, ERASED, ORACLE
from .text import WRAPPERS, asked_in_text, telling_words
from .wording import needs_several_pictures, wordings

_FEW_BITS = "it needs models of 16 or 32 bits: what is stored in fewer can be neither merged nor trained"
_SEEN_BY_ANYBODY = (
    "there is no oracle: what a probe finds may be what any model sees in the picture, whether or not it knew the name"
)
Levels = dict[str, tuple[Estimate, "Estimate | None"]]


def run_relearning(bench: Bench, budget: relearning.Budget) -> None:
    """LoRA and full fine-tuning, on each number of pictures; the area under the curve is what is judged."""
    if bench.missing("relearning", train=1):
        return
    if bench.sides.few_bits:
        bench.unknown["relearning"] = _FEW_BITS
        return
    budget, short = relearning.with_enough(budget, bench.aims)
    asked = bench.plain(each=1)
    before = bench.ask_each(asked)

    def ask(model: nn.Module) -> Any:
        return bench.score(model, asked)

    n_runs = sum(len(rates) for _, rates in budget.learning_rates) * len(budget.n_images) * len(bench.sides.names)
    number = itertools.count()
    for method, rates in budget.learning_rates:
        for n_images, why in short.items():
            bench.unknown[f"relearning/{method}_{n_images}"] = why
        for n_images in budget.n_images:
            chosen = {}
            for side in bench.sides.names:
                tried = [
                    relearning.relearn(
                        bench.sides.copied(side),
                        bench.sides.processor,
                        bench.aims,
                        ask,
                        method=method,
                        n_images=n_images,
                        learning_rate=rate,
                        budget=budget,
                        seed=bench.seed,
                        run=(next(number), n_runs),
                    )
                    for rate in rates
                ]
                chosen[side] = relearning.strongest(tried)
            on = f"{n_images} pictures of it" if n_images != 1 else "1 picture of it"
            if not n_images:
                on = "other concepts only (out of domain)"
            bench.add(
                f"relearning/{method}_{n_images}",
                f"{relearning.METHODS[method]}, {on}",
                {side: curve.area() for side, curve in chosen.items()},
                before=before,
                curves={side: _points(bench, curve) for side, curve in chosen.items()},
                settings={
                    "learning_rates": list(rates),
                    "chosen": {side: curve.learning_rate for side, curve in chosen.items()},
                    "batch_size": budget.batch_size,
                    **({"rank": budget.rank} if method == "lora" else {}),
                },
            )


def _points(bench: Bench, curve: relearning.Curve) -> list[dict[str, float]]:
    points = []
    for step, scores in zip(curve.steps, curve.scores, strict=True):
        told, kept = scores.told(**bench.draws), scores.kept(**bench.draws)
        point = {"step": float(step)}
        if told is not None:
            point |= {"told": told.value, "low": told.low, "high": told.high}
        points.append(point | ({"control": kept.value} if kept is not None else {}))
    return points


def run_quantisation(bench: Bench) -> None:
    """Merged, rounded, and asked as before."""
    if bench.missing("quantisation"):
        return
    if bench.sides.few_bits:
        bench.unknown["quantisation"] = _FEW_BITS
        return
    asked, processor = bench.plain(), bench.sides.processor
    for key, (label, store) in quantisation.WAYS.items():
        if (why := quantisation.missing(key)) is not None:
            bench.unknown[f"quantisation/{key}"] = why
            continue
        scores = {side: bench.score(store(bench.sides.copied(side), processor), asked) for side in bench.sides.names}
        bench.add(f"quantisation/{key}", label, scores)


def run_wording(bench: Bench, paraphrases: tuple[str, ...]) -> None:
    """Every attack by wording on the same pictures."""
    if bench.missing("wording"):
        return
    for place, wording in enumerate(wordings(paraphrases)):
        key = f"wording/{wording.key}"
        asked = wording.ask(bench.aims, np.random.default_rng([bench.seed, 19, place]))
        try:
            scores = bench.ask_each(asked)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            # what processors and models raise on more pictures than they take has no type of its own
            if not needs_several_pictures(wording):
                raise
            bench.unknown[key] = f"the model takes no prompt with several pictures ({type(error).__name__})"
            continue
        bench.add(key, wording.label, scores)


def run_text(bench: Bench) -> None:
    """What is told of the name in text alone, under wrappers."""
    concept = bench.aims.concept
    if len(bench.aims.others) < 2 or not concept.text_questions:
        bench.unknown["text"] = (
            "it needs questions in text and two other names, to know what is told of this name alone: pass `others`, "
            "`labelled` or `public_images`"
        )
        return
    with bench.sides.side(BASE) as base:
        telling = telling_words(base, bench.sides.processor, concept, bench.aims.others)
    if not any(telling[concept.name]):
        bench.unknown["text"] = "the base says nothing of this name that it does not say of others as well"
        return
    scores = {
        key: bench.ask_each(asked_in_text(template, concept, telling)) for key, (_, template) in WRAPPERS.items()
    }
    for key, (label, _) in WRAPPERS.items():
        # trained on where the erasure reached for text knowledge; else these questions were retained
        bench.add(f"text/{key}", label, scores[key], before=scores["plain"], data=TRAINED_ON)


def run_pictures(bench: Bench) -> None:
    """The same pictures changed."""
    if bench.missing("pictures"):
        return
    for key, (label, change) in pictures.CHANGES.items():
        asked = bench.plain(pictures.changed(bench.aims, change, bench.seed))
        bench.add(f"pictures/{key}", label, bench.ask_each(asked))


def run_noise(bench: Bench, budget: noise.Budget) -> None:
    """Noise sought by gradient."""
    if bench.missing("noise"):
        return
    sides = bench.sides
    try:
        scores = sides.each(
            lambda model: noise.attack_by_noise(
                model,
                sides.processor,
                bench.aims,
                budget,
                max_new_tokens=sides.max_new_tokens,
                batch_size=sides.batch_size,
            )
        )
    except TypeError as error:
        bench.unknown["noise"] = str(error)
        return
    settings = {"epsilon": budget.epsilon, "steps": budget.steps}
    label = f"noise of at most {255 * budget.epsilon:.0f}/255, {budget.steps} steps"
    bench.add("noise/pgd", label, scores, settings=settings)


def run_probe(bench: Bench) -> None:
    """Linear probes; erased model and oracle are read where the base's probe is best."""
    if bench.missing("probe"):
        return
    aims = bench.aims
    found = len(aims.target) + len(aims.target_train)
    others = len(aims.control) + len(aims.control_train)
    if min(found, others) < probing.LEAST:
        bench.unknown["probe"] = (
            f"it needs {probing.LEAST} pictures of the concept, and as many of others; there are {found} and {others}"
        )
        return
    sides, batch_size = bench.sides, bench.sides.batch_size
    try:
        probed = sides.each(
            lambda model: probing.probe(model, sides.processor, aims, batch_size=batch_size, **bench.draws)
        )
    except TypeError as error:
        bench.unknown["probe"] = str(error)
        return
    where, layer = probing.best_layer(probed[BASE])
    readings = {
        side: Reading(some.target[where][layer], some.control[where][layer] if some.control[where] else None)
        for side, some in probed.items()
    }
    curves = {
        side: [
            {"step": float(n), "told": e.value, "low": e.low, "high": e.high}
            | ({"control": some.control[where][n].value} if some.control[where] else {})
            for n, e in enumerate(some.target[where])
        ]
        for side, some in probed.items()
    }
    at = "the prompt's last token" if where == "answer" else "the picture's tokens"
    bench.add_readings(
        "probe/linear",
        f"probe in layer {layer}, at {at}, where the base's is best",
        readings,
        found,
        measure="auc",
        needs_oracle=_SEEN_BY_ANYBODY,
        curves=curves,
        settings={
            "layer": layer,
            "where": where,
            "folds": probing.FOLDS,
            "layers": {
                side: {place: [e.value for e in layers] for place, layers in some.target.items()}
                for side, some in probed.items()
            },
        },
    )


def run_membership(bench: Bench) -> None:
    """The name against made-up names."""
    if bench.missing("membership"):
        return
    sides, aims = bench.sides, bench.aims
    made_up = membership.decoys(aims.concept.names, aims.others, bench.seed)
    if len(made_up) < 2:
        bench.unknown["membership"] = "it needs other names to make up names from: pass `labelled` or `public_images`"
        return
    levels = sides.each(
        lambda model: membership.membership(
            model, sides.processor, aims, made_up, batch_size=sides.batch_size, **bench.draws
        )
    )
    for key, label in membership.MEASURES.items():
        readings = {side: Reading(*some[key]) for side, some in levels.items()}
        settings = {"made_up_names": len(made_up)}
        bench.add_readings(f"membership/{key}", label, readings, len(aims.target), measure="auc", settings=settings)


def run_removal(bench: Bench, strengths: tuple[float, ...]) -> None:
    """The adapter at a share of its strength; at 0 the base comes back, which is measured and not only said."""
    if bench.missing("removal"):
        return
    adapted = bench.sides.adapted
    if adapted is None:
        bench.unknown["removal"] = "the model has no adapter that could be taken off: it is merged"
        return
    asked = bench.plain()
    at: dict[float, Any] = {1.0: bench.before[ERASED]}
    for strength in strengths:
        with removal.at_strength(adapted, strength):
            at[strength] = bench.score(adapted, asked)
    points = []
    for strength in sorted(at):
        told, kept = at[strength].told(**bench.draws), at[strength].kept(**bench.draws)
        if told is not None:
            point = {"step": strength, "told": told.value, "low": told.low, "high": told.high}
            points.append(point | ({"control": kept.value} if kept is not None else {}))
    rest = {side: scores for side, scores in bench.before.items() if side in (BASE, ORACLE)}
    for strength in strengths:
        label = f"adapter at {strength:g} of its strength" if strength else "adapter taken off"
        curves = {ERASED: points} if strength == min(strengths) else {}
        bench.add(f"removal/{strength:g}", label, {**rest, ERASED: at[strength]}, curves=curves)
