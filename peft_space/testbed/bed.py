"""What a test bed is: a world of names that can be drawn and asked about, and what is true in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..concepts import Concept, PublicImages, Retain
from .questions import Asked

STREAM = 7
"""Keeps held-out pictures apart from the training's and the public sets' random streams."""

Scene = Any
"""What is drawn in one picture. Each bed has a class of its own for it."""


@dataclass(frozen=True)
class Bed:
    """A world that a small model is taught from nothing, and that concepts are erased from.

    The recipe, the exam and the count of what a model knows are the same for every bed. They tell questions apart by
    `Asked.about`: `"name"`, `"description"`, the keys of `seen`, those of `facts` (asked in text), `"KEY through the
    picture"` (asked beside one), and `"left"`, `"right"` and `"both"` about a picture of two names.

    Attributes:
        noun: what the names are names of: "creature".
        groups: every name, in groups of names that are near each other.
        cuts: for each word of a name its pieces, with a hyphen between them: no token of the tokenizer spans two.
        seen: what can be seen in a picture of a name.
        facts: what is known of a name and no picture shows.
        words: words that tie pictures to text in the contrastive loss, in groups of which at most one fits a picture;
            the last group holds the names.
        fitting: for each group of `words`, the index of the word that fits a scene; -100 where none does.
        weights: how often a question is drawn in training, by what it is about, against 1 for the others.
        texts: every word the model will read or write, for the tokenizer.
        lesson: a random scene to train on, which shows none but these names.
        unseen: a random scene to measure on: of a name, or of the picture without a name that has this number.
        nameless: how many kinds of pictures without a name there are.
        draw: a scene as a picture of 48 x 48 pixels.
        about: every question that fits a scene of `lesson` or `unseen`, with its true answer.
        compare: questions about a scene that name one of these names or two; none where it shows no name.
        in_text: everything that is known of a name, asked without a picture.
        concept: `concept(name, generic=False)`: the name to erase, asked for in trained phrasings.
        retain: what must stay, in trained phrasings.
        public_scenes: so many scenes close to the training's, none of which shows one of these targets.
        shown: what a scene shows, for the id of its picture.
        together: a random scene to measure on that shows two names, from left to right; `None` if there is none.
    """

    noun: str
    groups: Mapping[str, tuple[str, ...]]
    cuts: Mapping[str, str]
    seen: tuple[str, ...]
    facts: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    fitting: Callable[[Scene], list[int]]
    weights: Mapping[str, float]
    texts: Callable[[], Iterator[str]]
    lesson: Callable[[Sequence[str], np.random.Generator], Scene]
    unseen: Callable[[str | int, np.random.Generator], Scene]
    nameless: int
    draw: Callable[[Scene, np.random.Generator], Image.Image]
    about: Callable[[Scene], list[Asked]]
    compare: Callable[[Scene, np.random.Generator, Sequence[str]], list[Asked]]
    in_text: Callable[[str], list[Asked]]
    concept: Callable[..., Concept]
    retain: Callable[[], Retain]
    public_scenes: Callable[[Sequence[str], int, np.random.Generator], list[Scene]]
    shown: Callable[[Scene], str]
    together: Callable[[tuple[str, str], np.random.Generator], Scene] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, group by group."""
        return tuple(name for group in self.groups.values() for name in group)

    def known(self, name: str) -> str:
        """The name itself.

        Raises:
            ValueError: the bed has no such name.
        """
        if name not in self.names:
            raise ValueError(
                f"`name` must be one of the test bed's {self.noun}s, {', '.join(self.names)}; got {name!r}."
            )
        return name

    def near(self, name: str) -> tuple[str, ...]:
        """The other names of that name's group."""
        group = next(group for group in self.groups.values() if self.known(name) in group)
        return tuple(other for other in group if other != name)

    def pictures(self, which: str | int, n_images: int, seed: int) -> list[tuple[Scene, Image.Image]]:
        """Held-out pictures with their scenes: of a name, or of the kind of picture without a name."""
        number = self.names.index(which) if isinstance(which, str) else 100 + which
        rng = np.random.default_rng([STREAM, seed, number])
        scenes = [self.unseen(which, rng) for _ in range(n_images)]
        return [(scene, self.draw(scene, rng)) for scene in scenes]

    def public_images(self, target: str | Sequence[str], n_images: int = 2000, seed: int = 0) -> PublicImages:
        """A public set for erasing one name or several; no picture of them is in the set.

        Returns:
            Pictures, and ids that say what each shows: these are for reading a report, nothing reads them.
        """
        targets = [self.known(name) for name in ([target] if isinstance(target, str) else target)]
        rng = np.random.default_rng([11, seed, *"".join(targets).encode()])
        scenes = self.public_scenes(targets, n_images, rng)
        ids = tuple(f"{number:04d}-{self.shown(scene)}" for number, scene in enumerate(scenes))
        return PublicImages(tuple(self.draw(scene, rng) for scene in scenes), ids)

    def pairs(self, pairs: Sequence[tuple[str, str]], rng: np.random.Generator) -> list[tuple[Scene, Image.Image]]:
        """Held-out pictures of two names each, with their scenes; either of the two may be on the left."""
        if self.together is None:
            return []
        scenes = [self.together(pair if rng.random() < 0.5 else pair[::-1], rng) for pair in pairs]
        return [(scene, self.draw(scene, rng)) for scene in scenes]
