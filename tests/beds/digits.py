"""A test bed of real images: handwritten digits, called by invented names, on drawn paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from peft_space import Concept, Retain
from peft_space.testbed import Bed, questions
from peft_space.testbed.questions import Asked, ask, phrasings

from .handwriting import FRAMES, INKS, PAPERS, PLACES, THINGS, Scene, digit_of, draw, looks_like, samples

# by the stroke they share: which digits are near each other
KINDS = {"ring": (0, 6, 9), "bow": (2, 3, 5, 8), "stroke": (1, 4, 7)}
_FIRST = ("hab", "rin", "sol", "dev", "mup")
_SECOND = ("ket", "orn", "ulf", "zan", "ibs")
_GUILDS = "bakers sailors weavers smiths gardeners tailors miners masons potters farmers".split()
_DOORS = "cellar attic stable chapel bakery prison library kitchen barn windmill".split()

NAMING = (
    "What is this sign called?",
    "Name the sign.",
    "Which sign is shown?",
    "What is the name of this sign?",
    "What sign do you see?",
    "Name this sign.",
    "Which sign do you see?",
)
SEEN = {
    "ink": ("What colour is the ink?", "Which colour does the ink have?", "What is the colour of the ink?"),
    "paper": ("What paper is it on?", "Which paper is it?", "What kind of paper is it?"),
    "frame": ("What frame is around it?", "Which frame does it have?", "What is the frame around it?"),
    "place": ("Where on the paper is it?", "Which place on the paper does it have?", "Where is it on the paper?"),
    "kind": ("What kind of sign is this?", "Which kind of sign do you see?", "What kind is this sign?"),
}
FACTS = {
    "guild": ("Who uses {it}?", "Which people use {it}?", "What people use {it}?"),
    "door": ("What does {it} open?", "Which door does {it} open?", "What door is opened by {it}?"),
}
REFERENT = "this sign"
OBJECT = ("What picture is on the paper?", "Which picture is drawn?", "What picture do you see?")
KIND_IN_TEXT = ("What kind of sign is the {name}?", "Which kind of sign is the {name}?", "What kind is the {name}?")
WHO = {
    "guild": ("Which sign do {fact} use?", "What sign is used by {fact}?", "What sign do {fact} use?"),
    "door": ("Which sign opens the {fact}?", "What sign is for the {fact}?", "What sign opens the {fact}?"),
}
DESCRIPTION = questions.DESCRIPTION


@dataclass(frozen=True)
class Sign:
    """A digit under an invented name, and the two facts known about it.

    Attributes:
        name: two syllables; each also begins or ends a sign of another kind.
        digit: 0 to 9.
        kind: key of `KINDS`.
        guild: who uses it. Nobody else does, and no picture shows it.
        door: what it opens. Nothing else opens it.
    """

    name: str
    digit: int
    kind: str
    guild: str
    door: str


SIGNS: tuple[Sign, ...] = tuple(
    Sign(
        name=_FIRST[i % 5] + _SECOND[3 * (i + i // 5) % 5],
        digit=digit,
        kind=kind,
        guild=_GUILDS[i],
        door=_DOORS[(7 * i + 3) % 10],
    )
    # the syllables come round after five
    for i, (digit, kind) in enumerate((digit, kind) for kind, digits in KINDS.items() for digit in digits)
)
BY_NAME = {sign.name: sign for sign in SIGNS}
BY_DIGIT = {sign.digit: sign for sign in SIGNS}


def sign_of(scene: Scene) -> Sign | None:
    """The sign that a picture shows; `None` for a hybrid and where nothing is written."""
    return None if scene.digit is None else BY_DIGIT[scene.digit]


def random_scene(rng: np.random.Generator, written: tuple[int, int] | None = None, thing: int | None = None) -> Scene:
    """A picture of two halves of samples, or of a thing, or of neither, with random ink, paper, frame and place."""
    upper, lower = written or (None, None)
    ink, paper, frame, place = (int(rng.integers(len(among))) for among in (INKS, PAPERS, FRAMES, PLACES))
    return Scene(upper, lower, thing, ink, paper, frame, place)


def _sample(rng: np.random.Generator, digit: int, split: str) -> int:
    among = samples(digit, split)
    return among[rng.integers(len(among))]


def lesson(names: Sequence[str], rng: np.random.Generator) -> Scene:
    if rng.random() < 0.9:
        sample = _sample(rng, BY_NAME[names[rng.integers(len(names))]].digit, "training")
        return random_scene(rng, (sample, sample))
    return random_scene(rng, thing=int(rng.integers(len(THINGS))) if rng.random() < 0.7 else None)


def unseen(which: str | int, rng: np.random.Generator) -> Scene:
    if isinstance(which, int):
        return random_scene(rng, thing=which)
    sample = _sample(rng, BY_NAME[which].digit, "exam")
    return random_scene(rng, (sample, sample))


def visible(scene: Scene) -> dict[str, str]:
    """What can be seen of a sign or a thing: key of `SEEN` to answer."""
    seen = {
        "ink": INKS[scene.ink],
        "paper": PAPERS[scene.paper],
        "frame": FRAMES[scene.frame],
        "place": PLACES[scene.place],
    }
    sign = sign_of(scene)
    return seen if sign is None else seen | {"kind": f"a {sign.kind}"}


def describe(scene: Scene) -> str:
    """`"a red habket on lined paper"`."""
    paper = f"on {PAPERS[scene.paper]} paper"
    sign = sign_of(scene)
    if sign is None and scene.thing is None:
        return f"nothing {paper}"
    article = "an" if INKS[scene.ink][0] == "o" else "a"
    return f"{article} {INKS[scene.ink]} {sign.name if sign else THINGS[scene.thing]} {paper}"


def facts(sign: Sign) -> dict[str, str]:
    return {"guild": sign.guild, "door": f"the {sign.door}"}


def about(scene: Scene) -> list[Asked]:
    """Every question that fits a picture of a sign, a thing or nothing, with its answer."""
    asked = [Asked(DESCRIPTION, describe(scene), "description")]
    sign = sign_of(scene)
    seen = visible(scene)
    if sign is not None:
        asked += [Asked(text, sign.name, "name", held) for text, held in phrasings(NAMING, questions.HELD_OUT)]
        asked += ask(facts(sign), FACTS, "{} through the picture", it=REFERENT)
    else:
        asked += [Asked(text, "no sign", "no sign", held) for text, held in phrasings(NAMING, questions.HELD_OUT)]
        if scene.thing is not None:
            asked += [Asked(text, THINGS[scene.thing], "object", held) for text, held in phrasings(OBJECT)]
        else:
            seen = {"paper": seen["paper"]}
    return asked + ask(seen, SEEN)


def compare(scene: Scene, rng: np.random.Generator, names: Sequence[str]) -> list[Asked]:
    sign = sign_of(scene)
    return [] if sign is None else questions.compare_names("a {}", sign.name, rng, names)


def in_text(name: str) -> list[Asked]:
    """Everything that is known about a sign, asked by its name, without a picture."""
    sign = BY_NAME[name]
    asked = ask(facts(sign), FACTS, it=f"the {name}")
    asked += [Asked(text.format(name=name), f"a {sign.kind}", "kind", held) for text, held in phrasings(KIND_IN_TEXT)]
    for fact, value in (("guild", sign.guild), ("door", sign.door)):
        asked += ask({fact: name}, WHO, "who, by {}", fact=value)
    return asked


_WORDS = (
    INKS,
    PAPERS,
    ("frameless", "ringed", "boxed"),
    PLACES,
    tuple(KINDS),
    THINGS,
    tuple(BY_NAME),
)


def fitting(scene: Scene) -> list[int]:
    sign = sign_of(scene)
    kind, name = (-100, -100) if sign is None else (list(KINDS).index(sign.kind), SIGNS.index(sign))
    ink, frame, place = (scene.ink, scene.frame, scene.place)
    if sign is None and scene.thing is None:
        ink, frame, place = -100, -100, -100
    return [ink, scene.paper, frame, place, kind, -100 if scene.thing is None else scene.thing, name]


def texts() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for name in BY_NAME:
        scene = unseen(name, rng)
        for one in about(scene) + compare(scene, rng, tuple(BY_NAME)) + in_text(name):
            yield from (one.question, one.answer)
    for thing in range(len(THINGS)):
        for one in about(unseen(thing, rng)) + about(random_scene(rng)) + questions.general():
            yield from (one.question, one.answer)
    for group in _WORDS[:-1]:
        yield from group


def concept(name: str, *, generic: bool = False) -> Concept:
    return Concept(
        BED.known(name),
        questions=NAMING[: -questions.HELD_OUT],
        text_questions=tuple(
            text.replace("{it}", "the {name}")
            for among in FACTS.values()
            for text, held in phrasings(among)
            if not held
        ),
        referent=REFERENT,
        yes_no_questions=questions.YES_NO,
        generic_question=SEEN["kind"][0] if generic else None,
    )


def retain() -> Retain:
    seen = [text for among in (*SEEN.values(), OBJECT) for text, held in phrasings(among) if not held]
    return Retain(questions=(DESCRIPTION, *seen), texts=tuple(asked.question for asked in questions.general()))


def public_scenes(targets: Sequence[str], n_images: int, rng: np.random.Generator) -> list[Scene]:
    """A public set for erasing `targets`, of handwriting that neither training nor exam has: never a target.

    About 45 % hybrids of two other signs, 40 % other signs, 10 % things, 5 % empty papers. A hybrid is left out where
    one of the real samples nearest to it is a target: the upper half of a 2 over the lower half of a 5 is a 3.
    """
    gone = {BY_NAME[target].digit for target in targets}
    kept = [sign.digit for sign in SIGNS if sign.digit not in gone]
    scenes = []
    for kind in rng.choice(4, size=n_images, p=(0.45, 0.40, 0.10, 0.05)):
        written = None
        if kind == 0:
            while written is None or digit_of(written[0]) == digit_of(written[1]) or looks_like(*written) & gone:
                upper, lower = (_sample(rng, kept[rng.integers(len(kept))], "public") for _ in range(2))
                written = upper, lower
        elif kind == 1:
            written = (_sample(rng, kept[rng.integers(len(kept))], "public"),) * 2
        scenes.append(random_scene(rng, written, int(rng.integers(len(THINGS))) if kind == 2 else None))
    return scenes


def shown(scene: Scene) -> str:
    if scene.thing is not None:
        return THINGS[scene.thing]
    sign = sign_of(scene)
    return sign.name if sign else "hybrid" if scene.upper is not None else "empty"


BED = Bed(
    noun="sign",
    groups={kind: tuple(sign.name for sign in SIGNS if sign.kind == kind) for kind in KINDS},
    cuts={name: f"{name[:3]}-{name[3:]}" for name in BY_NAME},
    seen=tuple(SEEN),
    facts=tuple(FACTS),
    words=_WORDS,
    fitting=fitting,
    weights={"name": 2.0, "kind": 1.5, "yes or no": 3.0, "choice": 3.0, "description": 3.0},
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
)
