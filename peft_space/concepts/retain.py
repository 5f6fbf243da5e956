"""What must stay as it is: pictures, what is asked about them, and text knowledge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .concept import Concept

DEFAULT_QUESTIONS = (
    "Describe this image in one sentence.",
    "What is the main colour in this image?",
    "What is in the background?",
    "How many objects can you see?",
    "What is happening here?",
)
DEFAULT_TEXTS = (
    "What is the opposite of hot?",
    "Name a fruit.",
    "What is two plus two?",
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short sentence about the sea.",
    "How do you boil an egg?",
    "What does a doctor do?",
    "Name three colours.",
    "What day comes after Monday?",
    "Explain what a computer is.",
    "Give me some advice on sleeping well.",
    "What is the largest planet?",
    "How many legs does a spider have?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
)


@dataclass(frozen=True)
class Retain:
    """What the update must not change. The model's own answers to all of it are kept, so no labels are needed.

    Attributes:
        images: a source of pictures as for `public_images`; `None` draws them from the public set, away from the
            anchors.
        questions: asked about each picture, beside the naming questions and the facts asked through it. Those that ask
            who is where ("Who is on the left?") are how an erasure reaches pictures of several.
        texts: prompts without a picture, beside the questions about every other name that the model came up with.
        n_images: how many pictures to use at most.
        questions_per_image: how many questions are drawn for each picture.
        protect: names that the erasure comes close to, a sibling's, say, or a `Concept` where the questions differ.
            Anchors are chosen for each as for the concept, and what the model says of them is retained.
        relatives: how many names are protected without being given: the most frequent of those that the model gives to
            public images and that share a word or a token with the concept's; and half as many more, with general
            answers as many, that it gives to the likeliest images which are no anchors. 0 protects none.
    """

    images: Any = None
    questions: tuple[str, ...] = DEFAULT_QUESTIONS
    texts: tuple[str, ...] = DEFAULT_TEXTS
    n_images: int = 256
    questions_per_image: int = 6
    protect: tuple[str | Concept, ...] = ()
    relatives: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.protect, (str, Concept)) or not all(
            isinstance(one, Concept) or (isinstance(one, str) and one.strip()) for one in self.protect
        ):
            raise ValueError(f"`retain.protect` must be a list of names or concepts; got {self.protect!r}.")
        object.__setattr__(self, "protect", tuple(self.protect))
        for name in ("questions", "texts"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(text, str) and text.strip() for text in value):
                raise ValueError(f"`retain.{name}` must be a list of non-empty strings; got {value!r}.")
            object.__setattr__(self, name, tuple(value))
        for name in ("n_images", "questions_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"`retain.{name}` must be at least 1; got {getattr(self, name)}.")
        if self.relatives < 0:
            raise ValueError(f"`retain.relatives` must not be negative; got {self.relatives}. 0 protects none.")
