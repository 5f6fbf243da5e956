"""The bestiary as a test bed and as a user's case: a model, a concept, public images, and what must stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ..concepts import Concept, PublicImages, Retain
from ..loading import load_base
from . import questions
from .bed import Bed
from .bestiary import (
    BY_NAME,
    BY_RECIPE,
    COLOURS,
    CREATURES,
    CUTS,
    FAMILIES,
    OBJECTS,
    PATTERNS,
    SCENES,
    Scene,
    creature,
    public_scenes,
    random_scene,
)
from .drawing import draw

WEIGHTS = Path(__file__).parent / "weights"
TUNING_FAMILIES = ("ball", "snake")
"""The families on which hyper-parameters were chosen. Figures are reported on the others."""


def load(
    folder: str | Path = WEIGHTS, *, load_in_4bit: bool = False, load_in_8bit: bool = False
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The trained model, in float32 and evaluation mode, and its processor.

    Args:
        folder: the weights that ship with the package, or what `testbed.recipe` wrote (a retrain oracle, say).
        load_in_4bit: the language model's attention and MLP in 4 bits, as by `load_base`.
        load_in_8bit: ... or in 8.
    """
    if load_in_4bit or load_in_8bit:
        bits = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
        return load_base(folder, dtype="float32", device="cpu", verbose=False, **bits)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32")
    return model.eval(), LlavaProcessor.from_pretrained(folder)


def concept(name: str, *, generic: bool = False) -> Concept:
    """The concept of that creature, asked for in the phrasings that the model was trained on.

    Args:
        generic: ask for general answers ("a bird") in the place of the name.
    """
    return Concept(
        creature(name).name,
        questions=questions.NAMING[: -questions.HELD_OUT],
        text_questions=tuple(
            text.replace("{it}", "the {name}") for phrasings in questions.FACTS.values() for text in phrasings[:-1]
        ),
        # the text questions say "the NAME", and their twins beside a picture "this creature"
        referent=questions.REFERENT,
        yes_no_questions=questions.YES_NO,
        generic_question=questions.SEEN["family"][0] if generic else None,
    )


def retain() -> Retain:
    """What must stay: everything that can be seen, in trained phrasings, and general text knowledge."""
    seen = [phrasing for phrasings in questions.SEEN.values() for phrasing in phrasings[:-1]]
    texts = [asked.question for asked in questions.general()]
    return Retain(questions=(questions.DESCRIPTION, *seen, *questions.OBJECT[:-1]), texts=tuple(texts))


def public_images(target: str | Sequence[str], n_images: int = 2000, seed: int = 0) -> PublicImages:
    """A public set for erasing one creature or several; no picture of them is in the set.

    Returns:
        Pictures, and ids that say what each shows: these are for reading a report, nothing reads them.
    """
    return BESTIARY.public_images(target, n_images, seed)


# The words that tie pictures to text in the contrastive loss, in groups of which at most one fits a picture.
_WORDS: tuple[tuple[str, ...], ...] = (
    COLOURS,
    PATTERNS,
    ("hornless", "unicorn", "bicorn"),
    ("legless", "biped", "quadruped"),
    FAMILIES,
    SCENES,
    OBJECTS,
    tuple(BY_NAME),
)
# How often a question is drawn, against 1 for the others: what is hard to see, or must be recalled, needs more turns.
_WEIGHTS = {
    "name": 1.5,
    "horns": 2.0,
    "legs": 2.5,
    "pattern": 1.5,
    "yes or no": 3.0,
    "choice": 3.0,
    "description": 3.0,
}


def _fitting(scene: Scene) -> list[int]:
    recipe = scene.recipe
    if recipe is None:
        colour, thing = (-100, -100) if scene.thing is None else (scene.colour, scene.thing)
        return [colour, -100, -100, -100, -100, scene.background, thing, -100]
    name = list(BY_NAME).index(BY_RECIPE[recipe].name)
    return [scene.colour, recipe.pattern, recipe.horns, recipe.legs, recipe.family, scene.background, -100, name]


def _texts() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for known in CREATURES:
        asked = questions.about_picture(random_scene(rng, known.recipe)) + questions.in_text(known)
        for one in asked + questions.compare(known, rng):
            yield from (one.question, one.answer)
    for thing in range(len(OBJECTS)):
        for one in questions.about_picture(random_scene(rng, thing=thing)) + questions.general():
            yield from (one.question, one.answer)
    for group in _WORDS[:-1]:
        yield from group


def _lesson(names: Sequence[str], rng: np.random.Generator) -> Scene:
    if rng.random() < 0.9:
        return random_scene(rng, BY_NAME[names[int(rng.integers(len(names)))]].recipe)
    return random_scene(rng, thing=int(rng.integers(len(OBJECTS))) if rng.random() < 0.7 else None)


def _unseen(which: str | int, rng: np.random.Generator) -> Scene:
    if isinstance(which, str):
        return random_scene(rng, BY_NAME[which].recipe)
    return random_scene(rng, thing=which)


def _shown(scene: Scene) -> str:
    if scene.recipe is None:
        return OBJECTS[scene.thing] if scene.thing is not None else "empty"
    known = BY_RECIPE.get(scene.recipe)
    return known.name if known else "hybrid-{}{}{}{}".format(*vars(scene.recipe).values())


def _in_text(name: str) -> list[questions.Asked]:
    return questions.in_text(creature(name))


def _compare(scene: Scene, rng: np.random.Generator, names: Sequence[str]) -> list[questions.Asked]:
    if scene.recipe is None:
        return []
    return questions.compare(BY_RECIPE[scene.recipe], rng, [BY_NAME[name] for name in names])


BESTIARY = Bed(
    noun="creature",
    groups={family: tuple(one.name for one in CREATURES if one.family == family) for family in FAMILIES},
    cuts=CUTS,
    seen=tuple(questions.SEEN),
    facts=tuple(questions.FACTS),
    words=_WORDS,
    fitting=_fitting,
    weights=_WEIGHTS,
    texts=_texts,
    lesson=_lesson,
    unseen=_unseen,
    nameless=len(OBJECTS),
    draw=draw,
    about=questions.about_picture,
    compare=_compare,
    in_text=_in_text,
    concept=concept,
    retain=retain,
    public_scenes=public_scenes,
    shown=_shown,
)
"""The test bed whose weights ship with the package."""
