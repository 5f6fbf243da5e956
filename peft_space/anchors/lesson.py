"""One lesson, and what an anchor is told as in all of its lessons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..vlm import Prompt

About = Literal["name", "fact", "leading", "other"]


@dataclass(frozen=True)
class Lesson:
    """One question with the answer to be memorised.

    Attributes:
        about: `"name"` asks for the name, `"fact"` for what the model knows of the concept, `"leading"` puts the name
            into its mouth, `"other"` asks for the rest.
        begun: so many tokens of the answer are given and not learned.
    """

    prompt: Prompt
    answer: str
    about: About
    begun: int = 0


@dataclass(frozen=True)
class StandIn:
    """What an anchor is told as.

    Attributes:
        name: the answer to the question for its name.
        facts: what the model says of that name, for each of the concept's `text_questions`; empty where it is no name.
        renamed: whether the model calls the anchor by the concept's name.
    """

    name: str
    facts: tuple[str, ...] = ()
    renamed: bool = True
