"""The test bed as a user's case: a model, a concept to erase, public images to stand on, and what must stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ..concepts import Concept, PublicImages, Retain
from ..loading import load_base
from . import questions
from .bestiary import BY_RECIPE, OBJECTS, creature, public_scenes
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
    targets = [creature(name).name for name in ([target] if isinstance(target, str) else target)]
    rng = np.random.default_rng([11, seed, *"".join(targets).encode()])
    scenes = public_scenes(targets, n_images, rng)
    ids = []
    for number, scene in enumerate(scenes):
        if scene.recipe is not None:
            known = BY_RECIPE.get(scene.recipe)
            shown = known.name if known else "hybrid-{}{}{}{}".format(*vars(scene.recipe).values())
        else:
            shown = OBJECTS[scene.thing] if scene.thing is not None else "empty"
        ids.append(f"{number:04d}-{shown}")
    return PublicImages(tuple(draw(scene, rng) for scene in scenes), tuple(ids))
