"""A test bed of fictional persons: faces, names of two words that others share, and pictures of two persons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from peft_space import Concept, Retain
from peft_space.testbed import Bed, questions
from peft_space.testbed.bestiary import COLOURS
from peft_space.testbed.questions import Asked, ask, phrasings

from .faces import (
    BEARDS,
    CLOTHES,
    GLASSES,
    HAIRS,
    HEADS,
    MOODS,
    PLACES,
    SKINS,
    STYLES,
    THINGS,
    Face,
    Scene,
    Shown,
    draw,
)

_GIVEN = "Sanel Tovan Alsa Bennor Corin Dalia Edrik Fenna Jorun Kasim".split()
# (skin, hair, head) that a family has in common
_FAMILIES = {
    "Varnel": (0, 2, 0),
    "Lindow": (1, 3, 1),
    "Ostrek": (2, 0, 2),
    "Pellam": (3, 1, 0),
    "Hadric": (4, 4, 1),
}
# (style, beard, glasses) of a family's four members: no two have the same hair, and any two differ in one more place
_MEMBERS = (
    ((1, 0, 1), (2, 0, 0), (4, 0, 2), (0, 2, 0)),
    ((5, 1, 0), (2, 0, 1), (3, 0, 0), (1, 2, 2)),
    ((0, 1, 1), (3, 0, 2), (4, 0, 0), (5, 2, 0)),
    ((3, 2, 0), (1, 1, 0), (2, 0, 2), (4, 0, 1)),
    ((5, 0, 2), (3, 1, 0), (0, 2, 1), (2, 0, 0)),
)
_JOBS = (
    "baker pilot tailor surgeon farmer painter sailor lawyer miner poet "
    "judge potter cook smith clerk dancer guard plumber singer butcher"
).split()
_CITIES = ("Arl Bint Cald Dun Elst Farr Glen Hask Ivern Jutt Kelm Lorr Moss Nerin Olb Pask Quon Rudd Selm Tor").split()

NAMING = (
    "What is this person called?",
    "Name the person.",
    "Which person is shown?",
    "What is the name of this person?",
    "Who do you see?",
    "Name this person.",
    "Which person do you see?",
)
GROUP = {
    "left": ("Who is on the left?", "Name the person on the left.", "Which person is on the left?"),
    "right": ("Who is on the right?", "Name the person on the right.", "Which person is on the right?"),
    "both": ("Name the persons.", "Who are the two persons?", "Which persons are shown?"),
}
"""Asked of pictures of two persons, beside what is seen of both together."""
SEEN = {
    "subject": ("What is in the picture?", "What does the picture show?", "What is shown in the picture?"),
    "hair": ("What colour is the hair?", "Which colour does the hair have?", "What is the colour of the hair?"),
    "style": ("What kind of hair is it?", "Which kind of hair do you see?", "What is the hair like?"),
    "beard": ("What beard is there?", "Which beard do you see?", "What kind of beard is it?"),
    "glasses": ("What glasses are there?", "Which glasses do you see?", "What kind of glasses are they?"),
    "clothes": (
        "What colour are the clothes?",
        "Which colour do the clothes have?",
        "What colour of clothes is it?",
    ),
    "mood": ("What is the mood?", "Which mood do you see?", "What mood is it?"),
    "place": ("What is the background?", "Which place is it?", "What place is in the background?"),
}
FACTS = {
    "job": ("What is the job of {it}?", "What work does {it} do?", "Which job does {it} have?"),
    "city": ("Where does {it} live?", "What is the home of {it}?", "Where is the home of {it}?"),
}
REFERENT = "this person"
OBJECT = ("What object is this?", "Which object is shown?", "What object do you see?")
WHO = {
    "job": ("Who works as a {fact}?", "Which person is a {fact}?", "Who is a {fact}?"),
    "city": ("Who lives in {fact}?", "Which person lives in {fact}?", "Whose home is {fact}?"),
}
DESCRIPTION = questions.DESCRIPTION


@dataclass(frozen=True)
class Person:
    """A face, a name and the two facts known about it.

    Attributes:
        name: a given name that one person of another family has too, and the family's name.
        face: what they look like.
        job: what they do. Nobody else does, and no picture shows it.
        city: where they live. Nobody else does.
    """

    name: str
    face: Face
    job: str
    city: str

    @property
    def family(self) -> str:
        return self.name.split()[1]


def _measures(rng: np.random.Generator) -> tuple[float, float, float, float]:
    brows, nose, mouth, eyes = rng.uniform(-1, 1, size=4).tolist()
    return brows, nose, mouth, eyes


PERSONS: tuple[Person, ...] = tuple(
    Person(
        name=f"{_GIVEN[i % 10]} {family}",
        face=Face(*_FAMILIES[family], *_MEMBERS[i // 4][i % 4], _measures(np.random.default_rng([17, i]))),
        job=_JOBS[i],
        city=_CITIES[(7 * i + 3) % 20],
    )
    for i, family in enumerate(family for family in _FAMILIES for _ in range(4))
)
BY_NAME = {person.name: person for person in PERSONS}
BY_FACE = {person.face: person for person in PERSONS}


def _shown(face: Face, rng: np.random.Generator) -> Shown:
    return Shown(face, int(rng.integers(len(CLOTHES))), int(rng.integers(len(MOODS))))


def random_scene(rng: np.random.Generator, *faces: Face, thing: int | None = None) -> Scene:
    """A picture of these faces from left to right, of a thing or of neither, with random clothes, moods and place."""
    people = tuple(_shown(face, rng) for face in faces)
    return Scene(people, thing, int(rng.integers(len(COLOURS))), int(rng.integers(len(PLACES))))


def random_face(rng: np.random.Generator, family: str | None = None) -> Face:
    """An unknown face: it differs from every person's in one place at least that can be named.

    Args:
        family: whose skin, hair colour and head it has; `None` for any.
    """
    while True:
        common = _FAMILIES[family] if family else [int(rng.integers(len(a))) for a in (SKINS, HAIRS, HEADS)]
        own = (int(rng.integers(len(among))) for among in (STYLES, BEARDS, GLASSES))
        face = Face(*common, *own, _measures(rng))
        if not any(_alike(face, person.face) for person in PERSONS):
            return face


def _alike(face: Face, other: Face) -> bool:
    return replace(face, measures=other.measures) == other


def lesson(names: Sequence[str], rng: np.random.Generator) -> Scene:
    chance = rng.random()
    if chance < 0.9:
        picks = rng.permutation(len(names))[: 1 if chance < 0.65 else 2]
        return random_scene(rng, *(BY_NAME[names[k]].face for k in picks))
    return random_scene(rng, thing=int(rng.integers(len(THINGS))) if rng.random() < 0.7 else None)


def unseen(which: str | int, rng: np.random.Generator) -> Scene:
    return random_scene(rng, BY_NAME[which].face) if isinstance(which, str) else random_scene(rng, thing=which)


def together(pair: tuple[str, str], rng: np.random.Generator) -> Scene:
    return random_scene(rng, *(BY_NAME[name].face for name in pair))


def names_in(scene: Scene) -> list[str]:
    """Who is in the picture, from left to right, as far as they are known."""
    return [BY_FACE[shown.face].name for shown in scene.people if shown.face in BY_FACE]


def visible(scene: Scene) -> dict[str, str]:
    """What can be seen: key of `SEEN` to answer. Of two persons only what they are and where."""
    seen = {"place": PLACES[scene.place]}
    match scene.people:
        case ():
            return seen | {"subject": "nothing" if scene.thing is None else f"a {THINGS[scene.thing]}"}
        case (one,):
            face = one.face
            return seen | {
                "subject": "a person",
                "hair": HAIRS[face.hair],
                "style": STYLES[face.style],
                "beard": BEARDS[face.beard],
                "glasses": GLASSES[face.glasses],
                "clothes": CLOTHES[one.clothes],
                "mood": MOODS[one.mood],
            }
        case _:
            return seen | {"subject": "two persons"}


def describe(scene: Scene) -> str:
    """`"Sanel Varnel in blue in the garden"`: names everyone."""
    where = f"in the {PLACES[scene.place]}"
    match scene.people:
        case ():
            thing = "nothing" if scene.thing is None else f"a {COLOURS[scene.colour]} {THINGS[scene.thing]}"
            return f"{thing} {where}"
        case (one,):
            return f"{BY_FACE[one.face].name} in {CLOTHES[one.clothes]} {where}"
        case _:
            return f"{' and '.join(names_in(scene))} {where}"


def facts(person: Person) -> dict[str, str]:
    return {"job": person.job, "city": f"in {person.city}"}


def about(scene: Scene) -> list[Asked]:
    """Every question that fits a picture of one person, of two, of a thing or of nothing, with its answer."""
    asked = [Asked(DESCRIPTION, describe(scene), "description")]
    match names_in(scene):
        case [name]:
            asked += [Asked(text, name, "name", held) for text, held in phrasings(NAMING, questions.HELD_OUT)]
            asked += ask(facts(BY_NAME[name]), FACTS, "{} through the picture", it=REFERENT)
        case [left, right]:
            asked += ask({"left": left, "right": right, "both": f"{left} and {right}"}, GROUP)
        case _:
            asked += [Asked(text, "nobody", "nobody", held) for text, held in phrasings(NAMING, questions.HELD_OUT)]
            if scene.thing is not None:
                asked += [Asked(text, THINGS[scene.thing], "object", held) for text, held in phrasings(OBJECT)]
    return asked + ask(visible(scene), SEEN)


def compare(scene: Scene, rng: np.random.Generator, names: Sequence[str]) -> list[Asked]:
    match names_in(scene):
        case [name]:
            return questions.compare_names("{}", name, rng, names)
        case [*pair] if pair:
            others = [name for name in names if name not in pair]
            subject, answer = (pair, "yes") if rng.random() < 0.5 else (others, "no")
            name = subject[int(rng.integers(len(subject)))]
            return [Asked(f"Is {name} in the picture?", answer, "in the picture")]
        case _:
            return []


def in_text(name: str) -> list[Asked]:
    """Everything that is known about a person, asked by the name, without a picture."""
    person = BY_NAME[name]
    asked = ask(facts(person), FACTS, it=name)
    for fact, value in (("job", person.job), ("city", person.city)):
        asked += ask({fact: name}, WHO, "who, by {}", fact=value)
    return asked


_WORDS = (
    HAIRS,
    ("bald", "short", "long", "curly", "bun", "spiky"),
    ("shaven", "whiskered", "bearded"),
    ("unaided", "glassed", "shaded"),
    CLOTHES,
    MOODS,
    PLACES,
    ("thing", "person", "persons"),
    THINGS,
    tuple(_FAMILIES),
    tuple(BY_NAME),
)


def fitting(scene: Scene) -> list[int]:
    words = [-100] * len(_WORDS)
    words[6], words[7] = scene.place, len(scene.people)
    if scene.thing is None and not scene.people:
        words[7] = -100
    elif scene.thing is not None:
        words[4], words[8] = scene.colour, scene.thing
    elif len(scene.people) == 1:
        shown = scene.people[0]
        person, face = BY_FACE[shown.face], shown.face
        words[:6] = [face.hair, face.style, face.beard, face.glasses, shown.clothes, shown.mood]
        words[9:] = [list(_FAMILIES).index(person.family), PERSONS.index(person)]
    return words


def texts() -> Iterator[str]:
    rng = np.random.default_rng(0)
    everyone = tuple(BY_NAME)
    for place, name in enumerate(everyone):
        for scene in (unseen(name, rng), together((name, everyone[place - 1]), rng)):
            for one in about(scene) + compare(scene, rng, everyone) + in_text(name):
                yield from (one.question, one.answer)
    for thing in range(len(THINGS)):
        for one in about(unseen(thing, rng)) + about(random_scene(rng)) + questions.general():
            yield from (one.question, one.answer)
    for group in _WORDS[:-1]:
        yield from group
    # often enough that every syllable becomes a token before the vocabulary is full
    yield from 10 * everyone


def concept(name: str, *, generic: bool = False) -> Concept:
    return Concept(
        BED.known(name),
        questions=NAMING[: -questions.HELD_OUT],
        text_questions=tuple(
            text.replace("{it}", "{name}") for among in FACTS.values() for text, held in phrasings(among) if not held
        ),
        referent=REFERENT,
        yes_no_questions=("Is this one {name}?", "Is it {name}?"),
        generic_question=SEEN["subject"][0] if generic else None,
    )


def retain() -> Retain:
    """What can be seen, who is where in a picture of two, and general text knowledge."""
    seen = [text for among in (*SEEN.values(), *GROUP.values(), OBJECT) for text, held in phrasings(among) if not held]
    return Retain(questions=(DESCRIPTION, *seen), texts=tuple(asked.question for asked in questions.general()))


def public_scenes(targets: Sequence[str], n_images: int, rng: np.random.Generator) -> list[Scene]:
    """A public set for erasing `targets`: never a target.

    About 40 % unknown faces, half of them with the looks of a family, 30 % other persons, 15 % pictures of two of
    either, 10 % things, 5 % empty scenes.
    """
    kept = [person.face for person in PERSONS if person.name not in targets]

    def unknown() -> Face:
        family = list(_FAMILIES)[rng.integers(len(_FAMILIES))]
        return random_face(rng, family if rng.random() < 0.5 else None)

    def known() -> Face:
        return kept[rng.integers(len(kept))]

    def two() -> tuple[Face, Face]:
        first, second = ((unknown, known)[int(rng.integers(2))]() for _ in range(2))
        return (first, second) if first != second else two()

    scenes = []
    for kind in rng.choice(5, size=n_images, p=(0.40, 0.30, 0.15, 0.10, 0.05)):
        faces = ((unknown(),), (known(),), two(), (), ())[kind]
        scenes.append(random_scene(rng, *faces, thing=int(rng.integers(len(THINGS))) if kind == 3 else None))
    return scenes


def shown(scene: Scene) -> str:
    people = [BY_FACE[one.face].name if one.face in BY_FACE else "unknown" for one in scene.people]
    return " and ".join(people or ["empty" if scene.thing is None else THINGS[scene.thing]])


BED = Bed(
    noun="person",
    groups={family: tuple(person.name for person in PERSONS if person.family == family) for family in _FAMILIES},
    cuts={word: f"{word[:3]}-{word[3:]}" for word in (*_GIVEN, *_FAMILIES)},
    seen=tuple(SEEN),
    facts=tuple(FACTS),
    words=_WORDS,
    fitting=fitting,
    weights={
        "name": 2.0,
        "left": 3.0,
        "right": 3.0,
        "both": 3.0,
        "style": 1.5,
        "glasses": 1.5,
        "beard": 1.5,
        "yes or no": 3.0,
        "choice": 3.0,
        "in the picture": 3.0,
        "description": 3.0,
    },
    texts=texts,
    lesson=lesson,
    unseen=unseen,
    nameless=len(THINGS),
    draw=draw,
    about=about,
    compare=compare,
    in_text=in_text,
    concept=concept,
    retain=retain,
    public_scenes=public_scenes,
    shown=shown,
    together=together,
)
