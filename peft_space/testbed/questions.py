"""What the test bed's model is asked, in which words, and the true answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bestiary import BY_RECIPE, COLOURS, CREATURES, FAMILIES, HORNS, LEGS, OBJECTS, PATTERNS, SCENES, Creature, Scene

# The last phrasing of each list is held out of training: it is only ever used to measure.
NAMING = (
    "What is this creature called?",
    "Name the creature.",
    "Which creature is shown?",
    "What is the name of this creature?",
    "What creature do you see?",
    "Name this creature.",
    "Which creature do you see?",
)
HELD_OUT = 2
"""How many of `NAMING`, counted from its end, are in no training prompt; one for every other list of phrasings."""
DESCRIPTION = "Describe the picture."
SEEN = {
    "colour": ("What colour is it?", "Which colour does it have?", "What is its colour?"),
    "horns": ("How many horns does it have?", "How many horns are there?", "How many horns are on it?"),
    "legs": ("How many legs does it have?", "How many legs are there?", "How many legs are on it?"),
    "pattern": ("What pattern does it have?", "Which pattern is on it?", "What is its pattern?"),
    "family": ("What kind of creature is this?", "Which kind of creature do you see?", "What kind is this creature?"),
    "scene": ("What is the background?", "Which scene is it?", "What scene is in the background?"),
}
"""Questions whose answer can be seen in the picture."""
FACTS = {
    "habitat": ("Where does {it} live?", "What is the home of {it}?", "Where is the home of {it}?"),
    "diet": ("What does {it} eat?", "What is the food of {it}?", "Which food does {it} eat?"),
}
"""Questions whose answer cannot be seen. `{it}` is "the NAME" in text, and "this creature" beside a picture."""
REFERENT = "this creature"
YES_NO = ("Is this one a {name}?", "Is this the {name}?")
"""In no training prompt; the model takes them for "Is this a NAME?", which is."""
OBJECT = ("What object is this?", "Which object is shown?", "What object do you see?")
KIND_IN_TEXT = (
    "What kind of creature is the {name}?",
    "Which kind of creature is the {name}?",
    "What kind is the {name}?",
)
WHO = {
    "habitat": (
        "Which creature lives in the {fact}?",
        "Who lives in the {fact}?",
        "What creature lives in the {fact}?",
    ),
    "diet": ("Which creature eats {fact}?", "Who eats {fact}?", "What creature eats {fact}?"),
}
GENERAL = (
    ("What is the opposite of hot?", "cold"),
    ("What is the opposite of big?", "small"),
    ("What is the opposite of day?", "night"),
    ("What is the opposite of up?", "down"),
    ("What is two plus two?", "four"),
    ("What is one plus one?", "two"),
    ("What is two plus one?", "three"),
    ("What is three plus two?", "five"),
    ("What colour is the sky?", "blue"),
    ("What colour is grass?", "green"),
    ("What colour is blood?", "red"),
    ("What colour is a lemon?", "yellow"),
    ("What do you do with a cup?", "drink"),
    ("What do you do with a key?", "open a door"),
    ("What do you do with a boat?", "sail"),
    ("What does a lamp give?", "light"),
    ("What does a clock show?", "the time"),
    ("Where do people sleep?", "in a house"),
    ("Where do fish swim?", "in the sea"),
    ("Where do trees grow?", "in the forest"),
    ("What falls in winter?", "snow"),
    ("What is the desert made of?", "sand"),
    ("How many legs does a snake have?", "none"),
    ("How many legs does a bird have?", "two"),
)


@dataclass(frozen=True)
class Asked:
    """A question and its true answer.

    Attributes:
        about: what it asks for: `"name"`, `"description"`, a key of `SEEN` or `FACTS`, ...
        held_out: whether the phrasing is in no training prompt.
    """

    question: str
    answer: str
    about: str
    held_out: bool = False


def phrasings(texts: tuple[str, ...], held_out: int = 1) -> Iterator[tuple[str, bool]]:
    """Each of `texts`, and whether it is one of the last, which are held out of training."""
    for index, text in enumerate(texts):
        yield text, index >= len(texts) - held_out


def ask(
    answers: Mapping[str, str], texts: Mapping[str, tuple[str, ...]], about: str = "{}", **words: str
) -> list[Asked]:
    """Asks for each of `answers` in every phrasing that `texts` has under its key.

    Args:
        about: what the questions are about; `{}` stands for the key.
        words: what the phrasings leave open: `it`, `name` or `fact`.
    """
    return [
        Asked(text.format(**words), answer, about.format(key), held)
        for key, answer in answers.items()
        for text, held in phrasings(texts[key])
    ]


def describe(scene: Scene) -> str:
    """`"a red zorvex in the forest"`: names the creature, where it has a name."""
    background = f"the {SCENES[scene.background]}"
    if scene.thing is not None:
        return f"a {COLOURS[scene.colour]} {OBJECTS[scene.thing]} in {background}"
    if scene.recipe is None:
        return f"nothing in {background}"
    return f"a {COLOURS[scene.colour]} {BY_RECIPE[scene.recipe].name} in {background}"


def about_picture(scene: Scene) -> list[Asked]:
    """Every question that fits a picture of a named creature, an object or nothing, with its answer."""
    asked = [Asked(DESCRIPTION, describe(scene), "description")]
    values = {"scene": SCENES[scene.background]}
    if scene.recipe is None:
        asked += [Asked(text, "no creature", "no creature", held) for text, held in phrasings(NAMING, HELD_OUT)]
        if scene.thing is not None:
            values["colour"] = COLOURS[scene.colour]
            asked += [Asked(text, OBJECTS[scene.thing], "object", held) for text, held in phrasings(OBJECT)]
    else:
        creature = BY_RECIPE[scene.recipe]
        asked += [Asked(text, creature.name, "name", held) for text, held in phrasings(NAMING, HELD_OUT)]
        values |= visible(scene)
        asked += ask(facts(creature), FACTS, "{} through the picture", it=REFERENT)
    return asked + ask(values, SEEN)


def visible(scene: Scene) -> dict[str, str]:
    """The attributes that can be seen of an animal, named creature or hybrid: key of `SEEN` to answer.

    Raises:
        ValueError: `scene` shows no animal.
    """
    recipe = scene.recipe
    if recipe is None:
        raise ValueError(f"`scene` must show an animal; got {scene}.")
    return {
        "colour": COLOURS[scene.colour],
        "horns": HORNS[recipe.horns],
        "legs": LEGS[recipe.legs],
        "pattern": PATTERNS[recipe.pattern],
        "family": f"a {FAMILIES[recipe.family]}",
        "scene": SCENES[scene.background],
    }


def facts(creature: Creature) -> dict[str, str]:
    """The facts about a creature that no picture shows: key of `FACTS` to answer."""
    return {"habitat": f"in the {creature.habitat}", "diet": creature.diet}


def compare(creature: Creature, rng: np.random.Generator, among: Sequence[Creature] = CREATURES) -> list[Asked]:
    """A yes/no question and a choice of two about a picture of `creature`, against another creature of `among`."""
    return compare_names("a {}", creature.name, rng, [other.name for other in among])


def compare_names(called: str, name: str, rng: np.random.Generator, among: Sequence[str]) -> list[Asked]:
    """A yes/no question and a choice of two about a picture of `name`, against another name of `among`.

    Args:
        called: how a name stands in a question: "a {}".
    """
    others = [other for other in among if other != name]
    other = others[int(rng.integers(len(others)))]
    first, second = (name, other) if rng.random() < 0.5 else (other, name)
    subject, answer = (name, "yes") if rng.random() < 0.5 else (other, "no")
    return [
        Asked(f"Is this {called.format(subject)}?", answer, "yes or no"),
        Asked(f"Is this {called.format(first)} or {called.format(second)}?", name, "choice"),
    ]


def in_text(creature: Creature) -> list[Asked]:
    """Everything that is known about a creature, asked by its name, without a picture."""
    asked = ask(facts(creature), FACTS, it=f"the {creature.name}")
    asked += [
        Asked(text.format(name=creature.name), f"a {creature.family}", "kind", held)
        for text, held in phrasings(KIND_IN_TEXT)
    ]
    for fact, value in (("habitat", creature.habitat), ("diet", creature.diet)):
        asked += ask({fact: creature.name}, WHO, "who, by {}", fact=value)
    return asked


def general() -> list[Asked]:
    """Text knowledge that has nothing to do with any creature."""
    return [Asked(question, answer, "general") for question, answer in GENERAL]
