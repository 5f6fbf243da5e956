"""The evaluation of an erasure on one page: base and erased model, asked alike in one run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import nn

from ..anchors import Anchors, other_names
from ..concepts import Concept, Retain, load_public_images
from ..console import shows_progress
from ..progress import Listener, Stages
from ..vlm import Prompt
from .agreement import measure_agreement, measure_target_agreement, split_public
from .collateral import collateral_curve, nearest, similarities
from .examples import EvaluatedSet, Example
from .labelled import Named, measure_labelled
from .metrics import says
from .pair import Pair
from .report import DATA, RETAINED, STOPPED_ON, TRAINED_ON, Collateral, ErasureReport, Ledger
from .seen import Seen
from .target import DESCRIPTIONS, UNSEEN_QUESTIONS, measure_pictures
from .text import BENIGN_TEXTS, UNSEEN_TEXT_QUESTIONS, measure_text
from .weights import LEAST_STATES, measure_entropy, measure_leak

_MOST_NAMES = 24
_OF_TARGET = (
    "forget_accuracy",
    "name_probability",
    "name_rank",
    "misidentified",
    "target_attributes",
    "agreement_target_images",
)
"""What only pictures of the concept can tell."""
_LEAST_PICTURES = 3

NEEDS_IMAGES = "it needs pictures of the concept, and there are none: pass `target_images`"
NEEDS_LABELS = "it needs questions with true answers, and there are none: pass `labelled`"
NEEDS_PUBLIC = "it needs pictures, and there are none: pass `public_images`"
NEEDS_ANCHORS = "the anchors of the erasure are not at hand: pass `anchors`"


@shows_progress
def evaluate_erasure(
    model: nn.Module,
    processor: Any,
    concept: str | Concept,
    *,
    target_images: Any = None,
    labelled: EvaluatedSet | None = None,
    public_images: Any = None,
    anchors: Anchors | None = None,
    retain: Retain | None = None,
    base: nn.Module | None = None,
    near: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    unseen_questions: Sequence[str] = UNSEEN_QUESTIONS,
    unseen_text_questions: Sequence[str] = UNSEEN_TEXT_QUESTIONS,
    descriptions: Sequence[str] = DESCRIPTIONS,
    benign: Sequence[str] = BENIGN_TEXTS,
    n_images: int = 96,
    n_bootstrap: int = 2000,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    seed: int = 0,
    progress: Listener | bool | None = True,
) -> ErasureReport:
    """Measures what an erasure took and what it left: greedily and by likelihood, before and after, in one run.

    Without any picture of the concept it measures what can be known all the same, and says what can't be and why.
    What each figure means stands in docs/evaluation.md.

    Args:
        model: the erased model. Of a `PeftModel` the base is itself with all its adapters off.
        processor: the model's own.
        concept: the name, or the `Concept` that `erase` was given: its questions are the trained phrasings.
        target_images: pictures of the concept, as for `load_public_images`; by default those of `labelled`.
        labelled: questions with true answers, about the concept, about others and in text alone.
        public_images: any pictures, as for `load_public_images`; by default those of `anchors`.
        anchors: of the erasure. With them it is known what it trained on, stopped on and retained.
        retain: the questions and texts that `erase` was told to keep.
        base: the base of a model without adapters: of one that was merged, say.
        near: concepts of `labelled` that count as near; by default the quarter that is most similar.
        others: names of other concepts, for the name's rank and for misidentification; by default those of
            `labelled`, else the names that the base gives to public images.
        unseen_questions: how the name is asked for in phrasings that the erasure did not use.
        unseen_text_questions: the same for text questions; each holds `{name}`.
        descriptions: questions about a picture that do not ask for the name.
        benign: harmless text prompts that the erasure was not told to keep.
        n_images: public images of each kind to use, at most.
        n_bootstrap: draws for each interval.
        max_new_tokens: of an answer.
        batch_size: images or prompts at a time.
        seed: of everything that is drawn.
        progress: as for `erase`.

    Raises:
        ValueError: an argument is out of range, or there is no base to compare with.
        TypeError: the model cannot be asked about images.
    """
    concept = Concept.of(concept)
    for name, least, value in (("n_images", 1, n_images), ("n_bootstrap", 100, n_bootstrap)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    for question in unseen_text_questions:
        if "{name}" not in question:
            raise ValueError(f"`unseen_text_questions` must each hold '{{name}}'; got {question!r}.")
    pair = Pair(model, processor, base, batch_size=batch_size, max_new_tokens=max_new_tokens)
    retain = retain or Retain()
    examples = labelled or EvaluatedSet(())
    ledger = Ledger(seed, n_bootstrap)
    seen = Seen(anchors)
    stages = Stages(progress if callable(progress) else None)
    unseen = [question for question in unseen_questions if question not in concept.questions]
    rows: list[tuple[Prompt, str]] = []
    curve: Collateral | None = None

    with stages.stage("images"):
        target = _pictures_of(target_images, examples, concept)
        public = None
        if public_images is not None or anchors is not None:
            public = load_public_images(public_images) if public_images is not None else anchors.public  # type: ignore[union-attr]
        alike, rest = ([], []) if public is None else split_public(pair, concept, public, anchors, n_images, seed)
        names = _names(pair, concept, examples, rest, others)
    look = functools.partial(
        measure_pictures, pair, ledger, concept, unseen=unseen, descriptions=descriptions, others=names
    )
    with stages.stage("target"):
        if target:
            look(target, whose="pictures of the concept", prefix="", data=seen.mark(target))
            measure_target_agreement(pair, ledger, concept, target, retain, seen.mark(target), seed)
        else:
            for what in _OF_TARGET:
                ledger.unknown[what] = NEEDS_IMAGES
        if not names:
            ledger.unknown["name_rank"] = ledger.unknown["misidentified"] = (
                "no other concept's name is known: pass `others`, `labelled` or `public_images`"
            )
    with stages.stage("anchors"):
        if anchors is not None:
            pictures = anchors.public.take(anchors.indices).images, anchors.public.take(anchors.monitor).images
            look(pictures[0], whose="anchors", prefix="anchor_", data=TRAINED_ON)
            look(pictures[1], whose="monitor images", prefix="monitor_", data=STOPPED_ON)
        else:
            ledger.unknown["anchor_forget_accuracy"] = ledger.unknown["monitor_forget_accuracy"] = NEEDS_ANCHORS
        taken_for_it = _called_by_name(pair, concept, alike)
        if taken_for_it:
            whose = "public images taken for the concept"
            look(taken_for_it, whose=whose, prefix="hallucinated_", data=seen.mark(taken_for_it))
        else:
            ledger.unknown["hallucinated_forget_accuracy"] = (
                NEEDS_PUBLIC if public is None else f"the base calls none of {len(alike)} public images by the name"
            )
    with stages.stage("retention"):
        own, foreign = examples.split(concept)
        measure_labelled(pair, ledger, own, "target", seen)
        named, near_names, similarity, against = _labelled_others(pair, ledger, concept, foreign, target, near, seen)
        if named:
            data = seen.mark([e.image for e in foreign if e.image is not None])
            curve = collateral_curve(
                named, similarity, near_names, ledger, measure="accuracy drop", against=against, data=data
            )
        else:
            for what in ("retain_near", "retain_far"):
                ledger.unknown[what] = NEEDS_LABELS
        if rest:
            called, rows = measure_agreement(pair, ledger, concept, rest, retain, seen, seed)
            if curve is None:
                curve = _unlabelled_curve(pair, ledger, concept, called, rows, target, seen)
        else:
            for what in ("agreement_names", "agreement_images"):
                ledger.unknown[what] = NEEDS_PUBLIC
        if curve is None:
            ledger.unknown["collateral"] = (
                NEEDS_LABELS if public is None else "no name is given to three public images"
            )
    with stages.stage("text"):
        rows += measure_text(pair, ledger, concept, retain, others=names, unseen=unseen_text_questions, benign=benign)
    with stages.stage("weights"):
        shown = [prompt.image for prompt, _ in rows if prompt.image is not None]
        leak = measure_leak(pair, ledger, rows, max(RETAINED, seen.mark(shown), key=DATA.index))
        stand_ins = taken_for_it, list(anchors.images) if anchors is not None else [], alike
        images = next((some for some in (target, *stand_ins) if len(some) >= LEAST_STATES), [])
        whose = "pictures of the concept" if images is target else "what stands in for it"
        measure_entropy(pair, ledger, concept, images, whose, seen.mark(images))
    _references(ledger, examples, concept)
    settings = {
        "n_bootstrap": n_bootstrap,
        "target_images": len(target),
        "public_images": 0 if public is None else len(public),
        "public_images_like_it": len(alike),
        "public_images_called_by_name": len(taken_for_it),
        "labelled": len(examples),
        "labelled_from": examples.name,
        "other_names": list(names),
        "near": sorted(near_names),
        "questions": list(concept.questions),
        "unseen_questions": unseen,
        "max_new_tokens": max_new_tokens,
    }
    return ErasureReport(
        concept.name, concept.aliases, seed, ledger.figures, ledger.unknown, curve, leak, settings, stages.seconds
    )


def _pictures_of(target_images: Any, examples: EvaluatedSet, concept: Concept) -> list[Image.Image]:
    if target_images is None:
        return list(examples.pictures(concept).images)
    return list(load_public_images(target_images).images)


def _names(
    pair: Pair,
    concept: Concept,
    examples: EvaluatedSet,
    images: Sequence[Image.Image],
    others: Sequence[str] | None,
) -> tuple[str, ...]:
    """Names of other concepts."""
    told = [e.answer for e in examples.split(concept)[1] if e.task == "name"]
    names = list(told if others is None else others)
    if not names and images:
        with pair.before() as base:
            names = list(other_names(base, pair.processor, concept, images, batch_size=pair.batch_size))
    return tuple(name for name in dict.fromkeys(names) if not concept.mentioned_in(name))[:_MOST_NAMES]


def _called_by_name(pair: Pair, concept: Concept, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Those that the base calls by the concept's name in answer to any of its questions."""
    prompts = [Prompt(question, image) for image in images for question in concept.questions]
    if not prompts:
        return []
    with pair.before() as base:
        told = pair.tell(base, prompts)
    called = {id(p.image) for p, text in zip(prompts, told, strict=True) if says(concept.names, text)}
    return [image for image in images if id(image) in called]


def _labelled_others(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    examples: Sequence[Example],
    target: Sequence[Image.Image],
    near: Sequence[str] | None,
    seen: Seen,
) -> tuple[list[Named], frozenset[str], dict[str, float], str]:
    """Near, far and general questions, and what the collateral curve is drawn from."""
    pictures: dict[str, dict[int, Image.Image]] = {}
    for e in examples:
        if e.concept is not None and e.image is not None:
            pictures.setdefault(e.concept, {})[id(e.image)] = e.image
    similarity: dict[str, float] = {}
    against = ""
    if pictures:
        shown = {name: list(some.values()) for name, some in pictures.items()}
        similarity, against = similarities(pair, shown, concept, target)
    known = {e.concept for e in examples if e.concept is not None}
    if near is None:
        near_names = nearest(similarity) if similarity else frozenset()
    else:
        near_names = frozenset(near)
        if near_names - known:
            raise ValueError(f"`near` must be concepts of `labelled`; got {sorted(near_names - known)}.")
    named: list[Named] = []
    sides: dict[str, list[Example]] = {}
    for e in examples:
        sides.setdefault(_side(e, near_names, similarity, near is not None), []).append(e)
    for side, some in sides.items():
        named += measure_labelled(pair, ledger, some, side, seen)
    return [row for row in named if row.concept], near_names, similarity, against


def _side(example: Example, near: frozenset[str], similarity: dict[str, float], chosen: bool) -> str:
    if example.concept is None:
        return "general"
    if example.concept in near:
        return "retain_near"
    return "retain_far" if chosen or example.concept in similarity else "retain"


def _unlabelled_curve(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    called: Sequence[Named],
    rows: Sequence[tuple[Prompt, str]],
    target: Sequence[Image.Image],
    seen: Seen,
) -> Collateral | None:
    """The curve of public images: a concept is what the base calls them, and disagreement with it the loss."""
    pictures: dict[str, list[Image.Image]] = {}
    for row, (prompt, _) in zip(called, rows, strict=False):
        if row.concept and prompt.image is not None:
            pictures.setdefault(row.concept, []).append(prompt.image)
    pictures = {name: images for name, images in pictures.items() if len(images) >= _LEAST_PICTURES}
    if not pictures:
        return None
    similarity, against = similarities(pair, pictures, concept, target)
    data = seen.mark([image for images in pictures.values() for image in images])
    return collateral_curve(
        called, similarity, nearest(similarity), ledger, measure="disagreement", against=against, data=data
    )


def _references(ledger: Ledger, examples: EvaluatedSet, concept: Concept) -> None:
    if not any(e.task == "generation" for e in examples):
        ledger.unknown["rouge_l"] = ledger.unknown["bleu"] = "no labelled question has a text to compare with"
    if not any(e.perturbed for e in examples):
        ledger.unknown["truth_ratio"] = "no labelled question has wrong answers to compare with"
    if not any(e.is_about(concept) and e.task == "attributes" for e in examples):
        ledger.unknown.setdefault("target_attributes", "no labelled question asks what can be seen of the concept")
