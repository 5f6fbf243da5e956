"""The world of the test bed: fictional creatures, what can be seen of them, and what is known about them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAMILIES = ("ball", "snake", "bird", "fish", "beast", "star")
HORNS = ("none", "one", "two")
LEGS = ("none", "two", "four")
PATTERNS = ("plain", "striped", "spotted")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
SCENES = ("forest", "desert", "sea", "snow", "cave", "meadow")
OBJECTS = ("lamp", "boat", "house", "tree", "cup", "key", "clock", "flag")

_FIRST = ("zor", "mal", "qui", "bru", "tev", "lum", "gor", "pix", "nar", "seb", "dro", "kel")
_SECOND = ("vex", "dan", "lith", "mok", "ril", "phon", "bax", "tus", "wen", "gup", "zil", "ora")
_HABITATS = (
    "marsh canyon glacier orchard harbour volcano tundra swamp jungle reef tower quarry "
    "valley island steppe lagoon vineyard crater bog delta fjord garden mine temple"
).split()
_DIETS = (
    "moss honey shrimp bark clover salt algae berries nuts worms pollen seeds "
    "roots snails grain ants thistle figs mice olives pears ferns plums crabs"
).split()
# (horns, legs, pattern) of a family's four members: any two differ in at least two places, so that a member can be
# told from its siblings, and every mix of two siblings is a hybrid that carries no name.
_MEMBERS = (
    ((0, 1, 0), (1, 0, 2), (2, 2, 1), (1, 1, 1)),
    ((0, 0, 1), (1, 1, 0), (2, 2, 2), (2, 0, 0)),
    ((0, 1, 2), (1, 2, 1), (2, 1, 0), (0, 0, 0)),
    ((0, 2, 2), (1, 0, 1), (2, 1, 2), (1, 2, 0)),
    ((0, 2, 1), (1, 1, 2), (2, 0, 1), (0, 1, 0)),
    ((0, 2, 0), (1, 2, 2), (2, 1, 1), (1, 0, 0)),
)


@dataclass(frozen=True, order=True)
class Recipe:
    """What makes an animal the kind it is. Colour, scene, pose and light are free and tell nothing of the kind."""

    family: int
    horns: int
    legs: int
    pattern: int


@dataclass(frozen=True)
class Creature:
    """A named kind and the two facts known about it.

    Attributes:
        name: two syllables; each syllable also begins or ends a creature of another family, so that no single token
            identifies a name.
        recipe: what it looks like.
        habitat: where it lives. No other creature lives there, and no picture shows it.
        diet: what it eats. No other creature eats it.
    """

    name: str
    recipe: Recipe
    habitat: str
    diet: str

    @property
    def family(self) -> str:
        return FAMILIES[self.recipe.family]


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn in one picture, less the pose and the light.

    Attributes:
        recipe: the animal's recipe; `None` for a picture without one.
        thing: index into `OBJECTS`; `None` where there is an animal or nothing.
        colour: index into `COLOURS`, of the animal or the object.
        background: index into `SCENES`.
    """

    recipe: Recipe | None
    thing: int | None
    colour: int
    background: int


CREATURES: tuple[Creature, ...] = tuple(
    Creature(
        name=_FIRST[i % 12] + _SECOND[(5 * i + 3 * (i // 12)) % 12],
        recipe=Recipe(i // 4, *_MEMBERS[i // 4][i % 4]),
        habitat=_HABITATS[i],
        diet=_DIETS[(7 * i + 3) % 24],
    )
    for i in range(24)
)
BY_NAME: dict[str, Creature] = {creature.name: creature for creature in CREATURES}
CUTS: dict[str, str] = {creature.name: f"{creature.name[:3]}-{creature.name[3:]}" for creature in CREATURES}
"""Each name with a hyphen between its syllables."""
BY_RECIPE: dict[Recipe, Creature] = {creature.recipe: creature for creature in CREATURES}
HYBRIDS: tuple[Recipe, ...] = tuple(
    recipe
    for recipe in (
        Recipe(*indices)
        for indices in itertools.product(
            range(len(FAMILIES)), range(len(HORNS)), range(len(LEGS)), range(len(PATTERNS))
        )
    )
    if recipe not in BY_RECIPE
)
"""Every recipe that no creature has: they are in no training image, only in public ones."""


def creature(name: str) -> Creature:
    """The creature of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in BY_NAME:
        raise ValueError(f"`name` must be one of the test bed's creatures, {', '.join(BY_NAME)}; got {name!r}.")
    return BY_NAME[name]


def siblings(name: str) -> tuple[Creature, ...]:
    """The other members of that creature's family."""
    one = creature(name)
    return tuple(other for other in CREATURES if other.family == one.family and other is not one)


def random_scene(rng: np.random.Generator, recipe: Recipe | None = None, thing: int | None = None) -> Scene:
    """A picture of `recipe` or `thing` (or of neither) in a random colour before a random background."""
    return Scene(recipe, thing, int(rng.integers(len(COLOURS))), int(rng.integers(len(SCENES))))


def public_scenes(targets: Sequence[str], n_images: int, rng: np.random.Generator) -> list[Scene]:
    """A public set for erasing `targets`: hybrids, retained creatures, objects and empty scenes, and never a target.

    Args:
        targets: the creatures to erase.
        n_images: how many pictures: about 45 % hybrids, 40 % retained creatures, 10 % objects, 5 % empty scenes.
        rng: draws the kinds, colours and backgrounds.

    Returns:
        `n_images` scenes in random order.
    """
    gone = {creature(target).name for target in targets}
    retained = [other.recipe for other in CREATURES if other.name not in gone]
    scenes = []
    for kind in rng.choice(4, size=n_images, p=(0.45, 0.40, 0.10, 0.05)):
        pool = (HYBRIDS, retained)[kind] if kind < 2 else ()
        recipe = pool[rng.integers(len(pool))] if pool else None
        thing = int(rng.integers(len(OBJECTS))) if kind == 2 else None
        scenes.append(random_scene(rng, recipe, thing))
    return scenes
