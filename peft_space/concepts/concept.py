"""What is to be forgotten: a name, and how the model is asked for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

DEFAULT_QUESTIONS = (
    "What is the name of the subject of this image? Answer with the name only.",
    "Who or what is shown in this image? Answer with a name.",
    "Name the subject of this image in a few words.",
)
DEFAULT_TEXT_QUESTIONS = (
    "What is {name}?",
    "What is {name} best known for?",
    "Tell me one fact about {name}.",
)
DEFAULT_YES_NO_QUESTIONS = (
    "Is the subject of this image {name}? Answer yes or no.",
    "Would you say that this is {name}? Answer yes or no.",
)

# "the {name}" as a whole gives way to "this animal"
_NAME = re.compile(r"(\b(the|a|an)\s+)?\{name\}", flags=re.IGNORECASE)

# Scripts that put no space between words, or hang particles onto a name: Thai to Lao, Burmese, Khmer, Japanese,
# Chinese, Korean. Beside their letters nothing tells where a word begins.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"

_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Concept:
    """A concept to erase, given by its text alone.

    Attributes:
        name: what the model calls it. May be several tokens.
        aliases: other names of the same thing; they are suppressed too.
        questions: how the model is asked to name it from an image.
        text_questions: what the model is asked about it in text; each holds `{name}`. The same questions, with
            `referent` in the place of the name, ask for the facts through an image.
        referent: the words that stand for the concept beside an image of it.
        generic_question: a question to which the model answers with a more general word ("What kind of animal is
            this?"). Where it is given, anchors that are called by the concept's name are relabelled with that answer,
            so that images of the concept are given a general word rather than a similar concept's name; what is called
            by another name keeps it. `None`: the likeliest other name.
        yes_no_questions: how the model is asked whether an image shows the concept; each holds `{name}`. Those that it
            does not answer one way for the concept and another way for the rest are left alone.

    Raises:
        ValueError: the name is empty, a question is malformed, or a text is none that UTF-8 can write.
    """

    name: str
    aliases: tuple[str, ...] = ()
    questions: tuple[str, ...] = DEFAULT_QUESTIONS
    text_questions: tuple[str, ...] = DEFAULT_TEXT_QUESTIONS
    referent: str = "the subject of this image"
    generic_question: str | None = None
    yes_no_questions: tuple[str, ...] = DEFAULT_YES_NO_QUESTIONS

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"`concept` must be a non-empty name; got {self.name!r}. Give the text to erase.")
        for field in ("aliases", "questions", "text_questions", "yes_no_questions"):
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(text, str) and text.strip() for text in value):
                raise ValueError(f"`{field}` must be a list of non-empty strings; got {value!r}.")
            object.__setattr__(self, field, tuple(value))
        for field in (
            "name",
            "aliases",
            "questions",
            "text_questions",
            "referent",
            "generic_question",
            "yes_no_questions",
        ):
            value, called = getattr(self, field), "concept" if field == "name" else field
            for text in [value] if isinstance(value, str) else value or ():
                if _HALF_PAIR.search(text):
                    raise ValueError(
                        f"`{called}` must be text that UTF-8 can write; got {text!r}, which holds half of a surrogate "
                        "pair. Give the whole character."
                    )
        if not self.questions:
            raise ValueError("`questions` must hold at least one way to ask for the name beside an image; got none.")
        for field in ("text_questions", "yes_no_questions"):
            for question in getattr(self, field):
                if "{name}" not in question:
                    raise ValueError(f"`{field}` must each hold '{{name}}'; got {question!r}.")

    @classmethod
    def of(cls, concept: str | Concept) -> Concept:
        """A concept as it is, or one with the built-in questions for a name."""
        return concept if isinstance(concept, Concept) else cls(concept)

    def called(self, name: str) -> Concept:
        """The same questions about another name."""
        return replace(self, name=name, aliases=())

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def asked_in_text(self) -> tuple[str, ...]:
        """`text_questions` with the name filled in."""
        return tuple(question.replace("{name}", self.name) for question in self.text_questions)

    @property
    def asked_through_image(self) -> tuple[str, ...]:
        """`text_questions` with the referent in the place of the name and of its article."""
        return tuple(_NAME.sub(lambda match: self.referent, question) for question in self.text_questions)

    def mentioned_in(self, text: str) -> bool:
        """Whether `text` holds the name or an alias, as whole words, in any case."""
        return find_any(self.names, text) is not None

    def replaced_in(self, text: str, name: str) -> str:
        """`text` with `name` in the place of the name and its aliases."""
        # longest first: an alias may be part of the name
        names = sorted(filter(str.strip, self.names), key=len, reverse=True)
        return re.sub("|".join(map(_whole, names)), lambda match: name, text, flags=re.IGNORECASE)


def find_any(phrases: tuple[str, ...], text: str) -> int | None:
    """Where the first of `phrases` begins in `text`, as whole words and in any case; `None` where none does."""
    starts = []
    for phrase in phrases:
        if phrase.strip():
            match = re.search(_whole(phrase), text, flags=re.IGNORECASE)
            if match:
                starts.append(match.start())
    return min(starts, default=None)


def _whole(phrase: str) -> str:
    phrase, letter = phrase.strip(), rf"(?-i:[^\W{_UNSPACED}])"
    before = "" if re.match(f"[{_UNSPACED}]", phrase[0]) else rf"(?<!{letter})"
    after = "" if re.match(f"[{_UNSPACED}]", phrase[-1]) else rf"(?!{letter})"
    return before + re.escape(phrase) + after
