"""What the model knows of a concept, asked in text by its name: what an erasure has to reach beyond the name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from PIL import Image
from torch import nn

from ..concepts import Concept
from ..concepts.concept import find_any
from ..vlm import Prompt, generate, special_in, text_ids
from .selection import Anchors

_COMMON = 0.25
"""What is said of a larger share of the other names tells nothing of any."""


@dataclass(frozen=True)
class Knowledge:
    """The model's own answers about a concept, and about other names to compare with.

    Attributes:
        concept: whom it is about.
        answers: the model's answer to each of the concept's `text_questions`.
        telling: for each question the words of the answer that are not said of other names as well.
        others: other names that the model gives to public images, most frequent first.
        others_answers: for each question, the answers about `others`.
    """

    concept: Concept
    answers: tuple[str, ...]
    telling: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    others_answers: tuple[tuple[str, ...], ...]


def other_names(
    model: nn.Module,
    processor: Any,
    concept: Concept,
    images: Sequence[Image.Image],
    naming: Sequence[str] = (),
    *,
    most: int = 32,
    batch_size: int = 64,
) -> tuple[str, ...]:
    """The names that the model itself gives to `images`, without the concept's, most frequent first.

    Args:
        naming: questions that make the model say names though they do not ask for them. Where there are some, what
            never comes up in reply to them ("nothing", "no creature") is taken for no name.
        most: how many names to return at most.
    """

    def told(question: str) -> list[str]:
        return generate(model, processor, [Prompt(question, image) for image in images], batch_size=batch_size)

    counts = Counter(text for text in told(concept.questions[0]) if text and not concept.mentioned_in(text))
    unasked = [text for question in naming for text in told(question)]
    names = [
        name
        for name, _ in counts.most_common()
        if not naming or any(find_any((name,), text) is not None for text in unasked)
    ]
    return tuple(names[:most])


def names_given(
    model: nn.Module, processor: Any, anchors: Anchors, n_images: int, *, batch_size: int = 64, seed: int = 0
) -> dict[int, str]:
    """What the model calls random public images away from the anchors, by their place in `anchors.public`.

    Args:
        n_images: how many are asked about at most.
        seed: of the draw.
    """
    drawn = anchors.unrelated(n_images, seed)
    return dict(zip(drawn, _called(model, processor, anchors, drawn, batch_size), strict=True))


def evenly_named(concept: Concept, called: Mapping[int, str], n_images: int) -> dict[int, str]:
    """`n_images` of those that were named, with their names, as many of each name as can be.

    Drawn blindly, a name that the model gives to one image in three hundred is retained by chance or not at all. So
    each name gives one image in turn; those that the model calls by the concept's name are left out.
    """
    named: dict[str, list[int]] = {}
    for index, name in called.items():
        if not concept.mentioned_in(name):
            named.setdefault(name, []).append(index)
    by_name = ([(index, name) for index in indices] for name, indices in named.items())
    return dict(islice((one for turn in zip_longest(*by_name) for one in turn if one is not None), n_images))


def _called(model: nn.Module, processor: Any, anchors: Anchors, places: Sequence[int], batch_size: int) -> list[str]:
    asked = [Prompt(anchors.concept.questions[0], image) for image in anchors.public.take(places).images]
    return generate(model, processor, asked, batch_size=batch_size)


def neighbours(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    others: Sequence[str],
    called: Mapping[int, str],
    *,
    n_images: int = 128,
    batch_size: int = 64,
) -> tuple[str, ...]:
    """Those of `others` that the model gives to the likeliest images that are no anchors, most frequent first.

    Args:
        others: as of `other_names`.
        called: what it calls some of the images, as of `names_given`; these are not asked about again.
        n_images: how many are looked at; a name counts that is given to two.
    """
    places = anchors.next_likeliest(n_images)
    unasked = [place for place in places if place not in called]
    known = {**called, **dict(zip(unasked, _called(model, processor, anchors, unasked, batch_size), strict=True))}
    counts = Counter(known[place] for place in places).most_common()
    # what spells a special token can't be asked about
    return tuple(name for name, n in counts if n > 1 and name in others and special_in(processor, name) is None)


def relatives(processor: Any, concept: Concept, others: Sequence[str], most: int) -> tuple[str, ...]:
    """Those of `others` that are made of the same pieces as the concept's name: an update of it comes close to them.

    A piece is a word or a token of two letters or more that not many of `others` have. What is a part of a name of the
    concept, or holds one, is taken for another form of it.

    Args:
        others: names that the model gives, most frequent first.
        most: how many to return at most.
    """

    def pieces(name: str) -> set[str]:
        tokens = (processor.tokenizer.decode([token]) for token in text_ids(processor, f" {name}"))
        return {piece for text in (name, *tokens) for piece in _words(text) if len(piece) > 1}

    forms = [set(_words(name)) for name in concept.names]
    apart = [name for name in others if not any(form <= {*_words(name)} or {*_words(name)} <= form for form in forms)]
    own = {piece for name in concept.names for piece in pieces(name)}
    # what spells a special token can't be asked about
    shared = {name: own & pieces(name) for name in apart if special_in(processor, name) is None}
    counts = Counter(piece for some in shared.values() for piece in some)
    rare = {piece for piece, count in counts.items() if count <= max(1, _COMMON * len(apart))}
    return tuple(name for name, some in shared.items() if some & rare)[:most]


def questions_that_name(
    model: nn.Module,
    processor: Any,
    concept: Concept,
    questions: Sequence[str],
    images: Sequence[Image.Image],
    *,
    batch_size: int = 64,
) -> list[str]:
    """Those of `questions` to which the model answers with the concept's name about one of `images` at least."""
    prompts = [Prompt(question, image) for question in questions for image in images]
    told = generate(model, processor, prompts, batch_size=batch_size)
    said = [prompt.question for prompt, text in zip(prompts, told, strict=True) if concept.mentioned_in(text)]
    return list(dict.fromkeys(said))


def elicit(model: nn.Module, processor: Any, concept: Concept, others: Sequence[str]) -> Knowledge:
    """Asks the model in text what it knows of the concept and of `others`.

    Raises:
        ValueError: there are no other names to compare with.
    """
    if not others:
        raise ValueError(
            "`public_images` gave no name but the concept's: the model calls everything in them by it. Give pictures "
            "of other things as well."
        )
    asked = [Prompt(text) for name in (concept.name, *others) for text in concept.called(name).asked_in_text]
    told = generate(model, processor, asked)
    per_name = [
        told[i : i + len(concept.text_questions)] for i in range(0, len(told), len(concept.text_questions) or 1)
    ]
    own, rest = (per_name[0], per_name[1:]) if concept.text_questions else ([], [])
    telling = []
    for place, answer in enumerate(own):
        said = Counter(word for answers in rest for word in set(_words(answers[place])))
        own_names = set(_words(" ".join(concept.names)))
        telling.append(
            tuple(w for w in dict.fromkeys(_words(answer)) if said[w] <= _COMMON * len(rest) and w not in own_names)
        )
    return Knowledge(concept, tuple(own), tuple(telling), tuple(others), tuple(zip(*rest, strict=True)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
