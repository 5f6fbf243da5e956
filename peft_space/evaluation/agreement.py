"""What can be known of retention without a label: whether the erased model still answers as the base does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..anchors import Anchors, name_likelihood
from ..concepts import Concept, PublicImages, Retain
from ..vlm import Prompt
from .labelled import Named
from .metrics import is_gibberish, refuses, same, says
from .pair import Pair
from .report import Ledger
from .seen import Seen
from .target import fluency, unit_of


def split_public(
    pair: Pair, concept: Concept, public: PublicImages, anchors: Anchors | None, n_images: int, seed: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Public images that look most like the concept to the base model, and random others; none of them an anchor.

    Args:
        anchors: of the erasure. Their scores say what looks like the concept, if they are of the same set; else the
            likelihood of the name is read on `4 * n_images` random images.
        n_images: of each kind, at most.

    Returns:
        The likeliest images, and random ones.
    """
    order = np.random.default_rng([seed, 9]).permutation(len(public)).tolist()
    taken: set[int] = set()
    if anchors is not None and anchors.public is public:
        taken = {*anchors.indices, *anchors.monitor}
        score = dict(enumerate(anchors.likelihood.nan_to_num(-np.inf).tolist()))
    else:
        drawn = order[: 4 * n_images]
        images = public.take(drawn).images
        with pair.before() as base:
            levels = name_likelihood(base, pair.processor, concept, images, batch_size=pair.batch_size)
        score = dict(zip(drawn, levels.tolist(), strict=True))
    free = [place for place in order if place not in taken]
    ranked = sorted((place for place in free if score.get(place, -np.inf) > -np.inf), key=lambda place: -score[place])
    # half of a small set stays for the random ones
    alike = ranked[: min(n_images, len(free) // 2)]
    rest = [place for place in free if place not in set(alike)][:n_images]
    return list(public.take(alike).images), list(public.take(rest).images)


def measure_agreement(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    images: Sequence[Image.Image],
    retain: Retain,
    seen: Seen,
    seed: int,
) -> tuple[list[Named], list[tuple[Prompt, str]]]:
    """Compares both models' greedy answers about public images. It is agreement, and says nothing of who is right.

    Images that the base calls by the concept's name are left out: there the erased model should say something else.

    Returns:
        For each image what the base calls it and whether the erased model agrees; and prompts with the base's answers.
    """
    naming = [Prompt(concept.questions[0], image) for image in images]
    told = pair.answers(naming)
    kept = [place for place, text in enumerate(told[0]) if not says(concept.names, text)]
    naming = [naming[place] for place in kept]
    base, erased = ([side[place] for place in kept] for side in told)
    data = seen.mark([prompt.image for prompt in naming if prompt.image is not None])
    agrees = [float(same(*pair)) for pair in zip(base, erased, strict=True)]
    units = [unit_of(prompt) for prompt in naming]
    ledger.add("agreement_names", "other public images: called the same as before", None, agrees, units, data=data)
    _own_answers(pair, ledger, naming, base, "agreement_names", "what the base calls other public images", data)

    asked = _questions_about([prompt.image for prompt in naming if prompt.image is not None], retain, [seed, 10])
    before, _ = measure_answers(pair, ledger, asked, "images", "public images", data)
    named = [Named(name, unit, 1.0, agreed) for name, unit, agreed in zip(base, units, agrees, strict=True)]
    return named, list(zip([*naming, *asked], [*base, *before], strict=True))


def measure_target_agreement(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    images: Sequence[Image.Image],
    retain: Retain,
    data: str,
    seed: int,
) -> None:
    """Compares both models' answers to what else is asked about pictures of the concept: what is still seen of it.

    Questions that the base answers with the name are left out: there the erased model should say something else.
    """
    asked = _questions_about(images, retain, [seed, 17])
    told = pair.answers(asked)
    kept = [place for place, text in enumerate(told[0]) if not says(concept.names, text)]
    if kept:
        base, erased = ([side[place] for place in kept] for side in told)
        prompts = [asked[place] for place in kept]
        measure_answers(pair, ledger, prompts, "target_images", "pictures of the concept", data, (base, erased))
    else:
        ledger.unknown["agreement_target_images"] = "the base answers every question of `retain` with the name"


def _questions_about(images: Sequence[Image.Image], retain: Retain, seed: Sequence[int]) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [
        Prompt(retain.questions[index], image)
        for image in images
        for index in rng.permutation(len(retain.questions))[: retain.questions_per_image]
    ]


def measure_answers(
    pair: Pair,
    ledger: Ledger,
    prompts: Sequence[Prompt],
    key: str,
    whose: str,
    data: str,
    told: tuple[list[str], list[str]] | None = None,
) -> tuple[list[str], list[str]]:
    """Agreement, own answers' probability, refusals, gibberish and fluency on prompts that have nothing to hide.

    Args:
        told: both models' answers, where they are known.

    Returns:
        Both models' answers.
    """
    told = told or pair.answers(prompts)
    units = [unit_of(prompt) for prompt in prompts]
    agrees = [float(same(*both)) for both in zip(*told, strict=True)]
    ledger.add(f"agreement_{key}", f"{whose}: answered the same as before", None, agrees, units, data=data)
    _own_answers(pair, ledger, prompts, told[0], f"agreement_{key}", f"the base's answers to {whose}", data)
    for name, judge, label in (("refusals", refuses, "refusals"), ("gibberish", is_gibberish, "gibberish")):
        base, erased = ([float(judge(text)) for text in some] for some in told)
        ledger.add(f"{name}_{key}", f"{whose}: answers that are {label}", base, erased, units, data=data)
    fluency(pair, ledger, prompts, told, whose=whose, key=f"fluency_{key}", data=data)
    return told


def _own_answers(
    pair: Pair, ledger: Ledger, prompts: Sequence[Prompt], answers: Sequence[str], key: str, whose: str, data: str
) -> None:
    kept = [place for place, text in enumerate(answers) if text]
    asked = [prompts[place] for place in kept]
    levels = pair.likelihood(asked, [answers[place] for place in kept])
    base, erased = (some.exp().tolist() for some in levels)
    units = [unit_of(prompt) for prompt in asked]
    label = f"{whose}: probability per token"
    ledger.add(f"{key}_probability", label, base, erased, units, data=data, unit="probability")
