"""Questions whose true answers are known, which an evaluation can be held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from ..concepts import Concept, PublicImages
from ..untrusted import is_texts
from ..vlm import Prompt

Task = Literal["name", "attributes", "facts", "choice", "cloze", "generation"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class Example:
    """A question with its true answer.

    Attributes:
        question: what is asked.
        answer: the true answer.
        image: the picture it is asked about; `None` for a question in text alone.
        concept: what the picture shows, or whom the text is about; `None` for general knowledge.
        task: "name": `answer` is what the concept is called; "attributes": what can be seen; "facts": what cannot;
            "choice": `answer` is one of `options`; "cloze": a word for a gap; "generation": a text to compare with.
        aliases: other right answers.
        options: what may be chosen from, as it stands in the question.
        paraphrase: the right answer in other words, for the truth ratio.
        perturbed: wrong answers of the same form, for the truth ratio.

    Raises:
        ValueError: question or answer is empty, something is no text, the task is unknown, or the answer is not among
            the options.
    """

    question: str
    answer: str
    image: Image.Image | None = None
    concept: str | None = None
    task: Task = "name"
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    paraphrase: str | None = None
    perturbed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{name}` must be a non-empty string; got {value!r}.")
        for name in ("concept", "paraphrase"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"`{name}` must be a string or `None`; got {getattr(self, name)!r}.")
        for name in ("aliases", "options", "perturbed"):
            if not is_texts(getattr(self, name)):
                raise ValueError(f"`{name}` must be a tuple of strings; got {getattr(self, name)!r}.")
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}; got {self.task!r}.")
        if (self.task == "choice") is not bool(self.options) or (self.options and self.answer not in self.options):
            raise ValueError(
                f'`options` must hold the answer where the task is "choice", and be empty elsewhere; got '
                f"{self.options!r} for {self.answer!r}."
            )

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.question, self.image)

    @property
    def right(self) -> tuple[str, ...]:
        """Every answer that is right."""
        return (self.answer, *self.aliases)

    def is_about(self, concept: Concept) -> bool:
        """Whether it is about `concept`, by one of its names."""
        names = {name.casefold() for name in concept.names}
        return self.concept is not None and self.concept.casefold() in names


@dataclass(frozen=True)
class EvaluatedSet:
    """Labelled questions to evaluate on.

    Attributes:
        examples: the questions.
        name: where they come from, for the report.
    """

    examples: tuple[Example, ...]
    name: str | None = field(default=None)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __add__(self, other: EvaluatedSet) -> EvaluatedSet:
        names = dict.fromkeys(name for name in (self.name, other.name) if name)
        return EvaluatedSet(self.examples + other.examples, " + ".join(names) or None)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Everything that some question is about, each once."""
        return tuple(dict.fromkeys(example.concept for example in self.examples if example.concept is not None))

    def split(self, concept: Concept) -> tuple[list[Example], list[Example]]:
        """Those about the concept, and all others."""
        about = [example for example in self.examples if example.is_about(concept)]
        return about, [example for example in self.examples if not example.is_about(concept)]

    def pictures(self, concepts: Sequence[str] | Concept) -> PublicImages:
        """The pictures of these concepts, each once."""
        names = concepts.names if isinstance(concepts, Concept) else concepts
        wanted = {name.casefold() for name in names}
        images = {
            id(example.image): example.image
            for example in self.examples
            if example.image is not None and example.concept is not None and example.concept.casefold() in wanted
        }
        return PublicImages(tuple(images.values()), tuple(map(str, range(len(images)))))
