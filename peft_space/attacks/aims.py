"""What attacks are aimed at: pictures of the concept, or what stands in for them, and others as the control."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..anchors import Anchors
from ..concepts import Concept, load_public_images
from ..concepts.images import content_key
from ..evaluation.agreement import split_public
from ..evaluation.examples import EvaluatedSet
from ..evaluation.metrics import is_gibberish, says
from ..evaluation.seen import Seen
from ..vlm import Prompt
from .sides import BASE, Sides

OF_THE_CONCEPT = "pictures of the concept"
LABELS, OWN_NAMES = "labels", "the base's own names"
"""How it is known what other pictures show."""
_MOST_WORDS = 6
_FEW = 4
_POOL = 96


@dataclass(frozen=True)
class Shown:
    """A picture and what it shows.

    Attributes:
        image: the picture.
        names: what is right to call it.
        unit: stays with the picture when it is cropped or blurred.
    """

    image: Image.Image
    names: tuple[str, ...]
    unit: Hashable

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Aims:
    """What attacks are measured on, and what the attacker may use.

    Attributes:
        concept: what was erased.
        target: pictures of it that no attack trains on.
        target_train: pictures of it that the attacker holds; no other part has a copy of them.
        control: pictures of other concepts that no attack trains on.
        control_train: pictures of other concepts that the attacker holds.
        whose: what the target pictures are, in words.
        truth: `LABELS` or `OWN_NAMES`.
        data: what the erasure saw of the target pictures: one of `evaluation.report.DATA`.
        named: other concepts' names that were given.
    """

    concept: Concept
    target: tuple[Shown, ...]
    target_train: tuple[Shown, ...]
    control: tuple[Shown, ...]
    control_train: tuple[Shown, ...]
    whose: str
    truth: str
    data: str
    named: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Names of other concepts: those that were given, and those that pictures have."""
        return tuple(dict.fromkeys([*self.named, *(shown.name for shown in (*self.control, *self.control_train))]))

    def with_pictures(self, target: Sequence[Shown], control: Sequence[Shown]) -> Aims:
        """The same, measured on other versions of the pictures."""
        return replace(self, target=tuple(target), control=tuple(control))


def find_aims(
    sides: Sides,
    concept: Concept,
    *,
    target_images: Any,
    labelled: EvaluatedSet | None,
    public_images: Any,
    anchors: Anchors | None,
    named: Sequence[str] = (),
    n_images: int,
    n_train: int,
    seed: int,
) -> Aims:
    """Draws pictures, and parts those that attacks are measured on from those that attackers may use.

    Where there is no picture of the concept, public images that the base calls by its name stand in; where these are
    too few, the anchors as well. Where nothing is labelled, other pictures are public images, and their names what
    the base calls them.

    Args:
        named: other concepts' names.
        n_images: most pictures to measure on, of the concept and of others each.
        n_train: most pictures of the concept that an attacker holds; half of them at most.
    """
    examples = labelled or EvaluatedSet(())
    rng = np.random.default_rng([seed, 14])
    whose, images = OF_THE_CONCEPT, list(examples.pictures(concept).images)
    if target_images is not None:
        images = list(load_public_images(target_images).images)
    known = [
        Shown(e.image, e.right, 0)
        for e in examples.split(concept)[1]
        if e.task == "name" and e.image is not None and not concept.mentioned_in(e.answer)
    ]
    alike: list[Image.Image] = []
    rest: list[Image.Image] = []
    if not (images and known) and (public_images is not None or anchors is not None):
        public = load_public_images(public_images) if public_images is not None else anchors.public  # type: ignore[union-attr]
        alike, rest = split_public(sides.pair, concept, public, anchors, max(n_images, _POOL), seed)
    if not images:
        whose, images = _stand_ins(sides, concept, alike, anchors)
    target = _distinct(Shown(image, concept.names, 0) for image in images)
    taken = {shown.unit for shown in target}
    truth = LABELS if known else OWN_NAMES
    others = [shown for shown in _distinct(known or _named(sides, concept, rest)) if shown.unit not in taken]
    target, others = _shuffled(target, rng), _evenly(_shuffled(others, rng))
    held = min(n_train, len(target) // 2)
    measured = min(n_images, (len(others) + 1) // 2)
    return Aims(
        concept,
        target=tuple(target[held : held + n_images]),
        target_train=tuple(target[:held]),
        control=tuple(others[:measured]),
        control_train=tuple(others[measured : measured + _POOL]),
        whose=whose,
        truth=truth,
        data=Seen(anchors).mark([shown.image for shown in target]),
        named=tuple(name for name in named if not concept.mentioned_in(name)),
    )


def _stand_ins(
    sides: Sides, concept: Concept, alike: Sequence[Image.Image], anchors: Anchors | None
) -> tuple[str, list[Image.Image]]:
    taken = [image for image, text in _called(sides, concept, alike) if says(concept.names, text)]
    if len(taken) >= _FEW or anchors is None:
        return "public images that the base calls by the name", taken
    called = [image for image, text in _called(sides, concept, list(anchors.images)) if says(concept.names, text)]
    return "public images that the base calls by the name, anchors among them", [*taken, *called]


def _named(sides: Sides, concept: Concept, images: Sequence[Image.Image]) -> list[Shown]:
    """Public images by the names that the base gives them; what is no name for sure is left out."""
    return [
        Shown(image, (text,), 0)
        for image, text in _called(sides, concept, images)
        if text and len(text.split()) <= _MOST_WORDS and not is_gibberish(text) and not concept.mentioned_in(text)
    ]


def _called(sides: Sides, concept: Concept, images: Sequence[Image.Image]) -> list[tuple[Image.Image, str]]:
    prompts = [Prompt(concept.questions[0], image) for image in images]
    with sides.side(BASE) as base:
        return list(zip(images, sides.pair.tell(base, prompts), strict=True))


def _distinct(shown: Iterable[Shown]) -> list[Shown]:
    """Each picture once, by its pixels: a copy in training would give away what is measured."""
    by_key = {content_key(one.image): one for one in shown}
    return [replace(one, unit=key) for key, one in by_key.items()]


def _shuffled(shown: list[Shown], rng: np.random.Generator) -> list[Shown]:
    return [shown[place] for place in rng.permutation(len(shown))]


def _evenly(shown: list[Shown]) -> list[Shown]:
    """In turns over what is shown, so that any first part holds as many concepts as it can."""
    turn: dict[str, int] = {}
    turns = []
    for one in shown:
        turn[one.name] = turn.get(one.name, -1) + 1
        turns.append(turn[one.name])
    return [shown[place] for place in sorted(range(len(shown)), key=turns.__getitem__)]
